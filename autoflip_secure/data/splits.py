"""Setting records aside for scoring: the fixed public rule of the data sets, and a silo's own fifth.

All records of a patient stay together: a silo's two parts hold different patients.
"""

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

    Each class gives its share of round(fraction * n) of the n patients, at least one and at most n - 1 in all, rounded
    by largest remainder (ties: the lower class). Which patients is drawn from the stream of `seed` called `names`, such
    as the silo's name. A patient of several records is of the class of the first.

    The classes' sizes decide where each record goes, so one more patient may move others between the two parts.
    Where the privacy promise must cover the split itself, use `hold_out_by_record`.

    Raises
    ------
    ConfigError
        `fraction` is not between 0 and 1.
    DataError
        Fewer than two patients.
    """
    total = _check_split(records, fraction)
    patient, first = _patients(records)
    labels = records.y[first]
    values, counts = np.unique(labels, return_counts=True)
    ideal = counts * (total / len(first))
    quota = np.floor(ideal).astype(np.int64)
    quota[np.argsort(quota - ideal, kind="stable")[: total - int(quota.sum())]] += 1
    generator = stream(seed, "data", "holdout", *names)
    chosen = np.zeros(len(first), np.bool_)
    for value, size in zip(values, quota, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == value))[:size]] = True
    held = chosen[patient]
    return records.take(~held), records.take(held)


def hold_out_by_record(records: Records, fraction: float, seed: int, *names: str | int) -> tuple[Records, Records]:
    """Split into (train, holdout) where each patient's own bytes, with seed and names, decide the part.

    They are those of the patient's key where records name their patient, else those of the record. A patient more or
    less leaves every other patient where it was, so the two parts have separate privacy budgets (parallel composition)
    also with regard to the split. Sizes vary like a binomial.

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
        unit = "records" if records.group is None else "patients"
        raise DataError(f"{records.patients} {unit} are too few to hold out {fraction:g} of them one by one; give more")
    return records.take(~held), records.take(held)


def _uniform_word(key: bytes, records: Records, row: int) -> int:
    if records.group is not None:
        content = hashlib.blake2b(records.group[row].tobytes(), key=key, digest_size=8)
    else:
        content = hashlib.blake2b(records.x[row].tobytes(), key=key, digest_size=8)
        content.update(records.y[row].tobytes())
        if records.time is not None:
            content.update(records.time[row].tobytes())
    return int.from_bytes(content.digest(), "big")


def _patients(records: Records) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The patient of each record, counted from 0, and each patient's first record."""
    patient = records.patient_numbers()
    return patient, np.unique(patient, return_index=True)[1].astype(np.int64)


def _check_split(records: Records, fraction: float) -> int:
    if not 0 < fraction < 1:
        raise ConfigError(f"holdout fraction {fraction!r} is not between 0 and 1; use one such as 0.2")
    patients = records.patients
    if patients < 2:
        unit = "record" if records.group is None else "patient"
        raise DataError(f"one {unit} cannot be split into a training and a holdout part; give at least two")
    return min(max(round(fraction * patients), 1), patients - 1)
