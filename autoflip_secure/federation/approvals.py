"""Runs that a silo was asked to join, and what its officer said about them. In the silo's state.sqlite.

A run is known by the digest of its signed join request, which the silo computes itself: a coordinator can ask for
another run, never change what an approved digest stands for. Decisions are only ever added, so who said what, and when,
stays on record; the last one counts. An approval also pins what the request does not say: this silo's own code, the
model that it builds from the request, and its roster.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autoflip_secure.errors import ConfigError, ProtocolError, StorageError
from autoflip_secure.federation.join import JoinRequest

__all__ = ["APPROVED", "DENIED", "MAX_UNDECIDED", "PENDING", "ApprovalStore", "AskedRun", "Decision", "Pins", "officer"]

APPROVED, DENIED, PENDING = "approved", "denied", "pending"

MAX_UNDECIDED = 16
"""Runs that wait for a decision; asking for one more drops the one that waits longest. Decided ones stay."""

SHOWN_DIGITS = 32
"""Digits of a digest that listings show, and that a decision asks for: a coordinator could make up a second run that
shares fewer, and have it approved in the place of the one that was read."""

LEAST_DIGITS = 4

_TABLES = """
CREATE TABLE IF NOT EXISTS asked_runs (
    digest BLOB PRIMARY KEY, request BLOB NOT NULL, asked REAL NOT NULL, joined REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS run_decisions (
    number INTEGER PRIMARY KEY, digest BLOB NOT NULL, verdict TEXT NOT NULL CHECK (verdict IN ('approved', 'denied')),
    who TEXT NOT NULL, time REAL NOT NULL, code BLOB, model BLOB, roster BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS run_decisions_of ON run_decisions (digest, number);
CREATE TRIGGER IF NOT EXISTS run_decisions_stay BEFORE UPDATE ON run_decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS run_decisions_last BEFORE DELETE ON run_decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never removed'); END;
"""


@dataclass(frozen=True)
class Pins:
    """What an approval holds besides the run's digest.

    Attributes
    ----------
    code : bytes, 32
        `code_digest` of this silo.
    model : bytes, 32
        `initial_model.start_hash` of the model this silo builds.
    roster : bytes
        `Roster.to_bytes`.
    """

    code: bytes
    model: bytes
    roster: bytes


@dataclass(frozen=True)
class Decision:
    """What was said about a run; `pins` only where it was approved."""

    verdict: str
    who: str
    time: float
    pins: Pins | None


@dataclass(frozen=True)
class AskedRun:
    """A run the coordinator asked for.

    Attributes
    ----------
    digest : bytes, 32
    request : JoinRequest or None
        None where another version of this package wrote it.
    asked, joined : float
        Seconds since 1970: first asked for, last joined (0: never).
    decision : Decision or None
        The last one.
    """

    digest: bytes
    request: JoinRequest | None
    asked: float
    joined: float
    decision: Decision | None

    @property
    def state(self) -> str:
        """pending, approved or denied."""
        return PENDING if self.decision is None else self.decision.verdict

    @property
    def name(self) -> str:
        """Digits by which listings name it."""
        return self.digest.hex()[:SHOWN_DIGITS]


class ApprovalStore:
    """On the connection of `storage.open_silo_database`; several processes may use one file.

    Raises
    ------
    StorageError
        The tables cannot be made or read; also from every method.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        with _storing():
            connection.executescript(_TABLES)

    def offer(self, request: JoinRequest) -> None:
        """Keep a request that was signed by the coordinator, once, so that it can be reviewed.

        Where too many wait, those go that were never joined, the oldest first; what was joined last goes last.
        """
        digest = request.digest()
        with _storing():
            if self._connection.execute("SELECT 1 FROM asked_runs WHERE digest = ?", (digest,)).fetchone():
                return
        with self._transaction():
            row = (digest, request.body(), time.time(), 0.0)
            self._connection.execute("INSERT OR IGNORE INTO asked_runs VALUES (?, ?, ?, ?)", row)
            undecided = "digest NOT IN (SELECT digest FROM run_decisions) AND digest <> ?"
            self._connection.execute(
                f"DELETE FROM asked_runs WHERE {undecided} AND digest NOT IN (SELECT digest FROM asked_runs "
                f"WHERE {undecided} ORDER BY joined DESC, asked DESC, rowid DESC LIMIT ?)",
                (digest, digest, MAX_UNDECIDED - 1),
            )

    def mark_joined(self, digest: bytes) -> None:
        """Note that the run was joined now."""
        with _storing():
            self._connection.execute("UPDATE asked_runs SET joined = ? WHERE digest = ?", (time.time(), digest))

    def decision(self, digest: bytes) -> Decision | None:
        """The last decision about a run."""
        with _storing():
            row = self._connection.execute(
                "SELECT verdict, who, time, code, model, roster FROM run_decisions WHERE digest = ? "
                "ORDER BY number DESC LIMIT 1",
                (digest,),
            ).fetchone()
        return None if row is None else _decision(*row)

    def runs(self) -> tuple[AskedRun, ...]:
        """All that are kept, in the order in which they were first asked for."""
        with _storing():
            rows = self._connection.execute(
                "SELECT digest, request, asked, joined FROM asked_runs ORDER BY asked, rowid"
            ).fetchall()
        return tuple(
            AskedRun(digest, _read(digest, request), asked, joined, self.decision(digest))
            for digest, request, asked, joined in rows
        )

    def find(self, prefix: str, *, deciding: bool = False) -> AskedRun:
        """The run whose digest starts with these hexadecimal digits.

        Parameters
        ----------
        deciding : bool
            More digits are asked for, see `SHOWN_DIGITS`.

        Raises
        ------
        ConfigError
            None or several, or too few digits.
        """
        least = SHOWN_DIGITS if deciding else LEAST_DIGITS
        wanted = prefix.lower()
        if len(wanted) < least or set(wanted) - set("0123456789abcdef"):
            why = ", since a shorter one could be that of another run by now" if deciding else ""
            raise ConfigError(
                f"RUN {prefix!r}: give {least} or more hexadecimal digits of the run's digest{why}; `silo review` "
                "lists them"
            )
        found = [run for run in self.runs() if run.digest.hex().startswith(wanted)]
        if len(found) != 1:
            which = ", ".join(run.digest.hex() for run in found)
            wrong = f"is the start of {len(found)} runs, {which}" if found else "no such run was asked for"
            raise ConfigError(f"RUN {prefix}: {wrong}; `silo review` lists all")
        return found[0]

    def approve(self, digest: bytes, pins: Pins, who: str) -> None:
        """Approve a run, or approve it again with other pins.

        Raises
        ------
        ConfigError
            The request is no longer kept.
        """
        self._decide(digest, (APPROVED, who, time.time(), pins.code, pins.model, pins.roster))

    def deny(self, digest: bytes, who: str) -> None:
        """Deny a run, or withdraw its approval: it ends at its next stage.

        Raises
        ------
        ConfigError
            The request is no longer kept.
        """
        self._decide(digest, (DENIED, who, time.time(), None, None, None))

    def history(self, digest: bytes) -> tuple[Decision, ...]:
        """All decisions about a run, oldest first."""
        with _storing():
            rows = self._connection.execute(
                "SELECT verdict, who, time, code, model, roster FROM run_decisions WHERE digest = ? ORDER BY number",
                (digest,),
            ).fetchall()
        return tuple(_decision(*row) for row in rows)

    def _decide(self, digest: bytes, values: tuple[object, ...]) -> None:
        with self._transaction():
            if not self._connection.execute("SELECT 1 FROM asked_runs WHERE digest = ?", (digest,)).fetchone():
                raise ConfigError(
                    f"RUN {digest.hex()[:SHOWN_DIGITS]}: is no longer kept; nothing was decided, review it when the "
                    "coordinator asks again"
                )
            self._connection.execute(
                "INSERT INTO run_decisions (digest, verdict, who, time, code, model, roster) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (digest, *values),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _storing():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def officer() -> str:
    """Name of the operating system's user who runs this process."""
    user = os.getuid()
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _decision(
    verdict: str, who: str, when: float, code: bytes | None, model: bytes | None, roster: bytes | None
) -> Decision:
    pins = None if code is None or model is None or roster is None else Pins(code, model, roster)
    return Decision(verdict, who, when, pins)


def _read(digest: bytes, body: bytes) -> JoinRequest | None:
    try:
        request = JoinRequest.from_body(body)
    except ProtocolError:
        return None
    # With the options of another version it may read as another run than the one that was asked for.
    return request if request.digest() == digest else None


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"the silo's approvals cannot be read or written: {error}; nothing was decided") from error
