"""What a session may spend is recorded with its lines, under the same chain, and older files still work."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autoflip_secure.errors import BudgetExhausted, StorageError
from autoflip_secure.privacy import ledger_reading
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_reading import LedgerEntry, read_entries, read_ledger
from autoflip_secure.privacy.ledger_terms import LedgerTerms
from autoflip_secure.storage import open_silo_database

Open = Callable[..., Ledger]
Line = Callable[..., LedgerLine]
WriteFirst = Callable[[sqlite3.Connection, list[LedgerLine]], None]

SESSION, NEXT = b"s" * 16, b"n" * 16


def entries_of(connection: sqlite3.Connection) -> tuple[LedgerEntry, ...]:
    return read_entries(connection, "north")


def test_terms_are_written_once_with_the_first_line_they_allow(
    open_ledger: Open, line: Line, connection: sqlite3.Connection
) -> None:
    ledger = open_ledger(per_run=3.0, per_year=5.0, trust="distributed", unit="patient", colluders=2)
    assert not connection.execute("SELECT * FROM privacy_ledger_terms").fetchall()
    for number in range(3):
        ledger.charge(line(round=number, time=100.0 + number))
    ledger.charge(line(dataset="holdout", noise_multiplier=9.0, time=200.0))
    terms = [entry.terms for entry in entries_of(connection)]
    first = LedgerTerms(1, SESSION, "train", 100.0, "distributed", "patient", 2, 1e-5, "prv", 8.0, 3.0, 5.0)
    assert terms[:3] == [first] * 3
    assert terms[3] == replace(first, line=4, dataset="holdout", time=200.0)
    assert connection.execute("SELECT COUNT(*) FROM privacy_ledger_terms").fetchone() == (2,)


def test_terms_that_changed_and_other_sessions_get_their_own(
    open_ledger: Open, line: Line, connection: sqlite3.Connection
) -> None:
    open_ledger().charge(line())
    open_ledger().charge(line())
    open_ledger(session=NEXT, per_run=1.0).charge(line(session=NEXT))
    open_ledger(epsilon=6.0).charge(line())
    open_ledger(epsilon=6.0).charge(line())
    open_ledger(epsilon=6.0, colluders=1).charge(line())
    found = [(entry.terms.line, entry.terms.epsilon, entry.terms.per_run) for entry in entries_of(connection)]
    assert found == [(1, 8.0, 8.0), (1, 8.0, 8.0), (3, 8.0, 1.0), (4, 6.0, 6.0), (4, 6.0, 6.0), (6, 6.0, 6.0)]


def test_a_refused_charge_records_no_terms(open_ledger: Open, line: Line, connection: sqlite3.Connection) -> None:
    with pytest.raises(BudgetExhausted):
        open_ledger(epsilon=0.01).charge(line())
    assert not connection.execute("SELECT * FROM privacy_ledger_terms").fetchall()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE privacy_ledger_terms SET epsilon = 99.0",
        "DELETE FROM privacy_ledger_terms",
        "INSERT OR REPLACE INTO privacy_ledger_terms SELECT * FROM privacy_ledger_terms",
    ],
)
def test_terms_are_append_only(open_ledger: Open, line: Line, connection: sqlite3.Connection, statement: str) -> None:
    open_ledger().charge(line())
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE privacy_ledger_terms SET epsilon = 99.0 WHERE line = 1", "damaged at the terms of line 1"),
        ("UPDATE privacy_ledger_terms SET delta = 0.5 WHERE line = 3", "damaged at the terms of line 3"),
        ("UPDATE privacy_ledger_terms SET delta = 2 WHERE line = 3", "terms of line 3 .* are damaged"),
        ("UPDATE privacy_ledger_terms SET unit = 'patient' WHERE line = 1", "damaged at the terms of line 1"),
        ("UPDATE privacy_ledger_terms SET colluders = 3 WHERE line = 3", "damaged at the terms of line 3"),
        ("UPDATE privacy_ledger_terms SET unit = 'hospital' WHERE line = 3", "terms of line 3 .* are damaged"),
        ("UPDATE privacy_ledger_terms SET colluders = -1 WHERE line = 3", "terms of line 3 .* are damaged"),
        ("UPDATE privacy_ledger_terms SET epsilon_per_year = -1 WHERE line = 3", "terms of line 3 .* are damaged"),
        ("DELETE FROM privacy_ledger_terms WHERE line = 1", "damaged at line 1"),
        ("DELETE FROM privacy_ledger_terms WHERE line = 3", "damaged at line 3"),
        ("UPDATE privacy_ledger_terms SET line = 2 WHERE line = 3", "damaged at the terms of line 2"),
        ("UPDATE privacy_ledger_terms SET line = 9 WHERE line = 3", "damaged at line 3"),
        (
            "INSERT INTO privacy_ledger_terms SELECT 9, session, dataset, time, trust, unit, colluders, delta, "
            "accountant, epsilon, epsilon_per_run, epsilon_per_year, chain FROM privacy_ledger_terms WHERE line = 3",
            "lost its last lines",
        ),
        ("DROP TABLE privacy_ledger_terms", "damaged at line 1"),
    ],
)
def test_damaged_terms_show(
    damage: str, message: str, open_ledger: Open, line: Line, connection: sqlite3.Connection, state_file: Path
) -> None:
    for epsilon in (8.0, 8.0, 6.0):
        open_ledger(epsilon=epsilon).charge(line())
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(damage)
    for _, sql in triggers:
        if not (damage.startswith("DROP") and "ON privacy_ledger_terms" in sql):
            connection.execute(sql)
    with pytest.raises(StorageError, match=message):
        open_ledger()
    with pytest.raises(StorageError, match=message) as caught:
        read_ledger(state_file)
    assert "\n" not in str(caught.value)


def test_a_line_that_another_process_adds_meanwhile_is_no_damage(
    open_ledger: Open, line: Line, state_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, read_terms = open_ledger(), ledger_reading._read_terms
    ledger.charge(line())

    def interrupted(connection: sqlite3.Connection) -> object:
        monkeypatch.setattr(ledger_reading, "_read_terms", read_terms)
        terms = read_terms(connection)
        other = open_silo_database(state_file)
        Ledger(other, silo="north", session=NEXT, budgets={"train": 8.0}, delta=1e-5).charge(line(session=NEXT))
        other.close()
        return terms

    monkeypatch.setattr(ledger_reading, "_read_terms", interrupted)
    assert len(ledger.lines()) == 1
    assert len(ledger.lines()) == 2


def test_a_file_of_the_first_version_is_read_counted_and_continued(
    open_ledger: Open, line: Line, state_file: Path, write_first_version: WriteFirst
) -> None:
    old = [line(round=number) for number in range(3)]
    connection = open_silo_database(state_file)
    write_first_version(connection, old)
    connection.close()
    before = state_file.read_bytes()
    assert [entry.terms for entry in read_ledger(state_file).entries] == [None] * 3
    assert state_file.read_bytes() == before, "reading does not migrate"

    ledger = open_ledger()
    assert ledger.lines() == tuple(old)
    assert ledger.mechanisms("train")[0].count == 3
    ledger.charge(line(round=3))
    entries = read_ledger(state_file).entries
    assert [entry.line for entry in entries] == [*old, line(round=3)]
    assert [entry.terms and entry.terms.line for entry in entries] == [None, None, None, 4]
    assert open_ledger().lines() == ledger.lines()
