"""A silo's durable half of the run key: one row a session, on the connection it shares with its other state."""

from __future__ import annotations

import sqlite3

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.agreement import fresh_key
from autoflip_secure.parties.store import Store

__all__ = ["KEPT_RUNS", "RunKeyStore"]

KEPT_RUNS = 8
"""Sessions whose keys are kept: a run may rest while others go on. The key of a run is of use in that run alone."""

TABLES = """
CREATE TABLE IF NOT EXISTS run_key (
    session BLOB PRIMARY KEY, private BLOB NOT NULL, key BLOB, used INTEGER NOT NULL DEFAULT 0
) STRICT;
"""
NEWEST = "SELECT private, key, used FROM run_key LIMIT 0"


class RunKeyStore:
    """Private X25519 key and run key of each session; every change is on disk before the method returns.

    Other processes may use the same database: a key that is used stays, whatever they do.

    Raises
    ------
    StorageError
        The database cannot be read or written.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._store = Store(connection, TABLES, NEWEST)

    def private(self, session: bytes) -> bytes:
        """The session's private key, 32 bytes; drawn the first time."""
        with self._store.change() as db:
            db.execute("INSERT OR IGNORE INTO run_key (session, private) VALUES (?, ?)", (session, fresh_key()))
            row = db.execute("SELECT private FROM run_key WHERE session = ?", (session,)).fetchone()
        return bytes(row[0])

    def key(self, session: bytes) -> bytes | None:
        """The session's run key, 32 bytes, where there is one."""
        row = self._store.row("SELECT key FROM run_key WHERE session = ?", session)
        return None if row is None else row[0]

    def use(self, session: bytes) -> bytes | None:
        """The session's run key, 32 bytes, which from now on stays; None where there is none."""
        with self._store.change() as db:
            db.execute("UPDATE run_key SET used = 1 WHERE session = ? AND key IS NOT NULL", (session,))
            row = db.execute("SELECT key FROM run_key WHERE session = ?", (session,)).fetchone()
        return None if row is None else row[0]

    def keep(self, session: bytes, key: bytes, *, drawn: bool) -> bytes:
        """Keep a run key where the session has none; one that was not drawn here also in place of one not used yet.

        Returns
        -------
        bytes, 32
            The one that is kept, which may be another.

        Raises
        ------
        ProtocolError
            The session's row is gone: another process joined another run meanwhile.
        """
        with self._store.change() as db:
            free = "key IS NULL" if drawn else "(key IS NULL OR used = 0)"
            db.execute(f"UPDATE run_key SET key = ? WHERE session = ? AND {free}", (key, session))
            row = db.execute("SELECT key FROM run_key WHERE session = ?", (session,)).fetchone()
        if row is None:
            raise ProtocolError("this silo's keys of the run were deleted meanwhile; nothing was changed")
        return bytes(row[0])

    def forget_oldest(self, session: bytes) -> None:
        """Delete private keys and run keys of all but the `KEPT_RUNS` sessions that were last joined, now this one."""
        with self._store.forgetting() as db:
            last = "(SELECT MAX(rowid) + 1 FROM run_key)"
            db.execute(f"UPDATE run_key SET rowid = {last} WHERE session = ?", (session,))
            newest = "SELECT session FROM run_key ORDER BY rowid DESC LIMIT ?"
            db.execute(f"DELETE FROM run_key WHERE session NOT IN ({newest})", (KEPT_RUNS,))
