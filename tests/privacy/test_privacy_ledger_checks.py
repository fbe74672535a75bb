"""Figures recomputed from the lines, and what makes a ledger fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy import ledger_checks
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_checks import Recomputed, cap_failures, differs, recompute
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.privacy.ledger_report import Limits, dataset_reports

Open = Callable[..., Ledger]
Line = Callable[..., LedgerLine]

SESSION, NEXT = b"s" * 16, b"n" * 16
DAY = 86400.0
NOW = 1.8e9


@pytest.fixture
def two_runs(open_ledger: Open, line: Line, state_file: Path) -> Path:
    """A run of 30 uses of the training records and one of the holdout, and 400 days later another of 20."""
    ledger = open_ledger(per_run=3.0, per_year=5.0, trust="local")
    for number in range(10):
        ledger.charge(line(round=number, sampling_rate=0.1, noise_multiplier=1.5, count=3, time=NOW + number))
    ledger.charge(line(phase="evaluate", dataset="holdout", noise_multiplier=6.0, time=NOW + DAY))
    following = open_ledger(session=NEXT, per_run=3.0, per_year=5.0, trust="distributed")
    for number in range(20):
        when = NOW + 400 * DAY + number
        following.charge(line(session=NEXT, round=number, sampling_rate=0.2, noise_multiplier=2.0, time=when))
    return state_file


def test_figures_are_those_of_the_lines(two_runs: Path, connection) -> None:
    now = NOW + 401 * DAY
    train, holdout = dataset_reports(read_ledger(two_runs), delta=None, fallback=None, now=now)
    first, second = Mechanism(0.1, 1.5, 30), Mechanism(0.2, 2.0, 20)
    assert (train.dataset, train.delta, train.lines) == ("train", 1e-5, 30)
    assert train.epsilon == epsilon([first, second], 1e-5)
    assert train.epsilon_year == epsilon([second], 1e-5)
    assert (train.limits.epsilon, train.limits.per_run, train.limits.per_year) == (8.0, 3.0, 5.0)
    assert [(s.session, s.trust, s.epsilon, s.epsilon_after) for s in train.sessions] == [
        (SESSION, "local", epsilon([first], 1e-5), epsilon([first], 1e-5)),
        (NEXT, "distributed", epsilon([second], 1e-5), epsilon([first, second], 1e-5)),
    ]
    (use,) = train.sessions[0].uses
    assert (use.phase, use.rounds, use.uses, use.sampling_rate, use.noise_multiplier) == ("train", 10, 30, 0.1, 1.5)
    assert (use.first, use.last, use.sensitivity) == (NOW, NOW + 9, 0.1)
    assert (holdout.lines, holdout.epsilon, holdout.epsilon_year) == (1, epsilon([Mechanism(1.0, 6.0, 1)], 1e-5), 0.0)


def test_another_delta_and_the_policy_of_today_win(two_runs: Path, connection) -> None:
    policy = Limits(1e-3, 4.0, 2.0, 3.0, "policy.toml")
    train = dataset_reports(read_ledger(two_runs), delta=1e-6, fallback=policy, now=NOW)[0]
    assert train.delta == 1e-6
    assert train.epsilon == epsilon([Mechanism(0.1, 1.5, 30), Mechanism(0.2, 2.0, 20)], 1e-6)
    assert train.limits == Limits(1e-5, 4.0, 2.0, 3.0, "policy.toml")


def test_an_older_file_needs_a_delta(two_runs: Path, connection, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    record = read_ledger(two_runs)
    old = replace(record, entries=tuple(replace(entry, terms=None) for entry in record.entries))
    with pytest.raises(ConfigError, match=r"records no delta .* give --delta"):
        dataset_reports(old, delta=None, fallback=None, now=NOW)
    assert dataset_reports(old, delta=1e-5, fallback=None, now=NOW)[0].limits.epsilon == math.inf
    policy = Limits(1e-4, 4.0, 2.0, 3.0, "policy.toml")
    assert dataset_reports(old, delta=None, fallback=policy, now=NOW)[0].delta == 1e-4


def test_accountants_that_agree_pass(two_runs: Path, connection) -> None:
    uses = [Mechanism(0.1, 1.5, 30), Mechanism(0.2, 2.0, 20)]
    found = recompute(uses, 1e-5)
    assert (found.prv, found.pld, found.rdp) == tuple(epsilon(uses, 1e-5, name) for name in ("prv", "pld", "rdp"))
    assert found.independent
    assert 0 < found.difference < 0.01
    assert not found.failures()


@pytest.mark.parametrize(
    ("prv", "pld", "rdp", "words"),
    [
        (2.0, 2.021, 2.5, "PRV gives epsilon 2.0000 and PLD 2.0210, 1.0% apart"),
        (2.03, 2.0, 2.5, "apart"),
        (math.inf, 2.0, 2.5, "apart"),
        (math.nan, 2.0, 2.5, "apart"),
        (2.0, 2.0, 1.9, "above the looser bound of RDP"),
    ],
)
def test_accountants_that_disagree_fail(prv: float, pld: float, rdp: float, words: str) -> None:
    (failure,) = Recomputed(1e-5, prv, pld, rdp).failures()
    assert words in failure


def test_differences_of_the_accountants_grids_are_none() -> None:
    assert not differs(1e-4, 2e-4)
    assert not differs(2.0, 2.0199)
    assert not differs(math.inf, math.inf)
    assert differs(0.05, 0.051)
    assert not Recomputed(1e-5, math.inf, math.inf, math.inf).failures()
    assert not Recomputed(1e-5, math.inf, math.inf, math.inf).independent


def test_a_ledger_within_its_caps_passes(two_runs: Path, connection) -> None:
    record = read_ledger(two_runs)
    for dataset in ("train", "holdout"):
        assert cap_failures(record, dataset, None, NOW) == []
        assert cap_failures(record, dataset, Limits(1e-5, 8.0, 3.0, 5.0, "policy.toml"), NOW) == []


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ((1.0, 9.0, 9.0), "was spent in all, the cap is 1 (policy.toml)"),
        ((9.0, 1.0, 9.0), "was spent in one run, the cap is 1 (policy.toml)"),
        ((9.0, 9.0, 1.0), "was spent within 365 days, the cap is 1 (policy.toml)"),
    ],
)
def test_more_than_the_policy_of_today_allows_fails(
    caps: tuple[float, float, float], words: str, two_runs: Path, connection
) -> None:
    (failure,) = cap_failures(read_ledger(two_runs), "train", Limits(1e-5, *caps, "policy.toml"), NOW + 401 * DAY)
    assert words in failure


def test_more_than_was_recorded_as_allowed_fails(open_ledger: Open, line: Line, state_file: Path, monkeypatch) -> None:
    """A silo whose own check did not work: its lines and terms are well-formed, their sum is not."""
    monkeypatch.setattr(Ledger, "_fits", lambda *_: True)
    ledger = open_ledger(epsilon=1.5, per_run=1.2, per_year=1.3)
    for number in range(30):
        ledger.charge(line(round=number, time=NOW + number))
    spent = epsilon([Mechanism(1.0, 13.0, 30)], 1e-5)
    assert spent > 1.5
    failures = cap_failures(read_ledger(state_file), "train", None, NOW)
    assert [failure.partition("spent ")[2] for failure in failures] == [
        f"{words}, the cap is {cap:g} (session 73737373)"
        for words, cap in (("in all", 1.5), ("in one run", 1.2), ("within 365 days", 1.3))
    ]


def test_a_cap_that_one_accountant_proves_is_kept(two_runs: Path, connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are upper bounds: PRV may round a spend that PLD proves to be within the cap to just above it."""
    record = read_ledger(two_runs)
    caps = Limits(1e-5, 3.0, 3.0, 3.0, "policy.toml")
    monkeypatch.setattr(ledger_checks, "epsilon", lambda uses, delta, name="prv": 3.01 if name == "prv" else 2.99)
    assert cap_failures(record, "holdout", caps, NOW) == []
    monkeypatch.setattr(ledger_checks, "epsilon", lambda uses, delta, name="prv": 3.01)
    assert len(cap_failures(record, "holdout", caps, NOW)) == 4, "a recorded cap of a run, and all of the policy"
