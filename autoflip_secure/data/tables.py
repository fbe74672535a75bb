"""Strict reading of comma-separated tables. Errors name file:line:column and never quote a cell: it is a patient's."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_file
from autoflip_secure.errors import DataError

__all__ = ["Table", "numbers", "read_table"]

FLOAT32_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, repr=False)
class Table:
    """Cells as text, with the line each row came from.

    Attributes
    ----------
    path : Path
    columns : tuple of str
        Column names.
    rows : list of list of str
        Cells; every row has as many as there are columns.
    lines : list of int
        Line number of each row, counted from 1.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def at(self, row: int, column: int) -> str:
        """`file:line:column` of a cell, columns counted from 1."""
        return f"{self.path}:{self.lines[row]}:{column + 1}"


def read_table(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Read a UTF-8 comma-separated file; blank lines are skipped.

    Parameters
    ----------
    columns : sequence of str or None
        Names of the columns of a file without a header; None: the first line is the header.

    Raises
    ------
    DataError
        Missing file, not UTF-8, broken quoting, no header, doubled or empty column names, a row that is too short or
        too long, no rows.
    """
    text = _read_text(existing_file(path, "put a comma-separated table there"))
    rows, lines = _read_cells(path, text)
    has_header = columns is None
    if columns is None:
        if not rows:
            raise DataError(f"{path}:1:1: the file is empty; its first line must name the columns")
        columns = _header(path, lines[0], rows[0])
        rows, lines = rows[1:], lines[1:]
    for cells, line in zip(rows, lines, strict=True):
        if len(cells) != len(columns):
            raise DataError(
                f"{path}:{line}:{min(len(cells), len(columns)) + 1}: the line has {len(cells)} cells, "
                f"not {len(columns)}; separate cells by commas and write decimals with a point"
            )
    if not rows:
        raise DataError(f"{path}:{1 + has_header}:1: there are no records; write one a line")
    return Table(path, tuple(columns), rows, lines)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; save the table as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _read_cells(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        for cells in reader:
            if cells:
                rows.append([cell.strip() for cell in cells])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}; close every quotation mark or write none") from error
    return rows, lines


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    for index, name in enumerate(names):
        if not name:
            raise DataError(f"{path}:{line}:{index + 1}: the column has no name; the first line names every column")
        if name in names[:index]:
            # Not quoted: in a file without a header this line is a patient's.
            raise DataError(
                f"{path}:{line}:{index + 1}: the column has the name of column {names.index(name) + 1}; "
                "the first line gives each column its own name"
            )
    return names


def numbers(table: Table, columns: Sequence[int], missing: str = "") -> NDArray[np.float64]:
    """Numeric cells of some columns, NaN where a cell equals `missing`.

    Returns
    -------
    float64 array, shape (rows, len(columns))

    Raises
    ------
    DataError
        A cell that is not a finite number within float32.
    """
    values = np.empty((len(table.rows), len(columns)))
    for row, cells in enumerate(table.rows):
        for place, column in enumerate(columns):
            cell = cells[column]
            values[row, place] = math.nan if cell == missing else _number(cell, table, row, column, missing)
    return values


def _number(cell: str, table: Table, row: int, column: int, missing: str) -> float:
    try:
        # Python also reads 1_000, which no table program writes.
        value = float(cell.replace("_", "x"))
    except ValueError:
        value = math.nan
    if abs(value) <= FLOAT32_LARGEST:
        return value
    absent = "leave the cell empty" if missing == "" else f"write {missing}"
    raise DataError(
        f"{table.at(row, column)}: column {table.columns[column]!r} does not hold a finite number here; "
        f"write one like 1.5, or {absent} where the value is missing"
    )
