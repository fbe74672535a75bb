"""Runs of a coordinator's home: their folders, and what is asked for and what became of it.

Below COORDINATOR_HOME/runs/NAME lies what the coordinator of any run keeps (federation.provisioning.RunFolder), and

    session  epoch    as in the folder of a simulation, without a key: the coordinator's lies in its home
    places.json       ids of the silos the run began with, in the order of its schedule
    wanted            there while the run is to go on: `coordinator up` starts it again whenever it has ended too early
    flower_run        Flower's number of the run that was started last
    failed.json       why it cannot go on, until somebody resumes it
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from autoflip_secure.config import ResolvedConfig, RunConfig, load_config_file
from autoflip_secure.data.task import Task
from autoflip_secure.deployment.coordinator_home import CoordinatorHome
from autoflip_secure.deployment.keys import node_public
from autoflip_secure.errors import CannotContinue, ConfigError
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.storage import is_locked, locked, storing, write_atomically
from autoflip_secure.sums.manifest import SESSION_BYTES

if TYPE_CHECKING:
    from flwr.serverapp import Grid

__all__ = ["DeployedRun", "create_run", "node_keys", "runs_of"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

SIMULATION_ONLY = frozenset(
    {"bad_silos", "insecure_reproducible_noise", "dropout", "engine", "workers", "data_dir", "run_dir", "partition",
     "silos", "dataset"}
)  # fmt: skip
"""Options that say something about simulated silos, or that the federation itself answers."""


@dataclass(frozen=True)
class DeployedRun(RunFolder):
    """A run of a coordinator's home.

    Attributes
    ----------
    path : Path
        home/runs/NAME.
    """

    @property
    def home(self) -> Path:
        """The coordinator's."""
        return self.path.parent.parent

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def wanted(self) -> Path:
        return self.path / "wanted"

    @property
    def flower_run(self) -> Path:
        return self.path / "flower_run"

    @property
    def failed(self) -> Path:
        return self.path / "failed.json"

    @property
    def _coordinator(self) -> Path:
        return self.path

    @property
    def public_test(self) -> Path:
        """The federation's public test records; a path where nothing is, if silos score their own."""
        return CoordinatorHome(self.home).public_test or self.path / "public_test.npz"

    @property
    def audit_log(self) -> Path:
        """One log for all runs of a coordinator."""
        return self.home / "audit.jsonl"

    def coordinator_identity(self) -> Identity:
        return Identity.load(self.home / "coordinator.key")

    def roster(self) -> Roster:
        """The roster of today: silos may have left or joined since the run began."""
        return Roster.from_bytes((self.home / "roster.bin").read_bytes())

    def places(self) -> tuple[int, ...]:
        return tuple(json.loads((self.path / "places.json").read_text()))

    def nodes(self, grid: Grid) -> Mapping[int, int | None]:
        """Nodes that are connected with a key of the bundle; others were never enrolled here."""
        silos = node_keys(self.home)
        return {node.node_id: silos[node.public_key] for node in grid.get_nodes() if node.public_key in silos}

    def bundle(self) -> bytes:
        return (self.home / "bundle.txt").read_bytes()

    def resolved(self) -> ResolvedConfig:
        """The run's configuration."""
        return ResolvedConfig.create(**load_config_file(self.config))

    def state(self) -> str:
        """finished, failed, wanted or stopped. The report is written after the summary, and then nothing is wanted."""
        if self.failed.exists():
            return "failed"
        if self.wanted.exists():
            return "wanted"
        return "finished" if self.summary.exists() else "stopped"

    def want(self) -> None:
        """Have it go on."""
        with storing(self.failed):
            self.failed.unlink(missing_ok=True)
        write_atomically(self.wanted, b"")

    def unwant(self) -> None:
        """Have it rest where it is."""
        with storing(self.wanted):
            self.wanted.unlink(missing_ok=True)

    def fail(self, error: BaseException) -> None:
        """Say why it cannot go on by itself."""
        facts = {"error": type(error).__name__, "reason": str(error)}
        write_atomically(self.failed, json.dumps(facts).encode())
        self.unwant()

    def failure(self) -> str:
        """Why it cannot go on; empty where nothing is known."""
        try:
            return str(json.loads(self.failed.read_text())["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def has_coordinator(self) -> bool:
        """Whether a coordinator of this run is at work on this machine."""
        return is_locked(self.path / "lock")

    @contextmanager
    def only_coordinator(self) -> Iterator[None]:
        """Held while a coordinator of this run works: a second one would open the same rounds again.

        Raises
        ------
        CannotContinue
            There is one.
        """
        with locked(self.path / "lock") as file:
            if file is None:
                raise CannotContinue(f"run {self.name} already has a coordinator at work; this one ends")
            yield


def runs_of(home: Path) -> list[DeployedRun]:
    """Whole runs of a coordinator's home, by name."""
    found = (DeployedRun(path) for path in sorted((home / "runs").glob("*")))
    return [run for run in found if run.config.exists()]


def create_run(home: Path, config: RunConfig, name: str, federation: str) -> DeployedRun:
    """Prepare a run of all silos in the roster.

    Parameters
    ----------
    config : RunConfig
        `model_fields_set` is what the operator chose.
    name : str
    federation : str
        Name of the federation, which stands in the place of a data set's.

    Raises
    ------
    ConfigError
        Options that contradict each other, the task or the roster, or that only a simulation has; nothing is made.
    """
    from autoflip_secure.autoflip.unit_budget import check_reachable
    from autoflip_secure.federation.defaults import resolve
    from autoflip_secure.federation.option_checks import check_ckks
    from autoflip_secure.federation.plan import session_plan
    from autoflip_secure.federation.pruning import prune_settings
    from autoflip_secure.federation.schedule import Schedule
    from autoflip_secure.models.spec import dense_spec

    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name}: use up to 64 of a-z, 0-9, dot, dash and underscore, a letter or digit first")
    wrong = sorted(SIMULATION_ONLY & config.model_fields_set)
    if wrong:
        raise ConfigError(f"{wrong[0]}: is for simulations or follows from the federation; leave it out")
    run = DeployedRun(home / "runs" / name)
    if run.path.exists():
        raise ConfigError(f"--name {name}: {run.path} is there already; resume it, or choose another name")
    roster = Roster.from_bytes((home / "roster.bin").read_bytes())
    task = Task.from_json((home / "task.json").read_text())
    chosen = RunConfig.create(**{**dict(config), "dataset": f"federation:{federation}", "partition": "natural"})
    resolved = resolve(chosen, task, natural_silos=len(roster.silos))
    check_ckks(resolved)
    schedule = Schedule(resolved)
    dense = dense_spec(resolved.model, task.input_shape, task.outputs)
    if resolved.prune != "none":
        check_reachable(dense, prune_settings(resolved, resolved.prune_flops))
    session_plan(resolved, task, schedule, public_test=run.public_test.exists())
    with storing(run.path):
        run.path.mkdir(parents=True)
    write_atomically(run.task, task.to_json().encode())
    write_atomically(run.path / "session", os.urandom(SESSION_BYTES))
    write_atomically(run.path / "places.json", json.dumps(roster.silos).encode())
    # Written last: a run directory with a configuration is a whole one.
    write_atomically(run.config, resolved.to_toml().encode())
    return run


def node_keys(home: Path) -> dict[bytes, int]:
    """Silo of each node key of the installed bundle, as Flower keeps them; read anew where another is installed."""
    return _node_keys(home, os.path.realpath(home / "bundle.txt"))


@lru_cache(4)
def _node_keys(home: Path, bundle: str) -> dict[bytes, int]:
    keys = CoordinatorHome(home).installed().node_keys
    pem = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {node_public(key).public_bytes(*pem): silo for silo, key in keys.items()}
