"""Continuous Gaussian noise from secret words, hardened against attacks on its floating-point representation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.sums.randomness import Randomness

__all__ = ["secure_gaussian"]

DRAWS = 4


def secure_gaussian(count: int, std: float, randomness: Randomness) -> NDArray[np.float64]:
    """`count` independent Gaussians of mean 0, shape (count,): each the sum of four Box-Muller draws over two.

    A single floating-point Gaussian shows in its low bits which exact value it was added to (Mironov 2012; Jin et al.
    2022). Summing 2 n draws makes the search for them cost 2^(53 (2 n - 1)) (Holohan and Braghin 2021, section 5.1);
    n = 2 as in Opacus' secure_mode. Each draw spends two uniforms of 53 bits of its own, the sine of the pair unused.

    Raises
    ------
    ConfigError
        The standard deviation is negative or not finite.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ConfigError(f"noise of standard deviation {std} is negative or not finite")
    if std == 0:
        return np.zeros(count)
    total = np.zeros(count)
    for _ in range(DRAWS):
        uniform = ((randomness.words(2 * count) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        total += np.sqrt(-2.0 * np.log(uniform[:count])) * np.cos(2.0 * np.pi * uniform[count:])
    return total * (std / math.sqrt(DRAWS))
