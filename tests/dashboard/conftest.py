"""Homes as runs, coordinators and silos leave them, the page served on a port of its own, and a browser."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from autoflip_secure.config import RunConfig
from autoflip_secure.dashboard.app import make_app
from autoflip_secure.dashboard.homes import Home, open_home
from autoflip_secure.data.task import Task
from autoflip_secure.federation.approvals import ApprovalStore, Pins
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.storage import open_silo_database

SESSION = b"s" * 16
DENSE = 1000
HOSTILE = '<img src=x onerror="document.title=`gotcha`">'
TOKEN = "0123456789abcdef0123456789abcdef"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def metrics_line(number: int, *, layers: int = 3, **changes: Any) -> dict[str, Any]:
    """A line as federation.coordinator writes it; pruned from the third round on."""
    live = DENSE if number < 2 else DENSE // 2
    rows = [
        {"layer": f"conv{i}", "units": 8, "live": live // layers, "agreement": 0.1 * i, "agreement_raw": None}
        for i in range(1, layers + 1)
    ]
    return {
        "round": number,
        "phase": "explore" if number < 2 else "train",
        "cohorts": 1,
        "silos": 3,
        **({"accuracy": 0.5 + number / 1000, "loss": 1.0, "auroc": None} if number % 2 else {}),
        "epsilon": 0.01 * number if number % 2 else None,
        "clip": 0.1,
        "agreement": None,
        "agreement_average": 0.25,
        "params_live": live,
        "params_dense": DENSE,
        "flops": 2 * live,
        "flops_dense": 2 * DENSE,
        "layers": rows,
        "upload_bytes_per_silo": 100.0 * (number + 1),
        "upload_bytes_total_per_silo": 120.0 * (number + 1),
        "upload_bytes_dense_fp32": 4 * DENSE * (number + 1),
        "download_bytes_per_silo": 130.0 * (number + 1),
        "aborts": 0,
        "drops": {"masked": number},
        "seconds": 0.5,
        **changes,
    }


def event_lines(number: int, *, time: float, missing: int = 0) -> list[dict[str, Any]]:
    """Events of one round of three silos, of which one may be missing at the first stage."""
    place = {"round": number, "attempt": 0}
    answered = [silo for silo in (1, 2, 3) if silo != missing]
    absent = {"event": "absent", "stage": "masked", **place, "silo": missing, "status": "dropped", "error": ""}
    return [
        {"time": time, "event": "asking", "stage": "masked", **place, "silos": [1, 2, 3]},
        *([{"time": time + 0.1, **absent}] if missing else []),
        {"time": time + 0.2, "event": "stage", "stage": "masked", **place, "answered": answered, "seconds": 0.2},
        {"time": time + 0.3, "event": "sum", "phase": "train", **place, "silos": [answered]},
    ]


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def make_run(
    path: Path, rounds: int = 6, *, names: tuple[str, ...] = ("north", "south", "west"), layers: int = 3
) -> Path:
    """A run directory of three silos that is not finished."""
    (path / "federation").mkdir(parents=True)
    identities = [Identity.create(path / "federation" / f"{i}.key") for i in range(len(names) + 1)]
    entries = tuple(RosterEntry(i, name, identities[i].public) for i, name in enumerate(names, start=1))
    (path / "federation" / "roster.bin").write_bytes(Roster(identities[0].public, entries).to_bytes())
    now = time.time()
    append(path / "events.jsonl", {"time": now, "event": "joined", "silos": [1, 2, 3], "refused": []})
    for number in range(rounds):
        append(path / "events.jsonl", *event_lines(number, time=now + number, missing=3 if number == rounds - 1 else 0))
        append(path / "metrics.jsonl", metrics_line(number, layers=layers))
    reason = "2 of 3 silos sent a vector, 3 are needed"
    place = {"phase": "train", "round": 1, "attempt": 0, "stage": "masked"}
    append(path / "events.jsonl", {"time": now, "event": "abort", **place, "reason": reason, "blamed": [2]})
    (path / "config.toml").write_text(
        'dataset = "digits"\nmodel = "mlp"\nsilos = 3\nrounds = 20\naggregation = "secagg"\ncolluders = 1\n'
        'dp_epsilon = 8.0\ndp_delta = 1e-5\ndp_trust = "distributed"\nstage_timeout = 600.0\n'
    )
    return path


def make_silo(path: Path, lines: int = 4, *, name: str = "hospital-a") -> Path:
    """A silo's home whose ledger has some lines, and whose audit log two messages a line."""
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "policy.toml").write_text(SiloPolicy(epsilon_per_year=4.0).to_toml())
    (path / "identity.key").write_text("the secret identity")
    (path / "silo.log").write_text("what the silo's own log says")
    charge(path, lines)
    return path


