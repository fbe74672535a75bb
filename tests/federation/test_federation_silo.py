"""A silo's answers: what it refuses, that it pays before it computes, and that no word of an error leaves it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from autoflip_secure.ckks.messages import KeyRequest
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import AutoflipSecureError, ConfigError, ProtocolError
from autoflip_secure.federation import silo as silo_module
from autoflip_secure.federation.audit_heads import HeadList
from autoflip_secure.federation.audit_log import Head
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.terms import (
    METRIC_SENSITIVITY,
    clip_bits_channel,
    count_channel,
    energy_channel,
    metric_channel,
    update_channel,
)
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.signing import sign_message
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.secagg.setup_messages import AdvertiseRequest
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.encoding import unpack_sum, word_count
from autoflip_secure.sums.manifest import Manifest

SESSION = bytes(16)
PRIVATE = {"dp_epsilon": 8.0}
CHEAP = {"train": [Mechanism(0.2, 2.0, 5)]}
"""A plan that costs little of epsilon 8, and that the usual manifest of these tests keeps to."""


class Joined:
    """Silo 1 of a federation on disk, and the requests of its coordinator."""

    def __init__(self, folder: RunFolder, config: ResolvedConfig, model: ModelPayload, manifest: Any) -> None:
        self.folder, self.config, self.model, self._manifest = folder, config, model, manifest
        self.home = silo_folder(folder.path, 1)
        self.silo = Silo(self.home)
        self.digest = bytes(32)
        self.coordinator_head = Head.signed(1, bytes(32), folder.coordinator_identity())
        self.shown: dict[bytes, bytes] = {}

    def join(
        self,
        session: bytes = SESSION,
        planned: dict[str, list[Mechanism]] | None = None,
        signer: Identity | None = None,
        task: str | None = None,
        **changes: Any,
    ) -> Reply:
        config = ResolvedConfig.create(**{**self.config.model_dump(), **changes})
        request = JoinRequest(session, config, task or self.folder.task.read_text(), planned or {})
        message = request.sign(signer or self.folder.coordinator_identity())
        reply = self.silo.answer(Request(JOIN_STAGE, 0, 0, message))
        if reply.status == "ok":
            self.digest = request.digest()
        return reply

    def manifest(self, model: ModelPayload | None = None, **changes: Any) -> Manifest:
        """A training round of the run that was joined last."""
        self.silo._audit.refresh()
        heads = HeadList(self.coordinator_head, {} if self.silo._audit.head is None else {1: self.silo._audit.head})
        self.shown |= {heads.hash(): heads.shown().get(1, b"")}
        named = {"config_hash": self.digest, "heads_hash": heads.hash()}
        return self._manifest(self.config, model or self.model, **{**named, **changes})

    def clear(self, attachment: bytes | None = None, **changes: Any) -> Reply:
        """Ask for the contribution to the manifest with these changes."""
        return self.ask(self.manifest(**changes), self.model.to_bytes() if attachment is None else attachment)

    def ask(self, manifest: Manifest, attachment: bytes) -> Reply:
        content, heads = manifest.to_bytes(), self.shown.get(manifest.heads_hash, b"")
        return self.silo.answer(Request("clear", manifest.round, manifest.attempt, content, attachment, heads))

    def reopen(self) -> None:
        self.silo.close()
        self.silo = Silo(self.home)

    def log(self) -> str:
        path = self.home / "silo.log"
        return path.read_text() if path.exists() else ""

    def ledger(self) -> list[tuple[Any, ...]]:
        columns = "phase, round, attempt, dataset, sampling_rate, noise_multiplier, sensitivity, count, manifest"
        with sqlite3.connect(self.home / "state.sqlite") as database:
            try:
                return database.execute(f"SELECT {columns} FROM privacy_ledger ORDER BY line").fetchall()
            except sqlite3.OperationalError:
                return []


Start = Callable[..., Joined]


@pytest.fixture
def start(make_config, make_federation, make_manifest, model) -> Iterator[Start]:
    """start(policy=None, public_test=True, **options) -> silo 1, not joined yet."""
    opened: list[Joined] = []

    def begin(policy: dict[str, Any] | None = None, public_test: bool = True, **options: Any) -> Joined:
        config = make_config(**options)
        folder = make_federation(config, public_test=public_test)
        if policy is not None:
            chosen = SiloPolicy.accepting(config).model_copy(update=policy)
            (silo_folder(folder.path, 1) / "policy.toml").write_text(chosen.to_toml())
        opened.append(Joined(folder, config, model, make_manifest))
        return opened[-1]

    yield begin
    for joined in opened:
        joined.silo.close()


def refused(reply: Reply, error: str = "PolicyRefusal") -> bool:
    return said(reply) == Reply("refused", b"", error)


def said(reply: Reply) -> Reply:
    """A reply without the head of the audit log that goes with it."""
    assert Head.from_bytes(reply.head)
    return replace(reply, head=b"")


# Joining


def test_a_silo_knows_itself_by_its_key(start: Start) -> None:
    joined = start()
    assert said(joined.join()) == Reply("ok", msgpack.packb(1))
    assert joined.silo.id == 1


def test_only_the_coordinator_of_the_roster_is_listened_to(start: Start, tmp_path: Path) -> None:
    joined = start()
    stranger = Identity.create(tmp_path / "stranger.key")
    assert refused(joined.join(signer=stranger), "Refusal")
    assert "not signed by this federation's coordinator" in joined.log()
    assert refused(joined.clear(), "ProtocolError")


def test_another_task_is_refused(start: Start, task) -> None:
    joined = start()
    another = replace(task, classes=4, class_names=("a", "b", "c", "d")).to_json()
    assert refused(joined.join(task=another), "PolicyRefusal:task")
    assert "task is not the one" in joined.log()


def test_the_policy_is_asked_before_anything_else(start: Start) -> None:
    joined = start(policy={"trusts": ("local",)}, **PRIVATE)
    assert refused(joined.join(planned=CHEAP), "PolicyRefusal:trusts")
    assert "refused by rule trusts: trust mode 'distributed' is asked for" in joined.log()
    assert joined.ledger() == []
    assert refused(joined.clear(), "ProtocolError")
    assert "no run was joined" in joined.log()


def test_a_policy_that_was_tightened_meanwhile_counts(start: Start) -> None:
    joined = start(**PRIVATE)
    joined.join(planned=CHEAP)
    tightened = joined.silo._policy.model_copy(update={"epsilon": 1.0})
    (joined.home / "policy.toml").write_text(tightened.to_toml())
    joined.reopen()
    assert refused(joined.clear())
    assert joined.ledger() == []


def test_a_plan_over_the_budget_is_refused_and_costs_nothing(start: Start) -> None:
    joined = start(**PRIVATE)
    dear = {"train": [Mechanism(1.0, 0.5, 50)]}
    assert refused(joined.join(planned=dear), "BudgetExhausted")
    assert joined.ledger() == []
    assert refused(joined.clear(), "ProtocolError")
    assert joined.join(planned=CHEAP).status == "ok"
    assert joined.ledger() == []


def test_a_holdout_plan_over_the_budget_is_refused(start: Start) -> None:
    joined = start(**PRIVATE)
    dear = {**CHEAP, "holdout": [Mechanism(1.0, 0.5, 50)]}
    assert refused(joined.join(planned=dear), "BudgetExhausted")


@pytest.mark.parametrize("planned", [{}, {"train": []}, {"holdout": [Mechanism(1.0, 9.0, 1)]}])
def test_a_private_run_without_a_plan_is_refused(planned: dict[str, Any], start: Start) -> None:
    joined = start(**PRIVATE)
    assert refused(joined.join(planned=planned), "PolicyRefusal:plan")
    assert "plans no use of the records" in joined.log()


def test_a_budget_spent_by_other_sessions_counts(start: Start) -> None:
    joined = start(**PRIVATE)
    most = {"train": [Mechanism(1.0, 1.0, 2)]}
    assert joined.join(planned=most).status == "ok"
    assert joined.clear(terms={"sampling_rate": 1.0, "noise_multiplier": 1.0}).status == "ok"
    later = b"\x02" * 16
    assert refused(joined.join(session=later, planned=most), "BudgetExhausted")
    assert joined.join(session=later, planned=CHEAP).status == "ok"
    assert len(joined.ledger()) == 1


def test_records_that_cannot_be_read_are_found_before_the_run(start: Start) -> None:
    joined = start()
    (joined.home / "data" / "train.npz").write_bytes(b"damaged")
    assert refused(joined.join(), "DataError")


# Rounds


def test_a_contribution_is_the_manifest_s_words(start: Start) -> None:
    joined = start()
    joined.join()
    manifest = joined.manifest()
    reply = joined.clear()
    assert reply.status == "ok"
    words = np.frombuffer(reply.reply, np.uint64)
    assert words.size == word_count(manifest.channels, 4), "packed for the size of the cohort"
    assert np.abs(unpack_sum(words, manifest.channels, 4)["update"]).max() > 0


@pytest.mark.parametrize(
    ("changes", "attachment", "error", "logged"),
    [
        ({"config_hash": b"\x01" * 32}, None, "PolicyRefusal", "configuration is not the one"),
        ({"model_hash": b"\x01" * 32}, None, "PolicyRefusal", "model sent is not the one"),
        ({}, b"", "PolicyRefusal", "model sent is not the one"),
        ({"mask_hash": b"\x01" * 32}, None, "PolicyRefusal", "mask sent is not the one"),
        ({"session": b"\x01" * 16}, None, "PolicyRefusal", "session this silo did not join"),
        ({"cohorts": ((2, 3, 4),), "minimum": (3,)}, None, "ProtocolError", "in no cohort"),
        ({"minimum": (3,)}, None, "PolicyRefusal", "rule min_cohort"),
        ({"terms": {"dataset": "holdout"}}, None, "PolicyRefusal", "would charge holdout"),
        ({"terms": {"delta": 1.1e-5}}, None, "PolicyRefusal", "rule delta"),
    ],
)
def test_a_manifest_that_is_not_the_joined_run_s_is_refused(changes, attachment, error, logged, start: Start) -> None:
    joined = start()
    joined.join()
    assert refused(joined.clear(attachment, **changes), error)
    assert logged in joined.log()
    assert joined.ledger() == [], "refused before it was paid for"
    assert joined.clear().status == "ok"


def test_a_manifest_that_is_not_one_is_refused(start: Start) -> None:
    joined = start()
    joined.join()
    for content in (b"", b"\xc1", joined.manifest().to_bytes()[:-1]):
        assert refused(joined.silo.answer(Request("clear", 0, 0, content)), "ProtocolError")


def test_a_manifest_names_the_plan_that_was_joined_too(start: Start) -> None:
    """The digest covers session, configuration, task and plan: a change of any of them is another run."""
    joined = start(**PRIVATE)
    joined.join(planned=CHEAP)
    first = joined.digest
    joined.join(planned={"train": [Mechanism(0.2, 2.0, 6)]})
    assert joined.digest != first
    assert refused(joined.clear(config_hash=first))
    assert joined.clear().status == "ok"


def test_less_protection_than_was_joined_is_refused(start: Start) -> None:
    """Even where the silo's policy would accept it."""
    joined = start(policy={"trusts": ("none", "local", "distributed"), "delta": 1e-3}, **PRIVATE, silos=10, colluders=1)
    assert joined.join(planned=CHEAP).status == "ok"
    for terms, logged in (
        ({"trust": "none", "noise_multiplier": 0.0}, "trust mode is not the one"),
        ({"trust": "local"}, "trust mode is not the one"),
        ({"delta": 1.1e-5}, "promises less"),
    ):
        assert refused(joined.clear(terms=terms))
        assert logged in joined.log()
    assert joined.ledger() == []


