"""Runs a silo was asked to join and what its officer said, read without writing: the store itself makes its tables."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

from autoflip_secure.dashboard.tail import Stamp, stamp_of
from autoflip_secure.dashboard.values import plain
from autoflip_secure.errors import AutoflipSecureError, ConfigError

__all__ = ["ApprovalWatch"]

MOST_RUNS = 50

QUERY = """
SELECT a.digest, a.request, a.asked, d.verdict, d.who, d.time
FROM asked_runs AS a LEFT JOIN run_decisions AS d
ON d.number = (SELECT MAX(number) FROM run_decisions WHERE digest = a.digest)
ORDER BY a.asked DESC, a.rowid DESC LIMIT ?
"""


class ApprovalWatch:
    """Reads the two tables of `federation.approvals` again where the file has changed."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._turn = threading.Lock()
        self._seen: tuple[Stamp, Stamp] | None = None
        self._found: dict[str, Any] = {"status": "none", "runs": []}

    def current(self) -> dict[str, Any]:
        """`status` (none, read or error) and `runs`, the newest first."""
        with self._turn:
            stamps = stamp_of(self._state), stamp_of(self._state.with_name(self._state.name + "-wal"))
            if stamps != self._seen:
                self._found = self._read()
                self._seen = stamps
            return dict(self._found)

    def _read(self) -> dict[str, Any]:
        from autoflip_secure.privacy.ledger_reading import open_read_only

        try:
            with open_read_only(self._state) as connection:
                rows = _rows(connection)
        except ConfigError:
            rows = None
        except AutoflipSecureError as error:
            return {"status": "error", "error": plain(str(error)), "runs": []}
        if rows is None:
            return {"status": "none", "runs": []}
        return {"status": "read", "runs": [_run(*row) for row in rows]}


def _rows(connection: sqlite3.Connection) -> list[tuple[Any, ...]] | None:
    """None where no run ever asked."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'run_decisions'").fetchone():
        return None
    return connection.execute(QUERY, (MOST_RUNS,)).fetchall()


def _run(
    digest: bytes, request: bytes, asked: float, verdict: str | None, who: str | None, decided: float | None
) -> Any:
    from autoflip_secure.federation.approvals import SHOWN_DIGITS

    return {
        "run": digest.hex()[:SHOWN_DIGITS],
        "state": verdict or "pending",
        "asked": asked,
        "decided": decided,
        "by": plain(who),
        "words": _words(digest, request),
    }


def _words(digest: bytes, body: bytes) -> str:
    """What would run, in a line; empty where another version of this package wrote it."""
    from autoflip_secure.federation.join import JoinRequest

    try:
        request = JoinRequest.from_body(body)
        if request.digest() != digest:
            return ""
    except AutoflipSecureError:
        return ""
    config = request.config
    promise = "no differential privacy" if config.dp_epsilon is None else f"epsilon {config.dp_epsilon:g}"
    return str(plain(f"{config.dataset}, {config.model}, {config.rounds} rounds, {promise}"))