def charge(path: Path, lines: int, *, first: int = 0) -> None:
    database = open_silo_database(path / "state.sqlite")
    ledger = Ledger(database, silo="1", session=SESSION, budgets={"train": 8.0}, delta=1e-5, trust="distributed")
    for number in range(first, first + lines):
        ledger.charge(LedgerLine(SESSION, "train", number, 0, "train", 1.0, 13.0, 0.1, 1, bytes(32)))
        place = {"round": number, "attempt": 0, "status": "ok", "error": "", "salt": "5a17", "digest": "d16e57"}
        masked = {
            "stage": "masked",
            "bytes": 500,
            "channels": [["update", 120], ["count", 1]],
            "ledger": [number + 1, "ff"],
        }
        append(
            path / "audit.jsonl",
            {"n": 2 * number + 1, "time": 1e9, "kind": "reply", **place, **masked},
            {"n": 2 * number + 2, "time": 1e9, "kind": "reply", **place, "stage": "confirm", "bytes": 80},
        )
    database.close()


def ask_to_join(home: Path, rounds: int, verdict: str = "") -> bytes:
    """Have a run of so many rounds wait at a silo, or be approved or denied there; its digest."""
    task = Task("toy", "multiclass", (4,), 3, ("a", "b", "c"), "mlp", 80)
    options = {"dataset": "digits", "silos": 4, "rounds": rounds, "colluders": 0, "prune": "none", "dp_epsilon": 2.0}
    config = resolve(RunConfig.create(**options), task, natural_silos=None)
    request = JoinRequest(SESSION, config, task.to_json(), {}, bytes(32))
    database = open_silo_database(home / "state.sqlite")
    store = ApprovalStore(database)
    store.offer(request)
    if verdict == "approved":
        store.approve(request.digest(), Pins(bytes(32), bytes(32), b""), "officer")
    elif verdict == "denied":
        store.deny(request.digest(), "officer")
    database.close()
    return request.digest()


class Client:
    """Asks the application without a network between."""

    def __init__(self, home: Home, **options: Any) -> None:
        self._app = make_app(home, **options)

    def request(self, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8265") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(ask())

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.request("GET", path, headers)


class Make:
    """What tests make homes from."""

    hostile, token = HOSTILE, TOKEN
    append, metrics_line, event_lines = staticmethod(append), staticmethod(metrics_line), staticmethod(event_lines)
    client, ask_to_join = Client, staticmethod(ask_to_join)
    run, silo, charge = staticmethod(make_run), staticmethod(make_silo), staticmethod(charge)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    """make.run(path), make.silo(path), make.append(file, line), ..."""
    return Make


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def silo_folder(tmp_path: Path) -> Path:
    return make_silo(tmp_path / "silo")


@contextmanager
def serving(home: Path, token: str | None = None) -> Iterator[str]:
    """The page about `home`, served by a real server; its address."""
    settings = uvicorn.Config(
        make_app(open_home(home), token=token), http="h11", ws="none", lifespan="off", log_level="error"
    )
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """serve(home, token=None) -> address of the page, which is served until the test and its browser have ended."""
    with ExitStack() as servers:
        yield lambda home, token=None: servers.enter_context(serving(home, token))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a screen; tests that need one are skipped where Debian's chromium is not installed.

    It ends with its module: while it is there this thread has an event loop, and can run no other.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    path = Path(os.environ.get("AUTOFLIP_SECURE_CHROMIUM") or CHROMIUM)
    if not path.exists():
        pytest.skip(f"no browser at {path}; install chromium, or name one in AUTOFLIP_SECURE_CHROMIUM")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(path), args=list(FLAGS))
        yield browser
        browser.close()
