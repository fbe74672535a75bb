"""Ledgers held against what stands beside them: policy, joined plans, and the figures a run claims."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.errors import ConfigError, StorageError
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.ledger_audit import LedgerAudit, audit_ledger, policy_of
from autoflip_secure.federation.ledger_files import Claim, claims_of, joined_plans, ledger_files, policy_limits
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.storage import open_silo_database

SESSION = b"s" * 16
USE = Mechanism(1.0, 13.0, 1)
NOW = 1.8e9
Charge = Callable[..., Path]


@pytest.fixture
def charge(tmp_path: Path, make_config) -> Charge:
    """charge(uses, planned=10, silo=1) -> the state file of a silo that joined a plan and charged some uses of it."""

    def make(uses: int, planned: int = 10, silo: int = 1, session: bytes = SESSION) -> Path:
        home = tmp_path / "run" / "silos" / f"silo-{silo:03d}"
        home.mkdir(parents=True, exist_ok=True)
        (home / "policy.toml").write_text(SiloPolicy().to_toml())
        database = open_silo_database(home / "state.sqlite")
        database.execute("CREATE TABLE IF NOT EXISTS sessions (session BLOB PRIMARY KEY, request BLOB NOT NULL)")
        if planned:
            config = make_config(aggregation="secagg", dp_epsilon=8.0)
            request = JoinRequest(session, config, "{}", {"train": [Mechanism(1.0, 13.0, planned)]})
            database.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?)", (session, request.body()))
        budgets = {"train": 8.0, "holdout": 8.0}
        ledger = Ledger(database, silo=str(silo), session=session, budgets=budgets, delta=1e-5, trust="distributed")
        for number in range(uses):
            ledger.charge(LedgerLine(session, "train", number, 0, "train", 1.0, 13.0, 0.1, 1, bytes(32), NOW + number))
        database.close()
        return home / "state.sqlite"

    return make


def audit(state: Path, claims: tuple[Claim, ...] | None = None, **options: Any) -> LedgerAudit:
    return audit_ledger(state, claims, **{"delta": None, "now": NOW, **options})


def test_a_ledger_that_adds_up(charge: Charge) -> None:
    spent = epsilon([Mechanism(1.0, 13.0, 5)], 1e-5)
    found = audit(charge(5), (Claim("1", "train", 5, spent), Claim("2", "train", 9, 1.0)))
    assert found.failures == ()
    (row,) = found.datasets
    assert (found.silo, row.lines, row.sessions, row.claimed, row.cap) == ("1", 5, 1, spent, 8.0)
    assert row.recomputed.prv == spent
    assert len(found.head) == 32


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (("1", "train", 5, 0.9), "summary.json claims epsilon 0.9000, the lines cost 0."),
        (("1", "train", 4, None), "the ledger has 5 lines, summary.json says 4"),
        (("2", "train", 5, None), "the ledger has 5 lines, summary.json says 0"),
        (("1", "holdout", 2, 0.1), "the ledger has 0 lines, summary.json says 2"),
    ],
)
def test_claims_that_differ_fail(charge: Charge, claim: tuple[Any, ...], words: str) -> None:
    assert any(words in failure for failure in audit(charge(5), (Claim(*claim),)).failures)


def test_a_claim_within_a_percent_passes_and_one_beyond_fails(charge: Charge) -> None:
    state = charge(5)
    spent = epsilon([Mechanism(1.0, 13.0, 5)], 1e-5)
    assert audit(state, (Claim("1", "train", 5, spent * 1.003),)).failures == ()
    assert audit(state, (Claim("1", "train", 5, spent * 1.02),)).failures
    assert audit(state, (Claim("1", "train", 5, spent * 0.98),)).failures


def test_more_uses_than_the_joined_plan_fail(charge: Charge) -> None:
    (failure,) = audit(charge(5, planned=4)).failures
    assert failure == "train records: session 73737373 has 5 uses at sampling rate 1 and noise 13, its plan 4"


def test_lines_of_a_run_that_was_never_joined_fail(charge: Charge) -> None:
    """As lines added by hand would be, although their hashes fit."""
    (failure,) = audit(charge(5, planned=0)).failures
    assert "has lines, but the silo never joined it" in failure


def test_a_statement_of_another_version_is_not_held_against_a_silo(charge: Charge) -> None:
    state = charge(5)
    with sqlite3.connect(state) as database:
        database.execute("UPDATE sessions SET request = x'c0'")
    assert joined_plans(state) == {SESSION: None}
    assert audit(state).failures == ()


def test_a_policy_that_was_tightened_below_what_is_spent_fails(charge: Charge) -> None:
    state = charge(5)
    for caps, words in (({"epsilon": 0.5}, "in all"), ({"epsilon_per_year": 0.5}, "within 365 days")):
        (state.parent / "policy.toml").write_text(SiloPolicy(**caps).to_toml())
        assert any(words in failure and "policy.toml" in failure for failure in audit(state).failures)


def test_lines_of_records_in_the_budget_of_patients_fail(charge: Charge, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a silo whose own check is broken would leave them."""
    state = charge(2)
    monkeypatch.setattr("autoflip_secure.privacy.ledger.check_patient_lines", lambda *_: None)
    database = open_silo_database(state)
    options = {"budgets": {"train": 8.0}, "delta": 1e-5, "trust": "distributed", "unit": "patient"}
    line = LedgerLine(SESSION, "train", 2, 0, "train", 1.0, 13.0, 0.1, 1, bytes(32), NOW + 2)
    Ledger(database, silo="1", session=SESSION, **options).charge(line)
    database.close()
    (failure,) = audit(state).failures
    assert failure.startswith("train records: session 73737373 caps what a patient lost, but 2 uses counted in it")


