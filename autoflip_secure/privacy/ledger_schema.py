"""Tables and triggers of the privacy ledger."""

from __future__ import annotations

import sqlite3

from autoflip_secure.errors import StorageError

__all__ = ["COLUMNS", "prepare_tables"]

COLUMNS = "session, phase, round, attempt, dataset, sampling_rate, noise_multiplier, sensitivity, count, manifest, time"

# REPLACE deletes without firing delete triggers, hence the guard on inserts.
OBJECTS = {
    "privacy_ledger": """CREATE TABLE privacy_ledger (
    line INTEGER PRIMARY KEY AUTOINCREMENT,
    session BLOB NOT NULL,
    phase TEXT NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    dataset TEXT NOT NULL,
    sampling_rate REAL NOT NULL,
    noise_multiplier REAL NOT NULL,
    sensitivity REAL NOT NULL,
    count INTEGER NOT NULL,
    manifest BLOB NOT NULL,
    time REAL NOT NULL,
    chain BLOB NOT NULL
) STRICT""",
    "privacy_ledger_owner": """CREATE TABLE privacy_ledger_owner (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    silo TEXT NOT NULL
) STRICT""",
    "privacy_ledger_keep": """CREATE TRIGGER privacy_ledger_keep BEFORE DELETE ON privacy_ledger
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END""",
    "privacy_ledger_fixed": """CREATE TRIGGER privacy_ledger_fixed BEFORE UPDATE ON privacy_ledger
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END""",
    "privacy_ledger_once": """CREATE TRIGGER privacy_ledger_once BEFORE INSERT ON privacy_ledger
WHEN EXISTS (SELECT 1 FROM privacy_ledger WHERE line = NEW.line)
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END""",
}


def prepare_tables(connection: sqlite3.Connection, silo: str) -> None:
    """Make the ledger's tables and triggers, or check that those there are ours and this silo's.

    Raises
    ------
    StorageError
        They differ, or belong to another silo.
    """
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE name LIKE 'privacy\\_ledger%' ESCAPE '\\'")
    found = {name: sql for name, sql in rows if sql is not None}
    if not found:
        for statement in OBJECTS.values():
            connection.execute(statement)
        connection.execute("INSERT INTO privacy_ledger_owner VALUES (1, ?)", (silo,))
        return
    if found != OBJECTS:
        differing = sorted(name for name in found.keys() | OBJECTS.keys() if found.get(name) != OBJECTS.get(name))
        raise StorageError(
            f"the privacy ledger of {silo} has an unknown layout ({', '.join(differing)}): damaged or of another "
            "version; nothing was released; restore the file from a backup"
        )
    owner = connection.execute("SELECT silo FROM privacy_ledger_owner").fetchone()
    if owner is None or owner[0] != silo:
        raise StorageError(
            f"this privacy ledger belongs to {owner[0] if owner else 'nobody'}, not to {silo}; nothing was written; "
            "give each silo its own state file"
        )
