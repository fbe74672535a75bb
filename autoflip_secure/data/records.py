"""Records: the features and labels of some patients, and their file format (npz without pickle)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import read_npz
from autoflip_secure.errors import DataError
from autoflip_secure.storage import write_atomically

__all__ = ["Records"]


@dataclass(frozen=True, eq=False, repr=False)
class Records:
    """At least one record, each of one patient.

    Attributes
    ----------
    x : float32 array, shape (n, *input_shape)
        Features, finite.
    y : int64 array, shape (n,)
        Class indices, not negative; in a survival task 1 where the event was seen and 0 where it was not.
    group : int64 array, shape (n,), or None
        Records of one value are one patient's (see `patients.patient_labels`); None: each record is a patient.
    time : float32 array, shape (n,), or None
        Survival tasks: time from the start of follow-up to the event or to the last contact, not negative.

    Raises
    ------
    DataError
        Wrong types or shapes, no record, a feature that is not finite, a negative label or time. Values are never
        quoted, because they belong to patients.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    group: NDArray[np.int64] | None = None
    time: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.x.dtype != np.float32 or self.y.dtype != np.int64:
            raise DataError(f"records hold float32 features and int64 labels, not {self.x.dtype} and {self.y.dtype}")
        if self.x.ndim < 2 or self.y.ndim != 1 or len(self.x) != len(self.y):
            raise DataError(
                f"features of shape {self.x.shape} and labels of shape {self.y.shape} do not match; "
                "give (records, features...) and (records,)"
            )
        if self.x.size == 0:
            raise DataError("there is no record; give at least one with at least one feature")
        if not np.isfinite(self.x).all():
            row = int(np.flatnonzero(~np.isfinite(self.x.reshape(len(self.x), -1)).all(axis=1))[0])
            raise DataError(f"record {row} has a feature that is not finite; replace it before making records")
        if self.y.min() < 0:
            raise DataError(f"record {int(self.y.argmin())} has a negative label; labels are class indices from 0")
        if self.group is not None and (self.group.dtype != np.int64 or self.group.shape != self.y.shape):
            raise DataError(
                f"patients of {self.group.dtype} and shape {self.group.shape} do not match {len(self.y)} records; "
                "give one int64 for each"
            )
        if self.time is not None:
            self._check_times(self.time)

    def _check_times(self, time: NDArray[np.float32]) -> None:
        if time.dtype != np.float32 or time.shape != self.y.shape:
            raise DataError(
                f"times of {time.dtype} and shape {time.shape} do not match {len(self.y)} records; "
                "give one float32 for each"
            )
        wrong = np.flatnonzero(~(np.isfinite(time) & (time >= 0)))
        if wrong.size:
            raise DataError(f"record {int(wrong[0])} has a time of follow-up that is negative or not finite")

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Records({len(self)} of shape {self.input_shape})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's features."""
        return tuple(self.x.shape[1:])

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(self) if self.group is None else len(np.unique(self.group))

    def patient_numbers(self) -> NDArray[np.int64]:
        """Which patient each record is of, shape (n,): 0 to patients - 1, in the order in which they first appear."""
        if self.group is None:
            return np.arange(len(self), dtype=np.int64)
        _, first, inverse = np.unique(self.group, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[inverse].astype(np.int64)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Records:
        """Copy of some records, by index or boolean mask."""
        group = None if self.group is None else self.group[indices]
        return Records(self.x[indices], self.y[indices], group, None if self.time is None else self.time[indices])

    @staticmethod
    def concatenate(parts: Sequence[Records]) -> Records:
        """All records of all parts, in order; a value of `group` names the same patient in every part.

        Raises
        ------
        DataError
            No part, parts of different shapes, or only some with patients or times.
        """
        shapes = sorted({part.input_shape for part in parts})
        if len(shapes) != 1:
            raise DataError(f"records of shapes {shapes} cannot be put together; they need one shape")
        groups = [part.group for part in parts if part.group is not None]
        if groups and len(groups) != len(parts):
            raise DataError("records with and without patients cannot be put together; give all of them, or none")
        times = [part.time for part in parts if part.time is not None]
        if times and len(times) != len(parts):
            raise DataError("records with and without times cannot be put together; give all of them, or none")
        return Records(
            np.concatenate([part.x for part in parts]),
            np.concatenate([part.y for part in parts]),
            np.concatenate(groups) if groups else None,
            np.concatenate(times) if times else None,
        )

    def save(self, path: Path) -> None:
        """Write an uncompressed npz (arrays x, y, group, time), atomically, readable by its owner only.

        Raises
        ------
        StorageError
            The disk refused; the old file, if any, is untouched.
        """
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"x": self.x, "y": self.y}
        if self.group is not None:
            arrays["group"] = self.group
        if self.time is not None:
            arrays["time"] = self.time
        np.savez(buffer, **arrays)
        write_atomically(path, buffer.getvalue(), secret=True)

    @classmethod
    def load(cls, path: Path) -> Records:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            The file is missing, damaged, or holds anything else; the message names it.
        """
        arrays = read_npz(path, ("x", "y"), ("group", "time"))
        try:
            return cls(
                cast("NDArray[np.float32]", arrays["x"]),
                cast("NDArray[np.int64]", arrays["y"]),
                cast("NDArray[np.int64] | None", arrays.get("group")),
                cast("NDArray[np.float32] | None", arrays.get("time")),
            )
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