def test_fewer_colluders_than_were_joined_are_refused(start: Start) -> None:
    joined = start(policy={"colluders": 0}, **PRIVATE, silos=10, colluders=2)
    joined.join(planned=CHEAP)
    assert refused(joined.clear(terms={"colluders": 1}))
    assert joined.clear(terms={"colluders": 2}).status == "ok"


def test_squares_under_distributed_noise_are_refused(start: Start) -> None:
    joined = start(**PRIVATE)
    joined.join(planned=CHEAP)
    channels = (update_channel(joined.config, int(joined.model.mask.sum())), energy_channel(4))
    assert refused(joined.clear(channels=channels))
    assert joined.ledger() == []


@pytest.mark.parametrize("adaptive", [None, 0.5])
def test_clip_bits_are_given_where_the_joined_run_has_them_and_only_there(adaptive: float | None, start: Start) -> None:
    joined = start(**PRIVATE, adaptive_clip=adaptive)
    joined.join(planned=CHEAP)
    plain = (update_channel(joined.config, int(joined.model.mask.sum()), 0.03),)
    with_bits = (*plain, clip_bits_channel(16.0, 2.0))
    right, wrong = (plain, with_bits) if adaptive is None else (with_bits, plain)
    assert refused(joined.clear(channels=wrong))
    why = "clip_bits would leave" if adaptive is None else "disagree whether the clip is adaptive"
    assert why in joined.log()
    assert joined.ledger() == []
    assert joined.clear(channels=right, terms={"clip": 0.03}).status == "ok"
    (line,) = joined.ledger()
    assert line[4:7] == (0.2, 2.0, 0.03)


