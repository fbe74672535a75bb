"""Noise in parts: never less than owed, at most 2 % more, and what is removed is exactly what was added."""

from __future__ import annotations

from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.discrete_noise import discretisation_delta
from autoflip_secure.privacy.removable_noise import LARGEST_EXCESS, LEAST_PART, NoiseLevels
from autoflip_secure.sums.noise_chain import fresh_root, later_link
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness

ROUNDING = 1 + 1e-12


def owed_by(together: float, silos: int, minimum: int, colluders: int = 0) -> list[float]:
    return [together / (silos - d - colluders) for d in range(silos - minimum + 1)]


@st.composite
def cohorts(draw) -> tuple[float, int, int, int]:
    """Variance owed together, silos, minimum, colluders."""
    silos = draw(st.integers(3, 300))
    minimum = draw(st.integers(max(2, silos // 2), silos))
    colluders = draw(st.integers(0, min(minimum - 1, silos // 3)))
    return draw(st.floats(silos, 1e8)), silos, minimum, colluders


@settings(deadline=None)
@given(cohorts())
def test_what_is_left_is_never_below_what_is_owed(cohort) -> None:
    owed = owed_by(*cohort)
    levels = NoiseLevels.split(owed)
    assert levels.most[-1] == len(owed) - 1
    assert list(levels.most) == sorted(set(levels.most))
    assert levels.drawn == owed[-1]
    for missing, least in enumerate(owed):
        assert levels.left(missing) >= least
        parts = sum(std**2 for std in levels.stds[: levels.level(missing) + 1])
        assert parts == pytest.approx(levels.left(missing), rel=1e-9)
    assert len(levels.stds) == 1 or min(std**2 for std in levels.stds[1:]) >= LEAST_PART / ROUNDING


@settings(deadline=None)
@given(cohorts())
def test_little_more_than_owed_is_left_where_the_grid_is_fine_enough(cohort) -> None:
    """A silo of a sum in whose steps one part is at least LEAST_PART keeps at most 2 % more than it owes."""
    _, silos, minimum, colluders = cohort
    levels = NoiseLevels.split(owed_by(LEAST_PART * silos**2, silos, minimum, colluders))
    assert all(levels.left(d) <= LARGEST_EXCESS * ROUNDING * owed for d, owed in enumerate(levels.owed))
    assert levels.left(0) == levels.owed[0]


@pytest.mark.parametrize(("silos", "minimum", "parts"), [(10, 8, 3), (30, 24, 7), (100, 80, 11), (1000, 800, 12)])
def test_few_parts_do_for_many_silos(silos: int, minimum: int, parts: int) -> None:
    assert len(NoiseLevels.split(owed_by(1e7, silos, minimum)).stds) == parts


def test_parts_too_small_for_the_grid_are_not_drawn() -> None:
    assert NoiseLevels.split(owed_by(100.0, 10, 8)).stds == (12.5**0.5,)
    coarse = NoiseLevels.split(owed_by(2000.0, 10, 6))
    assert coarse.most == (0, 1, 2, 3, 4)
    coarser = NoiseLevels.split(owed_by(600.0, 10, 6))
    assert coarser.most == (0, 2, 3, 4)
    assert coarser.left(1) == coarser.left(2) == coarser.owed[2]


def interval(count: int) -> tuple[float, float]:
    """Within which the sample variance of normal draws lies but for one time in 10^6, over the true one."""
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], count) / count
    return float(low), float(high)


@pytest.mark.parametrize(("silos", "minimum", "colluders"), [(4, 3, 0), (10, 8, 1), (30, 21, 3), (100, 80, 0)])
def test_removal_leaves_the_variance_of_the_level(silos: int, minimum: int, colluders: int) -> None:
    count = 20_000
    low, high = interval(count)
    levels = NoiseLevels.split(owed_by(9e5, silos, minimum, colluders))
    root = fresh_root()
    drawn = levels.draw(count, "update", SecretRandomness(), root)
    assert drawn.dtype == np.int64
    assert low < drawn.var() / levels.drawn < high
    for missing in range(silos - minimum + 1):
        excess = levels.excess(count, "update", later_link(root, missing), missing)
        assert excess.dtype == np.int64
        assert low < (drawn - excess).var() / levels.left(missing) < high
        spare = levels.drawn - levels.left(missing)
        if spare == 0:
            assert not excess.any()
        else:
            assert abs(np.corrcoef(drawn - excess, excess)[0, 1]) < 5 / np.sqrt(count)
            assert low < excess.var() / spare < high
    assert spare == 0


def test_what_is_left_is_what_was_drawn_of_the_needed_parts() -> None:
    """With the first part drawn from a known stream the rest is found exactly, and parts add up to any tail."""
    levels, root = NoiseLevels.split(owed_by(9e5, 12, 7)), fresh_root()
    first = ReproducibleRandomness(1, "first")
    drawn = levels.draw(500, "metric", first, root)
    again = NoiseLevels(levels.owed, (levels.most[0],), (levels.kept[0],)).draw(
        500, "metric", ReproducibleRandomness(1, "first"), bytes(32)
    )
    np.testing.assert_array_equal(drawn - levels.excess(500, "metric", root, 0), again)
    tails = [levels.excess(500, "metric", later_link(root, d), d) for d in range(6)]
    assert not tails[-1].any()
    parts = [more - less for more, less in pairwise(tails)]
    assert all(part.any() for part in parts)
    # Where one level is for several counts they leave the same.
    few = NoiseLevels.split(owed_by(1e7, 100, 90))
    one, two = (few.excess(500, "metric", later_link(root, d), d) for d in (1, 2))
    assert few.level(1) == few.level(2)
    np.testing.assert_array_equal(one, two)


def test_noise_is_independent_between_coordinates_parts_rounds_and_channels() -> None:
    levels, count = NoiseLevels.split(owed_by(9e5, 10, 6)), 40_000
    roots = [fresh_root(), fresh_root()]
    rows = [levels.draw(count, "update", SecretRandomness(), roots[0])]
    rows += [levels.excess(count, channel, roots[0], 0) for channel in ("update", "metric")]
    rows += [levels.excess(count, "update", roots[1], 0)]
    tails = [levels.excess(count, "update", later_link(roots[0], d), d) for d in range(5)]
    rows += [more - less for more, less in pairwise(tails)]
    bound = 5.5 / np.sqrt(count)
    for row in rows:
        for lag in (1, 2, 64):
            assert abs(np.corrcoef(row[:-lag], row[lag:])[0, 1]) < bound
    apart = np.corrcoef(rows[1:4] + rows[4:8])
    assert abs(apart[0, 1]) < bound
    assert abs(apart[0, 2]) < bound
    for i in range(3, 7):
        for j in range(3, 7):
            assert i == j or abs(apart[i, j]) < bound
    # The first part is in none of the others.
    kept = rows[0] - rows[1]
    assert all(abs(np.corrcoef(kept, row)[0, 1]) < bound for row in rows[1:])


@settings(deadline=None)
@given(cohorts(), st.data())
def test_no_schedule_of_drops_leaves_the_honest_less_than_they_owe(cohort, data) -> None:
    """Drops before the vector leave a sum of s, those after it keep all noise; the honest are s less c at least."""
    together, silos, minimum, colluders = cohort
    levels = NoiseLevels.split(owed_by(*cohort))
    missing = data.draw(st.integers(0, silos - minimum))
    honest = silos - missing - colluders
    late = data.draw(st.integers(0, honest))
    left = (honest - late) * levels.left(missing) + late * levels.drawn
    assert left * ROUNDING >= together
    least = together * (silos - missing) / honest
    everybody = (silos - missing - late) * levels.left(missing) + late * levels.drawn
    assert everybody * ROUNDING >= least
    if late:
        fewer = (silos - missing - late + 1) * levels.left(missing) + (late - 1) * levels.drawn
        assert everybody * ROUNDING >= fewer


@pytest.mark.parametrize(("one", "other"), [(0.5, 0.5), (0.6, 2.0), (1.0, 1.3), (0.5, 9.0), (3.0, 0.7)])
def test_two_discrete_gaussians_are_one_up_to_the_bound(one: float, other: float) -> None:
    """The exact log-ratio over the bulk of the distribution, against 5 exp(-2 pi^2 / (1/a + 1/b)), half of ours."""
    with mpmath.workprec(200):

        def pmf(variance: float, reach: int) -> list[mpmath.mpf]:
            weights = [mpmath.exp(-mpmath.mpf(k * k) / (2 * mpmath.mpf(variance))) for k in range(-reach, reach + 1)]
            total = mpmath.fsum(weights)
            return [weight / total for weight in weights]

        reach = 60
        first, second, whole = pmf(one, reach), pmf(other, reach), pmf(one + other, reach)
        worst = mpmath.mpf(0)
        for z in range(-12, 13):
            together = mpmath.fsum(
                first[k + reach] * second[z - k + reach] for k in range(-reach, reach + 1) if abs(z - k) <= reach
            )
            worst = max(worst, abs(mpmath.log(together / whole[z + reach])))
        bound = 5 * mpmath.exp(-2 * mpmath.pi**2 / (1 / mpmath.mpf(one) + 1 / mpmath.mpf(other)))
        assert bound / 10 < worst < bound


def test_the_grid_s_cost_counts_parts_of_any_size() -> None:
    alone = discretisation_delta(4.0, 5, 10, 1, 1.0, 1e-300)
    assert discretisation_delta((4.0,), 5, 10, 1, 1.0, 1e-300) == alone
    assert discretisation_delta((8**0.5, 8**0.5), 5, 10, 1, 1.0, 1e-300) == pytest.approx(alone, rel=1e-6)
    rough = discretisation_delta((15.3**0.5, 0.7**0.5), 5, 10, 1, 1.0, 1e-300)
    expected = 10 * (1 + np.e) * 5 * 10 * np.exp(-2 * np.pi**2 * 15.3 * 0.7 / 16)
    assert rough - alone == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ConfigError, match="grid steps a silo is too small"):
        discretisation_delta((4.0, 0.5), 5, 10, 1, 1.0, 1e-300)
