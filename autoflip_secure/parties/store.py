"""SQLite tables of a silo's protocol state: transactions that are on disk before they return."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from autoflip_secure.errors import StorageError

__all__ = ["Store"]


class Store:
    """Reads and changes, with the database's errors turned into StorageError.

    Parameters
    ----------
    connection : sqlite3.Connection
        In autocommit mode.
    tables : str
        CREATE TABLE statements, ended by semicolons.
    newest : str
        A query that only this version's tables answer.

    Raises
    ------
    StorageError
        The tables cannot be made.
    """

    def __init__(self, connection: sqlite3.Connection, tables: str, newest: str) -> None:
        self._connection = connection
        try:
            # Statement by statement: executescript would commit a transaction of the caller.
            for statement in filter(str.strip, tables.split(";")):
                connection.execute(statement)
            connection.execute(newest)
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot prepare the silo's secure-sum state: {error}; a database of an earlier version cannot go on, "
                "start a new run"
            ) from error
        # A process that was killed between a deletion and the end of `forgetting` left the log behind.
        self.clear_log()

    @contextmanager
    def forgetting(self) -> Iterator[sqlite3.Connection]:
        """A change that deletes secrets: afterwards they are in neither the database nor its write-ahead log."""
        with self.change() as db:
            yield db
        self.clear_log()

    def clear_log(self) -> None:
        """Move the write-ahead log into the database, where deleted values are overwritten."""
        try:
            busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            raise StorageError(f"cannot clear the log of the silo's secure-sum state: {error}") from error
        if busy:
            raise StorageError("another process keeps the log of the silo's secure-sum state from being cleared")

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is kept, or none where the block raises."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StorageError(f"cannot write the silo's secure-sum state: {error}; nothing was sent") from error

    def step(self, statement: str, values: Sequence[object], otherwise: Exception) -> None:
        """A change of exactly one row; raises `otherwise` where no row fits."""
        with self.change() as db:
            if db.execute(statement, values).rowcount != 1:
                raise otherwise

    def row(self, query: str, *values: object) -> Any:
        """First row, or None."""
        rows = self.rows(query, *values)
        return rows[0] if rows else None

    def rows(self, query: str, *values: object) -> list[Any]:
        """All rows."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the silo's secure-sum state: {error}") from error
