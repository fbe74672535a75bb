"""A federation of real processes on this machine, driven by the commands that its people would type."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = str(Path(sys.executable).parent / "autoflip-secure")
PATIENCE = 900.0

Table = tuple[np.ndarray, np.ndarray]


class CommandFailed(AssertionError):
    """A command ended with another exit code than 0."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until something is true and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = time.monotonic()
        if found := holds():
            return found
        # What asks by a command takes a second of computing: it leaves the machine to the others for longer.
        time.sleep(max(0.3, 2 * (time.monotonic() - started)))
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def command(*arguments: object, home: Path | None = None) -> str:
    """Run `autoflip-secure ARGUMENTS`; its stdout."""
    given = [PROGRAM, *map(str, arguments), *(() if home is None else ("--home", str(home)))]
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise CommandFailed(f"{given}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Deployment:
    """Homes of an authority, a coordinator and silos below one folder, and the processes that are up."""

    folder: Path
    names: tuple[str, ...]
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def authority(self) -> Path:
        return self.folder / "authority"

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def silo(self, name: str) -> Path:
        """Home of a silo."""
        return self.folder / name

    def found(self, tables: Mapping[str, Table], policy: str = "") -> None:
        """Everything that comes before the first process: keys, requests, enrolment, records, policies."""
        features = next(iter(tables.values()))[0].shape[1]
        quoted = ", ".join(f'"{name}"' for name in self.names)
        (self.folder / "FEDERATION.toml").write_text(
            f'name = "cardiology"\nsilos = [{quoted}]\n\n[coordinator]\nhosts = ["127.0.0.1"]\nport = {self.port}\n\n'
            f'[task]\ntask = "classification"\nclasses = [0, 1]\nfeatures = {features}\n'
        )
        command("provision", self.folder / "FEDERATION.toml", home=self.authority)
        command("coordinator", "init", home=self.coordinator)
        for name in self.names:
            command("silo", "init", "--name", name, home=self.silo(name))
        requests = [home / "request.txt" for home in (self.coordinator, *map(self.silo, self.names))]
        command("provision", "enrol", *requests, home=self.authority)
        self.install()
        for name, table in tables.items():
            write_table(self.folder / f"{name}-export", *table)
            command("silo", "data", self.folder / f"{name}-export", home=self.silo(name))
            if policy:
                (self.silo(name) / "policy.toml").write_text(policy)

    def install(self, *, only: tuple[str, ...] | None = None) -> None:
        """Install the newest bundle, everywhere or at some."""
        fingerprint = json.loads(command("provision", "show", "--json", home=self.authority))["authority"]
        bundle = self.authority / "bundle.txt"
        if only is None or "coordinator" in only:
            command("coordinator", "install", bundle, "--authority", fingerprint, home=self.coordinator)
        for name in self.names if only is None else [name for name in only if name != "coordinator"]:
            command("silo", "install", bundle, "--authority", fingerprint, home=self.silo(name))

    # Processes

    def up(self, name: str) -> None:
        """Start the processes of the coordinator or a silo."""
        home = self.coordinator if name == "coordinator" else self.silo(name)
        kind = ["coordinator", "up", "--host", "127.0.0.1"] if name == "coordinator" else ["silo", "up"]
        with (self.folder / f"{name}.log").open("ab") as log:
            given = [PROGRAM, *kind, "--home", str(home)]
            self.processes[name] = subprocess.Popen(given, stdout=log, stderr=subprocess.STDOUT)

    def all_up(self) -> None:
        """Start everything, and wait until all silos are connected."""
        for name in ("coordinator", *self.names):
            self.up(name)
        until(lambda: self.status()["nodes_online"] == len(self.names), "all silos are online")

    def down(self) -> None:
        """End what is up."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(30)
        self.processes.clear()

    def status(self, name: str = "coordinator") -> dict[str, Any]:
        """What `status --json` says."""
        kind, home = ("coordinator", self.coordinator) if name == "coordinator" else ("silo", self.silo(name))
        found: dict[str, Any] = json.loads(command(kind, "status", "--json", home=home))
        return found

    def kill(self, name: str, child: str) -> None:
        """kill -9 of one process of a party, as its status names it."""
        os.kill(self.status(name)["processes"][child]["pid"], signal.SIGKILL)

    def kill_supervisor(self, name: str) -> None:
        """kill -9 of `coordinator up` or `silo up` itself."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    # Runs

    def run_path(self, run: str) -> Path:
        """Folder of a run."""
        return self.coordinator / "runs" / run

    def begin(self, run: str, *options: object) -> None:
        """Ask for a run, and return."""
        command("run", "--detach", "--name", run, *options, home=self.coordinator)

    def approve(self, *names: str) -> None:
        """Each officer approves of what waits for approval, as soon as it does."""
        for name in names or self.names:
            (run,) = until(lambda name=name: self.waiting(name), f"{name} is asked")
            command("silo", "approve", run, "--yes", home=self.silo(name))

    def waiting(self, name: str) -> list[str]:
        """Runs that wait for a silo's approval."""
        runs = json.loads(command("silo", "review", "--json", home=self.silo(name)))["runs"]
        return [run["run"] for run in runs if run["state"] == "pending"]

    def events(self, run: str) -> list[dict[str, Any]]:
        """Lines of a run's events.jsonl so far."""
        path = self.run_path(run) / "events.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def rounds(self, run: str) -> int:
        """Rounds that are done."""
        path = self.run_path(run) / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def finished(self, run: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait for the end of a run; its summary."""
        path = self.run_path(run)

        def ended() -> bool:
            assert not (path / "failed.json").exists(), (path / "failed.json").read_text()
            return (path / "summary.json").exists() and not (path / "wanted").exists()

        until(ended, f"run {run} is finished", seconds)
        found: dict[str, Any] = json.loads((path / "summary.json").read_text())
        return found


def write_table(folder: Path, values: np.ndarray, labels: np.ndarray) -> None:
    """A silo's train.csv."""
    folder.mkdir()
    columns = [f"x{i}" for i in range(values.shape[1])]
    rows = [",".join(map(repr, map(float, row))) + f",{int(label)}" for row, label in zip(values, labels, strict=True)]
    (folder / "train.csv").write_text("\n".join([",".join([*columns, "label"]), *rows]) + "\n")
