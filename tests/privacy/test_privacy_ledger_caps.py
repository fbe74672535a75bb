"""Caps of a run and of a year beside the total, and clocks that are wrong."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import BudgetExhausted, ConfigError
from autoflip_secure.privacy import ledger as ledger_module
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_caps import YEAR_SECONDS, caps_of, composition
from autoflip_secure.privacy.ledger_reading import read_entries
from autoflip_secure.privacy.ledger_report import mechanisms, within_year
from autoflip_secure.storage import open_silo_database

Open = Callable[..., Ledger]
Line = Callable[..., LedgerLine]

SESSION, NEXT = b"s" * 16, b"n" * 16
DAY = 86400.0
NOW = 1.8e9


def cost(uses: int) -> float:
    """Epsilon of so many lines of the usual kind, with nothing to spare for one more."""
    return epsilon([Mechanism(1.0, 13.0, uses)], 1e-5) + 1e-9


def charge(ledger: Ledger, line: Line, times: list[float], session: bytes = SESSION) -> None:
    for when in times:
        ledger.charge(line(session=session, time=when))


def test_a_year_may_cost_less_than_the_total(open_ledger: Open, line: Line) -> None:
    ledger = open_ledger(per_year=cost(10))
    charge(ledger, line, [NOW] * 10)
    spent = rf"spent epsilon {cost(10):.3f} of {cost(10):g} within 365 days \(epsilon_per_year\) .* would make it "
    with pytest.raises(BudgetExhausted, match=spent + f"{cost(11):.3f}; .* raise this silo's epsilon_per_year"):
        charge(ledger, line, [NOW + 364 * DAY])
    assert len(ledger.lines()) == 10
    charge(ledger, line, [NOW + 365 * DAY + 1])


def test_the_year_rolls(open_ledger: Open, line: Line) -> None:
    ledger = open_ledger(per_year=cost(10))
    charge(ledger, line, [NOW] * 5 + [NOW + 200 * DAY] * 5)
    with pytest.raises(BudgetExhausted, match="epsilon_per_year"):
        charge(ledger, line, [NOW + 365 * DAY])
    charge(ledger, line, [NOW + 366 * DAY] * 5)
    with pytest.raises(BudgetExhausted, match="epsilon_per_year"):
        charge(ledger, line, [NOW + 366 * DAY])


def test_a_year_counts_every_session_and_the_total_outlasts_it(open_ledger: Open, line: Line) -> None:
    charge(open_ledger(epsilon=cost(15), per_year=cost(10)), line, [NOW] * 6)
    following = open_ledger(session=NEXT, epsilon=cost(15), per_year=cost(10))
    charge(following, line, [NOW + DAY] * 4, NEXT)
    with pytest.raises(BudgetExhausted, match="epsilon_per_year"):
        charge(following, line, [NOW + DAY], NEXT)
    charge(following, line, [NOW + 400 * DAY] * 5, NEXT)
    with pytest.raises(BudgetExhausted, match=r"over all runs \(epsilon\)"):
        charge(following, line, [NOW + 4000 * DAY], NEXT)


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ([NOW] * 10, NOW - 4000 * DAY),  # the clock was set back: the year begins earlier, it does not begin anew
        ([NOW + 4000 * DAY] * 10, NOW),  # it ran ahead: what is dated in the future counts
        ([NOW] + [NOW - 400 * DAY] * 9, NOW + DAY),  # it ran behind: a line is younger than the one before it
        ([NOW, 0.0, NOW + 4000 * DAY, *[NOW - 500 * DAY] * 7], NOW + 300 * DAY),
    ],
)
def test_no_wrong_clock_of_the_past_makes_room(earlier: list[float], now: float, open_ledger: Open, line: Line) -> None:
    charge(open_ledger(), line, earlier)
    ledger = open_ledger(per_year=cost(10))
    with pytest.raises(BudgetExhausted, match="epsilon_per_year"):
        charge(ledger, line, [now])
    with pytest.raises(BudgetExhausted, match="epsilon_per_year"):
        ledger.expect("train", [Mechanism(1.0, 13.0, 11)], now)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times=st.lists(st.floats(0, 4 * YEAR_SECONDS), min_size=1, max_size=12), now=st.floats(0, 5 * YEAR_SECONDS))
def test_ledger_and_report_count_the_same_year_and_never_less_than_the_dates_say(
    times: list[float], now: float, line: Line
) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    ledger = Ledger(
        connection, silo="north", session=SESSION, budgets={"train": math.inf, "holdout": math.inf}, delta=1e-5,
        accountant="rdp",
    )  # fmt: skip
    for number, when in enumerate(times):
        ledger.charge(
            line(time=when, dataset=("train", "holdout")[number % 3 == 2], noise_multiplier=float(number + 1))
        )
    year = caps_of(SESSION, now, math.inf, math.inf, 1.0)[-1]
    counted = composition(connection, "train", year.condition, year.values)
    reported = mechanisms(within_year(read_entries(connection, "north"), "train", now))
    assert counted == Counter({(m.sampling_rate, m.noise_multiplier): m.count for m in reported})
    dated = {float(n + 1) for n, when in enumerate(times) if when >= now - YEAR_SECONDS and n % 3 != 2}
    assert dated <= {noise for _, noise in counted}
    connection.close()


def test_a_run_may_cost_less_than_the_total(open_ledger: Open, line: Line) -> None:
    charge(open_ledger(per_run=cost(5)), line, [NOW] * 5)
    with pytest.raises(BudgetExhausted, match=r"by this run, .* \(epsilon_per_run\)"):
        charge(open_ledger(per_run=cost(5)), line, [NOW])
    following = open_ledger(session=NEXT, per_run=cost(5))
    charge(following, line, [NOW] * 5, NEXT)
    with pytest.raises(BudgetExhausted, match="epsilon_per_run"):
        charge(following, line, [NOW + 4000 * DAY], NEXT)


@pytest.mark.parametrize(
    ("caps", "option"),
    [
        ({"epsilon": cost(9)}, "epsilon"),
        ({"per_year": cost(9)}, "epsilon_per_year"),
        ({"per_run": cost(4)}, "epsilon_per_run"),
    ],
)
def test_a_whole_plan_is_held_against_every_cap(
    caps: dict[str, float], option: str, open_ledger: Open, line: Line, connection: sqlite3.Connection
) -> None:
    charge(open_ledger(), line, [NOW] * 5)
    before = list(connection.iterdump())
    plan = [Mechanism(1.0, 13.0, 5)]
    with pytest.raises(BudgetExhausted, match=rf"\({option}\).*nothing was charged"):
        open_ledger(session=NEXT, **caps).expect("train", plan, NOW + DAY)
    assert list(connection.iterdump()) == before
    enough = {"epsilon": cost(10), "per_year": cost(10), "per_run": cost(5)}
    open_ledger(session=NEXT, **enough).expect("train", plan, NOW + DAY)


def test_a_plan_does_not_hide_what_its_session_spent_otherwise(open_ledger: Open, line: Line) -> None:
    """A session that is joined again with another plan has its first plan's uses too."""
    charge(open_ledger(), line, [NOW] * 5)
    plan = [Mechanism(1.0, 20.0, 5)]
    both = epsilon([Mechanism(1.0, 13.0, 5), *plan], 1e-5)
    open_ledger(epsilon=both + 1e-9).expect("train", plan)
    with pytest.raises(BudgetExhausted):
        open_ledger(epsilon=both - 1e-3).expect("train", plan)


