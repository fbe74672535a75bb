"""Auditors read: nothing is written, what is not on disk yet is read too, and what is exported is enough."""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from autoflip_secure.errors import ConfigError, StorageError
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_export import FIELDS, as_csv, as_json_lines, utc
from autoflip_secure.privacy.ledger_reading import open_read_only, read_ledger

Open = Callable[..., Ledger]
Line = Callable[..., LedgerLine]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def closed(open_ledger: Open, line: Line, connection: sqlite3.Connection, state_file: Path) -> Path:
    """A ledger of three lines that nobody has open."""
    ledger = open_ledger(trust="local", per_year=6.0, unit="patient")
    for number in range(2):
        ledger.charge(line(round=number, count=3, manifest=bytes([number]) * 32, time=1.7e9 + number / 3))
    open_ledger(session=b"n" * 16, trust="distributed", colluders=2).charge(line(session=b"n" * 16, dataset="holdout"))
    connection.close()
    return state_file


def test_reading_leaves_every_file_as_it_was_and_makes_none(closed: Path) -> None:
    before = files_of(closed.parent)
    record = read_ledger(closed)
    assert (record.silo, len(record.entries), record.head) == ("north", 3, record.entries[-1].chain)
    assert [entry.number for entry in record.of("train")] == [1, 2]
    assert files_of(closed.parent) == before == {closed.name: closed.read_bytes()}


def test_lines_that_are_only_in_the_log_are_read(
    open_ledger: Open, line: Line, connection: sqlite3.Connection, state_file: Path
) -> None:
    ledger = open_ledger()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.charge(line())
    log = state_file.with_name(state_file.name + "-wal")
    before = state_file.read_bytes(), log.read_bytes()
    assert len(read_ledger(state_file).entries) == 1
    assert (state_file.read_bytes(), log.read_bytes()) == before
    ledger.charge(line())
    assert len(read_ledger(state_file).entries) == 2


def test_nothing_can_be_written_through_it(closed: Path) -> None:
    with pytest.raises(StorageError, match="readonly"), open_read_only(closed) as connection:
        connection.execute("CREATE TABLE more (x)")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ConfigError, "is not there"),
        (b"", ConfigError, "holds no privacy ledger"),
        (b"not a database, but long enough to be taken for one" * 30, StorageError, "not a database"),
    ],
)
def test_what_is_no_ledger_is_one_clear_line(
    content: bytes | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "state.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_ledger(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torn_file_is_one_clear_line(closed: Path) -> None:
    content = bytearray(closed.read_bytes())
    for kept in (len(content) // 2, len(content) - 5000):
        closed.write_bytes(content[:kept])
        with pytest.raises(StorageError) as caught:
            read_ledger(closed)
        assert "\n" not in str(caught.value)


def test_another_version_and_nobody_s_ledger_are_refused(closed: Path) -> None:
    with sqlite3.connect(closed) as database:
        database.execute("UPDATE privacy_ledger_owner SET silo = ''")
    with pytest.raises(StorageError, match="belongs to nobody"):
        read_ledger(closed)
    with sqlite3.connect(closed) as database:
        database.execute("ALTER TABLE privacy_ledger_terms ADD COLUMN note TEXT")
    with pytest.raises(StorageError, match=r"unknown layout \(privacy_ledger_terms\)"):
        read_ledger(closed)


def test_csv_and_json_lines_say_the_same(closed: Path) -> None:
    record = read_ledger(closed)
    table = list(csv.DictReader(as_csv([record]).splitlines()))
    objects = [json.loads(text) for text in as_json_lines([record]).splitlines()]
    assert [tuple(row) for row in objects] == [FIELDS] * 3
    assert table == [{name: str(value) for name, value in row.items()} for row in objects]
    first = objects[0]
    assert first["time"] == "2023-11-14T22:13:20.000000Z"
    assert (first["session"], first["manifest"], first["trust"]) == ("73" * 16, "00" * 32, "local")
    assert [(row["unit"], row["colluders"]) for row in objects] == [("patient", 0)] * 2 + [("record", 2)]
    assert (first["delta"], first["epsilon_cap"], first["epsilon_per_year_cap"]) == (1e-5, 8.0, 6.0)


def test_the_chain_can_be_recomputed_from_an_export(closed: Path) -> None:
    """As an auditor would, with nothing but SHA-256 and msgpack."""
    rows = [json.loads(text) for text in as_json_lines([read_ledger(closed)]).splitlines()]
    chain = b""
    for row in rows:
        session = bytes.fromhex(row["session"])
        if row["terms_line"] == row["line"]:
            terms = [
                row["line"], session, row["dataset"], row["terms_seconds"], row["trust"], row["unit"],
                row["colluders"], row["delta"], row["accountant"], row["epsilon_cap"],
                row["epsilon_per_run_cap"], row["epsilon_per_year_cap"],
            ]  # fmt: skip
            chain = hashlib.sha256(msgpack.packb([chain, "terms", *terms])).digest()
        line = [
            session, row["phase"], row["round"], row["attempt"], row["dataset"], row["sampling_rate"],
            row["noise_multiplier"], row["sensitivity"], row["count"], bytes.fromhex(row["manifest"]),
            row["time_seconds"],
        ]  # fmt: skip
        chain = hashlib.sha256(msgpack.packb([chain, *line])).digest()
        assert chain.hex() == row["chain"]


def test_unlimited_caps_and_dates_beyond_calendars_can_be_exported(
    open_ledger: Open, line: Line, state_file: Path
) -> None:
    open_ledger(epsilon=float("inf")).charge(line(noise_multiplier=0.0, time=1e300))
    (row,) = [json.loads(text) for text in as_json_lines([read_ledger(state_file)]).splitlines()]
    assert (row["epsilon_cap"], row["time"], row["time_seconds"]) == (None, "", 1e300)
    assert utc(0.0) == "1970-01-01T00:00:00.000000Z"
