from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy import gaussian_table
from autoflip_secure.privacy.discrete_noise import MAX_STD, DiscreteGaussian
from autoflip_secure.privacy.gaussian_table import TABLE_ERROR, cumulative_table
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness


class Scripted:
    """Words from a list, then from a stream."""

    def __init__(self, *words: int) -> None:
        self.script = list(words)
        self.rest = ReproducibleRandomness(1, "rest")

    def words(self, count: int) -> NDArray[np.uint64]:
        given_, self.script = self.script[:count], self.script[count:]
        return np.concatenate([np.array(given_, np.uint64), self.rest.words(count - len(given_))])


def exact_pmf(std: float, reach: int) -> list[mpmath.mpf]:
    """P(X = k), k = 0 .. reach, at the caller's precision."""
    variance = mpmath.mpf(std) ** 2
    weights = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * variance)) for k in range(int(40 * std) + 40)]
    total = weights[0] + 2 * mpmath.fsum(weights[1:])
    return [weight / total for weight in weights[: reach + 1]]


@pytest.mark.parametrize("std", [0.05, 0.3, 1.0, 2.7, 40.0])
def test_table_is_exact_to_far_below_two_to_the_minus_120(std: float) -> None:
    table = cumulative_table(std)
    with mpmath.workprec(400):
        pmf = exact_pmf(std, len(table.high))
        previous, distance, cumulative = Fraction(0), mpmath.mpf(0), mpmath.mpf(0)
        for k in range(len(table.high)):
            reached = Fraction(int.from_bytes(table.entry(k), "big"), 1 << 192)
            probability = reached - previous
            previous = reached
            exact = pmf[k] * (1 if k == 0 else 2)
            cumulative += exact
            distance += abs(mpmath.mpf(probability.numerator) / probability.denominator - exact)
        last = 1 - previous
        distance += abs(mpmath.mpf(last.numerator) / last.denominator - (1 - cumulative))
        assert distance / 2 < TABLE_ERROR < mpmath.mpf(2) ** -120


def test_large_table_has_the_exact_probability_at_zero() -> None:
    std = 4000.0
    table = cumulative_table(std)
    with mpmath.workprec(300):
        # Poisson summation: sum exp(-k^2 / 2 s^2) = s sqrt(2 pi) (1 + 2 exp(-2 pi^2 s^2) + ...)
        exact = 1 / (mpmath.mpf(std) * mpmath.sqrt(2 * mpmath.pi))
        found = mpmath.mpf(int.from_bytes(table.entry(0), "big")) / (1 << 192)
        assert abs(found - exact) < mpmath.mpf(2) ** -180


def test_word_boundaries_are_cut_exactly() -> None:
    std = 3.0
    table = cumulative_table(std)
    boundary = int.from_bytes(table.entry(2), "big")
    first, second, third = boundary >> 128, boundary >> 64 & (2**64 - 1), boundary & (2**64 - 1)

    def magnitude(*words: int) -> int:
        # Leading word of the one draw, the sign word, then the tie's two words (big-endian bytes, least first).
        leading, *rest = words
        source = Scripted(leading, *(int.from_bytes(word.to_bytes(8, "big"), "little") for word in rest))
        return int(DiscreteGaussian(std)._magnitudes(1, source)[0])

    assert magnitude(first - 1) == 2
    assert magnitude(first + 1) == 3
    assert magnitude(first, second - 1, 2**64 - 1) == 2
    assert magnitude(first, second, third - 1) == 2
    assert magnitude(first, second, third) == 3
    assert magnitude(first, second + 1, 0) == 3


def test_the_farthest_tail_is_reached_only_by_the_last_values() -> None:
    std = 3.0
    ones = 2**64 - 1
    table = cumulative_table(std)
    assert DiscreteGaussian(std)._magnitudes(1, Scripted(0))[0] == 0
    assert DiscreteGaussian(std)._magnitudes(1, Scripted(ones, ones, ones))[0] == len(table.high)
    # P(|X| > 14.2 std) is below 2^-128: tied draws with small remainders end far before the table does.
    tied = DiscreteGaussian(std)._magnitudes(1, Scripted(ones, 0, 0))[0]
    assert 8 * std < tied < 14.2 * std


