"""MNIST by writer: its images with the writers of QMNIST (Yadav and Bottou 2019, arXiv 1905.10498). All is public."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_folder, read_idx
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.images import load_mnist
from autoflip_secure.data.named_records import NamedRecords, cut_by_silo
from autoflip_secure.errors import DataError

__all__ = ["load_mnist_writers"]

LABELS_FILE = "qmnist-train-labels-idx2-int.gz"
COLUMNS = 8
DIGIT, WRITER = 0, 2
"""Columns of the extended labels that are used here."""


def load_mnist_writers(images: Path, writers: Path) -> LoadedData:
    """539 natural silos, one a writer, of 19 to 131 records; the 10,000 test records of MNIST, of 297 other writers,
    are the public test part.

    Parameters
    ----------
    images : Path
        The folder of MNIST.
    writers : Path
        The folder of QMNIST's extended labels, a row for each record of MNIST in the same order.

    Raises
    ------
    DataError
        A file is missing or malformed, or the two do not go together.
    """
    mnist = load_mnist(images)
    assert mnist.train is not None
    existing_folder(writers, f"it must hold {LABELS_FILE}")
    path = writers / LABELS_FILE
    writer = _writers(path, mnist.train.y)
    names, sizes = np.unique(writer, return_counts=True)
    by_writer = mnist.train.take(np.argsort(writer, kind="stable"))
    silos = tuple(
        NamedRecords(f"writer-{name:04d}", records)
        for name, records in zip(names.tolist(), cut_by_silo(by_writer, sizes.tolist()), strict=True)
    )
    task = replace(mnist.task, name="mnist-writers", default_model="femnist-cnn")
    return LoadedData(task, by_writer, mnist.public_test, silos)


def _writers(path: Path, digits: NDArray[np.int64]) -> NDArray[np.int32]:
    """The writer of each record, if the file's rows are those of MNIST."""
    labels = read_idx(path, 2, integers=True)
    if labels.shape != (len(digits), COLUMNS):
        raise DataError(f"{path}: has shape {labels.shape}, not {COLUMNS} columns for {len(digits)} images of MNIST")
    other = np.flatnonzero(labels[:, DIGIT] != digits)
    if other.size:
        raise DataError(f"{path}: row {int(other[0])} has another digit than that image of MNIST; fetch both again")
    if labels[:, WRITER].min() < 0:
        raise DataError(f"{path}: row {int(labels[:, WRITER].argmin())} has a negative writer; fetch it again")
    return labels[:, WRITER]
