"""What attacks come to, how it is judged, and the command line that runs them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from autoflip_secure.attacks import __main__ as command
from autoflip_secure.attacks.outcome import (
    Attack,
    Outcome,
    Scale,
    bootstrap_interval,
    mean_interval,
    proportion_interval,
)
from autoflip_secure.attacks.registry import MODULES, load_attack
from autoflip_secure.attacks.settings import SETTINGS, PrivacyProfile, epsilon_of
from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.accounting import Mechanism


def outcome(
    value: float, low: float, high: float, *, chance: float | None = None, bound: float | None = None, trials: int = 10
) -> Outcome:
    promise = "a promise" if bound is not None else ""
    return Outcome("a", "sum", "m", value, low, high, trials, chance, bound, promise)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (outcome(0.5, 0.3, 0.7, chance=0.2, bound=0.25), "broken"),
        (outcome(0.5, 0.25, 0.7, chance=0.2, bound=0.25), "not refuted"),
        (outcome(0.2, 0.15, 0.25, chance=0.2, bound=0.25), "held"),
        (outcome(0.0, 0.0, 0.116, chance=0.2, bound=0.0, trials=30), "held"),
        (outcome(0.0, 0.0, 0.119, chance=0.2, bound=0.0, trials=29), "not refuted"),
        (outcome(0.1, 0.0, 0.2, chance=0.2, bound=0.0), "not refuted"),
        (outcome(0.1, 0.0, 0.2, chance=0.2, bound=0.999), "loose"),
        (outcome(1.0, 0.999, 1.0, chance=0.2, bound=0.99), "broken"),
        (outcome(0.99, 0.99, 0.99, bound=1.0), "held"),
        (outcome(0.1, 0.01, 0.2, chance=0.0, bound=0.0), "broken"),
        (outcome(0.5, 0.3, 0.7, chance=0.2), "succeeds"),
        (outcome(0.5, 0.2, 0.7, chance=0.2), "no gain shown"),
        (outcome(0.5, 0.5, 0.5), "succeeds"),
        (outcome(0.0, 0.0, 0.3), "no gain shown"),
        (outcome(-0.1, -0.2, 0.1, chance=0.0), "no gain shown"),
    ],
)
def test_a_promise_is_broken_where_the_whole_interval_lies_above_it(found: Outcome, verdict: str) -> None:
    assert found.verdict == verdict
    assert Outcome.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 0.6},
        {"high": 0.4},
        {"value": float("nan")},
        {"bound": 0.5, "promise": ""},
        {"bound": None, "promise": "of nothing"},
    ],
)
def test_figures_that_make_no_sense_are_no_outcome(wrong: dict) -> None:
    fields = {"value": 0.5, "low": 0.4, "high": 0.6, "bound": None, "promise": ""} | wrong
    with pytest.raises(ValueError, match="a, sum"):
        Outcome("a", "sum", "m", trials=3, **fields)


@settings(deadline=None)  # the first one imports scipy
@given(st.integers(1, 400), st.data())
def test_a_share_lies_in_its_interval(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    share, low, high = proportion_interval(hits, trials)
    assert 0 <= low <= share == hits / trials <= high <= 1
    assert (low == 0) == (hits == 0)
    assert (high == 1) == (hits == trials)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(7)
    held = [0, 0]
    for _ in range(400):
        _, low, high = proportion_interval(int(generator.binomial(30, 0.2)), 30)
        held[0] += low <= 0.2 <= high
        _, low, high = mean_interval(list(generator.normal(1.0, 2.0, 6)))
        held[1] += low <= 1.0 <= high
    assert min(held) >= 0.92 * 400
    assert mean_interval([3.0]) == (3.0, 3.0, 3.0)


def test_a_resampled_statistic_has_its_own_value_inside() -> None:
    values = np.random.default_rng(3).normal(0, 1, 50)

    def largest(generator: np.random.Generator | None) -> float:
        return float((values if generator is None else generator.choice(values, values.size)).max())

    value, low, high = bootstrap_interval(largest)
    assert low <= value == values.max() == high


CHARGED = {
    "epsilon 8": [Mechanism(0.4, 1.42, 22), Mechanism(1.0, 20.0, 1)],
    "epsilon 1": [Mechanism(0.4, 8.0, 22)],
    "one Gaussian": [Mechanism(1.0, 2.0, 1)],
}
RATES = np.array([0.0, 1e-5, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0])


def curve(profile: PrivacyProfile) -> np.ndarray:
    return np.array([profile.true_positives(float(rate)) for rate in RATES])


def of_one_pair(epsilon: float, delta: float) -> np.ndarray:
    """What (epsilon, delta) alone allows at `RATES` (Kairouz, Oh and Viswanath 2015, theorem 2.1)."""
    up, down = math.exp(epsilon) * RATES + delta, 1 - math.exp(-epsilon) * (1 - delta - RATES)
    return np.minimum(np.minimum(up, down), 1.0)


@pytest.mark.parametrize("charged", CHARGED.values(), ids=CHARGED)
def test_a_profile_allows_at_least_chance_and_at_most_what_its_one_reported_pair_does(
    charged: list[Mechanism],
) -> None:
    profile = PrivacyProfile.of([charged], 1e-5)
    found = curve(profile)
    assert (found >= RATES).all()
    assert (found <= of_one_pair(float(profile.epsilons[-1]), 1e-5) + 1e-12).all()
    assert found[3] < of_one_pair(float(profile.epsilons[-1]), 1e-5)[3]
    assert (np.diff(found) >= 0).all()
    assert 0.5 < profile.area() < 1


@pytest.mark.parametrize(("multiplier", "count"), [(2.0, 1), (0.7, 1), (8.0, 16)])
def test_the_profile_of_gaussians_is_their_trade_off(multiplier: float, count: int) -> None:
    """Best test of N(0, s) against N(1, s): a threshold, so TPR = Phi(Phi^-1(FPR) + 1 / s)."""
    profile = PrivacyProfile.of([[Mechanism(1.0, multiplier, count)]], 1e-5)
    shift = count**0.5 / multiplier
    exact = norm.cdf(norm.ppf(RATES) + shift)
    assert (curve(profile) >= exact - 1e-9).all()
    assert curve(profile) == pytest.approx(exact, rel=0.01, abs=2e-5)
    assert norm.cdf(shift / 2**0.5) <= profile.area() <= norm.cdf(shift / 2**0.5) + 1e-3


def test_the_profile_of_several_silos_is_of_all_that_any_was_charged_for() -> None:
    few, many = [Mechanism(0.4, 8.0, 20), Mechanism(1.0, 20.0, 1)], [Mechanism(0.4, 8.0, 22)]
    both = PrivacyProfile.of([few, many, many], 1e-5)
    assert curve(both).tolist() == curve(PrivacyProfile.of([[*many, few[1]]], 1e-5)).tolist()
    for one in (few, many):
        alone = PrivacyProfile.of([one], 1e-5)
        assert (curve(both) >= 0.99 * curve(alone)).all(), "the points of the grids are not the same"
        assert both.area() > alone.area()
    assert "for one record, whole privacy profile" in both.promise


def test_records_without_a_use_are_at_chance_and_without_noise_nothing_is_proved() -> None:
    assert curve(PrivacyProfile.of([[]], 1e-5)) == pytest.approx(RATES, abs=1e-5)
    with pytest.raises(ValueError, match="without noise"):
        PrivacyProfile.of([[Mechanism(0.4, 8.0, 20)], [Mechanism(1.0, 0.0, 1)]], 1e-5)


def test_settings_say_what_they_promise() -> None:
    assert {name: epsilon_of(name) for name in SETTINGS} == {
        "plain": None, "sum": None, "sum + DP 8": 8.0, "sum + DP 1": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_attack_is_found_under_its_name(name: str) -> None:
    assert load_attack(name).name == name


def test_an_attack_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no such attack; there are label-sets, "):
        load_attack("label_sets")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Scale]:
    """The command line's attack is one of two outcomes; how it was called is kept."""
    calls: list[Scale] = []

    def run(scale: Scale) -> Iterator[Outcome]:
        calls.append(scale)
        assert scale.work.is_dir()
        yield outcome(0.2, 0.1, 0.3, chance=0.2)
        yield outcome(0.9, 0.8, 1.0, chance=0.2, bound=None if scale.quick else 0.25)

    monkeypatch.setattr(command, "load_attack", lambda name: Attack(name, "page.md", run))
    return calls


def test_the_command_line_says_each_outcome(played: list[Scale], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["label-sets", "--quick"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a, sum: m 0.2 [0.1, 0.3], without it 0.2: no gain shown",
        "a, sum: m 0.9 [0.8, 1], without it 0.2: succeeds",
    ]
    assert not played[0].work.exists(), "runs are removed"


def test_a_broken_promise_is_an_exit_code(played: list[Scale], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["label-sets", "--json"]) == command.EXIT_BROKEN
    rows = [Outcome.from_json(json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [row.verdict for row in rows] == ["no gain shown", "broken"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nothing"], "no such attack"), (["label-sets", "--data-dir", "nowhere"], "no such folder")],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_help_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, autoflip_secure.attacks.__main__; assert not {'torch', 'flwr', 'scipy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
