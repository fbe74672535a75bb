"""Poisson sampling of patients: the sampling the accountants assume, and not a shuffle or a fixed batch size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.sums.randomness import Randomness

__all__ = ["poisson_rows", "poisson_sample"]

UNIFORM_BITS = 53


def poisson_sample(count: int, rate: float, randomness: Randomness) -> NDArray[np.int64]:
    """Ascending indices of those of `count` that take part, each independently with probability `rate`.

    Each compares 53 uniform bits with floor(rate 2^53), so the true rate is at most 2^-53 below `rate` and never above
    what the ledger was charged; rate 1 takes all. The draw must be secret: amplification by sampling does not hold
    against someone who knows who took part.

    Raises
    ------
    ConfigError
        The rate is not within [0, 1] or the count is negative.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"sampling rate {rate} is not within [0, 1]")
    if count < 0:
        raise ConfigError(f"cannot sample from {count} records")
    threshold = np.uint64(int(rate * 2.0**UNIFORM_BITS))
    uniform = randomness.words(count) >> np.uint64(64 - UNIFORM_BITS)
    return np.flatnonzero(uniform < threshold)


def poisson_rows(
    records: int, patient: NDArray[np.int64] | None, rate: float, randomness: Randomness
) -> NDArray[np.int64]:
    """Ascending indices of all records of the patients that take part, each independently with probability `rate`.

    Parameters
    ----------
    patient : int64 array, shape (records,), or None
        Whose each record is, counted from 0 without gaps; None: each record is a patient.

    Raises
    ------
    ConfigError
        As `poisson_sample`, or not one patient for each record.
    """
    if patient is None:
        return poisson_sample(records, rate, randomness)
    if patient.shape != (records,):
        raise ConfigError(f"{records} records have {len(patient)} patients")
    taken = np.zeros(int(patient.max(initial=-1)) + 1, np.bool_)
    taken[poisson_sample(len(taken), rate, randomness)] = True
    return np.flatnonzero(taken[patient])
