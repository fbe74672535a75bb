"""Differences of sums: the mathematics on made-up numbers, then real silos that are left out of a repeated round.

Which rules keep sums apart is shown by taking one out and seeing two silos' values come out of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.attacks import differences, retries
from autoflip_secure.attacks.common_guess import smallest_sums
from autoflip_secure.attacks.disaggregation import (
    class_counts,
    common_part,
    cosine,
    likely_classes,
    mean_parts,
    presence,
)
from autoflip_secure.attacks.forbidden_sums import HONEST_PAIR, forbidden_sums, parts_of_blocks
from autoflip_secure.attacks.hiding_coordinator import HidingCoordinator
from autoflip_secure.attacks.power_sums import found_pairs, pairs_solved, two_values
from autoflip_secure.attacks.settings import IN_BLOCKS
from autoflip_secure.data.registry import load
from autoflip_secure.federation.blocks import deal_blocks
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.rotation import determined
from autoflip_secure.federation.session import Session
from autoflip_secure.federation.terms import deviation_channel, update_channel
from autoflip_secure.parties.rules import SiloRules
from autoflip_secure.secagg import silo_round

SILOS, COORDINATES = 6, 40


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(3)


def some_absent(draw: np.random.Generator, sums: int) -> np.ndarray:
    return presence([tuple(draw.permutation(SILOS)[:4] + 1) for _ in range(sums)], SILOS)


# Who was absent


def test_constant_updates_come_out_of_sums_that_determine_them(draw: np.random.Generator) -> None:
    parts, present = draw.normal(size=(SILOS, COORDINATES)), some_absent(draw, 30)
    assert determined(present).all()
    np.testing.assert_allclose(mean_parts(present, present @ parts, ridge=1e-9), parts, atol=1e-5)


def test_where_nobody_is_absent_all_silos_get_the_same_part(draw: np.random.Generator) -> None:
    parts, present = draw.normal(size=(SILOS, COORDINATES)), np.ones((30, SILOS))
    assert not determined(present).any()
    np.testing.assert_allclose(mean_parts(present, present @ parts), np.tile(parts.mean(0), (SILOS, 1)), atol=1e-5)
    np.testing.assert_allclose(common_part(present, present @ parts), parts.mean(0))


def test_silos_that_are_always_together_are_not_told_apart(draw: np.random.Generator) -> None:
    parts = draw.normal(size=(SILOS, COORDINATES))
    present = presence([(1, 2, 3), (4, 5, 6)] * 20, SILOS)
    found = mean_parts(present, present @ parts)
    for cohort in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(found[cohort], np.tile(parts[cohort].mean(0), (3, 1)), atol=0.05)


def test_class_counts_come_out_although_the_model_moves(draw: np.random.Generator) -> None:
    counts, present = draw.integers(0, 9, (SILOS, 5)).astype(float), some_absent(draw, 30)
    signatures = [draw.normal(size=(5, int(length))) for length in draw.integers(20, 60, 30)]
    sums = [row @ counts @ signature for row, signature in zip(present, signatures, strict=True)]
    np.testing.assert_allclose(class_counts(present, signatures, sums, ridge=1e-9), counts, atol=1e-4)


def test_the_largest_counts_are_the_likely_classes() -> None:
    assert likely_classes(np.array([[0.0, 3.0, 1.0], [5.0, -1.0, 4.0]]), 2) == [{1, 2}, {0, 2}]


# Sum and squares


VALUES = st.floats(-1, 1, allow_subnormal=False)


@given(VALUES, VALUES)
def test_two_values_come_out_of_sum_and_squares(a: float, b: float) -> None:
    high, low = two_values(np.array([a + b]), np.array([a * a + b * b]))
    assert high[0] == pytest.approx(max(a, b), abs=1e-6)
    assert low[0] == pytest.approx(min(a, b), abs=1e-6)


def test_three_values_do_not_come_out_of_sum_and_squares() -> None:
    """What the rule leaves: different values of three silos have the same sum and squares."""
    one, other = np.array([0.0, 3.0, 3.0]), np.array([1.0, 1.0, 4.0])
    assert one.sum() == other.sum()
    assert (one**2).sum() == (other**2).sum()


def test_halving_the_sum_finds_no_pair_unless_both_are_alike(draw: np.random.Generator) -> None:
    vectors = [{"update": u, "deviation": u**2} for u in draw.normal(size=(5, 1000))]
    solved, halved = pairs_solved([*vectors, {"update": np.zeros(1000)}])
    assert len(solved) == 2
    assert min(solved) > 0.999
    assert max(halved) < 0.1


# Real silos


def test_real_silos_refuse_every_forbidden_sum(tmp_path: Path) -> None:
    tried = list(forbidden_sums(tmp_path / "federation", load("digits", None, 0)))
    assert [each.answered for each in tried] == [0] * 5
    assert [set(each.rules) for each in tried] == [{"minimum"}, {"minimum"}, {"run"}, {"cohorts"}, {"cohorts"}]


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Callable[..., HidingCoordinator]]:
    made: list[HidingCoordinator] = []

    def make(setting: str, **options: Any) -> HidingCoordinator:
        chosen = {"dataset": "digits", "model": "mlp", "partition": "pathological:2", "rounds": 8, **options}
        made.append(HidingCoordinator(tmp_path / str(len(made)), load("digits", None, 0), setting, chosen))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_without_the_rule_two_silos_values_come_out(coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule on sizes is in three places: secure sum, policy, and what the joined run opens."""
    monkeypatch.setattr(SiloRules, "least", lambda self, *_: self.minimum)
    monkeypatch.setattr(SiloPolicy, "_size_refusals", lambda *_: iter(()))
    monkeypatch.setattr(Session, "_check_least", lambda *_: None)
    colluding = coordinator("plain", silos=6, colluders=2)
    model = colluding.first_model()
    colluding.sum(model, 2)
    own = {vector.silo: vector.update for vector in colluding.vectors}
    broken = coordinator("sum", silos=6, colluders=2)
    live = int(model.mask.sum())
    both = (deviation_channel(live), update_channel(broken.config, live))
    terms = replace(broken.manifest(model, 2), phase="train")
    manifest = replace(terms, channels=both, cohorts=(HONEST_PAIR,), minimum=(4,))
    opened = broken.opened(manifest, model)
    assert opened is not None
    total = opened.sum("update") - own[3] - own[4]
    squares = opened.sum("deviation") - own[3] ** 2 - own[4] ** 2
    moved = np.maximum(np.abs(own[1]), np.abs(own[2])) > 0.01
    solved = found_pairs(two_values(total, squares), own[1], own[2], 0.05)[moved]
    assert solved.mean() > 0.9


