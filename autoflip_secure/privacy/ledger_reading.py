"""Reads a privacy ledger whole and checks its chain, for the silo that opens it and for auditors who may not write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoflip_secure.errors import ConfigError, StorageError
from autoflip_secure.privacy.ledger_lines import LedgerLine, chain_hash
from autoflip_secure.privacy.ledger_schema import COLUMNS, TERMS_COLUMNS, check_layout, owner
from autoflip_secure.privacy.ledger_terms import LedgerTerms, terms_hash

__all__ = ["LedgerEntry", "LedgerRecord", "open_read_only", "read_entries", "read_ledger"]


@dataclass(frozen=True)
class LedgerEntry:
    """A line with its place.

    Attributes
    ----------
    number : int
        From 1.
    line : LedgerLine
    chain : bytes, 32
        Hash over this line and all before it.
    terms : LedgerTerms or None
        What its session was allowed to spend; None in files of the first version, which did not record it.
    """

    number: int
    line: LedgerLine
    chain: bytes
    terms: LedgerTerms | None


@dataclass(frozen=True)
class LedgerRecord:
    """A whole ledger whose chain was found unbroken.

    Attributes
    ----------
    path : Path
        The SQLite file.
    silo : str
        Whose ledger the file says it is.
    entries : tuple of LedgerEntry
    """

    path: Path
    silo: str
    entries: tuple[LedgerEntry, ...]

    @property
    def head(self) -> bytes:
        """Hash of the last line, which stands for all of them; empty where there is none."""
        return self.entries[-1].chain if self.entries else b""

    def of(self, dataset: str) -> tuple[LedgerEntry, ...]:
        """Lines of one record set."""
        return tuple(entry for entry in self.entries if entry.line.dataset == dataset)


def read_entries(connection: sqlite3.Connection, silo: str) -> tuple[LedgerEntry, ...]:
    """All lines of all sessions, in order.

    Raises
    ------
    StorageError
        A line is missing, altered or malformed.
    """
    damaged = "(missing or altered); nothing was released; restore the file from a backup"
    terms_of = _read_terms(connection) if check_layout(connection, f"of {silo}") else {}
    rows = connection.execute(f"SELECT line, {COLUMNS}, chain FROM privacy_ledger ORDER BY line").fetchall()
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'privacy_ledger'").fetchone()
    entries: list[LedgerEntry] = []
    in_force: dict[tuple[bytes, str], LedgerTerms] = {}
    chain = b""
    for number, (index, *values, stored) in enumerate(rows, start=1):
        line = LedgerLine.from_row(number, values)
        if number in terms_of:
            terms, link = terms_of.pop(number)
            chain = terms_hash(chain, terms)
            in_force[terms.session, terms.dataset] = terms
            if link != chain:
                raise StorageError(f"the privacy ledger of {silo} is damaged at the terms of line {number} {damaged}")
        chain = chain_hash(chain, line)
        if index != number or stored != chain:
            raise StorageError(f"the privacy ledger of {silo} is damaged at line {number} {damaged}")
        entries.append(LedgerEntry(number, line, chain, in_force.get((line.session, line.dataset))))
    if len(entries) != (last[0] if last else 0) or terms_of:
        raise StorageError(
            f"the privacy ledger of {silo} lost its last lines ({len(entries)} of "
            f"{max([last[0] if last else 0, *terms_of])} are there); nothing was released; restore the file from a "
            "backup"
        )
    return tuple(entries)


def _read_terms(connection: sqlite3.Connection) -> dict[int, tuple[LedgerTerms, bytes]]:
    rows = connection.execute(f"SELECT {TERMS_COLUMNS}, chain FROM privacy_ledger_terms").fetchall()
    return {row[0]: (LedgerTerms.from_row(row[:-1]), row[-1]) for row in rows}


def read_ledger(path: Path) -> LedgerRecord:
    """Read a ledger without writing to it.

    Raises
    ------
    ConfigError
        There is no such file, or it holds no ledger.
    StorageError
        The ledger is damaged or of another version.
    """
    with open_read_only(path) as connection:
        if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise StorageError(f"{path}: the database is damaged; restore the file from a backup")
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name GLOB 'privacy_ledger*'").fetchone():
            raise ConfigError(f"{path}: holds no privacy ledger; the silo has joined no run yet, or this is no silo's")
        check_layout(connection, f"in {path}")
        silo = owner(connection)
        if not silo:
            raise StorageError(f"{path}: this privacy ledger belongs to nobody; restore the file from a backup")
        return LedgerRecord(path, silo, read_entries(connection, silo))


@contextmanager
def open_read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write, in one read transaction; errors of SQLite become a line that names the file.

    A write-ahead log that is there is read too. Where there is none the file is opened as unchanging, since SQLite
    would otherwise create one beside it.

    Raises
    ------
    ConfigError
        There is no such file.
    StorageError
        It cannot be read or is no database.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: is not there; give a silo's folder, its state.sqlite or the directory of a run")
    log = path.with_name(path.name + "-wal")
    unchanging = "" if log.exists() else "&immutable=1"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{unchanging}", uri=True, isolation_level=None)
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StorageError(f"cannot read the privacy ledger {path}: {error}; nothing was changed") from error
    if unchanging and log.exists():
        raise StorageError(f"{path}: a silo began to write while it was read; try again")
