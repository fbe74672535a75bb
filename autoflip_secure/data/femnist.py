"""FEMNIST of LEAF (Caldas et al. 2018, arXiv 1812.01097): handwritten characters by writer. All is public."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np

from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.leaf import read_leaf
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError

__all__ = ["load_femnist"]

SIDE = 28
CHARACTERS = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
"""The 62 classes: 0 to 9 digits, 10 to 35 capitals, 36 to 61 small letters."""


def load_femnist(folder: Path) -> LoadedData:
    """One natural silo a writer, with the writer's test part as its holdout; LEAF's split by user: a public test part.

    Pixels are used as LEAF writes them: 1 is the white of the paper.

    Raises
    ------
    DataError
        A file is missing or malformed; the message names it.
    """
    users = read_leaf(folder, _encode)
    task = Task(
        "femnist", "multiclass", (1, SIDE, SIDE), len(CHARACTERS), CHARACTERS, "femnist-cnn",
        nominal_records=len(users.train),
    )  # fmt: skip
    return LoadedData(task, users.train, users.public_test, users.silos)


def _encode(where: str, x: list[Any], y: list[Any]) -> Records:
    try:
        pixels, labels = np.array(x), np.array(y)
    except ValueError:  # lists of several lengths
        pixels, labels = np.empty(0), np.empty(0)
    if pixels.dtype.kind not in "fi" or pixels.shape != (len(x), SIDE * SIDE):
        raise DataError(f"{where}: x is not {len(x)} lists of {SIDE * SIDE} numbers each")
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise DataError(f"{where}: a pixel of x is not between 0 and 1")
    if labels.dtype.kind != "i" or labels.shape != (len(y),) or not ((labels >= 0) & (labels < len(CHARACTERS))).all():
        raise DataError(f"{where}: y is not one class from 0 to {len(CHARACTERS) - 1} for each sample")
    return Records(pixels.astype(np.float32).reshape(-1, 1, SIDE, SIDE), labels.astype(np.int64))
