"""A silo's own records on its own disk: train.npz and holdout.npz, readable by their owner only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoflip_secure.data.arrays import existing_folder
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError, StorageError

__all__ = ["HOLDOUT_FILE", "TRAIN_FILE", "SiloData", "read_silo", "write_silo"]

TRAIN_FILE = "train.npz"
HOLDOUT_FILE = "holdout.npz"
OWNER_ONLY_FOLDER = 0o700


@dataclass(frozen=True)
class SiloData:
    """A silo's two disjoint sets of patients; each has its own privacy budget.

    Attributes
    ----------
    train : Records
    holdout : Records or None
        None where scores come from public records.
    """

    train: Records
    holdout: Records | None = None

    def __post_init__(self) -> None:
        if self.holdout is not None and self.holdout.input_shape != self.train.input_shape:
            raise DataError(
                f"the holdout has records of shape {self.holdout.input_shape}, training of {self.train.input_shape}; "
                "make both from one source"
            )
        if self.holdout is not None and self.shared_patients():
            raise DataError(
                f"{self.shared_patients()} patients are trained on and held out; each belongs to one of the two"
            )

    def shared_patients(self) -> int:
        """Patients in both parts, as far as the records name them."""
        if self.holdout is None or self.holdout.group is None or self.train.group is None:
            return 0
        return int(np.intersect1d(self.train.group, self.holdout.group).size)


def write_silo(directory: Path, train: Records, holdout: Records | None) -> None:
    """Replace what `directory` holds; created with mode 0700 where it is absent.

    An old holdout goes first: a crash may leave no holdout, never one whose patients are also trained on.

    Raises
    ------
    StorageError
        The disk refused.
    """
    data = SiloData(train, holdout)
    try:
        directory.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
        (directory / HOLDOUT_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}; nothing was changed") from error
    data.train.save(directory / TRAIN_FILE)
    if data.holdout is not None:
        data.holdout.save(directory / HOLDOUT_FILE)


def read_silo(directory: Path, task: Task | None = None) -> SiloData:
    """Read what `write_silo` wrote, and check it against `task` where one is given.

    Raises
    ------
    DataError
        Missing or damaged files, or records that do not fit the task; the message names the file.
    """
    existing_folder(directory, f"a silo's folder holds {TRAIN_FILE} and, where the silo scores, {HOLDOUT_FILE}")
    train = Records.load(directory / TRAIN_FILE)
    holdout = Records.load(directory / HOLDOUT_FILE) if (directory / HOLDOUT_FILE).exists() else None
    if task is not None:
        task.check_unit(task.check(train, str(directory / TRAIN_FILE)), str(directory / TRAIN_FILE))
        if holdout is not None:
            task.check_unit(task.check(holdout, str(directory / HOLDOUT_FILE)), str(directory / HOLDOUT_FILE))
    try:
        return SiloData(train, holdout)
    except DataError as error:
        raise DataError(f"{directory}: {error}") from error
