"""Keeps the processes of a home alive: starts them, starts them anew when they end, ends them with itself."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from autoflip_secure.errors import CannotContinue, StorageError
from autoflip_secure.storage import is_locked, locked, storing, write_atomically

__all__ = ["ChildSpec", "Supervisor", "running_pid", "stop_running"]

STATE, LOCK = "state.json", "up.lock"
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
STEADY = 60.0
"""Seconds after which a process counts as well: the next wait is the first again."""

GRACE = 10.0
LOOK_EVERY = 0.2
LONGEST_LOG = 10 * 2**20
PR_SET_PDEATHSIG = 1
# Looked up before any fork: another thread might hold the loader's lock then.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)


@dataclass(frozen=True)
class ChildSpec:
    """One process to keep alive.

    Attributes
    ----------
    name : str
    command : tuple of str
    log : Path
        What it prints is appended there; begun anew above ten megabytes, with one older file kept.
    """

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    restarts: int = 0
    last_exit: int | None = None
    wait: float = FIRST_WAIT
    due: float = 0.0

    def facts(self) -> dict[str, Any]:
        return {
            "pid": self.process.pid if self.process else None,
            "since": self.since,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
        }


@dataclass
class Supervisor:
    """Runs the children of one home until it is told to stop.

    Attributes
    ----------
    folder : Path
        Holds state.json, the lock that only one supervisor holds, and the logs.
    children : sequence of ChildSpec
    environment : mapping of str to str
    say : callable
        say(line) tells the operator what happened.
    tick : callable
        Called several times a second while all goes on; must not block for long.
    """

    folder: Path
    children: tuple[ChildSpec, ...]
    environment: Mapping[str, str]
    say: Callable[[str], None]
    tick: Callable[[], None] = lambda: None
    _stopping: bool = field(default=False, init=False)

    def run(self) -> None:
        """Keep the children alive until SIGTERM or SIGINT, then end them.

        Raises
        ------
        CannotContinue
            Another supervisor of this home is running.
        """
        with _only_one(self.folder / LOCK):
            before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
            children = [_Child(spec) for spec in self.children]
            try:
                while not self._stopping:
                    for child in children:
                        self._look_after(child, children)
                    self.tick()
                    time.sleep(LOOK_EVERY)
            finally:
                self._end(children)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _look_after(self, child: _Child, children: list[_Child]) -> None:
        now = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                if child.wait > FIRST_WAIT and time.time() - child.since > STEADY:
                    child.wait = FIRST_WAIT
                return
            child.last_exit, child.process = code, None
            child.due = now + child.wait
            self.say(f"{child.spec.name} ended ({_cause(code)}); starting it again in {child.wait:.0f} s")
            child.wait = min(2 * child.wait, LONGEST_WAIT)
            child.restarts += 1
            self._note(children)
        elif now >= child.due:
            self._start(child)
            self._note(children)

    def _start(self, child: _Child) -> None:
        _turn_over(child.spec.log)
        with storing(child.spec.log), child.spec.log.open("ab") as log:
            child.process = subprocess.Popen(
                child.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them in order
                preexec_fn=_end_with_parent,
            )
        child.since = time.time()
        self.say(f"{child.spec.name} started, pid {child.process.pid}; log: {child.spec.log}")

    def _note(self, children: list[_Child]) -> None:
        facts = {"pid": os.getpid(), "children": {child.spec.name: child.facts() for child in children}}
        try:
            write_atomically(self.folder / STATE, json.dumps(facts).encode())
        except StorageError as error:
            self.say(f"{error}; the processes go on")  # only what `status` shows

    def _end(self, children: list[_Child]) -> None:
        running = [child for child in children if child.process is not None]
        for child in reversed(running):
            assert child.process is not None
            child.process.terminate()
        deadline = time.monotonic() + GRACE
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()
            child.last_exit, child.process = child.process.returncode, None
        self._note(children)


def read_state(folder: Path) -> dict[str, Any]:
    """What the supervisor of a home last noted; empty where there was none."""
    try:
        state = json.loads((folder / STATE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def running_pid(folder: Path) -> int | None:
    """Process id of the supervisor that runs now, if one does. A lock tells: an old number may be anybody's."""
    if not is_locked(folder / LOCK):
        return None
    pid = (folder / LOCK).read_text().strip()
    return int(pid) if pid.isdigit() else None


def stop_running(folder: Path, timeout: float = 2 * GRACE) -> bool:
    """End the supervisor that runs; whether there was one.

    Raises
    ------
    CannotContinue
        It does not end.
    """
    pid = running_pid(folder)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while running_pid(folder) is not None:
        if time.monotonic() > deadline:
            raise CannotContinue(f"process {pid} does not end; look at the logs in {folder}, then: kill -9 {pid}")
        time.sleep(LOOK_EVERY)
    return True


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with locked(path) as file:
        if file is None:
            raise CannotContinue(
                f"already up, as process {path.read_text().strip()}; stop it first, or leave it as it is"
            )
        with storing(path):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def _turn_over(log: Path) -> None:
    with storing(log):
        if log.exists() and log.stat().st_size > LONGEST_LOG:
            log.replace(log.with_name(f"{log.name}.1"))
        if not log.exists():
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600))


def _end_with_parent() -> None:
    """A child whose supervisor was killed ends too (Linux; elsewhere it stays, and the next start finds its port)."""
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