def test_a_retry_without_a_silo_shows_its_update_without_dp(tmp_path: Path) -> None:
    cosines = retries.cosines_of_differences(tmp_path, "sum", 0, silos=5)
    assert min(cosines.difference) > 0.999
    assert max(cosines.whole) < 0.9
    np.testing.assert_allclose(cosines.block, 1.0)


def test_a_retry_without_a_silo_shows_little_of_its_update_under_dp(tmp_path: Path) -> None:
    assert max(retries.cosines_of_differences(tmp_path, "sum + DP 1", 0, silos=5).difference) < 0.5


def test_a_retry_without_a_block_shows_its_sum_and_no_silos_update(tmp_path: Path) -> None:
    cosines = retries.cosines_of_differences(tmp_path, "sum", 0, silos=9, **IN_BLOCKS)
    np.testing.assert_allclose(cosines.difference, cosines.block, atol=0.01)
    assert max(cosines.difference) < 0.9


def test_retries_show_label_sets_and_in_blocks_those_of_a_block_together(tmp_path: Path) -> None:
    alone, together = (
        retries.label_sets(tmp_path / str(len(blocks)), "sum", 0, 2, **blocks) for blocks in ({}, IN_BLOCKS)
    )
    assert alone.found == 20
    assert together.found <= 8
    for block in deal_blocks(10, IN_BLOCKS["block"]):
        assert len({together.guessed[silo - 1] for silo in block}) == 1


def asked_for_parts(folder: Path) -> dict[str, float]:
    """Share of the silos that helped, by what they were asked for."""
    tried = parts_of_blocks(folder / "federation", load("digits", None, 0))
    return {each.name: each.answered / each.asked for each in tried}


def test_no_silo_helps_with_a_part_of_a_block(tmp_path: Path) -> None:
    tried = list(parts_of_blocks(tmp_path / "federation", load("digits", None, 0)))
    assert [each.answered for each in tried] == [0] * 6
    assert [set(each.rules) for each in tried] == [{"blocks"}] * 6


def test_without_the_rule_on_manifests_silos_help_with_a_part_of_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "_check_blocks", lambda *_: None)
    *manifests, survivors = asked_for_parts(tmp_path).values()
    assert manifests == [1.0] * 5
    assert survivors == 0.0


