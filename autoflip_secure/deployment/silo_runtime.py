"""A silo's processes: Flower's SuperNode, which talks to the network, and the worker that answers for the silo."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoflip_secure.deployment.children import ChildSpec, Supervisor, read_state, running_pid
from autoflip_secure.deployment.flower import FLOWER, flower_environment, supernode_command
from autoflip_secure.deployment.silo_home import SiloHome
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.storage import storing, write_atomically

__all__ = ["silo_status", "silo_up"]

SECRET_BYTES = 32


def silo_up(path: Path, say: Callable[[str], None]) -> None:
    """Run the silo's processes until SIGTERM or SIGINT.

    Raises
    ------
    InputError
        The home is not whole, no bundle is installed, there are no records, or the policy is malformed.
    CannotContinue
        The silo is up already.
    """
    home = SiloHome(path)
    home.require_whole()
    host, port = home.address
    if not (path / "data").is_dir():
        raise ConfigError(f"{path}: holds no records yet; run: autoflip-secure silo data PATH --home {path}")
    SiloPolicy.read(path / "policy.toml")  # what is wrong with it is said now, not with the first message
    folder = path / FLOWER
    with storing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    # Known to the two processes of this start only.
    secret = folder / "worker.secret"
    write_atomically(secret, os.urandom(SECRET_BYTES), secret=True)
    local = _free_port()
    node = ChildSpec(
        "supernode", supernode_command(path, _address(host, port), local, secret), folder / "supernode.log"
    )
    worker = ChildSpec("worker", _worker_command(path, local, secret), folder / "worker.log")
    say(f"silo {home.name} of {home.installed().name}: connecting to {host}:{port}")
    Supervisor(folder, (node, worker), flower_environment(path), say).run()


def silo_status(path: Path) -> dict[str, Any]:
    """What `silo status` shows: processes and what they wait for.

    Raises
    ------
    InputError
        The home is not whole.
    """
    home = SiloHome(path)
    home.require_whole()
    pid = running_pid(path / FLOWER)
    host, port = home.address
    return {
        "up": pid is not None,
        "pid": pid,
        "processes": read_state(path / FLOWER).get("children", {}) if pid else {},
        "coordinator": f"{host}:{port}",
        "coordinator_reachable": _reachable(host, port),
    }


def _worker_command(home: Path, port: int, secret: Path) -> tuple[str, ...]:
    return (
        sys.executable, "-m", "autoflip_secure.deployment.silo_worker",
        "--home", str(home), "--address", f"127.0.0.1:{port}", "--secret-file", str(secret),
    )  # fmt: skip


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _reachable(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False
