"""Synthetic records and folders of silos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.data.records import Records

MakeRecords = Callable[..., Records]
DECLARATION = 'task = "classification"\nclasses = [0, 1]\nfeatures = 2\n'
TABLE = "age,label,weight\n50,0,70.5\n61,1,\n47,1,88\n"


@pytest.fixture
def make_records() -> MakeRecords:
    """make_records(n, classes, shape, seed): classes in equal shares and sorted; the first feature numbers records."""

    def make(n: int, classes: int = 3, shape: tuple[int, ...] = (4,), seed: int = 0) -> Records:
        x = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
        x.reshape(n, -1)[:, 0] = np.arange(n)
        return Records(x, np.sort(np.arange(n) % classes).astype(np.int64))

    return make


@pytest.fixture
def silo_folder(tmp_path: Path) -> Path:
    """A valid folder of two silos, north (csv, with test.csv) and south (npz)."""
    root = tmp_path / "clinics"
    (root / "north").mkdir(parents=True)
    (root / "south").mkdir()
    (root / "dataset.toml").write_text(DECLARATION)
    (root / "north" / "train.csv").write_text(TABLE)
    (root / "north" / "test.csv").write_text("age,label,weight\n33,0,60\n")
    np.savez(root / "south" / "train.npz", X=np.array([[40.0, np.nan], [55.0, 90.0]]), y=np.array([1, 0]))
    return root
