"""The coordinator's processes: a SuperLink that is kept alive, nodes that are registered, runs that are kept going."""

from __future__ import annotations

import http.client
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from autoflip_secure.deployment.children import ChildSpec, Supervisor, read_state, running_pid
from autoflip_secure.deployment.coordinator_home import CoordinatorHome
from autoflip_secure.deployment.deployed_run import DeployedRun, runs_of
from autoflip_secure.deployment.flower import FLOWER, FlowerControl, flower_environment, superlink_command
from autoflip_secure.errors import CannotContinue, ConfigError, InputError
from autoflip_secure.storage import storing, write_atomically

__all__ = ["Keeper", "coordinator_status", "coordinator_up", "superlink_answers"]

NODES = "nodes.json"
"""Flower's id of each node by its public key."""

APP = Path(__file__).parent / "flower_app"
LOOK_EVERY = 1.0
FIRST_WAIT, LONGEST_WAIT = 2.0, 300.0
MOST_TRIES = 40
"""Starts of a run one after the other without a round in between; it then rests until somebody resumes it."""

START_WITHIN = 10.0
"""Seconds that Flower is given to start a coordinator before it is asked what became of it."""

ACTIVE = ("pending", "starting", "running")


def coordinator_up(path: Path, host: str, say: Callable[[str], None]) -> None:
    """Run the coordinator's processes until SIGTERM or SIGINT.

    Parameters
    ----------
    host : str
        Address to listen on; the port is the federation's.

    Raises
    ------
    InputError
        The home is not whole, or no bundle is installed.
    CannotContinue
        The coordinator is up already.
    """
    home = CoordinatorHome(path)
    home.require_whole()
    port = home.address[1]
    _check_host(host)
    folder = path / FLOWER
    with storing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        if not (folder / "superlink.db").exists():
            (folder / NODES).unlink(missing_ok=True)  # a new database knows nobody
    control = FlowerControl(path, port)
    control.configure()
    keeper = Keeper(home, control, say)
    superlink = ChildSpec("superlink", superlink_command(path, host, port), folder / "superlink.log")
    thread = threading.Thread(target=keeper.run, daemon=True)

    def tick() -> None:
        if not thread.is_alive():
            thread.start()

    say(f"coordinator of {home.installed().name}: SuperLink on {host}:{port}")
    try:
        Supervisor(folder, (superlink,), flower_environment(path), say, tick).run()
    finally:
        keeper.stopping.set()


def _check_host(host: str) -> None:
    """The SuperLink's own processes reach it on this machine's loopback address."""
    try:
        address = ip_address(host)
    except ValueError:
        raise ConfigError(f"--host {host}: give an IP address") from None
    if not (address.is_unspecified or address.is_loopback):
        raise ConfigError(
            f"--host {host}: the coordinator's processes reach the SuperLink on 127.0.0.1; give 0.0.0.0 or :: and "
            "leave the choice of network to the firewall"
        )


