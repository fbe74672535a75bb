"""The made certificates and node keys with Flower's own processes: TLS, and nodes that prove who they are."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoflip_secure.deployment.flower import FLOWER, FlowerControl, flower_environment
from autoflip_secure.errors import CannotContinue
from tests.deployment.conftest import federation_text

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(holds: Callable[[], bool], seconds: float = 180) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.3)
    return False


@pytest.fixture
def start() -> Iterator[Start]:
    running = []

    def start(home: Path, *command: str) -> subprocess.Popen:
        (home / FLOWER).mkdir(exist_ok=True)
        with open(home / FLOWER / "process.log", "wb") as log:
            process = subprocess.Popen(command, env=flower_environment(home), stdout=log, stderr=subprocess.STDOUT)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def listening(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("status", ["finished:failed", "finished:stopped", "running"])
def test_a_run_that_has_ended_meanwhile_is_stopped(tmp_path: Path, monkeypatch, status: str) -> None:
    def ask(_: FlowerControl, word: str, *arguments: str) -> dict:
        if word == "stop":
            raise CannotContinue("flwr stop: [code: 18] Run is already finished.")
        return {"runs": [{"status": status}]}

    monkeypatch.setattr(FlowerControl, "_ask", ask)
    control = FlowerControl(tmp_path, 1)
    if status == "running":
        with pytest.raises(CannotContinue, match="flwr stop"):
            control.stop(7)
    else:
        control.stop(7)


def test_flower_takes_the_certificates_and_only_registered_node_keys(make_parties, start: Start) -> None:
    port = free_port()
    federation = make_parties(enrolled=4, text=federation_text(port=port))
    federation.install()
    home = federation.coordinator.path
    superlink = start(
        home, str(BIN / "flower-superlink"), "--port", str(port), "--ssl-ca-certfile", str(home / "ca.pem"),
        "--ssl-certfile", str(home / "server.pem"), "--ssl-keyfile", str(home / "server.key"),
        "--enable-supernode-auth", "--database", str(home / FLOWER / "superlink.db"),
        "--disable-runtime-dependency-installation",
    )  # fmt: skip
    assert until(lambda: superlink.poll() is not None or listening(port)), "no SuperLink"
    control = FlowerControl(home, port)
    control.configure()
    known, stranger = federation.silos["hospital-a"], federation.silos["hospital-b"]
    bundle = federation.coordinator.installed()
    key = federation.folder / "a.pub"
    key.write_text(bundle.node_keys[1] + "\n")
    control.register(key, "hospital-a")

    def supernode(silo: Path) -> subprocess.Popen:
        return start(
            silo, str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{port}", "--root-certificates",
            str(silo / "ca.pem"), "--auth-supernode-private-key", str(silo / "node.key"), "--port", str(free_port()),
        )  # fmt: skip

    supernode(known.path)
    assert until(lambda: [node.get("status") for node in control.nodes()] == ["online"]), (
        known.path / FLOWER / "process.log"
    ).read_text()
    refused = supernode(stranger.path)
    assert until(lambda: refused.poll() is not None), "a SuperNode that is not registered goes on"
    assert refused.returncode != 0


def test_a_supernode_of_another_federation_does_not_trust_the_coordinator(make_parties, start: Start) -> None:
    port = free_port()
    federation, other = (make_parties(name, enrolled=4, text=federation_text(port=port)) for name in ("one", "two"))
    federation.install()
    other.install()
    home, silo = federation.coordinator.path, other.silos["hospital-a"].path
    start(
        home, str(BIN / "flower-superlink"), "--port", str(port), "--ssl-ca-certfile", str(home / "ca.pem"),
        "--ssl-certfile", str(home / "server.pem"), "--ssl-keyfile", str(home / "server.key"),
        "--enable-supernode-auth", "--disable-runtime-dependency-installation",
    )  # fmt: skip
    assert until(lambda: listening(port)), "no SuperLink"
    node = start(
        silo, str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{port}", "--root-certificates",
        str(silo / "ca.pem"), "--auth-supernode-private-key", str(silo / "node.key"), "--port", str(free_port()),
        "--max-retries", "1",
    )  # fmt: skip
    log = silo / FLOWER / "process.log"
    assert until(lambda: node.poll() is not None or "CERTIFICATE_VERIFY_FAILED" in log.read_text()), log.read_text()
    assert "ssl" in log.read_text().lower() or "certificate" in log.read_text().lower()