def test_without_the_rule_on_survivors_silos_help_with_a_part_of_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silo_round, "check_survivors", lambda *_: None)
    assert list(asked_for_parts(tmp_path).values())[-1] == 1.0


def test_without_the_rule_on_blocks_one_silos_update_comes_out(coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {"silos": 9, "prune": "none", **IN_BLOCKS}
    plain, hiding = coordinator("plain", **terms), coordinator("sum", **terms)
    model = plain.first_model()
    plain.sum(model, 1)
    own = {vector.silo: vector.update for vector in plain.vectors}

    def asked(attempt: int) -> Any:
        return hiding.opened(hiding.manifest(model, 1, attempt=attempt, blocks=()), model)

    assert asked(0) is None
    monkeypatch.setattr(Session, "_check_blocks", lambda *_: None)
    whole = asked(1)
    hiding.hide(2)
    assert cosine(whole.sum("update") - asked(2).sum("update"), own[2]) > 0.999


def test_no_round_is_had_again_with_fewer_silos_than_the_run_opens(coordinator) -> None:
    hiding = coordinator("sum", silos=5, prune="none", colluders=0)
    model = hiding.first_model()
    manifest = hiding.manifest(model, 1)
    assert hiding.opened(manifest, model) is not None
    hiding.hide(2)
    assert hiding.opened(replace(manifest, attempt=1), model) is not None
    hiding.hide(2, 3)
    assert hiding.opened(replace(manifest, attempt=2), model) is None


def test_the_gradient_of_a_silent_model_lies_in_the_output_biases(coordinator) -> None:
    hiding = coordinator("plain", silos=5, prune="none", colluders=0)
    model = retries.silent_model(hiding.first_model())
    hiding.sum(model, 1)
    for vector in hiding.vectors:
        assert np.flatnonzero(np.abs(vector.update) > 1e-4).min() >= model.weights.size - 10


@pytest.mark.slow
def test_absences_show_label_sets_even_under_dp_and_full_sums_do_not(tmp_path: Path) -> None:
    from autoflip_secure.attacks.property_inference import class_signatures, sums_of
    from autoflip_secure.attacks.recorded_view import RecordedView
    from autoflip_secure.attacks.settings import run_federation
    from autoflip_secure.attacks.true_silos import found_classes, label_sets

    options = "--dataset digits --model mlp --partition pathological:2 --silos 10 --rounds 20"
    found = {}
    blocks = "--participation 0.8 --block 3 --colluders 0 --min-cohort 0.6"
    for name, more in (("absent", "--participation 0.8"), ("present", ""), ("in blocks", blocks)):
        run_federation(f"{options} {more}", "sum + DP 8", 0, tmp_path / name)
        guessed = sums_of(RecordedView(tmp_path / name), 10).label_sets(class_signatures(tmp_path / name), 10, 2)
        found[name] = found_classes(guessed, label_sets(tmp_path / name))
    assert found["absent"] >= 14
    assert found["present"] <= 8
    assert found["in blocks"] <= 8


HELD = [frozenset(pair) for pair in ((0, 1), (0, 1), (0, 2), (3, 4), (5, 6), (7, 8))]
GROUPS = ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("guessed", "groups", "classes"),
    [
        (HELD, 2, 12),
        ([frozenset((0, 1))] * 3 + [frozenset((3, 4))] * 3, 0, 7),
        ([frozenset((8, 9))] * 6, 0, 1),
        # What is lost in one group does not make up for what is found in another.
        ([frozenset((8, 9))] * 3 + HELD[3:], 1, 6),
    ],
)
def test_what_is_found_beyond_the_best_common_guess(guessed: list, groups: int, classes: int) -> None:
    tried = [differences._Guessed(guessed, HELD, GROUPS)] * 20
    recall, told = differences._beyond("a", "sum", tried, "as asked")
    assert (told.value, told.trials, told.chance) == (groups / 2, 40, 0.0)
    assert (recall.value, recall.trials, recall.chance) == (classes / 12, 240, 0.2)
    assert recall.bound == pytest.approx(7 / 12 + 0.05)
    assert recall.verdict == ("broken" if classes > 7 else "not refuted" if classes == 7 else "held")
    assert told.verdict == ("broken" if groups else "held")


def test_groups_are_the_smallest_sums() -> None:
    rows = [(1, 2, 3), (4, 5), (1, 2, 3), (1, 2, 3, 4, 5), (4, 5)]
    assert sorted(smallest_sums(presence(rows, 5))) == [[1, 2, 3], [4, 5]]
