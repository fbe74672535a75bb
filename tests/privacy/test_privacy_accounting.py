from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy import accounting
from autoflip_secure.privacy.accounting import Mechanism, deltas, epsilon, merged, solve_noise_multiplier

SETTINGS = [
    [Mechanism(0.1, 1.3, 200)],
    [Mechanism(0.25, 2.0, 50), Mechanism(1.0, 20.0, 1)],
    [Mechanism(1.0, 5.0, 12)],
    [Mechanism(0.1, 6.0, 200), Mechanism(0.1, 8.0, 40)],
]


def gaussian_delta(multiplier: float, epsilon_: float) -> float:
    """Exact delta of the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    first = ndtr(0.5 / multiplier - epsilon_ * multiplier)
    return float(first - math.exp(epsilon_) * ndtr(-0.5 / multiplier - epsilon_ * multiplier))


@pytest.mark.parametrize("mechanisms", SETTINGS)
@pytest.mark.parametrize("delta", [1e-4, 1e-6])
def test_prv_and_pld_agree_within_one_percent_and_rdp_is_above(mechanisms: list[Mechanism], delta: float) -> None:
    prv, pld, rdp = (epsilon(mechanisms, delta, name) for name in ("prv", "pld", "rdp"))
    assert prv == pytest.approx(pld, rel=0.01)
    assert max(prv, pld) < rdp < 1.25 * pld


@pytest.mark.parametrize("accountant", ["prv", "pld", "rdp"])
@pytest.mark.parametrize("multiplier", [0.8, 3.0, 20.0])
def test_bounds_are_above_the_exact_epsilon_of_the_gaussian_mechanism(multiplier: float, accountant: str) -> None:
    bound = epsilon([Mechanism(1.0, multiplier, 1)], 1e-5, accountant)  # type: ignore[arg-type]
    assert gaussian_delta(multiplier, bound) <= 1e-5
    # Composed Gaussians are one Gaussian with multiplier / sqrt(count).
    bound = epsilon([Mechanism(1.0, multiplier * 4, 16)], 1e-5, accountant)  # type: ignore[arg-type]
    assert gaussian_delta(multiplier, bound) <= 1e-5


@pytest.mark.parametrize("mechanisms", SETTINGS)
@pytest.mark.parametrize("delta", [1e-4, 1e-6])
def test_deltas_invert_epsilon(mechanisms: list[Mechanism], delta: float) -> None:
    spent = epsilon(mechanisms, delta, "pld")
    at, below, above = deltas(mechanisms, [spent, spent - 0.01, spent + 0.01])
    assert at == pytest.approx(delta, rel=1e-3)
    assert above < delta < below


@pytest.mark.parametrize("mechanisms", SETTINGS)
def test_deltas_fall_with_epsilon_and_rise_with_every_use(mechanisms: list[Mechanism]) -> None:
    profile = deltas(mechanisms, np.linspace(0.0, 6.0, 25))
    assert profile.shape == (25,)
    assert (np.diff(profile) <= 0).all()
    assert (np.diff(profile[profile > 1e-9]) < 0).all()
    assert ((profile > 0) & (profile < 1)).all()
    assert (deltas([*mechanisms, mechanisms[0]], np.linspace(0.0, 6.0, 25)) >= profile).all()
    assert deltas(mechanisms, [2.0, 0.5]).tolist() == deltas(mechanisms, [0.5, 2.0]).tolist()[::-1]


@pytest.mark.parametrize("multiplier", [0.8, 3.0, 20.0])
def test_deltas_of_the_gaussian_mechanism_are_the_exact_ones_rounded_up(multiplier: float) -> None:
    epsilons = [0.0, 0.1, 0.5, 1.0, 2.0]
    exact = [gaussian_delta(multiplier, each) for each in epsilons]
    for uses in (Mechanism(1.0, multiplier, 1), Mechanism(1.0, multiplier * 4, 16)):
        found = deltas([uses], epsilons)
        assert found == pytest.approx(exact, rel=1e-3, abs=1e-9)
        assert (found >= np.array(exact) - 1e-12).all()


def test_deltas_without_a_use_without_noise_and_beyond_the_grid() -> None:
    assert deltas([], [0.0, 1.0]).tolist() == [0.0, 0.0]
    assert deltas([Mechanism(0.1, 1.3, 5), Mechanism(0.1, 0.0, 1)], [0.0, 1.0]).tolist() == [1.0, 1.0]
    assert deltas([Mechanism(1.0, 0.05, 100)], [0.0, 1.0]).tolist() == [1.0, 1.0]
    for wrong in (-0.1, math.nan):
        with pytest.raises(ConfigError, match="no delta belongs to an epsilon"):
            deltas([Mechanism(0.1, 1.3, 5)], [1.0, wrong])


def test_composition_counts_every_use() -> None:
    costs = [epsilon([Mechanism(0.1, 1.3, count)], 1e-5) for count in (50, 51, 100, 200)]
    assert costs == sorted(set(costs))


def test_kept_curves_add_up_as_the_library_s_own_accountant_has_it() -> None:
    from opacus.accountants import RDPAccountant

    mechanisms = [Mechanism(0.1, 1.3, 7), Mechanism(1.0, 12.0, 2), Mechanism(0.02, 0.9, 40)]
    accountant = RDPAccountant()
    accountant.history = [(m.noise_multiplier, m.sampling_rate, m.count) for m in mechanisms]
    for _ in range(2):
        assert epsilon(mechanisms, 1e-5, "rdp") == pytest.approx(accountant.get_epsilon(delta=1e-5), rel=1e-12)


def test_equal_mechanisms_are_merged_and_order_does_not_matter() -> None:
    split = [Mechanism(0.1, 1.3, 60), Mechanism(1.0, 20.0, 1), Mechanism(0.1, 1.3, 140), Mechanism(0.5, 2.0, 0)]
    assert merged(split) == (Mechanism(0.1, 1.3, 200), Mechanism(1.0, 20.0, 1))
    assert epsilon(split, 1e-5) == epsilon(split[::-1], 1e-5)


def test_no_use_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([Mechanism(0.1, 1.3, 0)], 1e-5) == 0
    assert epsilon([Mechanism(0.1, 1.3, 5), Mechanism(0.1, 0.0, 1)], 1e-5) == math.inf


def test_hopeless_noise_gets_the_coarse_bound_from_every_accountant() -> None:
    hopeless = [Mechanism(1.0, 0.05, 100)]
    values = {epsilon(hopeless, 1e-5, name) for name in ("prv", "pld", "rdp")}
    assert len(values) == 1
    assert values.pop() > accounting.COARSE_EPSILON


def test_prv_hands_over_to_pld_where_it_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise RuntimeError("Discrete mean differs significantly from continuous mean.")

    monkeypatch.setattr(accounting, "_prv", refuse)
    mechanisms = [Mechanism(0.123, 1.7, 31)]
    assert epsilon(mechanisms, 1e-5) == epsilon(mechanisms, 1e-5, "pld")


@pytest.mark.parametrize(
    ("uses", "fixed", "target"),
    [
        ([(0.1, 200)], [Mechanism(1.0, 20.0, 1)], 8.0),
        ([(0.1, 200)], [], 1.0),
        ([(1.0, 10)], [], 3.0),
        ([(1.0, 20), (1.0, 1)], [], 0.05),
        ([(1.0, 1)], [], 500.0),
    ],
)
def test_solved_multiplier_meets_the_target_and_is_the_least(
    uses: list[tuple[float, int]], fixed: list[Mechanism], target: float
) -> None:
    multiplier = solve_noise_multiplier(uses, fixed, target, 1e-5)

    def cost(noise: float) -> float:
        return epsilon([*fixed, *(Mechanism(rate, noise, count) for rate, count in uses)], 1e-5)

    assert cost(multiplier) <= target
    assert cost(multiplier / 1.002) > target


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_solving_works_with_every_accountant(accountant: str) -> None:
    multiplier = solve_noise_multiplier([(1.0, 4)], [], 4.0, 1e-5, accountant)  # type: ignore[arg-type]
    assert 3.9 < epsilon([Mechanism(1.0, multiplier, 4)], 1e-5, accountant) <= 4.0  # type: ignore[arg-type]


def test_solving_takes_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    prv = accounting._prv
    monkeypatch.setattr(accounting, "_prv", lambda *args: calls.append(args) or prv(*args))
    solve_noise_multiplier([(0.111, 222)], [], 5.0, 1e-5)
    assert 0 < len(calls) <= 10


@settings(max_examples=3, deadline=None)
@given(st.floats(0.02, 1.0), st.integers(1, 300), st.floats(0.3, 20.0))
def test_solved_multiplier_meets_any_target(rate: float, count: int, target: float) -> None:
    multiplier = solve_noise_multiplier([(rate, count)], [], target, 1e-5, "rdp")
    assert epsilon([Mechanism(rate, multiplier, count)], 1e-5, "rdp") <= target


def test_impossible_targets_are_named() -> None:
    with pytest.raises(ConfigError, match="--dp-epsilon 1 is already spent by releases of fixed noise"):
        solve_noise_multiplier([(0.1, 10)], [Mechanism(1.0, 1.0, 1)], 1.0, 1e-5)
    with pytest.raises(ConfigError, match="cannot be met with any noise"):
        solve_noise_multiplier([(0.1, 10)], [], 0.01, 1e-5, "rdp")
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="--dp-epsilon"):
            solve_noise_multiplier([(0.1, 10)], [], target, 1e-5)
    with pytest.raises(ConfigError, match="no release"):
        solve_noise_multiplier([(0.1, 0)], [], 1.0, 1e-5)


def test_bad_input_is_refused() -> None:
    for rate in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="sampling rate"):
            Mechanism(rate, 1.0, 1)
    for noise in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="noise multiplier"):
            Mechanism(0.1, noise, 1)
    with pytest.raises(ConfigError, match="-1 times"):
        Mechanism(0.1, 1.0, -1)
    for delta in (0.0, 1e-11, 1.0, math.nan):
        with pytest.raises(ConfigError, match="--dp-delta"):
            epsilon([Mechanism(0.1, 1.0, 1)], delta)
    with pytest.raises(ConfigError, match="unknown accountant"):
        epsilon([], 1e-5, "gdp")  # type: ignore[arg-type]
