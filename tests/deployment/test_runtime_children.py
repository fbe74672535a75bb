"""Processes that are kept alive: started again, ended together, one supervisor a home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autoflip_secure.deployment.children import (
    ChildSpec,
    Supervisor,
    read_state,
    running_pid,
    stop_running,
)
from autoflip_secure.errors import CannotContinue

SLEEP = (sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)")
SUPERVISE = """
import sys
from pathlib import Path
from autoflip_secure.deployment.children import ChildSpec, Supervisor
folder = Path(sys.argv[1])
sleep = (sys.executable, "-c", "import time; time.sleep(60)")
Supervisor(folder, (ChildSpec("sleeper", sleep, folder / "sleeper.log"),), {}, print).run()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(holds, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError("not in time")


@pytest.fixture
def supervised(tmp_path: Path):
    """A supervisor in a process of its own, with one child."""
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)])
    try:
        until(lambda: child_pid(tmp_path))
        yield process
    finally:
        process.kill()
        process.wait()


def child_pid(folder: Path) -> int | None:
    return read_state(folder).get("children", {}).get("sleeper", {}).get("pid")


def test_a_child_that_is_killed_is_started_again(supervised: subprocess.Popen, tmp_path: Path) -> None:
    first = child_pid(tmp_path)
    os.kill(first, signal.SIGKILL)
    second = until(lambda: (pid := child_pid(tmp_path)) != first and pid)
    assert alive(second)
    facts = read_state(tmp_path)["children"]["sleeper"]
    assert (facts["restarts"], facts["last_exit"]) == (1, -signal.SIGKILL)


def test_children_end_with_a_supervisor_that_is_told_to_stop(supervised: subprocess.Popen, tmp_path: Path) -> None:
    pid = child_pid(tmp_path)
    assert running_pid(tmp_path) == supervised.pid
    assert stop_running(tmp_path)
    assert not alive(pid)
    assert running_pid(tmp_path) is None
    assert not stop_running(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="a child learns of its parent's death on Linux only")
def test_children_end_with_a_supervisor_that_is_killed(supervised: subprocess.Popen, tmp_path: Path) -> None:
    pid = child_pid(tmp_path)
    supervised.kill()
    supervised.wait()
    until(lambda: not alive(pid))
    assert running_pid(tmp_path) is None


def test_a_home_has_one_supervisor(supervised: subprocess.Popen, tmp_path: Path) -> None:
    second = Supervisor(tmp_path, (), {}, print)
    with pytest.raises(CannotContinue, match=f"already up, as process {supervised.pid}"):
        second.run()


def test_a_child_that_ends_at_once_is_started_with_growing_waits(tmp_path: Path) -> None:
    said: list[str] = []
    spec = ChildSpec("short", (sys.executable, "-c", "raise SystemExit(3)"), tmp_path / "short.log")
    supervisor = Supervisor(tmp_path, (spec,), dict(os.environ), said.append)
    stopper = threading.Timer(4.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopper.start()
    supervisor.run()
    ended = [line for line in said if "ended" in line]
    assert "exit code 3" in ended[0]
    assert "again in 1 s" in ended[0]
    assert "again in 2 s" in ended[1]
    assert len(ended) <= 3


def test_what_children_say_is_kept_for_the_owner_only(tmp_path: Path) -> None:
    said: list[str] = []
    spec = ChildSpec("sleeper", SLEEP, tmp_path / "sleeper.log")
    supervisor = Supervisor(tmp_path, (spec,), dict(os.environ), said.append)
    stopper = threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopper.start()
    supervisor.run()
    assert (tmp_path / "sleeper.log").read_text() == "here\n"
    assert (tmp_path / "sleeper.log").stat().st_mode & 0o077 == 0


def test_a_log_that_has_grown_long_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoflip_secure.deployment.children.LONGEST_LOG", 10)
    (tmp_path / "sleeper.log").write_text("what was said before")
    spec = ChildSpec("sleeper", SLEEP, tmp_path / "sleeper.log")
    supervisor = Supervisor(tmp_path, (spec,), dict(os.environ), lambda line: None)
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    supervisor.run()
    assert (tmp_path / "sleeper.log.1").read_text() == "what was said before"


def test_an_old_process_number_is_not_taken_for_a_running_supervisor(tmp_path: Path) -> None:
    (tmp_path / "up.lock").write_text(str(os.getpid()))
    assert running_pid(tmp_path) is None
