"""Writes to the tables of a privacy ledger: whole transactions, on disk when they end."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from autoflip_secure.errors import StorageError
from autoflip_secure.privacy.ledger_lines import LedgerLine, chain_hash
from autoflip_secure.privacy.ledger_schema import COLUMNS, TERMS_COLUMNS
from autoflip_secure.privacy.ledger_terms import LedgerTerms, terms_hash

__all__ = ["append", "last_line", "reading", "snapshot", "transaction"]


def last_line(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Number and hash of the last line; 0 and nothing before the first."""
    row = connection.execute("SELECT line, chain FROM privacy_ledger ORDER BY line DESC LIMIT 1").fetchone()
    return row or (0, b"")


def append(connection: sqlite3.Connection, line: LedgerLine, terms: LedgerTerms) -> None:
    """Add a line, and before it the terms of its session where they are not those recorded last."""
    _, chain = last_line(connection)
    if not _is_recorded(connection, terms):
        chain = terms_hash(chain, terms)
        _insert(connection, "privacy_ledger_terms", TERMS_COLUMNS, (*terms.to_row(), chain))
    _insert(connection, "privacy_ledger", COLUMNS, (*line.to_row(), chain_hash(chain, line)))


def _insert(connection: sqlite3.Connection, table: str, columns: str, values: tuple[object, ...]) -> None:
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({columns}, chain) VALUES ({marks})", values)


def _is_recorded(connection: sqlite3.Connection, terms: LedgerTerms) -> bool:
    of_session = "WHERE session = ? AND dataset = ? ORDER BY line DESC LIMIT 1"
    row = connection.execute(
        f"SELECT {TERMS_COLUMNS} FROM privacy_ledger_terms {of_session}", (terms.session, terms.dataset)
    ).fetchone()
    return row is not None and terms.same_but_for_time(LedgerTerms.from_row(row))


@contextmanager
def reading(silo: str) -> Iterator[None]:
    """Turn what SQLite refuses inside the block into a StorageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"cannot read the privacy ledger of {silo}: {error}; nothing was released") from error


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all reads of the block see one state: a line that another process adds between two of them is no damage."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


@contextmanager
def transaction(connection: sqlite3.Connection, silo: str) -> Iterator[None]:
    """All or nothing, on disk at the end; the lock keeps two processes from both taking the last of a budget."""
    if connection.in_transaction:
        raise StorageError("the privacy ledger commits by itself; end the open transaction of the silo's state first")
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageError(
            f"cannot write the privacy ledger of {silo}: {error}; nothing was charged or released"
        ) from error
    finally:
        if connection.in_transaction:
            connection.rollback()
