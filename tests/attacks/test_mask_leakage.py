"""Public figures of small runs: what the classifier tells, what DP allows, and what figures are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from autoflip_secure.attacks import mask_leakage
from autoflip_secure.attacks.mask_leakage import FIGURES, public_figures, small_run
from autoflip_secure.attacks.settings import PrivacyProfile, charges_of
from autoflip_secure.attacks.world_guesses import pairs_told
from autoflip_secure.data.registry import load
from autoflip_secure.privacy.accounting import Mechanism


def made_up(draw: np.random.Generator, shift: float) -> dict[str, np.ndarray]:
    return {"many": draw.normal(size=500), "few": draw.normal(size=3) + shift, "same": np.ones(4)}


def test_a_few_telling_figures_are_found_beside_many_that_tell_nothing() -> None:
    draw = np.random.default_rng(0)
    pairs = [(made_up(draw, 0.0), made_up(draw, 3.0)) for _ in range(20)]
    for groups in (("many", "few", "same"), ("few",)):
        right, asked = pairs_told(pairs, groups)
        assert (right >= 14, asked) == (True, 16)


def test_worlds_that_are_alike_are_told_half_of_the_time() -> None:
    draw = np.random.default_rng(1)
    pairs = [(made_up(draw, 0.0), made_up(draw, 0.0)) for _ in range(104)]
    assert 33 <= pairs_told(pairs, ("many", "few"))[0] <= 67


def test_figures_that_are_the_same_everywhere_leave_a_coin() -> None:
    draw = np.random.default_rng(2)
    pairs = [(made_up(draw, 0.0), made_up(draw, 0.0)) for _ in range(104)]
    assert 30 <= pairs_told(pairs, ("same",))[0] <= 70


def test_the_bound_of_a_pair_is_what_its_best_test_attains() -> None:
    """Of one Gaussian with and without a record: the sign of the difference of two runs is right with this chance."""
    multiplier, draw = 1.5, np.random.default_rng(5)
    told = draw.normal(1.0, multiplier, 200_000) > draw.normal(0.0, multiplier, 200_000)
    bound = PrivacyProfile.of([[Mechanism(1.0, multiplier, 1)]], 1e-5).area()
    assert bound == pytest.approx(norm.cdf(1 / (multiplier * 2**0.5)), abs=2e-3)
    assert told.mean() == pytest.approx(bound, abs=5e-3)


def test_without_dp_runs_of_known_records_repeat_and_one_patient_changes_the_figures(tmp_path: Path) -> None:
    digits = load("digits", None, 0)
    without, with_patient = mask_leakage._one_patient(digits, np.random.default_rng(0))
    first, again, other = (
        public_figures(small_run(tmp_path / str(number), data, rounds=2))
        for number, data in enumerate((without, without, with_patient))
    )
    assert mask_leakage._same(first, again)
    assert not mask_leakage._same(first, other)


def test_under_dp_nothing_repeats_and_agreement_is_there(tmp_path: Path) -> None:
    digits = load("digits", None, 0)
    federation, _ = mask_leakage._one_patient(digits, np.random.default_rng(0))
    options = {**mask_leakage.UNDER_DP, "dp_epsilon": 1.0, "rounds": 3, "explore_rounds": 1}
    runs = [small_run(tmp_path / str(number), federation, **options) for number in range(2)]
    for run in runs:
        charges = charges_of(run.path)
        assert [sum(use.count for use in charged) for charged in charges] == [3] * mask_leakage.SILOS, "a step a round"
        proved = PrivacyProfile.of(charges, mask_leakage.DELTA)
        assert 0.5 < proved.epsilons[-1] <= 1
        assert 0.5 < proved.area() < 0.6, "the one pair that is promised would allow more than 0.7"
    first, again = (public_figures(run) for run in runs)
    for group in (*FIGURES, "model"):
        assert first[group].shape == again[group].shape
    assert first["agreement"].any()
    assert not mask_leakage._same(first, again)


def test_the_most_telling_kind_of_figures_is_chosen_from_pairs_that_are_known() -> None:
    draw = np.random.default_rng(3)
    pairs = [(made_up(draw, 0.0), made_up(draw, 3.0)) for _ in range(24)]
    right, asked = pairs_told(pairs, ("many",), ("few",))
    assert (right >= 16, asked) == (True, 20)


def test_a_row_under_dp_breaks_where_one_patient_is_told_too_well() -> None:
    draw = np.random.default_rng(4)
    pairs = [
        tuple({name: draw.normal(size=4) + shift for name in (*FIGURES, "model")} for shift in (0.0, 5.0))
        for _ in range(30)
    ]
    found = mask_leakage._outcome("one patient", "sum + DP 1", pairs, "made up", 0.57, "epsilon 1")  # type: ignore[arg-type]
    assert (found.verdict, found.trials) == ("broken", 26)
    assert "agreement alone 1.00" in found.note


def test_no_time_is_among_the_figures() -> None:
    line = {"round": 0, "agreement": 0.5, "seconds": 1.25, "aborts": 2, "drops": {}, "layers": [{"units": 8}]}
    assert mask_leakage._numbers([line], lambda name: name != "seconds").tolist() == [0.0, 0.5, 2.0, 8.0]


def test_games_differ_in_what_they_say() -> None:
    digits, draw = load("digits", None, 0), np.random.default_rng(0)
    without, half = mask_leakage._class_of_one(digits, draw)
    counts = [int((world.natural[0].records.y == mask_leakage.CLASS).sum()) for world in (without, half)]
    assert counts[0] == 0
    assert counts[1] > mask_leakage.RECORDS // 4
    worlds = mask_leakage._class_missing(digits, draw)
    for world, missing in zip(worlds, (mask_leakage.CLASS, mask_leakage.OTHER_CLASS), strict=True):
        assert all(missing not in silo.records.y for silo in world.natural)
    first, second = mask_leakage._one_patient(digits, draw)
    more = [len(b.records) - len(a.records) for a, b in zip(first.natural, second.natural, strict=True)]
    assert more == [1, 0, 0, 0, 0, 0]