def test_caps_cost_few_evaluations(open_ledger: Open, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(ledger_module, "epsilon", lambda *args: calls.append(args) or epsilon(*args))
    ledger = open_ledger(per_run=6.0, per_year=7.0)
    ledger.expect("train", [Mechanism(1.0, 13.0, 100)], NOW)
    for number in range(100):
        ledger.charge(line(round=number, time=NOW + number))
    assert len(calls) == 3, "one for each cap"


def test_caps_that_are_none_are_refused(open_ledger: Open) -> None:
    for cap in (0.0, -1.0, math.nan):
        for name in ("per_run", "per_year"):
            with pytest.raises(ConfigError, match="not positive"):
                open_ledger(**{name: cap})


def test_two_processes_cannot_both_take_the_last_of_a_year(state_file: Path, line: Line) -> None:
    import threading

    outcomes: list[str] = []

    def spend() -> None:
        connection = open_silo_database(state_file)
        ledger = Ledger(connection, silo="north", session=SESSION, budgets={"train": 8.0}, delta=1e-5, per_year=cost(6))
        for _ in range(6):
            try:
                ledger.charge(line(time=NOW))
                outcomes.append("charged")
            except BudgetExhausted:
                outcomes.append("refused")
        connection.close()

    workers = [threading.Thread(target=spend) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(outcomes) == ["charged"] * 6 + ["refused"] * 6
