from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.errors import BudgetExhausted, ConfigError, StorageError
from autoflip_secure.privacy import ledger as ledger_module
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms

SESSION, NEXT = b"s" * 16, b"n" * 16
Open = Callable[..., Ledger]
Line = Callable[..., LedgerLine]


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def counted(*args: Any) -> float:
        calls.append(args)
        return epsilon(*args)

    monkeypatch.setattr(ledger_module, "epsilon", counted)
    return calls


def rows(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone()[0])


def test_lines_come_back_as_written(open_ledger: Open, line: Line) -> None:
    ledger = open_ledger()
    written = [line(round=r, attempt=r % 2, manifest=bytes([r]) * 32) for r in range(4)]
    for each in written:
        ledger.charge(each)
    assert ledger.lines() == tuple(written)


def test_spent_is_the_composition_of_all_lines_by_any_accountant(open_ledger: Open, line: Line) -> None:
    ledger = open_ledger()
    assert ledger.spent() == 0
    for r in range(30):
        ledger.charge(line(round=r))
    ledger.charge(line(phase="census", sampling_rate=1.0, noise_multiplier=20.0))
    ledger.charge(line(phase="evaluate", dataset="holdout", sampling_rate=1.0, noise_multiplier=2.0))
    train = [Mechanism(1.0, 13.0, 30), Mechanism(1.0, 20.0, 1)]
    assert ledger.spent("train") == epsilon(train, 1e-5)
    assert ledger.spent("train") == pytest.approx(
        epsilon([m.mechanism for m in ledger.lines()[:-1]], 1e-5, "pld"), rel=0.01
    )
    assert ledger.spent("holdout") == epsilon([Mechanism(1.0, 2.0, 1)], 1e-5)
    assert ledger.spent() == max(ledger.spent("train"), ledger.spent("holdout"))
    assert set(ledger.mechanisms("train")) == set(train)


