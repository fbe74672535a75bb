"""Squared deviations, and the first guidance from their sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoflip_secure.autoflip.exploration import deviation, explored_guidance
from autoflip_secure.autoflip.pooling import debiased_energy, min_max, pooled_mean
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.sums.channels import Aggregate

LAYOUT = ParameterLayout(("a.weight", "a.bias", "b.weight"), ((3, 2), (3,), (2,)))
FINITE = st.floats(-1e3, 1e3)


def slow_min_max(vector: np.ndarray) -> list[float]:
    scaled: list[float] = []
    for start, stop in ((0, 6), (6, 9), (9, 11)):
        part = [float(value) for value in vector[start:stop]]
        low, high = min(part), max(part)
        scaled += [(value - low) / (high - low) if high > low else 0.5 for value in part]
    return scaled


@given(arrays(np.float64, 11, elements=FINITE))
def test_min_max_against_a_plain_loop(vector: np.ndarray) -> None:
    scaled = min_max(vector, LAYOUT)
    np.testing.assert_allclose(scaled, slow_min_max(vector))
    assert scaled.min() >= 0
    assert scaled.max() <= 1


def test_a_tensor_without_spread_is_neutral() -> None:
    vector = np.array([4.0] * 6 + [0.0] * 3 + [1.0, 2.0])
    np.testing.assert_array_equal(min_max(vector, LAYOUT), [0.5] * 9 + [0.0, 1.0])


def test_masked_coordinates_take_no_part_in_the_scaling() -> None:
    vector = np.array([0.0, 2.0, 3.0, 4.0, 99.0, 3.0, 1.0, 1.0, 1.0, 5.0, 6.0])
    live = np.ones(11, np.bool_)
    live[[0, 4, 9, 10]] = False
    expected = [0, 0, 0.5, 1, 0, 0.5, 0.5, 0.5, 0.5, 0, 0]
    np.testing.assert_array_equal(min_max(vector, LAYOUT, live), expected)


@given(arrays(np.float32, 11, elements=st.floats(-10, 10, width=32)), arrays(np.float32, 11, elements=st.just(1.5)))
def test_deviation_is_the_squared_difference(start: np.ndarray, end: np.ndarray) -> None:
    slow = [(float(b) - float(a)) ** 2 for a, b in zip(start, end, strict=True)]
    np.testing.assert_allclose(deviation(start, end), slow)
    np.testing.assert_array_equal(deviation(start, start), 0)


def test_deviation_needs_equal_shapes() -> None:
    with pytest.raises(EncodingError, match="cannot be compared"):
        deviation(np.zeros(3), np.zeros(4))


def test_guidance_is_the_scaled_mean_over_all_silos_not_over_cohorts(
    make_aggregate: Callable[..., Aggregate],
) -> None:
    silos = np.random.default_rng(0).normal(size=(7, 11))
    cohorts = [make_aggregate(silos[:3]), make_aggregate(silos[3:], cohort=1)]
    guidance = explored_guidance(cohorts, LAYOUT)
    assert guidance.dtype == np.float32
    np.testing.assert_allclose(guidance, slow_min_max((silos**2).mean(axis=0)), rtol=1e-6)


def test_pooled_mean_and_its_noise(make_aggregate: Callable[..., Aggregate]) -> None:
    rows = np.random.default_rng(1).normal(size=(7, 11))
    cohorts = [make_aggregate(rows[:3], noise_std=2.0), make_aggregate(rows[3:], noise_std=5.0)]
    mean, variance = pooled_mean(cohorts, "update", 11)
    np.testing.assert_allclose(mean, rows.mean(axis=0))
    assert np.isclose(variance, (2.0**2 + 5.0**2) / 49)
    live = np.arange(11) != 4
    energy = debiased_energy(cohorts, 11, live)
    np.testing.assert_allclose(energy[live], (rows.mean(axis=0) ** 2 - variance)[live])
    assert energy[4] == 0


def test_debiased_energy_is_unbiased_under_noise() -> None:
    generator = np.random.default_rng(2)
    truth = np.linspace(-1, 1, 21)
    draws = []
    for _ in range(4000):
        noised = 5 * truth + generator.normal(0, 6.0, 21)
        draws.append(debiased_energy([Aggregate(0, 0, 5, {"update": noised}, {"update": 6.0})], 21, None))
    error = np.mean(draws, axis=0) - truth**2
    assert np.abs(error / (np.std(draws, axis=0) / np.sqrt(4000))).max() < 4.5


def test_bad_channels_are_named() -> None:
    with pytest.raises(EncodingError, match="no sum was given"):
        pooled_mean([], "update", 3)
    with pytest.raises(EncodingError, match="no channel deviation"):
        pooled_mean([Aggregate(0, 0, 3, {"update": np.zeros(3)})], "deviation", 3)
    with pytest.raises(EncodingError, match="scatter live coordinates"):
        pooled_mean([Aggregate(0, 0, 3, {"update": np.zeros(2)})], "update", 3)
    with pytest.raises(EncodingError, match="not finite"):
        pooled_mean([Aggregate(0, 0, 3, {"update": np.array([0, np.nan, 0])})], "update", 3)