def superlink_answers(home: Path, port: int) -> bool:
    """Whether the SuperLink of a home answers on this machine, under the certificate of the federation."""
    context = ssl.create_default_context(cafile=str(home / "ca.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass
class _Attempt:
    """Starts of one run since its last round."""

    round: int = -1
    tries: int = 0
    due: float = 0.0


@dataclass
class Keeper:
    """Registers the nodes of the installed bundle, and starts wanted runs that are not running.

    Attributes
    ----------
    say : callable
        say(line) tells the operator what happened.
    """

    home: CoordinatorHome
    control: FlowerControl
    say: Callable[[str], None]
    stopping: threading.Event = field(default_factory=threading.Event)
    _version: int = 0
    _attempts: dict[str, _Attempt] = field(default_factory=dict)

    def run(self) -> None:
        """Look after everything until `stopping` is set; what goes wrong is said, and tried again later."""
        wait = LOOK_EVERY
        while not self.stopping.wait(wait):
            if not superlink_answers(self.home.path, self.control.port):
                continue
            try:
                self.register_nodes()
                if (run := self.next_run()) is not None:
                    self.keep_going(run)
                wait = LOOK_EVERY
            except Exception as error:
                # Not only foreseen ones: a thread that ends would leave every run waiting.
                self.say(f"{type(error).__name__}: {error}; trying again in {wait:.0f} s")
                wait = min(2 * wait, LONGEST_WAIT)

    def register_nodes(self) -> None:
        """Let the silos of the bundle connect, and nobody that left it; once for every version."""
        bundle = self.home.installed()
        if bundle.version == self._version:
            return
        record = self.home.path / FLOWER / NODES
        known: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
        names = {entry.silo: entry.name for entry in bundle.members.entries}
        wanted = {key: names[silo] for silo, key in bundle.node_keys.items()}
        for key, name in wanted.items():
            if key not in known:
                known[key] = self._register(key, name)
                write_atomically(record, json.dumps(known).encode())
        for key in sorted(known.keys() - wanted.keys()):
            self._unregister(known.pop(key))
            write_atomically(record, json.dumps(known).encode())
        self._version = bundle.version
        self.say(f"bundle version {bundle.version}: {', '.join(names.values())} may connect")

    def next_run(self) -> DeployedRun | None:
        """The run at work, or the one that was asked for first: silos take part in one run at a time."""
        wanted = [run for run in runs_of(self.home.path) if run.state() == "wanted"]
        at_work = [run for run in wanted if run.has_coordinator()]
        return min(at_work or wanted, key=lambda run: run.wanted.stat().st_mtime, default=None)

    def keep_going(self, run: DeployedRun) -> None:
        """Start a wanted run unless it is running; with growing waits, and not for ever."""
        attempt = self._attempts.setdefault(run.name, _Attempt())
        now = time.monotonic()
        # Asking Flower starts a process that loads all of it: only where no coordinator works, and not at once.
        if run.has_coordinator() or now < attempt.due:
            return
        if self._flower_status(run) in ACTIVE:
            attempt.due = now + START_WITHIN
            return
        done = rounds_done(run)
        if done > attempt.round:
            attempt.round, attempt.tries = done, 0
        if attempt.tries >= MOST_TRIES:
            run.fail(CannotContinue(f"started {MOST_TRIES} times without a round; see {FLOWER}/superlink.log"))
            self.say(f"run {run.name} rests: {run.failure()}")
            return
        attempt.due = now + min(START_WITHIN + FIRST_WAIT * 2**attempt.tries, LONGEST_WAIT)
        attempt.tries += 1
        number = self.control.start(APP, {"run": run.name})
        write_atomically(run.flower_run, str(number).encode())
        self.say(f"run {run.name} started from round {done} (Flower run {number})")

    def _flower_status(self, run: DeployedRun) -> str:
        if not run.flower_run.exists():
            return "never started"
        return self.control.status(int(run.flower_run.read_text()))

    def _register(self, key: str, name: str) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".pub", dir=self.home.path / FLOWER) as file:
            file.write(f"{key} {name}\n")
            file.flush()
            return self.control.register(Path(file.name), name)

    def _unregister(self, node: str) -> None:
        if node:
            self.control.unregister(node)


def rounds_done(run: DeployedRun) -> int:
    """Rounds of a run that are in its last checkpoint."""
    try:
        return int(json.loads((run.checkpoint / "state.json").read_text())["round"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def coordinator_status(path: Path) -> dict[str, Any]:
    """What `coordinator status` shows: processes, nodes, runs.

    Raises
    ------
    InputError
        The home is not whole, or no bundle is installed.
    """
    home = CoordinatorHome(path)
    home.require_whole()
    port = home.address[1]
    pid = running_pid(path / FLOWER)
    answers = pid is not None and superlink_answers(path, port)
    return {
        "up": pid is not None,
        "pid": pid,
        "superlink": "answers" if answers else "does not answer",
        "processes": read_state(path / FLOWER).get("children", {}) if pid else {},
        "nodes_online": sum(node["status"] == "online" for node in _nodes(path, port)) if answers else None,
        "silos": len(home.installed().members.entries),
        "runs": [run_facts(run) for run in runs_of(path)],
    }


def run_facts(run: DeployedRun) -> dict[str, Any]:
    """Name, state and progress of a run; `reason` where it cannot go on, or where its configuration cannot be read."""
    facts: dict[str, Any] = {"run": run.name, "state": run.state(), "rounds": rounds_done(run)}
    try:
        facts["of"] = run.resolved().rounds
    except InputError as error:
        return {**facts, "state": "unreadable", "of": None, "reason": str(error)}
    if run.failed.exists():
        facts["reason"] = run.failure()
    return facts


def _nodes(path: Path, port: int) -> list[dict[str, Any]]:
    try:
        return FlowerControl(path, port).nodes()
    except CannotContinue:
        return []