def test_a_line_that_is_not_written_shows(open_ledger: Open, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_counted(ledger: Ledger) -> bool:
        for r in range(5):
            ledger.charge(line(round=r))
        return ledger.mechanisms("train") == (Mechanism(1.0, 13.0, 5),) and len(ledger.lines()) == 5

    append = Ledger._append
    assert all_counted(open_ledger())
    monkeypatch.setattr(Ledger, "_append", lambda self, each: append(self, each) if each.round != 3 else None)
    assert not all_counted(open_ledger())


def test_over_budget_is_refused_with_numbers_and_nothing_is_written(
    open_ledger: Open, line: Line, connection: sqlite3.Connection
) -> None:
    ledger = open_ledger(epsilon=2.0)
    charged = 0

    def charge_all() -> None:
        nonlocal charged
        for r in range(200):
            ledger.charge(line(round=r))
            charged += 1

    with pytest.raises(
        BudgetExhausted, match=r"spent epsilon 1\.9\d\d of 2 .* would make it 2\.\d+; no record was touched"
    ):
        charge_all()
    assert rows(connection) == charged
    assert ledger.spent("train") <= 2.0 < epsilon([Mechanism(1.0, 13.0, charged + 1)], 1e-5)
    ledger.charge(
        line(dataset="holdout", sampling_rate=1.0, noise_multiplier=5.0)
    )  # the other patients' budget is whole
    assert rows(connection) == charged + 1


def test_one_large_charge_counts_all_its_steps(open_ledger: Open, line: Line) -> None:
    with pytest.raises(BudgetExhausted):
        open_ledger(epsilon=2.0).charge(line(count=200))


def test_next_session_sees_what_the_last_one_spent(open_ledger: Open, line: Line) -> None:
    open_ledger(epsilon=2.0).charge(line(count=20))
    following = open_ledger(session=NEXT, epsilon=2.0)
    assert following.spent() == epsilon([Mechanism(1.0, 13.0, 20)], 1e-5)
    with pytest.raises(BudgetExhausted):
        following.charge(line(session=NEXT, count=30))
    with pytest.raises(BudgetExhausted):
        following.expect("train", [Mechanism(1.0, 13.0, 30)])
    with pytest.raises(ConfigError, match="another session"):
        following.charge(line())
    following.charge(line(session=NEXT, count=5))
    assert following.mechanisms("train") == (Mechanism(1.0, 13.0, 25),)
    assert open_ledger(epsilon=2.0).spent() == following.spent()


def test_an_expected_plan_needs_one_evaluation_for_all_silos(
    tmp_path: Path, line: Line, evaluations: list[Any]
) -> None:
    plan = [Mechanism(1.0, 13.0, 200), Mechanism(1.0, 20.0, 1)]
    for silo in ("north", "south", "west"):
        connection = open_silo_database(tmp_path / f"{silo}.sqlite")
        budgets = {"train": 8.0}
        ledger = Ledger(connection, silo=silo, session=SESSION, budgets=budgets, delta=1e-5)
        ledger.expect("train", plan)
        ledger.charge(line(phase="census", sampling_rate=1.0, noise_multiplier=20.0))
        for r in range(60):
            ledger.charge(line(round=r))
        connection.close()
    assert len(evaluations) == 1


def test_resuming_a_session_does_not_count_its_own_lines_twice(open_ledger: Open, line: Line) -> None:
    plan = [Mechanism(1.0, 13.0, 40)]
    budget = epsilon(plan, 1e-5) + 1e-6
    ledger = open_ledger(epsilon=budget)
    ledger.expect("train", plan)
    ledger.charge(line(count=30))
    again = open_ledger(epsilon=budget)
    again.expect("train", plan)
    again.charge(line(count=10))
    with pytest.raises(BudgetExhausted):
        again.charge(line())


def test_unexpected_charges_need_few_evaluations(open_ledger: Open, line: Line, evaluations: list[Any]) -> None:
    ledger = open_ledger()
    for r in range(130):
        ledger.charge(line(round=r))
    assert len(evaluations) <= 8


def test_what_is_known_of_one_budget_is_not_used_for_another(open_ledger: Open, line: Line) -> None:
    open_ledger(epsilon=50.0).expect("train", [Mechanism(1.0, 13.0, 200)])
    with pytest.raises(BudgetExhausted):
        open_ledger(epsilon=1.0).charge(line(count=100))


def test_use_without_noise_is_recorded_and_spent_is_infinite(open_ledger: Open, line: Line) -> None:
    ledger = open_ledger(epsilon=math.inf)
    ledger.charge(line(noise_multiplier=0.0, sensitivity=0.0))
    ledger.charge(line(round=1))
    assert len(ledger.lines()) == 2
    assert ledger.spent() == ledger.spent("train") == math.inf
    with pytest.raises(BudgetExhausted, match="spent epsilon inf"):
        open_ledger(epsilon=8.0).charge(line(round=2))


def test_a_budget_does_not_cover_use_without_noise(open_ledger: Open, line: Line) -> None:
    with pytest.raises(BudgetExhausted, match="would make it inf"):
        open_ledger(epsilon=8.0).charge(line(noise_multiplier=0.0))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE privacy_ledger SET count = 0",
        "DELETE FROM privacy_ledger",
        "DELETE FROM privacy_ledger WHERE line = 1",
        "INSERT OR REPLACE INTO privacy_ledger SELECT * FROM privacy_ledger WHERE line = 1",
        "REPLACE INTO privacy_ledger SELECT line, session, phase, round, attempt, dataset, sampling_rate, 99.0, "
        "sensitivity, count, manifest, time, chain FROM privacy_ledger",
    ],
)
def test_the_table_is_append_only(
    open_ledger: Open, line: Line, connection: sqlite3.Connection, statement: str
) -> None:
    ledger = open_ledger()
    ledger.charge(line())
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    assert ledger.lines() == (line(),)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DELETE FROM privacy_ledger WHERE line = 2", "damaged at line 2"),
        ("DELETE FROM privacy_ledger WHERE line = 3", "lost its last lines"),
        ("DELETE FROM privacy_ledger", "lost its last lines"),
        ("UPDATE privacy_ledger SET noise_multiplier = 99.0 WHERE line = 1", "damaged at line 1"),
        ("UPDATE privacy_ledger SET noise_multiplier = -1.0 WHERE line = 2", "damaged at line 2"),
        ("UPDATE privacy_ledger SET count = 0 WHERE line = 2", "damaged at line 2"),
        ("UPDATE privacy_ledger SET dataset = 'holdout' WHERE line = 2", "damaged at line 2"),
        ("UPDATE privacy_ledger SET manifest = x'00' WHERE line = 1", "damaged at line 1"),
        (
            "UPDATE privacy_ledger SET (round, chain) = (SELECT round, chain FROM privacy_ledger WHERE line = 1) "
            "WHERE line = 3",
            "damaged at line 3",
        ),
        ("DROP TABLE privacy_ledger_owner", "unknown layout"),
        ("DROP TRIGGER privacy_ledger_once", "unknown layout"),
        ("ALTER TABLE privacy_ledger ADD COLUMN note TEXT", "unknown layout"),
        ("DELETE FROM privacy_ledger_owner", "belongs to nobody"),
        ("UPDATE privacy_ledger_owner SET silo = 'south'", "belongs to south, not to north"),
    ],
)
def test_damage_is_one_named_error(
    open_ledger: Open, line: Line, connection: sqlite3.Connection, damage: str, message: str
) -> None:
    ledger = open_ledger()
    for r in range(3):
        ledger.charge(line(round=r))
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    if damage.startswith("DROP TRIGGER"):
        triggers = [each for each in triggers if each[0] not in damage]
        damage = "SELECT 1"
    connection.execute(damage)
    for _, sql in triggers:
        connection.execute(sql)
    with pytest.raises(StorageError, match=message) as caught:
        open_ledger()
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_charges_nothing(open_ledger: Open, line: Line, state_file: Path) -> None:
    ledger = open_ledger()
    other = sqlite3.connect(state_file, isolation_level=None)
    ledger._connection.execute("PRAGMA busy_timeout = 10")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked; nothing was charged"):
        ledger.charge(line())
    other.execute("ROLLBACK")
    assert ledger.lines() == ()
    ledger.charge(line())
    assert other.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone() == (1,)
    other.close()


