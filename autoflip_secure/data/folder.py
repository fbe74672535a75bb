"""`folder:PATH`, a user's own data: one folder a silo, and a public declaration beside them.

    PATH/dataset.toml              see `declaration`
    PATH/<silo name>/train.csv     a header, a column `label`, numeric features, empty where missing; or train.npz
                                   with X (records, features) and y (NaN where missing); test.csv or test.npz optional
    PATH/public_test.csv           optional, public records to score on

Survival tables hold the columns `time` and `event` (1 where the event was seen, else 0) in place of `label`; npz files
the arrays X, time and event.

Where `dataset.toml` names a column of patients, it must be in every silo's table (in npz files as the array
`patient`); a silo's train and test tables hold different patients.

Errors name file, line and column, and never quote a cell, because it is a patient's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_file, existing_folder, read_npz
from autoflip_secure.data.declaration import DECLARATION_FILE, Declaration, read_declaration
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.patients import array_patients, table_patients
from autoflip_secure.data.records import Records
from autoflip_secure.data.tables import Table, numbers, read_table
from autoflip_secure.data.targets import array_labels, array_times, table_labels, table_times
from autoflip_secure.errors import DataError

__all__ = ["load_folder", "read_own_records", "read_public_test"]

MEANING = {"label": "class", "event": "event (1 seen, 0 not)", "time": "time of follow-up"}


def load_folder(folder: Path) -> LoadedData:
    """All silos of a folder, sorted by name; a silo that brings test records scores on them.

    Raises
    ------
    DataError
        Anything missing or malformed, or feature columns that differ between silos.
    """
    existing_folder(folder, f"folder:PATH needs {DECLARATION_FILE} and one folder a silo")
    declaration = read_declaration(folder)
    reader = _FolderReader(declaration)
    public_test = reader.part(folder, "public_test", own=False)
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: there is no silo; make a folder for each, holding train.csv")
    silos = tuple(reader.silo(folder / name) for name in names)
    return LoadedData(declaration.task(), None, public_test, silos)


def read_own_records(silo: Path, declaration: Declaration) -> NamedRecords:
    """One silo's folder by itself, as the silo reads it on its own machine.

    Raises
    ------
    DataError
        As `load_folder`.
    """
    return _FolderReader(declaration).silo(existing_folder(silo, "a silo's folder holds train.csv"))


def read_public_test(path: Path, declaration: Declaration) -> Records:
    """Public records to score on, from a csv or npz file.

    Raises
    ------
    DataError
        As `load_folder`, or there is no such file.
    """
    existing_file(path, "put the public test records there")
    records = _FolderReader(declaration).part(path.parent, path.stem, own=False)
    assert records is not None
    return records


class _FolderReader:
    """Reads files under one declaration; the first table's feature columns bind all the others."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._columns = declaration.columns
        self._columns_from = DECLARATION_FILE

    def silo(self, folder: Path) -> NamedRecords:
        if not folder.name.isprintable():
            raise DataError(f"{str(folder)!r}: a silo's name has a character that cannot be printed; rename its folder")
        train = self.part(folder, "train")
        if train is None:
            raise DataError(f"{folder}: holds neither train.csv nor train.npz; add one, or move the folder elsewhere")
        test = self.part(folder, "test")
        if test is not None and train.group is not None and test.group is not None:
            shared = np.intersect1d(train.group, test.group).size
            if shared:
                raise DataError(
                    f"{folder}: {shared} patients are in train and in test; put all records of a patient in one of them"
                )
        return NamedRecords(folder.name, train, test)

    def part(self, folder: Path, stem: str, *, own: bool = True) -> Records | None:
        """Records of stem.csv or stem.npz; None where there is neither. Only a silo's `own` are told by patient."""
        table, arrays = folder / f"{stem}.csv", folder / f"{stem}.npz"
        if table.exists() and arrays.exists():
            raise DataError(f"{folder}: holds both {table.name} and {arrays.name}; keep one")
        if table.exists():
            return self._read_csv(table, own)
        return self._read_npz(arrays, own) if arrays.exists() else None

    def _read_csv(self, path: Path, own: bool) -> Records:
        table = read_table(path)
        for name in self._declaration.targets:
            if name not in table.columns:
                raise DataError(f"{path}:1: no column is named {name}; name the column with the {MEANING[name]} so")
        targets = [table.columns.index(name) for name in self._declaration.targets]
        patient = self._patient_column(table, own)
        columns = [index for index in range(len(table.columns)) if index not in (*targets, patient)]
        self._check_columns(table, columns)
        y = table_labels(table, targets[0], self._declaration)
        time = table_times(table, targets[1]) if self._declaration.follow_up else None
        group = table_patients(table, patient) if own and patient is not None else None
        return Records(self._declaration.scale(numbers(table, columns)), y, group, time)

    def _patient_column(self, table: Table, own: bool) -> int | None:
        name = self._declaration.patient
        if name in table.columns:
            return table.columns.index(name)
        if name is not None and own:
            raise DataError(
                f"{table.path}:1: no column is named {name!r}, which {DECLARATION_FILE} says holds the patient's key; "
                "add it"
            )
        return None

    def _check_columns(self, table: Table, columns: list[int]) -> None:
        features = self._declaration.features
        if len(columns) != features:
            raise DataError(
                f"{table.path}:1: there are {len(columns)} feature columns; "
                f"{DECLARATION_FILE} says features = {features}"
            )
        names = tuple(table.columns[index] for index in columns)
        if self._columns is None:
            self._columns, self._columns_from = names, str(table.path)
        for index, name, expected in zip(columns, names, self._columns, strict=True):
            if name != expected:
                raise DataError(
                    f"{table.path}:1:{index + 1}: the column is {name!r} where {self._columns_from} has {expected!r}; "
                    "every table needs the same features in the same order"
                )

    def _read_npz(self, path: Path, own: bool) -> Records:
        grouped, survival = own and self._declaration.patient is not None, self._declaration.follow_up is not None
        label, names = ("event", ("X", "event", "time")) if survival else ("y", ("X", "y"))
        arrays = read_npz(path, (*names, "patient") if grouped else names)
        x, y = arrays["X"], arrays[label]
        features, shape = self._declaration.features, self._declaration.shape
        if x.dtype.kind not in "fiu" or x.shape[1:] not in {(features,), shape} or not len(x):
            raise DataError(
                f"{path}: X is {x.dtype} of shape {x.shape}; it needs numbers of shape (records, {features})"
                f"{f' or (records, *{shape})' if len(shape) > 1 else ''}"
            )
        if y.shape != (len(x),):
            raise DataError(
                f"{path}: {label} has shape {y.shape}; it needs one label for each of the {len(x)} records of X"
            )
        values: NDArray[Any] = x.reshape(len(x), features).astype(np.float64)
        unusable = np.abs(values) > np.finfo(np.float32).max
        if unusable.any():
            row, column = (int(index[0]) for index in np.nonzero(unusable))
            raise DataError(f"{path}: X[{row}, {column}] is not a finite number; write one, or NaN where it is missing")
        group = array_patients(path, arrays["patient"], len(x)) if grouped else None
        time = array_times(path, arrays["time"], len(x)) if survival else None
        y = array_labels(path, label, y, self._declaration)
        return Records(self._declaration.scale(values), y, group, time)
