"""The commands of Flower that a deployment runs: always over TLS, always with authenticated nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from autoflip_secure.errors import CannotContinue
from autoflip_secure.storage import write_atomically

__all__ = ["FLOWER", "HOME_VARIABLE", "FlowerControl", "flower_environment", "superlink_command", "supernode_command"]

FLOWER = "flower"
"""Folder of a home that holds what Flower keeps: its database, configuration, logs."""

HOME_VARIABLE = "AUTOFLIP_SECURE_HOME"
SUPERLINK = "federation"
ANSWER_WITHIN = 60.0
KNOWN_KEY = "Public key already in use"


def flower_environment(home: Path) -> dict[str, str]:
    """Environment of Flower's processes: its files below the home, no telemetry, no look for updates."""
    # Flower starts its own commands by name: those of this installation come first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Either would open a port that this package does not guard.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_INTERNAL_GRPC")}
    return {
        **kept,
        "PATH": path,
        "FLWR_HOME": str((home / FLOWER).absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        HOME_VARIABLE: str(home.absolute()),
    }


def superlink_command(home: Path, host: str, port: int) -> tuple[str, ...]:
    """flower-superlink of a coordinator's home, listening on host:port."""
    return (
        sys.executable, "-m", "autoflip_secure.deployment.superlink",
        "--host", host, "--port", str(port),
        "--ssl-ca-certfile", str(home / "ca.pem"),
        "--ssl-certfile", str(home / "server.pem"),
        "--ssl-keyfile", str(home / "server.key"),
        "--enable-supernode-auth",
        "--database", str(home / FLOWER / "superlink.db"),
        "--disable-runtime-dependency-installation",
    )  # fmt: skip


def supernode_command(home: Path, address: str, port: int, secret: Path) -> tuple[str, ...]:
    """flower-supernode of a silo's home; its worker asks for tasks on 127.0.0.1:`port` with the secret in a file."""
    return (
        sys.executable, "-m", "autoflip_secure.deployment.supernode",
        "--superlink", address,
        "--root-certificates", str(home / "ca.pem"),
        "--auth-supernode-private-key", str(home / "node.key"),
        "--isolation", "process",
        "--superexec-auth-secret-file", str(secret),
        "--host", "127.0.0.1", "--port", str(port),
    )  # fmt: skip


@dataclass(frozen=True)
class FlowerControl:
    """The operator's `flwr` commands against the SuperLink on this machine.

    Attributes
    ----------
    home : Path
        The coordinator's.
    port : int
    """

    home: Path
    port: int

    def configure(self) -> None:
        """Write FLWR_HOME/config.toml, which tells `flwr` where the SuperLink is."""
        settings = {
            "superlink": {
                "default": SUPERLINK,
                SUPERLINK: {
                    "address": f"127.0.0.1:{self.port}",
                    "root-certificates": str((self.home / "ca.pem").absolute()),
                },
            }
        }
        write_atomically(self.home / FLOWER / "config.toml", tomli_w.dumps(settings).encode())

    def nodes(self) -> list[dict[str, Any]]:
        """SuperNodes that are registered, as `flwr supernode list` gives them."""
        answer = self._ask("supernode", "list", SUPERLINK)
        found: list[dict[str, Any]] = answer.get("nodes", [])
        return found

    def register(self, public_key: Path, name: str) -> str:
        """Let the SuperNode with this public key connect; its node id, empty where it could before."""
        try:
            answer = self._ask("supernode", "register", str(public_key), SUPERLINK, "--name", name)
        except CannotContinue as error:
            if KNOWN_KEY in str(error):
                return ""
            raise
        return str(answer["node-id"])

    def unregister(self, node: str) -> None:
        """Let a SuperNode connect no longer."""
        self._ask("supernode", "unregister", node, SUPERLINK)

    def start(self, app: Path, options: Mapping[str, str]) -> int:
        """Start a run of an app; its Flower id."""
        given = " ".join(f'{name}="{value}"' for name, value in options.items())
        return int(self._ask("run", str(app), SUPERLINK, "--run-config", given)["run-id"])

    def stop(self, run: int) -> None:
        """Stop a run; one that has ended meanwhile is no error."""
        try:
            self._ask("stop", str(run), SUPERLINK)
        except CannotContinue:
            if not self.status(run).startswith("finished"):
                raise

    def status(self, run: int) -> str:
        """Flower's word for the state of a run: pending, starting, running, finished:..."""
        runs = self._ask("ls", SUPERLINK, "--run-id", str(run)).get("runs", [])
        return str(runs[0].get("status", "unknown")) if runs else "unknown"

    def _ask(self, *arguments: str) -> dict[str, Any]:
        command = [str(Path(sys.executable).parent / "flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=ANSWER_WITHIN,
                env=flower_environment(self.home),
            )
            answer = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise CannotContinue(
                f"flwr {arguments[0]} gave no answer ({type(error).__name__}); is the coordinator up? "
                "see: autoflip-secure coordinator status"
            ) from error
        if not isinstance(answer, dict) or not answer.get("success", True):
            why = answer.get("error-message", "no reason given") if isinstance(answer, dict) else "no object"
            raise CannotContinue(f"flwr {arguments[0]}: {why}")
        return answer
