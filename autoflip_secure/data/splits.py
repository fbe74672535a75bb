"""Setting records aside for scoring: the fixed public rule of the data sets, and a silo's own fifth."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.records import Records
from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.seeds import stream, stream_seed

__all__ = ["HOLDOUT_FRACTION", "hold_out", "hold_out_by_record", "public_fifth"]

HOLDOUT_FRACTION = 0.2
"""What a silo holds back where no public records exist."""

HASH_RANGE = 2.0**64


def public_fifth(y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every fifth record of each class, in file order: a stratified split that nobody can vary.

    Returns
    -------
    bool array, shape (n,)
        True for the public test part.
    """
    order = np.argsort(y, kind="stable")
    first = np.searchsorted(y[order], y[order], side="left")
    chosen = np.empty(len(y), np.bool_)
    chosen[order] = (np.arange(len(y)) - first) % 5 == 4
    return chosen


def hold_out(records: Records, fraction: float, seed: int, *names: str | int) -> tuple[Records, Records]:
    """Split into (train, holdout), class by class, both in the order of `records`.

    Each class gives its share of round(fraction * n) records, at least one and at most n - 1 in all, rounded by
    largest remainder (ties: the lower class). Which records is drawn from the stream of `seed` called `names`, such as
    the silo's name.

    The classes' sizes decide where each record goes, so one more patient may move others between the two parts.
    Where the privacy promise must cover the split itself, use `hold_out_by_record`.

    Raises
    ------
    ConfigError
        `fraction` is not between 0 and 1.
    DataError
        Fewer than two records.
    """
    total = _check_split(records, fraction)
    values, counts = np.unique(records.y, return_counts=True)
    ideal = counts * (total / len(records))
    quota = np.floor(ideal).astype(np.int64)
    quota[np.argsort(quota - ideal, kind="stable")[: total - int(quota.sum())]] += 1
    generator = stream(seed, "data", "holdout", *names)
    held = np.zeros(len(records), np.bool_)
    for value, size in zip(values, quota, strict=True):
        held[generator.permutation(np.flatnonzero(records.y == value))[:size]] = True
    return records.take(~held), records.take(held)


def hold_out_by_record(records: Records, fraction: float, seed: int, *names: str | int) -> tuple[Records, Records]:
    """Split into (train, holdout) where each record's own bytes, with seed and names, decide its part.

    A patient more or less leaves every other patient where it was, so the two parts have separate privacy budgets
    (parallel composition) also with regard to the split. Sizes vary like a binomial.

    Raises
    ------
    ConfigError
        `fraction` is not between 0 and 1.
    DataError
        One part would be empty.
    """
    _check_split(records, fraction)
    key = stream_seed(seed, "data", "holdout", *names).to_bytes(8, "big")
    threshold = fraction * HASH_RANGE
    held = np.fromiter((_uniform_word(key, records, row) < threshold for row in range(len(records))), np.bool_)
    if held.all() or not held.any():
        raise DataError(f"{len(records)} records are too few to hold out {fraction:g} of them one by one; give more")
    return records.take(~held), records.take(held)


def _uniform_word(key: bytes, records: Records, row: int) -> int:
    content = hashlib.blake2b(records.x[row].tobytes(), key=key, digest_size=8)
    content.update(records.y[row].tobytes())
    return int.from_bytes(content.digest(), "big")


def _check_split(records: Records, fraction: float) -> int:
    if not 0 < fraction < 1:
        raise ConfigError(f"holdout fraction {fraction!r} is not between 0 and 1; use one such as 0.2")
    if len(records) < 2:
        raise DataError("one record cannot be split into a training and a holdout part; give at least two")
    return min(max(round(fraction * len(records)), 1), len(records) - 1)
