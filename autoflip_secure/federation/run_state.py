"""The coordinator's state between rounds, and its checkpoint: a folder replaced as a whole after every round."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from autoflip_secure.errors import StorageError
from autoflip_secure.federation.exchange import Traffic
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.server_step import ServerMoments
from autoflip_secure.storage import storing, sync_folder, write_atomically

__all__ = ["RunState", "checkpoint_stamp", "has_checkpoint", "load_checkpoint", "save_checkpoint"]

MODEL_FILE, ARRAYS_FILE, STATE_FILE = "model.safetensors", "arrays.safetensors", "state.json"


@dataclass
class RunState:
    """Everything a resumed coordinator needs. All of it is public: nothing here is derived from one silo.

    Attributes
    ----------
    round : int
        Next round to run; equal to the number of rounds done.
    model : ModelPayload
    server : ServerMoments
        What the server remembers of past updates, in the model's layout.
    pruning : dict of str to array
        Arrays of the pruning controller (guidance, energies, agreement).
    facts : dict
        Small JSON facts of the pruning controller and the run (agreement, aborts, seconds, target).
    epoch : int
        Last key epoch that was announced.
    """

    round: int
    model: ModelPayload
    server: ServerMoments
    pruning: dict[str, NDArray[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    epoch: int = 0
    attempts_aborted: int = 0
    spare_attempts_used: int = 0
    spare_steps: int = 0


def save_checkpoint(folder: Path, state: RunState) -> None:
    """Write a checkpoint: a new folder beside the old one, then one rename, so a crash leaves one whole checkpoint.

    Raises
    ------
    StorageError
        The disk refused; the previous checkpoint is kept.
    """
    fresh = folder.with_name(f"{folder.name}.new")
    old = folder.with_name(f"{folder.name}.old")
    with storing(folder):
        survivor = _whole(folder)
        if survivor is not None and survivor != folder:
            # A crash left the only whole checkpoint under another name: it keeps its place until the new one is whole.
            shutil.rmtree(folder, ignore_errors=True)
            survivor.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        write_atomically(fresh / MODEL_FILE, state.model.to_bytes())
        server = {"server.velocity": state.server.velocity, "server.square": state.server.square}
        arrays = {**server, **{f"pruning.{name}": a for name, a in state.pruning.items()}}
        write_atomically(fresh / ARRAYS_FILE, save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))
        facts = {
            "round": state.round,
            "epoch": state.epoch,
            "attempts_aborted": state.attempts_aborted,
            "spare_attempts_used": state.spare_attempts_used,
            "spare_steps": state.spare_steps,
            "server_steps": state.server.steps,
            "traffic": state.traffic.to_json(),
            "facts": state.facts,
        }
        write_atomically(fresh / STATE_FILE, json.dumps(facts).encode())
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        sync_folder(folder.parent)  # a round that silos were asked for may not come back as another one
        shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to resume from."""
    return _whole(folder) is not None


def checkpoint_stamp(folder: Path) -> tuple[int, int]:
    """Changes whenever another checkpoint is written: inode and time of its state; zeros where there is none."""
    source = _whole(folder)
    try:
        found = None if source is None else (source / STATE_FILE).stat()
    except FileNotFoundError:  # renamed by another process meanwhile
        found = None
    return (0, 0) if found is None else (found.st_ino, found.st_mtime_ns)


def load_checkpoint(folder: Path) -> RunState:
    """Read the newest whole checkpoint.

    Raises
    ------
    StorageError
        There is none, or it is damaged.
    """
    source = _whole(folder)
    if source is None:
        raise StorageError(f"there is no checkpoint in {folder}")
    try:
        facts = json.loads((source / STATE_FILE).read_text())
        arrays = load_file(source / ARRAYS_FILE)
        velocity, square = (arrays.pop(f"server.{name}") for name in ("velocity", "square"))
        return RunState(
            round=facts["round"],
            model=ModelPayload.from_bytes((source / MODEL_FILE).read_bytes()),
            server=ServerMoments(velocity, square, facts["server_steps"]),
            pruning={name.removeprefix("pruning."): array for name, array in arrays.items()},
            facts=facts["facts"],
            traffic=Traffic.from_json(facts["traffic"]),
            epoch=facts["epoch"],
            attempts_aborted=facts["attempts_aborted"],
            spare_attempts_used=facts["spare_attempts_used"],
            spare_steps=facts["spare_steps"],
        )
    except Exception as error:
        raise StorageError(f"the checkpoint {source} is damaged: {error}") from error


def _whole(folder: Path) -> Path | None:
    """The checkpoint, or the one that a crash between two renames left under another name."""
    candidates = (folder, folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old"))
    return next((c for c in candidates if (c / STATE_FILE).exists()), None)
