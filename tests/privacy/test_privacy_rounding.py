from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.discrete_noise import (
    KL_MARGIN,
    DiscreteGaussian,
    discretisation_delta,
    per_silo_std,
    rounded_sensitivity,
)
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import quantise, unpack, word_count
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness, dither
from autoflip_secure.sums.words import ContributionWords, all_words

SHIPPED = {"clip_steps": 8192.0, "length": 26_000}


def rounded_distances(difference: np.ndarray, trials: int) -> np.ndarray:
    """L2 distance, in steps, of two rounded vectors that differ by `difference` steps, over many dithers."""
    spec = ChannelSpec("update", difference.size, 16, 32767.0)
    source = ReproducibleRandomness(8, "distance")
    base = np.random.default_rng(0).uniform(-5, 5, difference.size)
    distances = []
    for _ in range(trials):
        u = dither(source, spec.length)
        distances.append(np.linalg.norm(quantise(base + difference, spec, u) - quantise(base, spec, u)))
    return np.array(distances)


@pytest.mark.parametrize("clip_steps", [3.0, 20.0, 200.0])
@pytest.mark.parametrize("kind", ["half", "one", "even"])
def test_rounded_sensitivity_bounds_what_rounding_does(clip_steps: float, kind: str) -> None:
    length = 200
    difference = np.zeros(length)
    if kind == "half":  # the fractions that add most: as many coordinates at a half as the clip allows
        difference[: min(length, int(4 * clip_steps**2))] = 0.5
    elif kind == "one":
        difference[0] = clip_steps - 0.5
    else:
        difference[:] = clip_steps / math.sqrt(length)
    assert np.linalg.norm(difference) <= clip_steps * (1 + 1e-12)
    distances = rounded_distances(difference, 2000)
    assert np.mean(distances > rounded_sensitivity(clip_steps, length, 0.05)) < 0.05
    assert distances.max() <= rounded_sensitivity(clip_steps, length, 1e-6)


def test_the_expected_square_is_what_the_derivation_says() -> None:
    difference = np.random.default_rng(1).uniform(-3, 3, 500)
    fraction = np.abs(difference) % 1
    squares = rounded_distances(difference, 3000) ** 2
    expected = (difference**2).sum() + (fraction * (1 - fraction)).sum()
    assert squares.mean() == pytest.approx(expected, abs=5 * squares.std() / math.sqrt(3000))
    # Rounding does add: ignoring it would understate the sensitivity.
    assert squares.mean() > (difference**2).sum() * 1.02


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 1e4), st.integers(1, 10**6), st.floats(1e-14, 0.5))
def test_sensitivity_is_above_the_clip_and_monotone(clip_steps: float, length: int, failure: float) -> None:
    bound = rounded_sensitivity(clip_steps, length, failure)
    assert bound > clip_steps
    assert rounded_sensitivity(clip_steps, length + 1, failure) > bound
    assert rounded_sensitivity(clip_steps * 1.01, length, failure) > bound
    assert rounded_sensitivity(clip_steps, length, failure / 2) > bound


@pytest.mark.parametrize("honest", [1, 3, 7])
def test_noise_of_the_honest_silos_adds_up_inside_the_sum(honest: int) -> None:
    length, clip_steps, multiplier, failure = 60_000, 500.0, 1.3, 1e-9
    std = per_silo_std(multiplier, clip_steps, length, honest, failure)
    spec = ChannelSpec("update", length, 16, 1.0)
    words = np.zeros(word_count([spec], 16), np.uint64)
    for _ in range(honest):
        noise = DiscreteGaussian(std).sample(length, SecretRandomness())
        words += all_words(ContributionWords({"update": noise}, [spec], 16))
    total = unpack(words, spec, 16)
    wanted = (multiplier * rounded_sensitivity(clip_steps, length, failure)) ** 2 + 1 / 12
    tolerance = 5 * math.sqrt(2 / length)
    assert total.var() / wanted == pytest.approx(1.0, abs=tolerance)
    # A silo that adds no noise is outside that tolerance: the least honest number decides.
    assert abs((honest - 1) / honest - 1) > tolerance
    assert honest * std**2 == pytest.approx(wanted, rel=1e-9)
    assert honest * std**2 >= wanted


def divergence(variance: float) -> float:
    """KL of the discrete Gaussian of this variance from a rounded continuous one of variance - 1/12, exactly."""
    with mpmath.workdps(60):
        v = mpmath.mpf(variance)
        scale = mpmath.sqrt(2 * (v - mpmath.mpf(1) / 12))
        reach = int(14 * mpmath.sqrt(v)) + 10
        weights = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * v)) for k in range(reach)]
        total = weights[0] + 2 * mpmath.fsum(weights[1:])
        tails = [mpmath.erfc((k - mpmath.mpf("0.5")) / scale) / 2 for k in range(reach + 1)]
        rounded = [1 - 2 * tails[1], *(tails[k] - tails[k + 1] for k in range(1, reach))]
        terms = [w / total * mpmath.log(w / total / r) for w, r in zip(weights, rounded, strict=True)]
        return float(terms[0] + 2 * mpmath.fsum(terms[1:]))