@pytest.mark.parametrize("std", [0.4, 1.0, 2.5])
def test_sample_fits_the_exact_pmf(std: float) -> None:
    count = 400_000
    draws = DiscreteGaussian(std).sample(count, ReproducibleRandomness(3, "chi"))
    with mpmath.workprec(80):
        pmf = np.array([float(p) for p in exact_pmf(std, int(4 * std) + 1)])
    reach = int(np.flatnonzero(pmf * count > 10).max())
    probabilities = np.concatenate([pmf[reach:0:-1], pmf[: reach + 1]])
    observed = np.array([np.count_nonzero(draws == k) for k in range(-reach, reach + 1)])
    outside = count - observed.sum()
    _, p = stats.chisquare([*observed, outside], [*(probabilities * count), (1 - probabilities.sum()) * count])
    assert p > 1e-3


@pytest.mark.parametrize("std", [20.0, 4000.0])
def test_moments_and_tail(std: float) -> None:
    count = 1_000_000
    draws = DiscreteGaussian(std).sample(count, ReproducibleRandomness(4, "moments"))
    assert draws.dtype == np.int64
    scaled = draws / std
    assert abs(scaled.mean()) < 4 / np.sqrt(count)
    assert scaled.var() == pytest.approx(1.0, abs=4 * np.sqrt(2 / count))
    assert (scaled**4).mean() == pytest.approx(3.0, abs=4 * np.sqrt(96 / count))
    for limit in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf((np.floor(limit * std) + 0.5) / std)
        assert np.mean(np.abs(draws) > limit * std) == pytest.approx(expected, abs=4 * np.sqrt(expected / count))


def test_draws_are_independent_of_each_other_and_of_their_signs() -> None:
    count = 300_000
    draws = DiscreteGaussian(50.0).sample(count, ReproducibleRandomness(5, "independence")).astype(float)
    bound = 4 / np.sqrt(count)
    for lag in (1, 2, 63, 64, 65):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < bound
        assert abs(np.corrcoef(np.abs(draws[:-lag]), np.abs(draws[lag:]))[0, 1]) < bound
    assert abs(np.corrcoef(np.sign(draws), np.abs(draws))[0, 1]) < bound


def test_secret_noise_never_repeats() -> None:
    noise = DiscreteGaussian(1000.0)
    first, second = (noise.sample(1000, SecretRandomness()) for _ in range(2))
    assert np.count_nonzero(first == second) < 20
    source = SecretRandomness()
    assert np.count_nonzero(noise.sample(1000, source) == noise.sample(1000, source)) < 20


def test_long_samples_equal_their_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoflip_secure.privacy.discrete_noise.CHUNK", 1000)
    draws = DiscreteGaussian(30.0).sample(10_500, ReproducibleRandomness(6, "chunks"))
    assert draws.shape == (10_500,)
    blocks = draws[:10_000].reshape(10, 1000)
    assert np.all(blocks.std(axis=1) > 25)
    assert DiscreteGaussian(30.0).sample(0, SecretRandomness()).shape == (0,)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 300.0), st.integers(0, 500))
def test_any_std_gives_whole_numbers_of_its_size(std: float, count: int) -> None:
    draws = DiscreteGaussian(std).sample(count, ReproducibleRandomness(7, "any"))
    assert draws.shape == (count,)
    assert np.all(np.abs(draws) <= 10 * std)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 400.0), st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_the_quick_search_finds_what_a_search_finds(std: float, extra: list[int]) -> None:
    """Also at the table's own values, next to them, and at the edges of what is decided at once."""
    table = cumulative_table(std)
    near = np.concatenate([table.high + np.uint64(d) for d in (0, 1, 2**64 - 1)])
    edges = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    words = np.concatenate([near, edges, edges - np.uint64(1), np.array(extra, np.uint64)])
    np.testing.assert_array_equal(table.search(words), np.searchsorted(table.high, words, "right"))


def test_tables_are_built_once() -> None:
    assert cumulative_table(123.0) is cumulative_table(123.0)


def test_only_so_many_values_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = cumulative_table(30.0).high.size, cumulative_table(31.0).high.size
    monkeypatch.setattr(gaussian_table, "MOST_VALUES", sum(sizes))
    first, second = cumulative_table(30.0), cumulative_table(31.0)
    assert cumulative_table(30.0) is first, "both fit"
    third = cumulative_table(2.0)
    assert cumulative_table(30.0) is first, "used after the second"
    assert cumulative_table(2.0) is third
    assert cumulative_table(31.0) is not second
    large = cumulative_table(500.0)
    assert cumulative_table(500.0) is large, "one is kept whatever its size"


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="use fewer bits"):
        DiscreteGaussian(MAX_STD * 1.01)
    for std in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="positive and finite"):
            DiscreteGaussian(std)
