"""Epsilon is told apart by the adversary that the lines hold against."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_adversaries import Adversary, adversaries
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.privacy.ledger_tables import adversary_words

Open = Callable[..., Ledger]
Line = Callable[..., LedgerLine]


def cost(uses: int) -> float:
    return epsilon([Mechanism(1.0, 13.0, uses)], 1e-5)


def against(path: Path) -> tuple[Adversary, ...]:
    return adversaries(read_ledger(path).of("train"), 1e-5)


def test_what_was_noised_for_fewer_colluders_is_told_apart(
    open_ledger: Open, line: Line, connection, state_file: Path
) -> None:
    for session, colluders, uses in ((b"1" * 16, 1, 4), (b"3" * 16, 3, 6)):
        open_ledger(session=session, trust="distributed", colluders=colluders).charge(line(session=session, count=uses))
    one, three = against(state_file)
    assert one == Adversary(1, cost(10), 10, 0, 0)
    assert three == Adversary(3, cost(6), 6, 4, 1)
    assert adversary_words(one) == ""
    assert adversary_words(three) == (
        "4 uses hold against 1 colluder at most, and a run promises 3: against these the other 6 uses cost epsilon "
        f"{cost(6):.4g}, those 4 are not bounded"
    )


def test_noise_of_the_silo_alone_holds_against_all_others(
    open_ledger: Open, line: Line, connection, state_file: Path
) -> None:
    open_ledger(trust="local").charge(line(count=5))
    assert against(state_file) == (Adversary(math.inf, cost(5), 5, 0, 0),)
    open_ledger(session=b"2" * 16, trust="distributed", colluders=2).charge(line(session=b"2" * 16, count=2))
    two, everybody = against(state_file)
    assert two == Adversary(2, cost(7), 7, 0, 0)
    assert everybody == Adversary(math.inf, cost(5), 5, 2, 2)
    assert "a run promises all other silos" in adversary_words(everybody)


def test_without_noise_nobody_is_named_and_nothing_is_bounded_against_anybody(
    open_ledger: Open, line: Line, connection, state_file: Path
) -> None:
    open_ledger(trust="none", epsilon=math.inf).charge(line(noise_multiplier=0.0))
    assert against(state_file) == ()
    open_ledger(session=b"2" * 16, epsilon=math.inf).charge(line(session=b"2" * 16, count=2))
    options = {"trust": "distributed", "colluders": 1, "epsilon": math.inf}
    open_ledger(session=b"3" * 16, **options).charge(line(session=b"3" * 16))
    assert against(state_file) == (Adversary(1, math.inf, 2, 2, 0),), "a line that names nobody bears no colluder"
