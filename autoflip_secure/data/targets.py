"""Labels and times of follow-up as they are written in a user's tables and arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.declaration import DECLARATION_FILE, Declaration
from autoflip_secure.data.tables import Table, numbers
from autoflip_secure.errors import DataError

__all__ = ["array_labels", "array_times", "table_labels", "table_times"]

MOST_SHOWN = 10


def table_labels(table: Table, column: int, declaration: Declaration) -> NDArray[np.int64]:
    """Class index of each row, shape (rows,).

    Raises
    ------
    DataError
        A label that is not declared.
    """
    classes = declaration.classes
    index_of = {str(label): index for index, label in enumerate(classes)}
    y = np.empty(len(table.rows), np.int64)
    for row, cells in enumerate(table.rows):
        cell = cells[column]
        # Spreadsheets write whole numbers as 1.0 once a column had an empty cell.
        written = cell.removesuffix(".0") if isinstance(classes[0], int) else cell
        index = index_of.get(written)
        if index is None:
            raise DataError(f"{table.at(row, column)}: the label is not one of {_allowed(declaration)}")
        y[row] = index
    return y


def array_labels(path: Path, name: str, y: NDArray[np.generic], declaration: Declaration) -> NDArray[np.int64]:
    """Class index of each entry of the array `name`, shape (n,).

    Raises
    ------
    DataError
        A label that is not declared.
    """
    classes = declaration.classes
    right_kind = y.dtype.kind in ("iuf" if isinstance(classes[0], int) else "U")
    order = np.argsort(np.array(classes))
    known = np.array(classes)[order]
    place = np.searchsorted(known, y).clip(max=len(known) - 1) if right_kind else np.zeros(len(y), np.int64)
    wrong = np.flatnonzero(known[place] != y) if right_kind else np.zeros(1, np.int64)
    if wrong.size:
        raise DataError(f"{path}: {name}[{int(wrong[0])}] is not one of {_allowed(declaration)}")
    return np.asarray(order[place], np.int64)


def table_times(table: Table, column: int) -> NDArray[np.float32]:
    """Times of follow-up, shape (rows,).

    Raises
    ------
    DataError
        A cell that is empty, negative or no finite number.
    """
    times = numbers(table, (column,))[:, 0]
    wrong = np.flatnonzero(~(times >= 0))
    if wrong.size:
        raise DataError(f"{table.at(int(wrong[0]), column)}: no time of follow-up; write a number from 0 on")
    return times.astype(np.float32)


def array_times(path: Path, time: NDArray[np.generic], records: int) -> NDArray[np.float32]:
    """Times of follow-up of an npz file's array `time`, shape (records,).

    Raises
    ------
    DataError
        Another length, or an entry that is negative or no finite number.
    """
    if time.dtype.kind not in "fiu" or time.shape != (records,):
        raise DataError(f"{path}: time is {time.dtype} of shape {time.shape}; it needs a number for each of {records}")
    times = time.astype(np.float32)
    wrong = np.flatnonzero(~((times >= 0) & np.isfinite(times)))
    if wrong.size:
        raise DataError(f"{path}: time[{int(wrong[0])}] is no time of follow-up; write a number from 0 on")
    return times


def _allowed(declaration: Declaration) -> str:
    if declaration.follow_up is not None:
        return "0 (event not seen) and 1 (seen); correct it"
    classes = declaration.classes
    shown = ", ".join(map(str, classes[:MOST_SHOWN]))
    some = shown if len(classes) <= MOST_SHOWN else f"{shown}, ... ({len(classes)} in all)"
    return f"{some}, the classes of {DECLARATION_FILE}; correct the label or declare its class"
