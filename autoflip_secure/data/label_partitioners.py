"""Rows of each silo, from the partitioners of flwr-datasets; nothing is downloaded and nothing is printed."""

from __future__ import annotations

import os
import warnings
from typing import Any

# Read by the Hugging Face libraries when they are first imported: only in-memory tables are used here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import numpy as np
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner, PathologicalPartitioner
from numpy.typing import NDArray

__all__ = ["dirichlet_rows", "iid_rows", "pathological_rows"]

Rows = NDArray[np.int64]
DIRICHLET_RESTARTS = 20  # each of up to 11 draws inside the partitioner
LABEL, ROW = "label", "row"


def iid_rows(labels: NDArray[np.int64], silos: int) -> list[Rows]:
    """Contiguous shards of nearly equal size; `labels` are already shuffled."""
    return _partition_rows(IidPartitioner(silos), labels)


def pathological_rows(labels: NDArray[np.int64], silos: int, classes: int, seed: int) -> list[Rows]:
    """Each silo holds exactly `classes` classes; every class is held by someone if silos * classes allows."""
    return _partition_rows(_DealtClasses(silos, LABEL, classes, seed=seed), labels)


def dirichlet_rows(labels: NDArray[np.int64], silos: int, alpha: float, minimum: int, seed: int) -> list[Rows] | None:
    """Shares of each class from Dirichlet(alpha), redrawn until each silo has `minimum`; None: no draw did."""
    for restart in range(DIRICHLET_RESTARTS):
        partitioner = DirichletPartitioner(
            silos, LABEL, alpha, min_partition_size=minimum, seed=(seed + restart) % 2**64
        )
        try:
            return _partition_rows(partitioner, labels)
        except ValueError as error:
            if "max number of attempts" not in str(error):
                raise
    return None


class _DealtClasses(PathologicalPartitioner):  # type: ignore[misc, unused-ignore]
    """Deals classes like cards: each silo takes those held by the fewest silos so far, ties at random.

    The library's own modes leave classes, and so records, out when there are fewer silos than classes, and let some
    classes be held by many more silos than others.
    """

    def _determine_partition_id_to_unique_labels(self) -> None:
        self._unique_labels = sorted(self.dataset.unique(self._partition_by))
        held = np.zeros(len(self._unique_labels), np.int64)
        for silo in range(self._num_partitions):
            tie_break = self._rng.random(len(held))
            dealt = np.lexsort((tie_break, held))[: self._num_classes_per_partition]
            held[dealt] += 1
            self._partition_id_to_unique_labels[silo] = [self._unique_labels[index] for index in dealt]


class _Columns(datasets.Dataset):  # type: ignore[misc, unused-ignore]
    """A table whose columns come as arrays: the partitioners turn a whole column into one, and pick rows by lists of
    places, both of which datasets does row by row (seconds for sixty thousand)."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str) and self._indices is None:
            return self.data.column(key).to_numpy()
        return super().__getitem__(key)

    def select(self, indices: Any, *_: Any, **__: Any) -> _Columns:
        rows = np.asarray(indices, np.int64)
        picked: _Columns = _Columns.from_dict({name: self[name][rows] for name in self.column_names})
        return picked


def _partition_rows(partitioner: Partitioner, labels: NDArray[np.int64]) -> list[Rows]:
    table: Any = _Columns.from_dict({LABEL: labels, ROW: np.arange(len(labels))})
    partitioner.dataset = table
    with warnings.catch_warnings():
        # A redraw is expected with small alpha; failure is reported by the caller.
        warnings.simplefilter("ignore")
        parts = [partitioner.load_partition(silo) for silo in range(partitioner.num_partitions)]
    return [np.asarray(part[ROW], dtype=np.int64) for part in parts]