@pytest.mark.parametrize("terms", [{"noise_multiplier": 1.9}, {"sampling_rate": 0.21}, {"sampling_rate": 0.1}])
def test_what_was_not_planned_is_refused_although_the_budget_would_bear_it(terms: dict[str, Any], start: Start) -> None:
    joined = start(**PRIVATE)
    joined.join(planned=CHEAP)
    assert refused(joined.clear(terms=terms), "BudgetExhausted")
    assert joined.ledger() == []


def test_a_plan_is_used_as_often_as_it_says(start: Start) -> None:
    joined = start(**PRIVATE, dp_trust="local")
    joined.join(planned={"train": [Mechanism(0.2, 2.0, 5)]})
    assert joined.clear(terms={"steps": 3}).status == "ok"
    assert refused(joined.clear(terms={"steps": 3}), "BudgetExhausted")
    assert joined.clear(terms={"steps": 2}).status == "ok"
    joined.reopen()
    assert refused(joined.clear(terms={"steps": 1}), "BudgetExhausted")
    assert [line[7] for line in joined.ledger()] == [3, 2]


def test_a_holdout_is_used_by_its_own_plan(start: Start) -> None:
    joined = start(**PRIVATE, dp_trust="local", public_test=False)
    joined.join(planned={**CHEAP, "holdout": [Mechanism(1.0, 3.0, 1)]})
    terms = {
        "dataset": "holdout",
        "sampling_rate": 1.0,
        "noise_multiplier": 3.0,
        "steps": 1,
        "clip": METRIC_SENSITIVITY,
    }
    scored = {"phase": "evaluate", "channels": (metric_channel(7, 3.0),), "terms": terms}
    assert joined.clear(**scored).status == "ok"
    assert refused(joined.clear(**scored), "BudgetExhausted")
    assert [line[3] for line in joined.ledger()] == ["holdout"]


