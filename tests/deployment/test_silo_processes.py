"""A silo's processes: code that comes along with a message never runs, and the one on the network knows little."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp

import autoflip_secure
from autoflip_secure.deployment.flower import supernode_command
from autoflip_secure.deployment.record_import import import_records
from autoflip_secure.deployment.silo_worker import SiloWorker
from autoflip_secure.federation.wire import Reply, Request, read_reply, request_message
from tests.deployment.conftest import federation_text, write_table

APP = Path(autoflip_secure.__file__).parent / "deployment" / "flower_app"
HOSTILE = """
import os
from pathlib import Path
from flwr.clientapp import ClientApp

Path(os.environ["MARK"]).write_text("code of the coordinator ran")
client = server = ClientApp()
"""
# What Flower's own runner does with the code that comes with a message.
FLOWERS_WAY = """
import sys
from flwr.cli.install import install_from_fab
from flwr.clientapp.utils import get_load_client_app_fn

content = open(sys.argv[1], "rb").read()
where = install_from_fab(content, skip_prompt=True)
get_load_client_app_fn("", str(where), True)("autoflip-secure/autoflip-secure-app", "1.0.0", "")
"""


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pathspec.*")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An app bundle as Flower makes them, whose import leaves a mark."""
    app = tmp_path / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "autoflip_secure_app.py").write_text(HOSTILE)
    mark, home = tmp_path / "mark", tmp_path / "flwr"
    home.mkdir()
    monkeypatch.setenv("MARK", str(mark))
    monkeypatch.setenv("FLWR_HOME", str(home))
    return SimpleNamespace(content=build_fab_from_disk(app), mark=mark, home=home)


def test_where_flower_runs_it_the_code_leaves_its_mark(hostile: SimpleNamespace, tmp_path: Path) -> None:
    """So that the next test can fail."""
    (tmp_path / "bundle.fab").write_bytes(hostile.content)
    subprocess.run([sys.executable, "-c", FLOWERS_WAY, str(tmp_path / "bundle.fab")], check=True, env=os.environ)
    assert hostile.mark.exists()


class Worker(SiloWorker):
    """A worker with one task to take, whose silo says ok."""

    def _connect(self, *interceptors: Any) -> Any:
        acquired = SimpleNamespace(HasField=lambda name: True, token="token")
        return SimpleNamespace(
            AcquireTask=lambda request: acquired,
            SendTaskHeartbeat=lambda request: SimpleNamespace(success=True),
            close=lambda: None,
        )

    def _open(self) -> Any:
        return SimpleNamespace(answer=lambda request: Reply("ok", b"own code"))


def test_a_worker_never_runs_the_code_that_comes_with_a_message(
    hostile: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run_id", "node_id", "task_id"):
        setattr(TaskIdentity, name, 1)
    message = request_message(7, Request("confirm", 3, 0, b"question"))
    run = SimpleNamespace(fab_id="autoflip-secure/autoflip-secure-app", fab_version="1.0.0", run_id=1)
    pushed: list[Any] = []
    task = message, SimpleNamespace(), run, Fab("0" * 64, hostile.content, {})
    monkeypatch.setattr(run_clientapp, "pull_task_input", lambda client: task)
    monkeypatch.setattr(run_clientapp, "push_message", lambda client, reply, context: pushed.append(reply))
    monkeypatch.setattr(run_clientapp, "push_task_output", lambda client, context, status, why: pushed.append(status))
    worker = Worker(Path("home"), "127.0.0.1:1", b"secret")
    assert worker.answer_one()
    deadline = time.monotonic() + 20
    while len(pushed) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read_reply(pushed[0]) == Reply("ok", b"own code")
    assert not hostile.mark.exists()
    assert not list(hostile.home.iterdir()), "nothing was unpacked"


def test_the_process_on_the_network_is_given_a_node_key_and_no_other_file_of_the_silo(tmp_path: Path) -> None:
    given = supernode_command(tmp_path / "home", "fl.example.org:8000", 9100, tmp_path / "home/flower/worker.secret")
    files = {word.removeprefix(f"{tmp_path}/home/") for word in given if word.startswith(str(tmp_path))}
    assert files == {"ca.pem", "node.key", "flower/worker.secret"}


def test_the_process_on_the_network_loads_nothing_that_reads_records_or_keys_of_sums() -> None:
    """Modules that a SuperNode has loaded once it is about to begin."""
    loading = (
        "import sys, autoflip_secure.deployment.supernode\n"
        "from flwr.supernode import start_client_internal\n"
        "from flwr.supernode.cli.flower_supernode import flower_supernode\n"
        "print(*[n for n in sys.modules if n.startswith('autoflip_secure.') or n in ('torch', 'tenseal')])"
    )
    done = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "autoflip_secure.deployment.supernode" in loaded
    forbidden = ("data", "federation", "secagg", "ckks", "parties", "privacy", "sums")
    assert not [name for name in loaded if name.split(".")[1:2] and name.split(".")[1] in forbidden]
    assert not loaded & {"torch", "tenseal"}


def listening(processes: set[int]) -> list[tuple[str, int]]:
    """Address and port, in hexadecimal, of every TCP socket on which one of the processes listens."""
    sockets = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            try:
                sockets.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
            except FileNotFoundError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in sockets:
                address, port = columns[1].split(":")
                found.append((address, int(port, 16)))
    return found


def children(parent: int) -> set[int]:
    """The process itself and all that it started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            continue
    found = {parent}
    while more := {process for process, of in parents.items() if of in found} - found:
        found |= more
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads sockets of processes from Linux's /proc")
def test_a_silo_listens_on_the_loopback_only(make_parties: Any, tmp_path: Path) -> None:
    parties = make_parties(enrolled=4, text=federation_text(port=9))
    parties.install()
    home = next(iter(parties.silos.values()))
    import_records(home, write_table(tmp_path / "tables"))
    command = [sys.executable, "-m", "autoflip_secure.cli", "silo", "up", "--home", str(home.path)]
    up = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (sockets := listening(children(up.pid))) and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(2)
        sockets = listening(children(up.pid))
        assert sockets, "its SuperNode waits for its worker"
        assert {address for address, _ in sockets} == {"0100007F"}
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(30)
