"""Fed-TCGA-BRCA: survival with breast cancer in six regions (FLamby, du Terrail et al. 2022; data: TCGA, open access).

Nothing here is computed from the records: the age's range, the cut of follow-up and the baseline are constants.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_folder
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.follow_up import FollowUp
from autoflip_secure.data.records import Records
from autoflip_secure.data.tables import Table, numbers, read_table
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError

__all__ = ["REGIONS", "load_tcga_brca"]

REGIONS = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")
"""By the number of the silo in the published split."""

PARTS = ("train", "test")
PATIENT, AGE, EVENT, TIME = "pid", "age_at_index", "E", "T"
FEATURES = 39
TRAIN_PATIENTS = 866
DAYS_A_YEAR = 365.25

AGES = (20.0, 90.0)  # years; TCGA writes 90 for everybody older
FOLLOW_UP = FollowUp(cuts=(4.0,), hazards=(0.03, 0.03))
"""Years. exp(-0.03 * 5): 86 of 100 patients alive after five years, a guess at breast cancer of all stages."""


def load_tcga_brca(folder: Path) -> LoadedData:
    """Six natural silos with the published split; 39 features: the age in [-1, 1], and codes that are 0 or 1.

    Patients of `brca.csv` that the split does not name (eight) are left out, as in FLamby. Each silo's test patients
    are its own holdout; there is no public test part.

    Raises
    ------
    DataError
        A file is missing, or does not hold what was published.
    """
    existing_folder(folder, "it must hold brca.csv and train_test_split.csv")
    part_of = _published_split(folder / "train_test_split.csv")
    table = read_table(folder / "brca.csv")
    records, patients = _read_patients(table)
    silos = tuple(
        NamedRecords(name, *(_part(table.path, records, patients, part_of, f"{part}_{number}") for part in PARTS))
        for number, name in enumerate(REGIONS)
    )
    task = Task(
        "tcga-brca", "survival", (FEATURES,), 2, ("alive at last contact", "died"), "mlp",
        nominal_records=TRAIN_PATIENTS, follow_up=FOLLOW_UP,
    )  # fmt: skip
    return LoadedData(task, Records.concatenate([silo.records for silo in silos]), public_test=None, natural=silos)


def _published_split(path: Path) -> dict[str, str]:
    """Part, such as train_3, of each patient."""
    table = read_table(path)
    if table.columns != (PATIENT, "fold", "fold2"):
        raise DataError(f"{path}:1: the columns are not pid, fold, fold2; fetch the data set again")
    known = {f"{part}_{number}" for part in PARTS for number in range(len(REGIONS))}
    for row, cells in enumerate(table.rows):
        if cells[2] not in known:
            raise DataError(f"{table.at(row, 2)}: not a part such as train_0; fetch the data set again")
    return {cells[0]: cells[2] for cells in table.rows}


def _read_patients(table: Table) -> tuple[Records, NDArray[np.str_]]:
    """All patients of the table, each once, and their names."""
    expected = (PATIENT, AGE, EVENT, TIME)
    if any(name not in table.columns for name in expected) or len(table.columns) != FEATURES + 3:
        raise DataError(f"{table.path}:1: not the columns of Fed-TCGA-BRCA; fetch the data set again")
    pid, event, time = (table.columns.index(name) for name in (PATIENT, EVENT, TIME))
    features = [index for index in range(len(table.columns)) if index not in (pid, event, time)]
    x, age = numbers(table, features), features.index(table.columns.index(AGE))
    outcome = numbers(table, (event, time))
    codes = np.delete(np.column_stack([x, outcome[:, 0]]), age, axis=1)
    wrong = np.isnan(x).any(axis=1) | ~np.isin(codes, (0.0, 1.0)).all(axis=1) | ~(outcome[:, 1] >= 0)
    if wrong.any():
        line = table.lines[int(np.flatnonzero(wrong)[0])]
        raise DataError(f"{table.path}:{line}: a code is neither 0 nor 1, or age or time is none; fetch it again")
    x[:, age] = np.clip((x[:, age] - AGES[0]) * (2 / (AGES[1] - AGES[0])) - 1, -1, 1)
    names, first = np.unique([cells[pid] for cells in table.rows], return_index=True)
    years = (outcome[first, 1] / DAYS_A_YEAR).astype(np.float32)
    return Records(x[first].astype(np.float32), outcome[first, 0].astype(np.int64), time=years), names


def _part(path: Path, records: Records, patients: NDArray[np.str_], part_of: dict[str, str], part: str) -> Records:
    chosen = np.array([part_of.get(str(name)) == part for name in patients])
    if chosen.sum() != sum(value == part for value in part_of.values()):
        raise DataError(f"{path}: lacks a patient of {part} of train_test_split.csv; fetch both again")
    return records.take(chosen)
