"""UCI heart disease in four real hospitals (Janosi, Steinbrunn, Pfisterer, Detrano; CC BY 4.0).

Nothing here is computed from the records: ranges and codes are constants, hence public.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_folder
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.records import Records
from autoflip_secure.data.tables import Table, numbers, read_table
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError

__all__ = ["FEATURE_NAMES", "HOSPITALS", "load_heart"]

HOSPITALS = {"Cleveland": "cleveland", "Hungarian": "hungarian", "Switzerland": "switzerland", "VA": "va"}
PATIENTS = 920
COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
    "num",
)  # fmt: skip
MISSING = "?"

# What an adult in a cardiology ward can plausibly show; a value beyond is clipped. Vessels (ca) by definition 0..3.
RANGES = {
    "age": (20.0, 90.0),  # years
    "trestbps": (80.0, 200.0),  # resting systolic pressure, mm Hg
    "chol": (100.0, 450.0),  # serum cholesterol, mg/dl
    "thalach": (60.0, 220.0),  # highest heart rate under exercise, 1/min; 220 - age bounds it
    "oldpeak": (-3.0, 6.0),  # ST depression under exercise, mm
    "ca": (0.0, 3.0),  # major vessels seen by fluoroscopy
}
# Codes of heart-disease.names; two codes make one column of -1 and +1, more are one-hot.
CODES = {
    "sex": (0, 1),
    "cp": (1, 2, 3, 4),
    "fbs": (0, 1),
    "restecg": (0, 1, 2),
    "exang": (0, 1),
    "slope": (1, 2, 3),
    "thal": (3, 6, 7),
}
DIAGNOSES = (0, 1, 2, 3, 4)
# A living patient has neither a pressure nor a cholesterol of zero: two hospitals wrote 0 for "not measured".
ZERO_IS_MISSING = ("trestbps", "chol")
# Often not measured in at least one hospital. Absent one-hot features need no column: all their columns are zero.
OFTEN_MISSING = ("trestbps", "chol", "fbs", "thalach", "exang", "oldpeak", "ca")


def _feature_names() -> tuple[str, ...]:
    names: list[str] = []
    for column in COLUMNS[:-1]:
        codes = CODES.get(column, ())
        names += [f"{column}={code}" for code in codes] if len(codes) > 2 else [column]
    return (*names, *(f"{column} missing" for column in OFTEN_MISSING))


FEATURE_NAMES = _feature_names()


def load_heart(folder: Path) -> LoadedData:
    """Four natural silos; 29 features in [-1, 1], 0 where missing; class 1: some degree of disease (num > 0).

    There is no public test part: each hospital holds patients out.

    Raises
    ------
    DataError
        A hospital's file is missing, or a line of it is not what heart-disease.names says.
    """
    existing_folder(folder, "it must hold processed.cleveland.data and those of the three other hospitals")
    silos = tuple(
        NamedRecords(name, _read_hospital(folder / f"processed.{stem}.data")) for name, stem in HOSPITALS.items()
    )
    task = Task(
        "heart", "binary", (len(FEATURE_NAMES),), 2, ("healthy", "heart disease"), "mlp", nominal_records=PATIENTS
    )
    return LoadedData(task, Records.concatenate([silo.records for silo in silos]), public_test=None, natural=silos)


def _read_hospital(path: Path) -> Records:
    table = read_table(path, COLUMNS)
    values = numbers(table, range(len(COLUMNS)), missing=MISSING)
    diagnosis = values[:, -1]
    _check_codes(table, "num", values[:, -1], DIAGNOSES, may_miss=False)
    columns: list[NDArray[np.float64]] = []
    absent: dict[str, NDArray[np.float64]] = {}
    for index, name in enumerate(COLUMNS[:-1]):
        value = values[:, index]
        if name in ZERO_IS_MISSING:
            value = np.where(value == 0, np.nan, value)
        absent[name] = np.isnan(value).astype(np.float64)
        columns += _encode(table, name, value)
    columns += [absent[name] for name in OFTEN_MISSING]
    return Records(np.stack(columns, axis=1).astype(np.float32), (diagnosis > 0).astype(np.int64))


def _encode(table: Table, name: str, value: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Columns in [-1, 1] of one feature, 0 where it is missing."""
    if name in RANGES:
        low, high = RANGES[name]
        return [np.nan_to_num(np.clip((value - low) * (2 / (high - low)) - 1, -1, 1))]
    codes = CODES[name]
    _check_codes(table, name, value, codes, may_miss=True)
    if len(codes) == 2:
        return [np.nan_to_num(2 * value - 1)]
    return [(value == code).astype(np.float64) for code in codes]


def _check_codes(
    table: Table, name: str, value: NDArray[np.float64], codes: tuple[int, ...], *, may_miss: bool
) -> None:
    unknown = ~np.isin(value, codes) & ~(np.isnan(value) & may_miss)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise DataError(
            f"{table.at(row, COLUMNS.index(name))}: column {name!r} takes one of {', '.join(map(str, codes))}"
            f"{' or ?' if may_miss else ''}; fetch the file again"
        )
