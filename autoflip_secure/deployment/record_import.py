"""`silo data PATH`: a silo's own tables become the records of its home, checked against what was declared."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from autoflip_secure.data.folder import read_own_records
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo, write_silo
from autoflip_secure.data.splits import HOLDOUT_FRACTION, hold_out_by_record
from autoflip_secure.data.task import Task
from autoflip_secure.deployment.bundle import Bundle
from autoflip_secure.deployment.federation_file import declared
from autoflip_secure.deployment.homes import home_lock
from autoflip_secure.deployment.silo_home import WHOLE_RECORDS, SiloHome
from autoflip_secure.errors import DataError, InputError
from autoflip_secure.storage import storing, sync_folder

__all__ = ["LEDGER_NOTE", "Imported", "import_records"]

MAKING = ".data.making"
SPLIT_SEED = 0
"""The same for every import: a record that comes again stays in its part."""

LEDGER_NOTE = (
    "What the ledger has spent stays spent: it counts for whoever is among the records, new ones included. A patient "
    "whose record is spelt anew, or who moves between train and test, may be in both parts over time; the two parts' "
    "epsilons then add up for that patient."
)


@dataclass(frozen=True)
class Imported:
    """How many records a silo holds now; for the silo's own eyes.

    Attributes
    ----------
    train, holdout : int
        Records.
    patients : int or None
        Where records name theirs.
    replaced : bool
        There were records before.
    """

    train: int
    holdout: int
    patients: int | None
    replaced: bool


def import_records(home: SiloHome, source: Path, *, replace: bool = False) -> Imported:
    """Read train.csv or train.npz (and test.csv or test.npz) of a folder into the silo's home.

    Raises
    ------
    InputError
        No bundle is installed, or there are records already and `replace` was not given.
    DataError
        A file is missing or malformed; names file, line and column, never a cell.
    StorageError
        The disk refused; the former records, if any, are kept.
    """
    home.require_whole()
    bundle = home.installed()
    with home_lock(home.path):
        home.place_records()
        present = home.data.exists()
        if present and not replace:
            raise InputError(
                f"{home.data} holds records already; give --replace to put others in their place. {LEDGER_NOTE}"
            )
        train, holdout = _parts(home, source, bundle)
        _swap(home, train, holdout)
    named = train.group is not None
    patients = train.patients + (holdout.patients if holdout else 0) if named else None
    return Imported(len(train), len(holdout) if holdout else 0, patients, present)


def _parts(home: SiloHome, source: Path, bundle: Bundle) -> tuple[Records, Records | None]:
    own = read_own_records(source.resolve(), declared(bundle.declaration))
    task = Task.from_json(bundle.task)
    for records, name in ((own.records, "train"), (own.holdout, "test")):
        if records is not None:
            task.check_unit(task.check(records, f"{source}: {name}"), f"{source}: {name}")
    if bundle.scoring == "public":
        if own.holdout is not None:
            raise DataError(
                f"{source}: holds test records, and this federation scores on public ones; move them to train, "
                "or elsewhere"
            )
        return own.records, None
    if own.holdout is not None:
        return own.records, own.holdout
    if bundle.scoring == "own-test":
        raise DataError(
            f"{source}: holds neither test.csv nor test.npz, on which every silo of this federation scores; add one"
        )
    # Each record decides for itself, so that under DP no patient moves another from one part to the other.
    return hold_out_by_record(own.records, HOLDOUT_FRACTION, SPLIT_SEED, bundle.name, home.name)


def _swap(home: SiloHome, train: Records, holdout: Records | None) -> None:
    """Put the records in place: they are whole under another name before the former ones are moved away."""
    making = home.path / MAKING
    with storing(home.data):
        shutil.rmtree(making, ignore_errors=True)
        write_silo(making, train, holdout)
        read_silo(making)
        sync_folder(making)
        os.rename(making, home.path / WHOLE_RECORDS)
        sync_folder(home.path)
    home.place_records()
