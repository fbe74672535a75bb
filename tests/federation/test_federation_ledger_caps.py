"""Caps of policy.toml and the run's own promise, as a silo holds them against join requests and rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.silo_folder import read_silo, write_silo
from autoflip_secure.data.task import Task
from autoflip_secure.federation.audit_heads import HeadList
from autoflip_secure.federation.audit_log import Head
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.privacy.ledger_reading import LedgerRecord, read_ledger

ONE, TWO = b"\x01" * 16, b"\x02" * 16
PLAN = [Mechanism(1.0, 3.0, 1)]
"""Epsilon 1.3 at delta 1e-5; twice 1.9."""


class Month:
    """Silo 1 of a federation that joins runs and answers single rounds of them."""

    def __init__(self, folder: Any, config: ResolvedConfig, model: Any, make_manifest: Any) -> None:
        self.folder, self.config, self.model, self.make_manifest = folder, config, model, make_manifest
        self.home = silo_folder(folder.path, 1)
        self.digests: dict[bytes, bytes] = {}

    def silo(self) -> Silo:
        return Silo(self.home)

    def join(self, session: bytes, planned: list[Mechanism] = PLAN) -> Reply:
        request = JoinRequest(session, self.config, self.folder.task.read_text(), {"train": planned})
        silo = self.silo()
        try:
            return silo.answer(Request(JOIN_STAGE, 0, 0, request.sign(self.folder.coordinator_identity())))
        finally:
            self.digests[session] = request.digest()
            silo.close()

    def round(self, session: bytes) -> Reply:
        terms = {"sampling_rate": 1.0, "noise_multiplier": 3.0}
        changes = {"config_hash": self.digests[session], "session": session, "terms": terms}
        silo = self.silo()
        try:
            silo._audit.refresh()
            assert silo._audit.head is not None
            heads = HeadList(Head.signed(1, bytes(32), self.folder.coordinator_identity()), {1: silo._audit.head})
            manifest = self.make_manifest(self.config, self.model, heads_hash=heads.hash(), **changes)
            request = Request("clear", 1, 0, manifest.to_bytes(), self.model.to_bytes(), heads.shown()[1])
            return silo.answer(request)
        finally:
            silo.close()

    def name_patients(self) -> None:
        """Provision anew with two records a patient, the state file kept."""
        task = replace(Task.from_json(self.folder.task.read_text()), unit="patient")
        for path in (self.folder.task, self.home / "task.json"):
            path.write_text(task.to_json())
        train = read_silo(self.home / "data").train
        write_silo(self.home / "data", replace(train, group=np.arange(len(train.y), dtype=np.int64) // 2), None)

    def ledger(self) -> LedgerRecord:
        return read_ledger(self.home / "state.sqlite")

    def log(self) -> str:
        return (self.home / "silo.log").read_text().strip().splitlines()[-1]


@pytest.fixture
def month(make_config, make_federation, make_manifest, model) -> Iterator[Callable[..., Month]]:
    """month(dp_epsilon=2, colluders=0, **caps of the policy) -> Month, nothing joined yet."""

    def make(dp_epsilon: float = 2.0, colluders: int = 0, **caps: float) -> Month:
        config = make_config(dp_epsilon=dp_epsilon, colluders=colluders)
        folder = make_federation(config)
        policy = SiloPolicy.accepting(config).model_copy(update=caps)
        (silo_folder(folder.path, 1) / "policy.toml").write_text(policy.to_toml())
        return Month(folder, config, model, make_manifest)

    return make


def refused(reply: Reply) -> bool:
    return replace(reply, head=b"") == Reply("refused", b"", "BudgetExhausted")


@pytest.mark.parametrize(
    ("caps", "option"),
    [
        ({"epsilon": 1.7}, "epsilon"),
        ({"epsilon": 8.0, "epsilon_per_year": 1.7}, "epsilon_per_year"),
    ],
)
def test_next_month_is_held_against_what_last_month_spent(caps: dict[str, float], option: str, month) -> None:
    silo = month(dp_epsilon=1.5, **caps)
    assert silo.join(ONE).status == "ok", silo.log()
    assert silo.round(ONE).status == "ok", silo.log()
    before, state = silo.ledger(), (silo.home / "state.sqlite").read_bytes()
    assert len(before.entries) == 1
    assert refused(silo.join(TWO))
    assert f"({option})" in silo.log()
    assert silo.ledger() == before
    assert (silo.home / "state.sqlite").read_bytes() == state
    assert silo.join(ONE).status == "ok", "the run that is under way goes on"


def test_next_month_adds_to_last_month(month) -> None:
    silo = month(epsilon=8.0, epsilon_per_run=1.5, epsilon_per_year=2.2)
    for session in (ONE, TWO):
        assert silo.join(session).status == "ok", silo.log()
        assert silo.round(session).status == "ok", silo.log()
    entries = silo.ledger().entries
    assert [entry.line.session for entry in entries] == [ONE, TWO]
    assert [(e.terms.epsilon, e.terms.per_run, e.terms.per_year, e.terms.trust) for e in entries if e.terms] == [
        (8.0, 1.5, 2.2, "distributed")
    ] * 2
    assert refused(silo.join(b"\x03" * 16))


def test_a_run_that_plans_more_than_it_promises_is_refused(month) -> None:
    """The policy would bear it; the promise of the run, which everybody reads, would not be true."""
    silo = month(dp_epsilon=1.5, epsilon=8.0)
    assert refused(silo.join(ONE, [Mechanism(1.0, 3.0, 2)]))
    assert "of 1.5 by this run, by policy or its own promise (epsilon_per_run)" in silo.log()
    assert silo.join(ONE).status == "ok"


def test_a_run_above_the_cap_of_a_run_is_refused(month) -> None:
    silo = month(epsilon=8.0, epsilon_per_run=1.0)
    assert refused(silo.join(ONE))
    assert "(epsilon_per_run)" in silo.log()


def test_a_cap_that_was_tightened_after_joining_stops_the_next_round(month) -> None:
    silo = month(epsilon=8.0)
    assert silo.join(ONE).status == "ok"
    policy = SiloPolicy.read(silo.home / "policy.toml")
    (silo.home / "policy.toml").write_text(policy.model_copy(update={"epsilon_per_year": 1.0}).to_toml())
    assert refused(silo.round(ONE))
    assert silo.ledger().entries == ()


def test_last_month_s_records_do_not_count_as_patients(month) -> None:
    """Patients are named later: what one of them lost by several records in last month's run is not known."""
    silo = month(epsilon=8.0)
    assert silo.join(ONE).status == silo.round(ONE).status == "ok", silo.log()
    silo.name_patients()
    before, state = silo.ledger(), (silo.home / "state.sqlite").read_bytes()
    assert [entry.terms.unit for entry in before.entries if entry.terms] == ["record"]
    for session in (TWO, ONE):
        assert refused(silo.join(session)), "another run, and the old one joined anew as one of patients"
        assert "the unit of this run is the patient, but 1 uses of the train records of 1" in silo.log()
        assert "begin an empty state file" in silo.log()
    assert silo.ledger() == before
    assert (silo.home / "state.sqlite").read_bytes() == state
    (silo.home / "state.sqlite").unlink()
    assert silo.join(TWO).status == silo.round(TWO).status == "ok", silo.log()
    assert [entry.terms.unit for entry in silo.ledger().entries if entry.terms] == ["patient"]


def test_last_month_s_patients_count_for_a_run_of_records(month) -> None:
    silo = month(epsilon=8.0)
    task, home = silo.folder.task.read_text(), silo.home
    train = read_silo(home / "data").train
    silo.name_patients()
    assert silo.join(ONE).status == silo.round(ONE).status == "ok", silo.log()
    for path in (silo.folder.task, home / "task.json"):
        path.write_text(task)
    write_silo(home / "data", train, None)
    assert silo.join(TWO).status == silo.round(TWO).status == "ok", silo.log()
    assert [entry.terms.unit for entry in silo.ledger().entries if entry.terms] == ["patient", "record"]


def test_the_colluders_that_noise_bears_are_recorded(month) -> None:
    silo = month(epsilon=8.0, colluders=1)
    assert silo.join(ONE).status == silo.round(ONE).status == "ok", silo.log()
    (entry,) = silo.ledger().entries
    assert entry.terms is not None
    assert (entry.terms.trust, entry.terms.colluders) == ("distributed", 1)