def test_a_grid_that_is_too_coarse_is_refused(start: Start) -> None:
    joined = start(**PRIVATE, bits=8)
    joined.join(planned=CHEAP)
    assert refused(joined.clear())
    assert "use more --bits" in joined.log()
    assert joined.ledger() == []


def test_a_round_beyond_the_budget_is_refused_before_the_records_are_touched(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = start(**PRIVATE)
    joined.join(planned=CHEAP)
    monkeypatch.setattr(Contributor, "contribute", lambda *_: pytest.fail("the records were touched"))
    monkeypatch.setattr("autoflip_secure.privacy.ledger.Ledger._fits", lambda *_: False)
    assert refused(joined.clear(), "BudgetExhausted")
    assert joined.ledger() == []


def test_without_dp_a_round_has_one_cohort(start: Start) -> None:
    """The difference of two sums of one round would be single silos' updates."""
    joined = start(policy={"min_cohort": 0.5}, silos=5)
    joined.join()
    assert joined.clear(round=1).status == "ok"
    smaller = {"cohorts": ((1, 2, 3, 4),), "minimum": (4,)}
    assert refused(joined.clear(round=1, attempt=1, **smaller))
    joined.reopen()
    assert refused(joined.clear(round=1, attempt=2, **smaller))
    assert joined.clear(round=1, attempt=3).status == "ok", "the same cohort may be tried again"
    assert joined.clear(round=2, **smaller).status == "ok"


# Models


def test_a_model_of_another_shape_is_refused(start: Start, model: ModelPayload) -> None:
    joined = start()
    joined.join()

    def payload(name: str, features: int, classes: int) -> ModelPayload:
        spec = dense_spec(name, (features,), classes)
        size = sum(p.numel() for p in build(spec).parameters())
        return ModelPayload(spec, np.zeros(size, np.float32), np.ones(size, np.bool_), 80)

    for other in (payload("mlp", 7, 3), payload("mlp", 6, 4)):
        assert refused(joined.ask(joined.manifest(other), other.to_bytes()))
        assert "not this run's" in joined.log()
    short = replace(model, weights=model.weights[:-1].copy(), mask=model.mask[:-1].copy())
    reply = joined.ask(joined.manifest(short), short.to_bytes())
    assert reply.status == "refused"
    assert joined.ledger() == []
    fitting = payload("mlp", 6, 3)
    assert joined.ask(joined.manifest(fitting), fitting.to_bytes()).status == "ok"


def test_a_model_that_is_none_is_refused(start: Start) -> None:
    import hashlib

    joined = start()
    joined.join()
    for content in (b"", b"not a model", joined.model.to_bytes()[:-1]):
        reply = joined.clear(content, model_hash=hashlib.sha256(content).digest())
        assert refused(reply, "ProtocolError")
    assert joined.ledger() == []


# The ledger, and what leaves the silo


def test_the_ledger_line_is_there_before_the_contribution_is_computed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = start(**PRIVATE)
    joined.join(planned=CHEAP)
    manifest = joined.manifest(round=3, attempt=1)
    seen: list[list[tuple[Any, ...]]] = []

    def fail(*_: Any) -> None:
        seen.append(joined.ledger())
        raise ValueError("record 17 of patient Miller is odd")

    monkeypatch.setattr(Contributor, "contribute", fail)
    assert said(joined.ask(manifest, joined.model.to_bytes())) == Reply("failed")
    terms = manifest.privacy
    line = ("train", 3, 1, "train", terms.sampling_rate, 2.0, terms.clip, 1, manifest.digest())
    assert seen == [[line]]
    assert joined.ledger() == [line], "a charge stays when the computation fails"
    joined.reopen()
    assert joined.ledger() == [line]


@pytest.mark.parametrize("kind", [ValueError, ProtocolError, ConfigError, AutoflipSecureError, MemoryError])
def test_no_word_and_no_kind_of_an_error_over_records_leaves_the_silo(
    kind: type[Exception], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = start()
    joined.join()

    def fail(*_: Any) -> None:
        raise kind("record 17 of patient Miller is odd")

    monkeypatch.setattr(Contributor, "contribute", fail)
    assert said(joined.clear()) == Reply("failed", b"", "")
    assert "Miller" in joined.log()


def test_refusals_say_their_kind_alone(start: Start) -> None:
    joined = start()
    joined.join()
    reply = joined.clear(mask_hash=b"\x01" * 32)
    assert vars(said(reply)) == {"status": "refused", "reply": b"", "error": "PolicyRefusal", "head": b""}


def test_the_log_is_its_owner_s_alone(start: Start) -> None:
    joined = start()
    joined.silo.answer(Request("clear", 0, 0, b""))
    assert joined.log()
    assert (joined.home / "silo.log").stat().st_mode & 0o077 == 0


def test_requests_that_are_refused_for_ever_fill_no_disk(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silo_module, "LONGEST_LOG", 2000)
    joined = start()
    for _ in range(50):
        joined.silo.answer(Request("clear", 0, 0, b""))
    logs = sorted(joined.home.glob("silo.log*"))
    assert [log.name for log in logs] == ["silo.log", "silo.log.1"]
    for log in logs:
        assert log.stat().st_size <= 2000
        assert log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("stage", ["masked", "advertise", "unknown", "", JOIN_STAGE])
def test_bytes_that_are_no_request_are_refused(stage: str, start: Start) -> None:
    joined = start()
    for content in (b"", b"\xc1", b"\x94\x01\x02\x03\x04", msgpack.packb([1, 2, 3])):
        assert refused(joined.silo.answer(Request(stage, 0, 0, content)), "ProtocolError"), (stage, content)


# What is remembered


def test_a_reopened_silo_remembers_what_it_joined(start: Start) -> None:
    joined = start(**PRIVATE)
    joined.join(planned=CHEAP)
    joined.reopen()
    assert joined.clear().status == "ok"
    assert len(joined.ledger()) == 1
    joined.reopen()
    assert refused(joined.clear(session=b"\x03" * 16))


def test_the_last_joined_session_counts_also_after_reopening(start: Start) -> None:
    joined = start()
    for session in (b"\x01" * 16, b"\x02" * 16, b"\x01" * 16):
        joined.join(session=session)
    for reopened in (False, True):
        if reopened:
            joined.reopen()
        for session, status in ((b"\x01" * 16, "ok"), (b"\x02" * 16, "refused")):
            assert joined.clear(session=session).status == status


def advertise(joined: Joined, session: bytes) -> Reply:
    """Ask for the keys of an epoch of two slots in a session."""
    kind, stage = (KeyRequest, "keys") if joined.config.aggregation == "ckks" else (AdvertiseRequest, "advertise")
    message = kind(session, joined.folder.roster().hash(), 1, 2)
    request = sign_message(joined.folder.coordinator_identity(), message)
    return joined.silo.answer(Request(stage, 0, 0, request))


def sessions_with_keys(joined: Joined) -> set[bytes]:
    tables = ("ckks_epoch",) if joined.config.aggregation == "ckks" else ("secagg_epoch", "secagg_secret")
    with sqlite3.connect(joined.home / "state.sqlite") as database:
        rows = [database.execute(f"SELECT session FROM {table}").fetchall() for table in tables]
    return {session for found in rows for (session,) in found}


@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_keys_are_made_for_the_joined_run_and_forgotten_with_the_next(aggregation: str, start: Start) -> None:
    one, two = b"\x01" * 16, b"\x02" * 16
    joined = start(aggregation=aggregation)
    joined.join(session=one)
    assert refused(advertise(joined, two), "Refusal")
    assert "rule session" in joined.log()
    assert advertise(joined, one).status == "ok", joined.log()
    joined.join(session=one)
    assert sessions_with_keys(joined) == {one}, "joining the same run again costs no keys"
    joined.join(session=two)
    assert sessions_with_keys(joined) == set()
    assert advertise(joined, two).status == "ok"
    assert sessions_with_keys(joined) == {two}
    joined.join(session=one)
    assert refused(advertise(joined, one), "Refusal"), "epoch 1 of the first run stays used"


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(("policy", "run", "expected"), [(0, 1, 1), (1, 1, 1), (0, 0, 0)])
def test_sums_bear_the_colluders_of_policy_and_run(
    policy: int, run: int, expected: int, reopened: bool, start: Start
) -> None:
    joined = start(policy={"colluders": policy}, aggregation="secagg", colluders=run)
    assert joined.join().status == "ok", joined.log()
    if reopened:
        joined.reopen()
    assert joined.silo._open_session().secure_sum._party.rules.colluders == expected


@pytest.mark.parametrize(("policy", "run", "expected"), [(0, 1, 1), (1, 1, 1), (0, 0, 0)])
def test_ckks_sums_bear_the_colluders_of_policy_and_run(policy: int, run: int, expected: int, start: Start) -> None:
    joined = start(policy={"colluders": policy}, aggregation="ckks", colluders=run)
    assert joined.join().status == "ok", joined.log()
    assert joined.silo._open_session().secure_sum._rules.colluders == expected


def test_a_silo_that_does_not_list_ckks_joins_no_such_run(start: Start) -> None:
    joined = start(policy={"aggregations": ("secagg",)}, aggregation="ckks")
    assert refused(joined.join(), "PolicyRefusal:aggregations")
    assert "refused by rule aggregations: the run sums by 'ckks'; accepted are secagg" in joined.log()
    assert refused(advertise(joined, SESSION), "ProtocolError"), "no run was joined, so no keys are made"


def test_a_simulated_drop_is_an_answer_that_costs_nothing(start: Start) -> None:
    joined = start(dropout=0.5, rounds=40)
    joined.join()
    statuses = [joined.clear(round=round).status for round in range(40)]
    assert set(statuses) == {"ok", "dropped"}
    assert 8 < statuses.count("dropped") < 32
    assert len(joined.ledger()) == statuses.count("ok")


def test_an_institution_drops_out_for_nobody(start: Start) -> None:
    """Also where a configuration with drops got past the check at joining."""
    joined = start(dropout=0.9, rounds=20)
    joined.join()
    session = joined.silo._open_session()
    session._policy = session._policy.model_copy(update={"simulated": False})
    assert {joined.clear(round=round).status for round in range(1, 20)} == {"ok"}


def test_every_use_is_a_line_also_without_dp(start: Start) -> None:
    joined = start()
    joined.join()
    for round in range(3):
        joined.clear(round=round, terms={"steps": 4})
    assert [(line[1], line[5], line[7]) for line in joined.ledger()] == [(n, 0.0, 4) for n in range(3)]


def test_a_census_counts_this_silo_s_records(start: Start) -> None:
    joined = start()
    joined.join()
    channel = count_channel(0.0)
    reply = joined.clear(phase="census", channels=(channel,))
    counted = unpack_sum(np.frombuffer(reply.reply, np.uint64), (channel,), 4)["count"]
    assert counted[0] == pytest.approx(20, abs=1e-3)


def test_a_folder_with_another_key_is_no_silo(start: Start, make_config, make_federation) -> None:
    joined = start()
    other = make_federation(make_config(), name="other")
    key = (silo_folder(other.path, 1) / "identity.key").read_bytes()
    (joined.home / "identity.key").write_bytes(key)
    with pytest.raises(AutoflipSecureError):
        Silo(joined.home)


def test_state_is_private_to_its_owner(start: Start) -> None:
    joined = start()
    joined.join()
    for name in ("state.sqlite", "identity.key", "data/train.npz"):
        assert (joined.home / name).stat().st_mode & 0o077 == 0, name
    rows = open_silo_database(joined.home / "state.sqlite").execute("SELECT session FROM sessions").fetchall()
    assert rows == [(SESSION,)]
