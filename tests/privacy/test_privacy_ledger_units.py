"""Lines that bound a record's loss do not count as a patient's, whoever opens the ledger next."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from autoflip_secure.errors import BudgetExhausted, ConfigError
from autoflip_secure.privacy import ledger as ledger_module
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_checks import unit_failures
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.privacy.ledger_report import dataset_reports
from autoflip_secure.privacy.ledger_units import check_patient_lines

Open = Callable[..., Ledger]
Line = Callable[..., LedgerLine]

SESSION, NEXT = b"s" * 16, b"n" * 16
REFUSED = "unit of this run is the patient, but 3 uses of the train records of north .from line 1 on. are recorded"


def test_lines_of_records_do_not_count_as_those_of_patients(
    open_ledger: Open, line: Line, connection: sqlite3.Connection
) -> None:
    before = open_ledger()
    before.charge(line(count=3))
    for session in (NEXT, SESSION):
        with pytest.raises(BudgetExhausted, match=REFUSED) as caught:
            open_ledger(session=session, unit="patient")
        assert "\n" not in str(caught.value)
    assert not connection.in_transaction
    assert before.lines() == (line(count=3),)


def test_lines_of_patients_count_as_those_of_records(open_ledger: Open, line: Line, state_file: Path) -> None:
    open_ledger(unit="patient").charge(line())
    open_ledger(session=NEXT, unit="patient").charge(line(session=NEXT))
    assert [report.unit for report in _reports(state_file)] == ["patient"]
    open_ledger(session=NEXT).charge(line(session=NEXT))
    (report,) = _reports(state_file)
    assert report.unit == "record", "a total that one record's line is in bounds a record's loss"
    assert [session.unit for session in report.sessions] == ["patient", "record"]
    with pytest.raises(BudgetExhausted, match=r"but 1 uses of the train records of north \(from line 3 on\)"):
        open_ledger(unit="patient")


def test_lines_that_say_nothing_may_be_those_of_records(
    open_ledger: Open, line: Line, connection: sqlite3.Connection, write_first_version
) -> None:
    write_first_version(connection, [line(count=3)])
    tables = connection.execute("SELECT * FROM sqlite_master").fetchall()
    with pytest.raises(BudgetExhausted, match=REFUSED):
        open_ledger(session=NEXT, unit="patient")
    assert connection.execute("SELECT * FROM sqlite_master").fetchall() == tables, "not even tables were added"
    open_ledger(session=NEXT)


def test_a_run_that_promises_nothing_is_not_refused(open_ledger: Open, line: Line, state_file: Path) -> None:
    for _ in range(2):
        open_ledger(epsilon=math.inf).charge(line())
        open_ledger(session=NEXT, unit="patient", epsilon=math.inf).charge(line(session=NEXT, noise_multiplier=0.0))
    open_ledger(unit="patient", epsilon=math.inf).charge(line(noise_multiplier=0.0))
    assert unit_failures(read_ledger(state_file), "train") == []
    units = [entry.terms.unit for entry in read_ledger(state_file).entries if entry.terms]
    assert units == ["record", "patient", "record", "patient", "patient"]
    with pytest.raises(BudgetExhausted, match=r"but 2 uses .* \(from line 1 on\)"):
        open_ledger(session=NEXT, unit="patient", epsilon=math.inf, per_year=5.0)


def test_lines_that_came_after_opening_are_seen_by_the_next_charge(open_ledger: Open, line: Line) -> None:
    patients, others = open_ledger(unit="patient"), open_ledger(session=NEXT)
    patients.charge(line())
    others.charge(line(session=NEXT, dataset="holdout"))
    patients.charge(line())
    others.charge(line(session=NEXT, count=3))
    with pytest.raises(BudgetExhausted, match="but 3 uses"):
        patients.charge(line())
    assert len(patients.lines()) == 4


def test_an_audit_finds_what_a_silo_should_have_refused(
    open_ledger: Open, line: Line, state_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ledger().charge(line(count=3))
    monkeypatch.setattr(ledger_module, "check_patient_lines", lambda *_: None)
    open_ledger(session=NEXT, unit="patient").charge(line(session=NEXT))
    open_ledger().charge(line())
    (failure,) = unit_failures(read_ledger(state_file), "train")
    words = "caps what a patient lost, but 3 uses counted in it bound a record's loss only (from line 1 on)"
    assert failure == f"session 6e6e6e6e {words}"


def test_each_record_set_stands_for_itself(open_ledger: Open, line: Line, connection: sqlite3.Connection) -> None:
    open_ledger().charge(line(dataset="holdout"))
    open_ledger(unit="patient", epsilon=math.inf).charge(line())
    open_ledger().charge(line(dataset="holdout"))
    check_patient_lines(connection, "north", "train")
    with pytest.raises(BudgetExhausted, match="but 2 uses of the holdout records"):
        check_patient_lines(connection, "north", "holdout")


@pytest.mark.parametrize("options", [{"unit": "hospital"}, {"colluders": -1}])
def test_terms_out_of_range_are_refused(options: dict[str, object], open_ledger: Open) -> None:
    with pytest.raises(ConfigError, match="no ledger has the unit"):
        open_ledger(**options)


def _reports(path: Path):  # type: ignore[no-untyped-def]
    return dataset_reports(read_ledger(path), delta=None, fallback=None, now=1.8e9)
