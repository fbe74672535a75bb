"""Patients by the key their records carry: what holds a patient's records together, and what is done once a patient."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.tables import Table
from autoflip_secure.errors import DataError

__all__ = ["array_patients", "patient_labels", "table_patients"]

LABEL_BYTES = 8


def patient_labels(keys: Sequence[str]) -> NDArray[np.int64]:
    """A number for each key, shape (n,), that no other patient has a part in: 63 bits of BLAKE2b of the key.

    The number decides the patient's part where records are split, so it must not depend on who else is there. It is a
    name, not a disguise: whoever has the number can try keys.

    Raises
    ------
    DataError
        Two keys have one number, which happens to fewer than one silo in 10^7 of a million patients.
    """
    label_of = {key: _label(key) for key in set(keys)}
    if len(set(label_of.values())) != len(label_of):
        raise DataError("two patients' keys have the same hash; change the spelling of the keys, such as by a prefix")
    return np.array([label_of[key] for key in keys], np.int64)


def _label(key: str) -> int:
    digest = hashlib.blake2b(key.encode(), digest_size=LABEL_BYTES, person=b"patient")
    return int.from_bytes(digest.digest(), "big") >> 1


def table_patients(table: Table, column: int) -> NDArray[np.int64]:
    """Labels of the patients named in a column, shape (rows,).

    Raises
    ------
    DataError
        An empty cell.
    """
    keys = [_spelled(cells[column]) for cells in table.rows]
    for row, key in enumerate(keys):
        if not key:
            raise DataError(f"{table.at(row, column)}: the record has no patient; write the patient's key")
    return patient_labels(keys)


def array_patients(path: Path, patient: NDArray[np.generic], records: int) -> NDArray[np.int64]:
    """Labels of the patients of an npz file's array `patient`, shape (records,).

    Raises
    ------
    DataError
        Neither whole numbers nor text, another length, or an empty key.
    """
    if patient.dtype.kind not in "iuU" or patient.shape != (records,):
        raise DataError(
            f"{path}: patient is {patient.dtype} of shape {patient.shape}; it needs a whole number or a text for each "
            f"of the {records} records of X"
        )
    keys = [_spelled(str(key)) for key in patient]
    if "" in keys:
        raise DataError(f"{path}: patient[{keys.index('')}] is empty; write the patient's key")
    return patient_labels(keys)


def _spelled(key: str) -> str:
    """One spelling: spreadsheets write the whole numbers of a column as 1.0 once one of its cells was empty."""
    whole = key.strip().removesuffix(".0")
    return whole if whole.isdecimal() else key.strip()
