"""Label-set inference: signatures of classes, single vectors that name them, and masked vectors that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.attacks import label_sets
from autoflip_secure.attacks.class_signatures import best_sets, fits, sets_of_classes
from autoflip_secure.attacks.common_guess import best_common_guess
from autoflip_secure.attacks.label_sets import GUIDANCE, UPDATES, guessed_sets, stopped_run
from autoflip_secure.attacks.property_inference import class_signatures
from autoflip_secure.attacks.recorded_view import RecordedView
from autoflip_secure.attacks.true_silos import found_classes
from autoflip_secure.attacks.true_silos import label_sets as true_sets
from autoflip_secure.federation import client_app
from autoflip_secure.secagg.prg import MaskStream
from autoflip_secure.sim import main

SILOS = 10
FEDERATION = (
    *("--dataset", "digits", "--model", "mlp", "--silos", str(SILOS), "--partition", "pathological:2"),
    *("--rounds", "2", "--workers", "0", "--quiet", "--no-report", "--record-server-view"),
)


@pytest.fixture(autouse=True)
def _fresh_process_state() -> None:
    """Silos opened by an earlier test belong to folders of that test."""
    client_app.close_silos()


def recalls(run: Path) -> tuple[float, float]:
    """Recall of guidance and of updates."""
    held, guessed = true_sets(run), guessed_sets(RecordedView(run), class_signatures(run))
    assert all(len(each) == 2 for each in held)
    return tuple(found_classes(guessed[kind], held) / (2 * SILOS) for kind in (GUIDANCE, UPDATES))  # type: ignore[return-value]


def test_a_vector_fits_the_set_that_it_was_made_of_at_any_length_and_with_any_common_part() -> None:
    draw = np.random.default_rng(0)
    sets, single = sets_of_classes(5, 2), draw.normal(size=(5, 200))
    assert len(sets) == 10
    signatures = np.stack([single[list(classes)].sum(axis=0) for classes in sets]) + draw.normal(size=200)
    common = signatures.mean(axis=0)
    lengths = draw.uniform(0.01, 100, size=(len(sets), 1))
    vectors = lengths * (signatures + 50 * common + 0.3 * draw.normal(size=signatures.shape))
    assert best_sets(fits(vectors, signatures), sets) == [frozenset(classes) for classes in sets]


def test_a_vector_of_nothing_but_zeros_fits_nothing() -> None:
    signatures = np.random.default_rng(0).normal(size=(4, 10))
    assert not fits(np.zeros((2, 10)), signatures).any()


@pytest.mark.slow
def test_single_vectors_name_the_classes_of_silos_and_masked_ones_do_not(tmp_path: Path) -> None:
    assert main([*FEDERATION, "--aggregation", "none", "--run-dir", str(tmp_path / "plain")]) == 0
    assert main([*FEDERATION, "--run-dir", str(tmp_path / "sum")]) == 0
    assert min(recalls(tmp_path / "plain")) > 0.7
    # Words are drawn anew each time, so both attacks count together: of 40 classes, guessed at a chance of 0.2, half
    # are found less than once in 40,000 times, and 24 where one of the attacks reads all silos.
    assert sum(recalls(tmp_path / "sum")) / 2 < 0.5


def test_vectors_under_masks_of_zeros_name_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack on masked vectors is the attack on single ones: where masking is broken, it finds out."""
    monkeypatch.setattr(MaskStream, "apply", lambda self, words: None)
    assert main([*FEDERATION, "--run-dir", str(tmp_path / "unmasked")]) == 0
    assert min(recalls(tmp_path / "unmasked")) > 0.7


@pytest.mark.slow
def test_patient_level_noise_does_not_hide_the_classes_of_a_silo_that_is_seen(tmp_path: Path) -> None:
    stopped_run(tmp_path / "run", 1, dataset="mnist5k", silos=SILOS, dp_epsilon=8.0)
    assert max(recalls(tmp_path / "run")) > 0.7


@pytest.mark.slow
def test_a_coordinator_that_goes_away_leaves_the_noise_of_the_whole_run(tmp_path: Path) -> None:
    stopped_run(tmp_path / "run", 1, dataset="digits", model="mlp", silos=SILOS, dp_epsilon=8.0)
    seen = RecordedView(tmp_path / "run").asked
    assert {asked.round for asked in seen} == {0}
    terms = seen[0].manifest.privacy
    assert terms.trust == "local"
    main([*FEDERATION, "--aggregation", "none", "--dp-epsilon", "8", "--dp-trust", "local",
          "--run-dir", str(tmp_path / "short")])  # fmt: skip
    short = RecordedView(tmp_path / "short").asked[0].manifest.privacy
    assert terms.noise_multiplier > 1.3 * short.noise_multiplier


def test_the_best_common_guess_is_the_commonest_classes_of_a_group() -> None:
    held = [frozenset(pair) for pair in ((0, 1), (0, 2), (0, 2), (3, 4))]
    assert best_common_guess(held, (1, 2, 3), 2) == 3 + 2
    assert best_common_guess(held, (4,), 2) == 2
    assert best_common_guess(held, (1, 4), 2) == 2
    assert best_common_guess(held, (1, 2, 3, 4), 1) == 3


@pytest.mark.slow
def test_sums_of_cohorts_tell_what_their_silos_hold_together_and_no_more(tmp_path: Path) -> None:
    """Under DP, too: the commonest classes of each cohort are found, which is right more often than of all silos."""
    private = [*FEDERATION, "--dp-epsilon", "8", "--colluders", "0"]
    assert main([*private, "--run-dir", str(tmp_path / "one")]) == 0
    assert main([*private, "--cohorts", "2", "--run-dir", str(tmp_path / "two")]) == 0
    found = {}
    for name, size in (("one", SILOS), ("two", SILOS // 2)):
        told = label_sets.sums_outcome("sum + DP 8", [label_sets.read(tmp_path / name)])
        assert told.note == f"sums of {size} silos"
        assert told.bound is not None
        assert told.bound - 0.05 >= told.value >= 0.75 * (told.bound - 0.05)
        found[name] = told.value
    assert found["two"] > found["one"]


def test_what_is_protected_has_a_bound_and_what_is_seen_has_none() -> None:
    held = [frozenset({1, 2})] * 20
    for right, setting, verdict in ((20, "sum", "broken"), (4, "sum", "not refuted"), (20, "plain", "succeeds")):
        guessed = [frozenset({1, 2})] * right + [frozenset({3, 4})] * (20 - right)
        reading = label_sets.Reading(held, {GUIDANCE: guessed, UPDATES: guessed}, 40, frozenset({20}))
        assert {each.verdict for each in label_sets.single_vector_outcomes(setting, [reading])} == {verdict}
        many = [reading] * label_sets.QUICK.seeds
        usual = {each.verdict for each in label_sets.single_vector_outcomes(setting, many)}
        assert usual == {"held" if verdict == "not refuted" else verdict}


@pytest.mark.slow
def test_signatures_of_sets_follow_from_those_of_single_classes_where_gradients_are_summed(tmp_path: Path) -> None:
    assert main([*FEDERATION, "--dp-epsilon", "8", "--run-dir", str(tmp_path / "run")]) == 0
    asked = RecordedView(tmp_path / "run").asked[-1]
    signatures = class_signatures(tmp_path / "run")
    mixed = signatures.of("update", [(2, 7)], asked.manifest, asked.model)[0]
    direct = signatures._moved((2, 7), asked.manifest, asked.model)
    assert np.abs(direct).max() > 1e-4
    np.testing.assert_allclose(mixed, direct, rtol=1e-4, atol=1e-7)