def test_a_rewritten_past_is_found_by_a_hash_noted_before(charge: Charge) -> None:
    noted = audit(charge(5)).head
    state = charge(2)
    assert audit(state, noted=noted).failures == (), "lines may follow"
    state.unlink()
    charge(7)
    assert audit(state, noted=noted).failures == (), "the same lines have the same hashes"
    state.unlink()
    charge(4)
    (failure,) = audit(state, noted=noted).failures
    assert "the past was rewritten" in failure


@pytest.mark.parametrize("damage", ["UPDATE privacy_ledger SET count = 1", "DELETE FROM privacy_ledger WHERE line = 2"])
def test_damage_is_a_failure_of_this_ledger(charge: Charge, damage: str) -> None:
    state = charge(3)
    with sqlite3.connect(state) as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute(damage.replace("= 1", "= 7"))
        for _, sql in triggers:
            database.execute(sql)
    (failure,) = audit(state).failures
    assert "damaged at line" in failure


def test_caps_of_the_policy_depend_on_the_trust_mode(tmp_path: Path) -> None:
    state = tmp_path / "state.sqlite"
    assert policy_limits(state, "local") is None
    policy = SiloPolicy(trusts=("none", "local"), epsilon=4.0, epsilon_per_run=1.0, epsilon_per_year=2.0)
    (tmp_path / "policy.toml").write_text(policy.to_toml())
    caps = policy_limits(state, "local")
    assert caps is not None
    assert (caps.epsilon, caps.per_run, caps.per_year, caps.delta) == (4.0, 1.0, 2.0, 1e-5 * (1 - 1e-3))
    unbounded = policy_limits(state, "none")
    assert unbounded is not None
    assert unbounded.epsilon == unbounded.per_run == unbounded.per_year == float("inf")


def test_a_policy_without_dp_is_known_from_lines_that_record_no_terms(charge: Charge) -> None:
    from dataclasses import replace

    record = read_ledger(charge(2))
    (record.path.parent / "policy.toml").write_text(SiloPolicy(trusts=("none", "local")).to_toml())
    last = replace(record.entries[-1], terms=None)
    limits = policy_of(replace(record, entries=(last,)))
    assert limits is not None
    assert limits.epsilon == 8.0
    limits = policy_of(replace(record, entries=(replace(last, line=replace(last.line, noise_multiplier=0.0)),)))
    assert limits is not None
    assert limits.epsilon == float("inf")


def test_where_ledgers_are(charge: Charge, tmp_path: Path) -> None:
    first, second = charge(1), charge(1, silo=2)
    assert ledger_files(tmp_path / "run") == (first, second)
    assert ledger_files(second.parent) == ledger_files(second) == (second,)
    second.unlink()
    with pytest.raises(ConfigError, match=r"silo-002/state\.sqlite: is not there"):
        ledger_files(tmp_path / "run")
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="is not there"):
            ledger_files(missing)


def test_claims_are_read_from_the_summary(tmp_path: Path) -> None:
    assert claims_of(tmp_path) is None
    rows = [{"silo": 3, "dataset": "train", "lines": 2, "epsilon": 1.5}]
    (tmp_path / "summary.json").write_text(json.dumps({"ledgers": rows}))
    assert claims_of(tmp_path) == (Claim("3", "train", 2, 1.5),)
    for text in ("{", "{}", '{"ledgers": [3]}', '{"ledgers": [{"silo": 1}]}'):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(StorageError, match=r"summary\.json"):
            claims_of(tmp_path)
