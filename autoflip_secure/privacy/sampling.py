"""Poisson sampling of records: the sampling the accountants assume, and not a shuffle or a fixed batch size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.sums.randomness import Randomness

__all__ = ["poisson_sample"]

UNIFORM_BITS = 53


def poisson_sample(records: int, rate: float, randomness: Randomness) -> NDArray[np.int64]:
    """Ascending indices of the records that take part, each independently with probability `rate`.

    Each record compares 53 uniform bits with floor(rate 2^53), so the true rate is at most 2^-53 below `rate` and
    never above what the ledger was charged; rate 1 takes every record. The draw must be secret: amplification by
    sampling does not hold against someone who knows which records took part.

    Raises
    ------
    ConfigError
        The rate is not within [0, 1] or the number of records is negative.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"sampling rate {rate} is not within [0, 1]")
    if records < 0:
        raise ConfigError(f"cannot sample from {records} records")
    threshold = np.uint64(int(rate * 2.0**UNIFORM_BITS))
    uniform = randomness.words(records) >> np.uint64(64 - UNIFORM_BITS)
    return np.flatnonzero(uniform < threshold)
