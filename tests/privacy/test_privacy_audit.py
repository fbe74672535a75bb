"""The audit: its bound against exact values and repeated experiments, and what it says of silos, whole and broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.optimizers import DPOptimizer

from autoflip_secure.errors import CannotContinue, ConfigError
from autoflip_secure.privacy import audit as audit_module
from autoflip_secure.privacy.accounting import Mechanism, solve_noise_multiplier
from autoflip_secure.privacy.audit import audit, main
from autoflip_secure.privacy.audit_bound import Guesses, best_bound, epsilon_lower_bound, p_value, right_guesses
from autoflip_secure.privacy.audit_guesses import declare_guesses, evidence
from autoflip_secure.privacy.audit_settings import AuditReport, AuditSettings
from autoflip_secure.privacy.discrete_noise import DiscreteGaussian
from autoflip_secure.privacy.ledger import Ledger

DELTA = 1e-5


def exact_p_value(canaries: int, guesses: int, right: int, odds: int, delta: Fraction) -> Fraction:
    """The theorem in fractions; odds = exp(epsilon), a whole number."""
    q = Fraction(odds, odds + 1)
    pmf = [math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    gain = max((sum(pmf[right - i : right]) / i for i in range(1, right + 1)), default=Fraction(0))
    return min(Fraction(1), sum(pmf[right:], Fraction(0)) + 2 * canaries * delta * gain)


@pytest.mark.parametrize("odds", [1, 2, 7, 50])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 1000)])
def test_p_values_are_exact(odds: int, delta: Fraction) -> None:
    for guesses in (1, 2, 9, 20):
        for right in range(guesses + 1):
            expected = exact_p_value(25, guesses, right, odds, delta)
            found = p_value(25, guesses, right, math.log(odds), float(delta))
            assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_p_values_by_hand() -> None:
    assert p_value(10, 10, 10, 0.0, 0.0) == pytest.approx(2.0**-10)
    assert p_value(10, 10, 0, 3.0, 0.0) == 1.0
    # One guess: W is 1 with probability 1/2; delta adds 2 m delta P[W = 0] / 1.
    assert p_value(100, 1, 1, 0.0, 1e-4) == pytest.approx(0.5 + 200e-4 * 0.5)


def test_all_guesses_right() -> None:
    """q^r = 0.05, hence epsilon = log(q / (1 - q))."""
    q = 0.05 ** (1 / 1000)
    assert epsilon_lower_bound(1000, 1000, 1000, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-3)
    assert epsilon_lower_bound(1000, 4, 4, 0.0) == 0.0, "four coins land alike once in sixteen times"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data(), st.floats(0, 9), st.floats(0.01, 2), st.sampled_from([0.0, 1e-6, 1e-4]))
def test_p_values_grow_with_epsilon_and_fall_with_right_guesses(
    guesses: int, data: st.DataObject, epsilon: float, more: float, delta: float
) -> None:
    right = data.draw(st.integers(1, guesses))
    here = p_value(400, guesses, right, epsilon, delta)
    assert p_value(400, guesses, right - 1, epsilon, 0.0) >= p_value(400, guesses, right, epsilon, 0.0) - 1e-12
    if here < 0.05:
        assert p_value(400, guesses, right, max(0.0, epsilon - more), delta) <= 0.05


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2000), st.data(), st.sampled_from([0.0, 1e-5, 1e-3]), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_bound_is_where_the_p_value_reaches_the_level(
    guesses: int, data: st.DataObject, delta: float, confidence: float
) -> None:
    right = data.draw(st.integers(guesses // 2, guesses))
    bound = epsilon_lower_bound(2000, guesses, right, delta, confidence)
    level = 1.0 - confidence
    assert p_value(2000, guesses, right, bound + 2e-4, delta) >= level * (1 - 1e-9)
    for fraction in (0.2, 0.6, 1.0):
        assert bound == 0.0 or p_value(2000, guesses, right, fraction * bound, delta) < level * (1 + 1e-9)


def test_randomised_response_is_bounded_tightly_and_covered() -> None:
    """The mechanism the theorem is tight for: the bound exceeds the truth in about 5 % of experiments, not more."""
    draw = np.random.default_rng(5)
    for epsilon in (0.5, 3.0):
        q = 1 / (1 + math.exp(-epsilon))
        rights, times = np.unique(draw.binomial(2000, q, 20_000), return_counts=True)
        bounds = np.array([epsilon_lower_bound(2000, 2000, right, 0.0) for right in rights.tolist()])
        assert 0.02 < (times * (bounds > epsilon)).sum() / times.sum() < 0.056
        assert bounds[np.abs(rights - 2000 * q).argmin()] > 0.8 * epsilon


def gaussian_scores(canaries: int, noise: float, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    included = draw.random(canaries) < 0.5
    return evidence(included + noise * draw.standard_normal(canaries), 1.0, noise), included


@pytest.mark.parametrize("epsilon", [8.0, 4.0, 1.0])
def test_the_gaussian_mechanism_is_bounded_from_below_by_a_useful_part(epsilon: float) -> None:
    noise = solve_noise_multiplier([(1.0, 1)], (), epsilon, DELTA)
    declared = declare_guesses(10_000, Mechanism(1.0, noise, 1), DELTA, 0.95)
    draw = np.random.default_rng(1)
    ratios = [best_bound(*gaussian_scores(10_000, noise, draw), declared, DELTA).epsilon / epsilon for _ in range(5)]
    assert max(ratios) < 1.0
    assert np.median(ratios) > 0.3


def test_scores_that_know_nothing_show_nothing() -> None:
    """Also not the best of several guesses: 5 % of 200 experiments at most, give or take."""
    draw = np.random.default_rng(2)
    declared = tuple(Guesses(count, count) for count in (5, 20, 100, 250))
    shown = sum(
        best_bound(draw.standard_normal(500), draw.random(500) < 0.5, declared, 0.0).epsilon > 0 for _ in range(200)
    )
    assert shown <= 20


def test_guesses_are_counted_from_both_ends() -> None:
    scores = np.array([5.0, -1.0, 3.0, 0.0, -7.0])
    included = np.array([True, True, False, True, False])
    assert right_guesses(scores, included, Guesses(2, 2)) == 2
    assert right_guesses(scores, included, Guesses(1, 1)) == 2
    assert right_guesses(scores, included, Guesses(3, 0)) == 2
    assert right_guesses(np.zeros(6), np.array([True, False] * 3), Guesses(6, 0)) == 3


def test_guesses_are_declared_from_the_plan_alone() -> None:
    mechanism = Mechanism(0.1, 1.2, 20)
    declared = declare_guesses(2000, mechanism, DELTA, 0.95)
    assert declared == declare_guesses(2000, mechanism, DELTA, 0.95)
    assert all(0 < guesses.count <= 2000 for guesses in declared)
    assert declared[-1] == Guesses(900, 900)


def test_evidence_is_the_likelihood_ratio() -> None:
    from scipy.stats import norm

    seen = np.array([-2.0, 0.0, 0.5, 1.0, 4.0])
    for rate, noise in ((1.0, 0.7), (0.1, 1.3)):
        inside = rate * norm.pdf(seen, 1, noise) + (1 - rate) * norm.pdf(seen, 0, noise)
        np.testing.assert_allclose(evidence(seen, rate, noise), np.log(inside / norm.pdf(seen, 0, noise)), rtol=1e-9)
    assert np.isfinite(evidence(np.array([1e9]), 0.1, 0.01)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p_value(5, 6, 1, 1.0, 0.0), "cannot be"),
        (lambda: p_value(5, 3, 4, 1.0, 0.0), "cannot be"),
        (lambda: p_value(5, 3, 3, -1.0, 0.0), "no promise"),
        (lambda: epsilon_lower_bound(5, 3, 3, 0.0, 1.0), "confidence"),
        (lambda: best_bound(np.zeros(3), np.zeros(4, bool), (Guesses(1, 1),), 0.0), "do not fit"),
        (lambda: best_bound(np.zeros(3), np.zeros(3, bool), (), 0.0), "do not fit"),
        (lambda: best_bound(np.full(3, np.nan), np.zeros(3, bool), (Guesses(1, 1),), 0.0), "not finite"),
        (lambda: AuditSettings(setting="grey-box"), "--setting"),
        (lambda: AuditSettings(trust="none"), "--trust"),
        (lambda: AuditSettings(canaries=9), "--canaries"),
        (lambda: AuditSettings(confidence=1.0), "--confidence"),
        (lambda: AuditSettings(absent=-1), "--absent"),
        (lambda: audit(AuditSettings(silos=4, colluders=0, absent=1, canaries=20, rounds=1)), "--absent 1"),
        (lambda: audit(AuditSettings(silos=5, colluders=1, aggregation="secagg", canaries=20, rounds=1)), "honest"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


# Real silos

SMALL: dict[str, Any] = {"silos": 4, "colluders": 0, "rounds": 1, "sampling_rate": 1.0, "epsilon": 4.0}


def small(**changes: Any) -> AuditReport:
    return audit(AuditSettings(**{**SMALL, "canaries": 800, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"silos": 5, "colluders": 1, "epsilon": 8.0},
        {"trust": "local", "silos": 5, "colluders": 1},
        {"aggregation": "secagg"},
        pytest.param({"rounds": 10, "sampling_rate": 0.3, "epsilon": 8.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_real_silos_keep_their_promise_and_the_audit_shows_part_of_it(changes: dict[str, Any]) -> None:
    report = small(**changes)
    assert not report.broken
    assert 0.05 * report.settings.epsilon < report.audited <= report.settings.epsilon
    assert report.releases == report.planned, "the ledger refuses just when the plan is used up"
    assert report.right <= report.guesses <= 800


def silent(self: DiscreteGaussian, count: int, randomness: object) -> np.ndarray:
    return np.zeros(count, np.int64)


def unclipped(self: DPOptimizer) -> None:
    for p in self.params:
        rows = p.grad_sample.sum(0)
        p.summed_grad = rows if p.summed_grad is None else p.summed_grad + rows
        p.grad_sample = None


BREAKS: dict[str, tuple[type, str, Any]] = {
    "no noise": (DiscreteGaussian, "sample", silent),
    "no clip": (DPOptimizer, "clip_and_accumulate", unclipped),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_silos_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, broken = BREAKS[name]
    monkeypatch.setattr(owner, attribute, broken)
    report = small(epsilon=2.0, canaries=1500)
    assert report.broken, report


@pytest.mark.slow
def test_an_accountant_that_forgets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator asks on and on; every further sum makes it surer."""
    monkeypatch.setattr(Ledger, "session_uses", lambda *_: 0)
    monkeypatch.setattr(Ledger, "charge", lambda *_: None)
    report = small(epsilon=2.0, canaries=2000)
    assert report.releases == 9 * report.planned
    assert report.broken


