"""Makes a simulated federation on disk: identities, roster, policies, and each silo's own data.

Layout under the run directory:
    config.toml  task.json  public_test.npz
    federation/  coordinator.key  roster.bin  session  epoch  audit.jsonl
    silos/silo-001/  identity.key  roster.bin  policy.toml  data/  state.sqlite  silo.log  audit.jsonl
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.federation_data import LoadedData, NamedRecords, split_into_silos
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import write_silo
from autoflip_secure.data.splits import hold_out, hold_out_by_record
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, StorageError
from autoflip_secure.federation.audit_log import AUDIT_FILE
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.storage import write_atomically
from autoflip_secure.sums.manifest import SESSION_BYTES

if TYPE_CHECKING:
    from flwr.serverapp import Grid

HELD_BACK = 0.2
"""Share of a silo's records kept for scoring where no public test data exists."""

__all__ = ["RunFolder", "load_task", "provision", "silo_records"]


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def task(self) -> Path:
        return self.path / "task.json"

    @property
    def public_test(self) -> Path:
        return self.path / "public_test.npz"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def proofs(self) -> Path:
        """Opened sums, as silos are shown them."""
        return self.path / "proofs"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def server_view(self) -> Path:
        return self.path / "server_view"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def importance(self) -> Path:
        return self.path / "importance.safetensors"

    @property
    def audit_log(self) -> Path:
        return self._coordinator / AUDIT_FILE

    @property
    def _coordinator(self) -> Path:
        return self.path / "federation"

    def coordinator_identity(self) -> Identity:
        """The coordinator's signing key."""
        return Identity.load(self._coordinator / "coordinator.key")

    def roster(self) -> Roster:
        """Enrolled silos."""
        return Roster.from_bytes((self._coordinator / "roster.bin").read_bytes())

    def places(self) -> tuple[int, ...]:
        """Ids of the silos that the run began with, in the order in which its schedule counts them."""
        return self.roster().silos

    def nodes(self, grid: Grid) -> Mapping[int, int | None]:
        """Nodes that are connected, and the silo each was enrolled as; simulated ones say it when they join."""
        return dict.fromkeys(grid.get_node_ids())

    def bundle(self) -> bytes:
        """The federation's signed bundle, which joining silos are shown; a simulation has none."""
        return b""

    def session(self) -> bytes:
        """Id of the training run, 16 bytes."""
        return (self._coordinator / "session").read_bytes()

    def last_epoch(self) -> int:
        """Last key epoch that was announced, 0 before the first."""
        path = self._coordinator / "epoch"
        return int(path.read_text()) if path.exists() else 0

    def announce_epoch(self, epoch: int) -> None:
        """Remember that `epoch` is in use, before its first message: a resumed coordinator opens a later one."""
        write_atomically(self._coordinator / "epoch", str(epoch).encode())


def provision(folder: RunFolder, config: ResolvedConfig, data: LoadedData) -> None:
    """Create the federation of a resolved configuration in an empty run directory.

    Raises
    ------
    ConfigError, DataError
        The data cannot be divided as asked.
    StorageError
        The disk refused.
    """
    silos = silo_records(config, data)
    task = _training_task(data, config.partition).to_json()
    try:
        (folder.path / "federation").mkdir(parents=True)
        coordinator = Identity.create(folder.path / "federation" / "coordinator.key")
        entries, policy = [], SiloPolicy.accepting(config).to_toml()
        for number, (name, train, holdout) in enumerate(silos, start=1):
            home = silo_folder(folder.path, number)
            home.mkdir(parents=True)
            identity = Identity.create(home / "identity.key")
            entries.append(RosterEntry(number, name, identity.public))
            write_silo(home / "data", train, holdout)
            (home / "policy.toml").write_text(policy)
            (home / "task.json").write_text(task)
        roster = Roster(coordinator.public, tuple(entries)).to_bytes()
        for number in range(1, len(silos) + 1):
            (silo_folder(folder.path, number) / "roster.bin").write_bytes(roster)
        (folder.path / "federation" / "roster.bin").write_bytes(roster)
        (folder.path / "federation" / "session").write_bytes(os.urandom(SESSION_BYTES))
        if data.public_test is not None:
            data.public_test.save(folder.public_test)
        folder.task.write_text(task)
        # Written last: a run directory with a configuration is a whole one.
        write_atomically(folder.config, config.to_toml().encode())
    except OSError as error:
        raise StorageError(f"cannot create the run directory {folder.path}: {error.strerror}") from error


def _training_task(data: LoadedData, partition: str) -> Task:
    """The task with the public number of records that are trained on: less a fifth where silos hold one back."""
    task = data.task
    natural = data.natural if partition == "natural" and data.natural else ()
    brings_holdout = bool(natural) and all(silo.holdout is not None for silo in natural)
    if task.nominal_records is None or data.public_test is not None or brings_holdout:
        return task
    return replace(task, nominal_records=max(1, round(task.nominal_records * (1 - HELD_BACK))))


def silo_records(config: ResolvedConfig, data: LoadedData) -> list[tuple[str, Records, Records | None]]:
    """(name, training records, held-back records) of each silo; none held back where public records are scored."""
    silos = split_into_silos(data, config.partition, config.silos, config.seed)
    if data.public_test is not None:
        return [(silo.name, silo.records, None) for silo in silos]
    return [_with_holdout(silo, config) for silo in silos]


def _with_holdout(silo: NamedRecords, config: ResolvedConfig) -> tuple[str, Records, Records | None]:
    if silo.holdout is not None:
        return silo.name, silo.records, silo.holdout
    # Under DP one patient must not move others between the two parts, so each record decides for itself.
    split = hold_out if config.trust == "none" else hold_out_by_record
    train, holdout = split(silo.records, HELD_BACK, config.seed, silo.name)
    return silo.name, train, holdout


def load_task(folder: RunFolder) -> Task:
    """The run's public task.

    Raises
    ------
    ConfigError
        The file does not hold one.
    """
    try:
        text = folder.task.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{folder.task}: not UTF-8 text; restore the file") from error
    return Task.from_json(text)
