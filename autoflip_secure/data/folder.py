"""`folder:PATH`, a user's own data: one folder a silo, and a public declaration beside them.

    PATH/dataset.toml              see `declaration`
    PATH/<silo name>/train.csv     a header, a column `label`, numeric features, empty where missing; or train.npz
                                   with X (records, features) and y (NaN where missing); test.csv or test.npz optional
    PATH/public_test.csv           optional, public records to score on

Errors name file, line and column, and never quote a cell, because it is a patient's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_folder, read_npz
from autoflip_secure.data.declaration import DECLARATION_FILE, Declaration, read_declaration
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.records import Records
from autoflip_secure.data.tables import Table, numbers, read_table
from autoflip_secure.errors import DataError

__all__ = ["load_folder", "read_own_records"]

LABEL = "label"


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
    public_test = reader.part(folder, "public_test")
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
        return NamedRecords(folder.name, train, self.part(folder, "test"))

    def part(self, folder: Path, stem: str) -> Records | None:
        """Records of stem.csv or stem.npz; None where there is neither."""
        table, arrays = folder / f"{stem}.csv", folder / f"{stem}.npz"
        if table.exists() and arrays.exists():
            raise DataError(f"{folder}: holds both {table.name} and {arrays.name}; keep one")
        if table.exists():
            return self._read_csv(table)
        return self._read_npz(arrays) if arrays.exists() else None

    def _read_csv(self, path: Path) -> Records:
        table = read_table(path)
        if LABEL not in table.columns:
            raise DataError(f"{path}:1: no column is named label; name the column with the class so")
        label = table.columns.index(LABEL)
        columns = [index for index in range(len(table.columns)) if index != label]
        self._check_columns(table, columns)
        y = _label_indices(table, label, self._declaration.classes)
        return Records(self._declaration.scale(numbers(table, columns)), y)

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

    def _read_npz(self, path: Path) -> Records:
        arrays = read_npz(path, ("X", "y"))
        x, y = arrays["X"], arrays["y"]
        features, shape = self._declaration.features, self._declaration.shape
        if x.dtype.kind not in "fiu" or x.shape[1:] not in {(features,), shape} or not len(x):
            raise DataError(
                f"{path}: X is {x.dtype} of shape {x.shape}; it needs numbers of shape (records, {features})"
                f"{f' or (records, *{shape})' if len(shape) > 1 else ''}"
            )
        if y.shape != (len(x),):
            raise DataError(f"{path}: y has shape {y.shape}; it needs one label for each of the {len(x)} records of X")
        values: NDArray[Any] = x.reshape(len(x), features).astype(np.float64)
        unusable = np.abs(values) > np.finfo(np.float32).max
        if unusable.any():
            row, column = (int(index[0]) for index in np.nonzero(unusable))
            raise DataError(f"{path}: X[{row}, {column}] is not a finite number; write one, or NaN where it is missing")
        return Records(self._declaration.scale(values), _array_label_indices(path, y, self._declaration.classes))


def _label_indices(table: Table, column: int, classes: tuple[int, ...] | tuple[str, ...]) -> NDArray[np.int64]:
    index_of = {str(label): index for index, label in enumerate(classes)}
    y = np.empty(len(table.rows), np.int64)
    for row, cells in enumerate(table.rows):
        cell = cells[column]
        # Spreadsheets write whole numbers as 1.0 once a column had an empty cell.
        written = cell.removesuffix(".0") if isinstance(classes[0], int) else cell
        index = index_of.get(written)
        if index is None:
            raise DataError(
                f"{table.at(row, column)}: the label is not one of {_some(classes)}, "
                f"the classes of {DECLARATION_FILE}; correct the label or declare its class"
            )
        y[row] = index
    return y


def _array_label_indices(
    path: Path, y: NDArray[np.generic], classes: tuple[int, ...] | tuple[str, ...]
) -> NDArray[np.int64]:
    right_kind = y.dtype.kind in ("iuf" if isinstance(classes[0], int) else "U")
    order = np.argsort(np.array(classes))
    known = np.array(classes)[order]
    place = np.searchsorted(known, y).clip(max=len(known) - 1) if right_kind else np.zeros(len(y), np.int64)
    wrong = np.flatnonzero(known[place] != y) if right_kind else np.zeros(1, np.int64)
    if wrong.size:
        raise DataError(
            f"{path}: y[{int(wrong[0])}] is not one of {_some(classes)}, the classes of {DECLARATION_FILE}; "
            "correct the label or declare its class"
        )
    return np.asarray(order[place], np.int64)


def _some(classes: tuple[int, ...] | tuple[str, ...]) -> str:
    shown = ", ".join(map(str, classes[:10]))
    return shown if len(classes) <= 10 else f"{shown}, ... ({len(classes)} in all)"