@pytest.mark.parametrize("variance", [1.0, 1.1, 1.3, 1.7, 2.0, 3.0, 5.0, 10.0, 40.0, 200.0])
def test_the_gap_to_rounded_continuous_noise_has_the_stated_size(variance: float) -> None:
    stated = 12 / (2880 * variance**2) ** 2
    assert stated * 0.99 < divergence(variance) <= stated * KL_MARGIN
    assert divergence(variance) == pytest.approx(stated, rel=0.03 / variance + 1e-9)


@pytest.mark.parametrize(("std", "silos"), [(0.5, 2), (0.6, 3), (0.8, 4)])
def test_sum_of_discrete_gaussians_is_within_the_stated_distance_of_one(std: float, silos: int) -> None:
    reach = 40
    with mpmath.workdps(50):
        grid = range(-reach, reach + 1)

        def pmf(variance: mpmath.mpf) -> list[mpmath.mpf]:
            weights = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * variance)) for k in grid]
            return [weight / mpmath.fsum(weights) for weight in weights]

        one = pmf(mpmath.mpf(std) ** 2)
        total = one
        for _ in range(silos - 1):
            total = [
                mpmath.fsum(total[i] * one[k - i + reach] for i in range(len(grid)) if 0 <= k - i + reach < len(grid))
                for k in range(len(grid))
            ]
        joint = pmf(silos * mpmath.mpf(std) ** 2)
        distance = mpmath.fsum(abs(a - b) for a, b in zip(total, joint, strict=True)) / 2
        tau = 10 * mpmath.fsum(mpmath.exp(-2 * mpmath.pi**2 * std**2 * k / (k + 1)) for k in range(1, silos))
    assert 0 < distance <= tau


def test_coarse_noise_pays_for_being_a_sum() -> None:
    """The term of Kairouz et al. dominates at a step or so of noise and is gone at a few."""
    coarse = discretisation_delta(0.8, 4, 1, 1, 0.0, 1e-300)
    assert coarse > 2 * 10 * math.exp(-(math.pi**2) * 0.64)
    assert discretisation_delta(8.0, 4, 1, 1, 0.0, 1e-300) < 1e-6


def test_the_gap_is_tiny_at_shipped_settings() -> None:
    failure = 1e-12
    std = per_silo_std(1.3, honest=7, failure=failure, **SHIPPED)
    assert 4000 < std < 4100
    assert rounded_sensitivity(failure=failure, **SHIPPED) < 8192 * 1.001
    gap = discretisation_delta(std, 7, SHIPPED["length"], 200, 8.0, failure)  # type: ignore[arg-type]
    assert 200 * failure < gap < 201 * failure < 1e-9


@settings(max_examples=30, deadline=None)
@given(st.floats(1.0, 1e4), st.integers(1, 30), st.integers(1, 10**6), st.integers(1, 1000), st.floats(0, 20))
def test_gap_grows_with_use_and_is_a_probability(
    std: float, honest: int, length: int, rounds: int, epsilon: float
) -> None:
    gap = discretisation_delta(std, honest, length, rounds, epsilon, 1e-12)
    assert 0 < gap <= 1
    assert discretisation_delta(std, honest, length, rounds + 1, epsilon, 1e-12) >= gap
    assert discretisation_delta(std, honest, length, rounds, epsilon + 1, 1e-12) >= gap


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="--colluders"):
        per_silo_std(1.0, 100.0, 10, 0, 1e-9)
    with pytest.raises(ConfigError, match="noise multiplier"):
        per_silo_std(0.0, 100.0, 10, 1, 1e-9)
    with pytest.raises(ConfigError, match="clip"):
        rounded_sensitivity(0.0, 10, 1e-9)
    with pytest.raises(ConfigError, match="empty"):
        rounded_sensitivity(1.0, 0, 1e-9)
    with pytest.raises(ConfigError, match="failure probability"):
        rounded_sensitivity(1.0, 10, 0.0)
    with pytest.raises(ConfigError, match="use more bits"):
        discretisation_delta(0.3, 2, 10, 1, 1.0, 1e-9)
    with pytest.raises(ConfigError, match="cannot be accounted for"):
        discretisation_delta(3.0, 2, 10, -1, 1.0, 1e-9)
