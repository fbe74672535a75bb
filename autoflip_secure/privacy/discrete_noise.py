"""Distributed noise on the integer grid: an exact discrete Gaussian, and the bounds that tie it to the accountant.

A silo rounds its clipped sum with a secret dither, adds a discrete Gaussian and hands the integers to the secure sum.
The accountant knows continuous Gaussians only; the three functions below say how much noise a silo adds so that the
honest silos together match the accountant's multiplier, and by how much delta the match can fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.gaussian_table import TABLE_ERROR, cumulative_table
from autoflip_secure.sums.randomness import Randomness

__all__ = ["MAX_STD", "DiscreteGaussian", "discretisation_delta", "per_silo_std", "rounded_sensitivity"]

MAX_STD = 2e5
CHUNK = 1 << 20
ROUNDING_SLACK = 2.0**-26
KURTOSIS_DIVISOR = 2880.0
KL_MARGIN = 1.05
LEAST_SILO_VARIANCE = 0.5


@dataclass(frozen=True)
class DiscreteGaussian:
    """Discrete Gaussian on the integers, P(k) proportional to exp(-k^2 / (2 std^2)).

    The sampler is within total variation distance 2^-160 of the exact distribution (see gaussian_table) and works on
    integers only, so the floating-point attacks on Gaussian noise (Mironov 2012; Holohan and Braghin 2021) do not
    apply. Its running time depends on the draws only through the cache and how many are near the table's values.

    Attributes
    ----------
    std : float
        In grid steps, at most 2e5. The variance is std^2 up to a relative 2 exp(-2 pi^2 std^2) (4 pi^2 std^2).
    """

    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0):
            raise ConfigError(f"noise of standard deviation {self.std} grid steps is not positive and finite")
        if self.std > MAX_STD:
            raise ConfigError(
                f"noise of standard deviation {self.std:.3g} grid steps is above {MAX_STD:.0e}; use fewer bits a value"
            )

    def sample(self, count: int, randomness: Randomness) -> NDArray[np.int64]:
        """`count` independent draws, shape (count,). Takes one word a draw and one word for 64 signs."""
        values = np.empty(count, np.int64)
        for start in range(0, count, CHUNK):
            part = values[start : start + CHUNK]
            part[:] = self._magnitudes(part.size, randomness)
            signs = np.unpackbits(randomness.words(-(-part.size // 64)).view(np.uint8), count=part.size)
            # Of two's complement, and faster than a negation of some: (z xor -1) + 1 = -z.
            minus = -signs.view(np.int8).astype(np.int64)
            part ^= minus
            part -= minus
        return values

    def _magnitudes(self, count: int, randomness: Randomness) -> NDArray[np.int64]:
        table = cumulative_table(self.std)
        words = randomness.words(count)
        values = table.search(words)
        if table.high.size:
            undecided = np.flatnonzero(table.high[np.maximum(values - 1, 0)] == words)
            for index in undecided:  # the leading 64 bits equal a table value's: once in 2^64 / table length draws
                values[index] = table.resolve(int(words[index]), randomness.words(2).tobytes())
        return values


def rounded_sensitivity(clip_steps: float, length: int, failure: float) -> float:
    """L2 sensitivity, in grid steps, of a stochastically rounded vector of real L2 sensitivity `clip_steps`.

    Let x, x' be two vectors in grid steps with |x - x'|_2 <= D, u the dither, the same for both, uniform on [0, 1)^d.
    In coordinate i write |x_i - x'_i| = k + f with k whole and 0 <= f < 1. Then |floor(x_i + u) - floor(x'_i + u)| is
    k + b with b = 1 with probability f, independent over the coordinates, and its square k^2 + (2k + 1) b. Hence

        E Delta^2 = sum k^2 + (2k + 1) f = sum (k + f)^2 + f (1 - f) <= D^2 + d / 4,
        sum (2k + 1)^2 <= (2 D + sqrt d)^2                       (Minkowski),
        P[Delta^2 > E Delta^2 + (2 D + sqrt d) sqrt(ln(1 / failure) / 2)] <= failure     (Hoeffding).

    Clipping to the channel's range, before and after rounding, is 1-Lipschitz and does not add to it. The dither has 32
    bits and the arithmetic 53; on channels of up to 25 bits both move a difference by less than 2^-26 of a step, which
    is added.

    Parameters
    ----------
    clip_steps : float
        D: the clip over the grid's step.
    length : int
        d: coordinates of the channel.
    failure : float
        Probability, over one round's dither, that the bound is exceeded.

    Raises
    ------
    ConfigError
        A parameter is out of its range.
    """
    _check_length(length)
    _check_failure(failure)
    if not (math.isfinite(clip_steps) and clip_steps > 0):
        raise ConfigError(f"a clip of {clip_steps} grid steps is not positive and finite")
    root = math.sqrt(length)
    distance = clip_steps + root * ROUNDING_SLACK
    spread = 2.0 * distance + root
    mean = distance**2 + length / 4.0 + ROUNDING_SLACK * spread * root
    return math.sqrt(mean + spread * math.sqrt(math.log(1.0 / failure) / 2.0))


def per_silo_std(noise_multiplier: float, clip_steps: float, length: int, honest: int, failure: float) -> float:
    """Standard deviation, in grid steps, of the discrete Gaussian each silo adds.

    The noise of `honest` silos is matched with a continuous Gaussian of standard deviation noise_multiplier * Delta
    that is rounded to the grid, which adds 1/12 to its variance: honest s^2 = (noise_multiplier Delta)^2 + 1/12 with
    Delta = `rounded_sensitivity`. Silos beyond the honest ones only add noise.

    Raises
    ------
    ConfigError
        A parameter is out of its range.
    """
    _check_honest(honest)
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ConfigError(f"noise multiplier {noise_multiplier} is not positive and finite")
    noise = noise_multiplier * rounded_sensitivity(clip_steps, length, failure)
    return math.sqrt((noise**2 + 1.0 / 12.0) / honest) * (1.0 + 1e-12)


def discretisation_delta(
    per_silo_std: float | Sequence[float], honest: int, length: int, rounds: int, epsilon: float, failure: float
) -> float:
    """What the grid adds to delta over a whole session, on top of the continuous accountant's.

    (a) In each round the sensitivity bound fails with probability at most `failure` over the dither.
    (b) The sum of discrete Gaussians is not one discrete Gaussian. For two of variances a and b >= 1/2 the log-ratio
        is at most 5 exp(-2 pi^2 / (1/a + 1/b)) at every integer (Kairouz, Liu and Steinke 2021, arXiv 2102.06387,
        counted twice here): completing the square, P(X + Y = x) over the pmf of variance a + b is a constant times
        sum_k exp(-(k - m(x))^2 / 2r), 1/r = 1/a + 1/b, which by Poisson summation is sqrt(2 pi r) (1 + 2 e(x)) with
        |e| <= q + q^4 + q^9 + ..., q = exp(-2 pi^2 r). Both are distributions, so the constant is within the same
        bounds, and log((1 + 2e)/(1 - 2e)) < 5 q for r >= 1/4. Added up one by one, first the parts of each silo, then
        the silos, of variance s^2 each, this makes 10 sum_{k=1}^{honest-1} exp(-2 pi^2 s^2 k / (k + 1)) and as much
        again for the parts; their total variation distance is no larger. Noise beyond `honest` silos and the parts
        given is post-processing.
    (c) A discrete Gaussian of variance v is not a rounded continuous one of variance v - 1/12, which would be mere
        post-processing of the mechanism the accountant knows (the rounded vector is whole, so rounding commutes with
        adding it). Both have variance v; rounding leaves a fourth cumulant of -1/120 (Sheppard), so the relative
        difference of the two is He4(x / sqrt v) / (2880 v^2) + O(v^-3), and as E He4^2 = 24 their KL divergence is
        12 / (2880 v^2)^2, times at most 1.05 for v >= 1 (checked against exact pmfs in the tests). KL adds up over
        coordinates and rounds; Pinsker turns it into total variation.
    (d) The sampler's table is within 2^-160 a draw.

    A total variation distance of eta between the real and the ideal mechanism costs (1 + e^epsilon) eta of delta; (a)
    is an event of the same probability with and without the record and costs itself.

    Parameters
    ----------
    per_silo_std : float or sequence of float
        Standard deviation of a silo's noise, in grid steps; of each independent part where it is drawn in parts.

    Returns
    -------
    float, at most 1.

    Raises
    ------
    ConfigError
        A parameter is out of its range, or the noise is about a grid step or less.
    """
    _check_length(length)
    _check_failure(failure)
    _check_honest(honest)
    if rounds < 0 or not epsilon >= 0:
        raise ConfigError(f"{rounds} rounds at epsilon {epsilon} cannot be accounted for")
    parts = np.square(np.atleast_1d(per_silo_std).astype(np.float64))
    silo = float(parts.sum())
    variance = honest * silo
    if not (math.isfinite(variance) and variance >= 1 and parts.min() >= LEAST_SILO_VARIANCE):
        raise ConfigError(
            f"noise of {math.sqrt(parts.min()):.3g} grid steps a silo is too small to account for; use more bits"
        )
    draws = length * rounds
    sum_of_discrete = draws * (honest * _addition_gap(parts) + _addition_gap(np.full(honest, silo)))
    divergence = draws * KL_MARGIN * 12.0 / (KURTOSIS_DIVISOR * variance**2) ** 2
    distance = sum_of_discrete + math.sqrt(divergence / 2.0) + draws * honest * parts.size * TABLE_ERROR
    weight = 1.0 + math.exp(min(epsilon, 700.0))
    return min(1.0, rounds * failure + weight * distance)


def _addition_gap(variances: NDArray[np.float64]) -> float:
    """Log-ratio between the sum of discrete Gaussians, added up one by one, and a single one."""
    reached, added = np.cumsum(variances)[:-1], variances[1:]
    return 10.0 * float(np.exp(-2.0 * math.pi**2 * reached * added / (reached + added)).sum())


def _check_length(length: int) -> None:
    if length < 1:
        raise ConfigError(f"a noised vector of {length} coordinates is empty")


def _check_honest(honest: int) -> None:
    if honest < 1:
        raise ConfigError(f"distributed noise needs an honest silo, not {honest}; lower --colluders or add silos")


def _check_failure(failure: float) -> None:
    if not 0 < failure < 1:
        raise ConfigError(f"failure probability {failure} of the rounding bound is not within (0, 1)")