def test_charges_never_ride_in_a_transaction_that_could_be_undone(
    open_ledger: Open, line: Line, connection: sqlite3.Connection
) -> None:
    ledger = open_ledger()
    connection.execute("BEGIN")
    with pytest.raises(StorageError, match="commits by itself"):
        ledger.charge(line())
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    ledger.charge(line())
    assert not connection.in_transaction


def test_two_processes_cannot_both_take_the_last_of_a_budget(state_file: Path, line: Line) -> None:
    budget = epsilon([Mechanism(1.0, 13.0, 8)], 1e-5) + 1e-9
    outcomes: list[str] = []

    def spend() -> None:
        connection = open_silo_database(state_file)
        ledger = Ledger(connection, silo="north", session=SESSION, budgets={"train": budget}, delta=1e-5)
        for r in range(8):
            try:
                ledger.charge(line(round=r))
                outcomes.append("charged")
            except BudgetExhausted:
                outcomes.append("refused")
        connection.close()

    workers = [threading.Thread(target=spend) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(outcomes) == ["charged"] * 8 + ["refused"] * 8


def test_a_line_of_a_manifest_says_what_the_manifest_says() -> None:
    terms = PrivacyTerms("local", "train", 0.25, 5, 1.5, 0.1, 2, 1e-5)
    channels = (ChannelSpec("update", 3, 16, 1.0),)
    manifest = Manifest(
        SESSION, 0, 1, bytes(32), 7, 2, "train", ((1, 2, 3),), (3,), 3, bytes(32), bytes(32), bytes(32), channels, terms
    )
    line = LedgerLine.of(manifest, now=5.0)
    assert line == LedgerLine(SESSION, "train", 7, 2, "train", 0.25, 1.5, 0.1, 5, manifest.digest(), 5.0)
    assert line.mechanism == Mechanism(0.25, 1.5, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0}, {"count": 1.5}, {"round": -1}, {"noise_multiplier": math.nan}, {"noise_multiplier": -1.0},
        {"sampling_rate": 0.0}, {"sampling_rate": 1.5}, {"sensitivity": math.inf}, {"manifest": b"short"},
        {"dataset": ""}, {"phase": 3}, {"session": "text"},
    ],
)  # fmt: skip
def test_malformed_lines_cannot_be_made(line: Line, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        line(**change)


def test_bad_settings_are_refused(open_ledger: Open, line: Line) -> None:
    for budget in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="--dp-epsilon"):
            open_ledger(epsilon=budget)
    with pytest.raises(ConfigError, match="no privacy budget"):
        open_ledger().charge(line(dataset="validation"))
    assert "north" in repr(open_ledger())