def test_a_silo_that_fails_is_not_taken_for_a_spent_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk")

    monkeypatch.setattr(DPOptimizer, "clip_and_accumulate", fail)
    with pytest.raises(CannotContinue):
        small(canaries=20)


# The command line


def report_of(audited: float) -> AuditReport:
    settings = AuditSettings(epsilon=2.0)
    return AuditReport(settings, 5, 5, 0.1, 1.2, 7, audited, 100, 90, "sums", 1.5)


def test_the_command_prints_and_exits_by_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[AuditSettings] = []

    def pretend(audited: float) -> Callable[..., AuditReport]:
        def run(settings: AuditSettings, progress: Callable[[int, int], None]) -> AuditReport:
            asked.append(settings)
            progress(5, 5)
            return report_of(audited)

        return run

    monkeypatch.setattr(audit_module, "audit", pretend(1.0))
    assert main(["--epsilon", "2", "--trust", "local", "--canaries", "50", "--rounds", "7", "--absent", "2"]) == 0
    assert asked[0] == AuditSettings(epsilon=2.0, trust="local", canaries=50, rounds=7, absent=2)
    shown = capsys.readouterr()
    for part in ("claimed epsilon 2", "audited at least 1", "95%", "50% of the claim", "90 of 100", "saw sums"):
        assert part in shown.out
    assert "release 5 of 5" in shown.err

    monkeypatch.setattr(audit_module, "audit", pretend(2.5))
    assert main(["--json"]) == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["broken"] is True
    assert shown.err.strip().splitlines()[-1].startswith("BROKEN PROMISE: the run claims epsilon 2")


def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (["--epsilon", "-1"], ["--canaries", "many"], ["--trust", "nobody"], ["--silos", "2"]):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
