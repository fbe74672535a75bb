"""Tables and triggers of the privacy ledger."""

from __future__ import annotations

import sqlite3

from autoflip_secure.errors import StorageError

__all__ = ["COLUMNS", "TERMS_COLUMNS", "check_layout", "owner", "prepare_tables"]

COLUMNS = "session, phase, round, attempt, dataset, sampling_rate, noise_multiplier, sensitivity, count, manifest, time"
TERMS_COLUMNS = (
    "line, session, dataset, time, trust, unit, colluders, delta, accountant, "
    "epsilon, epsilon_per_run, epsilon_per_year"
)


# REPLACE deletes without firing delete triggers, hence the guard on inserts.
def _append_only(table: str) -> dict[str, str]:
    """Triggers that abort whatever would change a line: a delete, an update, an insert in a line's place."""
    abort = "BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END"
    return {
        f"{table}_keep": f"CREATE TRIGGER {table}_keep BEFORE DELETE ON {table}\n{abort}",
        f"{table}_fixed": f"CREATE TRIGGER {table}_fixed BEFORE UPDATE ON {table}\n{abort}",
        f"{table}_once": f"CREATE TRIGGER {table}_once BEFORE INSERT ON {table}\n"
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE line = NEW.line)\n{abort}",
    }


FIRST_VERSION = {
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
    **_append_only("privacy_ledger"),
}

TERMS = {
    "privacy_ledger_terms": """CREATE TABLE privacy_ledger_terms (
    line INTEGER PRIMARY KEY,
    session BLOB NOT NULL,
    dataset TEXT NOT NULL,
    time REAL NOT NULL,
    trust TEXT NOT NULL,
    unit TEXT NOT NULL,
    colluders INTEGER NOT NULL,
    delta REAL NOT NULL,
    accountant TEXT NOT NULL,
    epsilon REAL NOT NULL,
    epsilon_per_run REAL NOT NULL,
    epsilon_per_year REAL NOT NULL,
    chain BLOB NOT NULL
) STRICT""",
    **_append_only("privacy_ledger_terms"),
}
"""Added in the second version; files of the first get them when a silo next opens them."""

OBJECTS = FIRST_VERSION | TERMS


def prepare_tables(connection: sqlite3.Connection, silo: str) -> None:
    """Make the ledger's tables and triggers where they are missing, or check that they are ours and this silo's.

    Raises
    ------
    StorageError
        They differ, or belong to another silo.
    """
    found = _found(connection)
    if not found:
        for statement in OBJECTS.values():
            connection.execute(statement)
        connection.execute("INSERT INTO privacy_ledger_owner VALUES (1, ?)", (silo,))
        return
    check_layout(connection, f"of {silo}")
    belongs_to = owner(connection)
    if belongs_to != silo:
        raise StorageError(
            f"this privacy ledger belongs to {belongs_to or 'nobody'}, not to {silo}; nothing was written; "
            "give each silo its own state file"
        )
    if found == FIRST_VERSION:
        for statement in TERMS.values():
            connection.execute(statement)


def check_layout(connection: sqlite3.Connection, whose: str) -> bool:
    """Check that tables and triggers are as this version makes them; whether terms are recorded in them.

    Raises
    ------
    StorageError
        They are missing or differ.
    """
    found = _found(connection)
    if found == FIRST_VERSION:
        return False
    if found != OBJECTS:
        differing = sorted(name for name in found.keys() | OBJECTS.keys() if found.get(name) != OBJECTS.get(name))
        raise StorageError(
            f"the privacy ledger {whose} has an unknown layout ({', '.join(differing)}): damaged or of another "
            "version; nothing was released; restore the file from a backup"
        )
    return True


def owner(connection: sqlite3.Connection) -> str:
    """Name of the silo the ledger belongs to; empty where the file does not say."""
    row = connection.execute("SELECT silo FROM privacy_ledger_owner").fetchone()
    return str(row[0]) if row else ""


def _found(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE name LIKE 'privacy\\_ledger%' ESCAPE '\\'")
    return {name: sql for name, sql in rows if sql is not None}
