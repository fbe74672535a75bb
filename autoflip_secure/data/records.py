"""Records: the features and labels of some patients, and their file format (npz without pickle)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import read_npz
from autoflip_secure.errors import DataError
from autoflip_secure.storage import write_atomically

__all__ = ["Records"]


@dataclass(frozen=True, eq=False, repr=False)
class Records:
    """At least one record; one record is one patient.

    Attributes
    ----------
    x : float32 array, shape (n, *input_shape)
        Features, finite.
    y : int64 array, shape (n,)
        Class indices, not negative.

    Raises
    ------
    DataError
        Wrong types or shapes, no record, a feature that is not finite, a negative label. Values are never quoted,
        because they belong to patients.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]

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

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Records({len(self)} of shape {self.input_shape})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's features."""
        return tuple(self.x.shape[1:])

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Records:
        """Copy of some records, by index or boolean mask."""
        return Records(self.x[indices], self.y[indices])

    @staticmethod
    def concatenate(parts: Sequence[Records]) -> Records:
        """All records of all parts, in order.

        Raises
        ------
        DataError
            No part, or parts of different shapes.
        """
        shapes = sorted({part.input_shape for part in parts})
        if len(shapes) != 1:
            raise DataError(f"records of shapes {shapes} cannot be put together; they need one shape")
        return Records(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))

    def save(self, path: Path) -> None:
        """Write an uncompressed npz (arrays x, y), atomically, readable by its owner only.

        Raises
        ------
        StorageError
            The disk refused; the old file, if any, is untouched.
        """
        buffer = io.BytesIO()
        np.savez(buffer, x=self.x, y=self.y)
        write_atomically(path, buffer.getvalue(), secret=True)

    @classmethod
    def load(cls, path: Path) -> Records:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            The file is missing, damaged, or holds anything else; the message names it.
        """
        arrays = read_npz(path, ("x", "y"))
        try:
            return cls(cast("NDArray[np.float32]", arrays["x"]), cast("NDArray[np.int64]", arrays["y"]))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
