"""A coordinator with its own signing key drives an unmodified silo that has an institution's policy (not simulated).

Each attack asks for less protection than the silo joined, or tries to learn from how it answers; each must end in a
refusal before the records are touched, and leave no ledger line.
"""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.registry import load
from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation.audit_heads import HeadList
from autoflip_secure.federation.audit_log import Head
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.provisioning import RunFolder, provision
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.terms import count_channel, deviation_channel, metric_channel, update_channel
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.models.spec import ModelSpec, dense_spec, layout_of
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import CHANNEL_NAMES
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms

CLASSES = 10
MULTIPLIER = 1.5


class Attacker:
    """Holds the coordinator's key and one silo; `trust` is what the honest run would have been."""

    def __init__(self, folder: Path, trust: str, **policy: Any) -> None:
        data = load("digits", None, 0)
        options = {} if trust == "none" else {"dp_epsilon": 8.0, "dp_trust": trust}
        config = RunConfig.create(
            dataset="digits", model="mlp", silos=4, colluders=0, rounds=6, explore_rounds=1,
            partition="iid", aggregation="none", **options,
        )  # fmt: skip
        self.config = resolve(config, data.task, natural_silos=None)
        provision(RunFolder(folder), self.config, data)
        self.home = silo_folder(folder, 1)
        limits = {
            "aggregations": ("none", "secagg"),
            "trusts": ("none", "local", "distributed"),
            "epsilon": 8.0,
            "approval": "standing",
            "models": ("mlp",),
            "code": (code_digest().hex(),),
            "channels": tuple(CHANNEL_NAMES),
            "proved_models": False,
            "min_block": 1,
            "reply_every": 0.0,
            **policy,
        }
        (self.home / "policy.toml").write_text(SiloPolicy(**limits).to_toml())
        self.identity = RunFolder(folder).coordinator_identity()
        self.session = RunFolder(folder).session()
        self.task = (self.home / "task.json").read_text()
        self.silo = Silo(self.home)
        self.spec = dense_spec("mlp", data.task.input_shape, CLASSES)
        rate = self.config.sampling_rate
        self.planned = {} if trust == "none" else {
            "train": [Mechanism(rate, MULTIPLIER, 30)], "holdout": [Mechanism(1.0, 5.0, 3)],
        }  # fmt: skip

    def request(self, **changes: Any) -> JoinRequest:
        values = {"session": self.session, "config": self.config, "task": self.task, "planned": self.planned}
        return JoinRequest(**{**values, **changes})

    def join(self, request: JoinRequest | None = None, identity: Identity | None = None) -> Reply:
        self.joined = request or self.request()
        message = self.joined.sign(identity or self.identity)
        return self.silo.answer(Request(JOIN_STAGE, 0, 0, message))

    def model(self, spec: ModelSpec | None = None) -> ModelPayload:
        spec = spec or self.spec
        size = layout_of(spec).size
        return ModelPayload(spec, np.full(size, 0.01, np.float32), np.ones(size, bool), 1000)

    def manifest(self, model: ModelPayload, **changes: Any) -> Manifest:
        trust = self.config.trust
        phase = changes.get("phase", "train")
        multiplier = 0.0 if trust == "none" else MULTIPLIER
        terms = PrivacyTerms(
            trust,
            "train",
            1.0 if trust == "none" else self.config.sampling_rate,
            1,
            multiplier,
            self.config.clip,
            0,
            1e-5,
        )
        manifest = Manifest(
            session=self.session, epoch=0, slot=1, epoch_hash=bytes(32), round=1, attempt=0, phase=phase,
            cohorts=((1, 2, 3, 4),), minimum=(4,), threshold=3,
            model_hash=hashlib.sha256(model.to_bytes()).digest(), mask_hash=model.mask_hash(),
            config_hash=self.joined.digest(), channels=(update_channel(self.config, int(model.mask.sum())),),
            privacy=terms,
        )  # fmt: skip
        return replace(manifest, **changes)

    def terms(self, **changes: Any) -> PrivacyTerms:
        return replace(self.manifest(self.model()).privacy, **changes)

    def ask(self, manifest: Manifest, model: ModelPayload | None = None) -> Reply:
        attachment = (model or self.model()).to_bytes()
        heads = self.heads()
        content = replace(manifest, heads_hash=heads.hash()).to_bytes()
        return self.silo.answer(
            Request("clear", manifest.round, manifest.attempt, content, attachment, heads.shown()[1])
        )

    def heads(self) -> HeadList:
        """An honest list, of the only two parties that there are here."""
        self.silo._audit.refresh()
        assert self.silo._audit.head is not None
        return HeadList(Head.signed(1, bytes(32), self.identity), {1: self.silo._audit.head})

    def lines(self) -> int:
        database = open_silo_database(self.home / "state.sqlite")
        (table,) = database.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'privacy_ledger'").fetchone()
        count = database.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone()[0] if table else 0
        database.close()
        return int(count)

    def log(self) -> str:
        path = self.home / "silo.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def attacker(tmp_path: Path) -> Callable[..., Attacker]:
    return lambda trust, **policy: Attacker(tmp_path / "run", trust, **policy)


def refused(attack: Attacker, reply: Reply, rule: str, *, lines: int = 0) -> None:
    assert reply.status == "refused", (reply, attack.log())
    assert reply.reply == b""
    assert rule in attack.log()
    assert attack.lines() == lines, "something was charged"


def test_the_honest_request_is_answered(attacker) -> None:
    """Else all refusals below would prove nothing."""
    for trust in ("local",):
        attack = attacker(trust)
        assert attack.join().status == "ok", attack.log()
        assert attack.ask(attack.manifest(attack.model())).status == "ok", attack.log()
        assert attack.lines() == 1


# Joining


def test_noise_from_a_seed_is_refused(attacker) -> None:
    attack = attacker("local")
    config = ResolvedConfig.create(**{**attack.config.model_dump(), "insecure_reproducible_noise": True})
    refused(attack, attack.join(attack.request(config=config)), "simulated")


def test_drops_on_demand_are_refused(attacker) -> None:
    attack = attacker("local")
    config = ResolvedConfig.create(**{**attack.config.model_dump(), "dropout": 0.5})
    refused(attack, attack.join(attack.request(config=config)), "simulated")


def test_distributed_noise_in_clear_is_refused(attacker) -> None:
    attack = attacker("distributed")
    refused(attack, attack.join(), "sums in clear")


def test_a_join_signed_by_another_is_refused(attacker) -> None:
    attack = attacker("local")
    refused(attack, attack.join(identity=Identity.generate()), "not signed")


def test_another_task_is_refused_whatever_the_silo_holds(attacker) -> None:
    """A task of k classes would be refused only where labels reach k: an oracle on labels."""
    attack = attacker("local")
    for classes in (2, 5, 9, 11):
        fields = {**json.loads(attack.task), "classes": classes, "class_names": [str(i) for i in range(classes)]}
        if classes == 2:
            fields["kind"] = "binary"
        refused(attack, attack.join(attack.request(task=json.dumps(fields, sort_keys=True))), "provisioned for")


def test_a_plan_that_names_no_use_is_refused(attacker) -> None:
    attack = attacker("local")
    refused(attack, attack.join(attack.request(planned={})), "plans no use")


def test_a_plan_over_the_cap_is_refused_before_anything_is_spent(attacker) -> None:
    attack = attacker("local", epsilon=8.0)
    planned = {"train": [Mechanism(attack.config.sampling_rate, 0.3, 500)]}
    reply = attack.join(attack.request(planned=planned))
    assert (reply.status, reply.error) == ("refused", "BudgetExhausted")
    assert attack.lines() == 0


def test_more_epsilon_than_the_policy_is_refused(attacker) -> None:
    attack = attacker("local", epsilon=3.0)
    refused(attack, attack.join(), "rule epsilon")


def test_a_run_without_dp_needs_the_policy_to_say_so(attacker) -> None:
    attack = attacker("none", trusts=("local",))
    refused(attack, attack.join(), "rule trusts")


def test_a_policy_tightened_after_joining_applies(attacker) -> None:
    attack = attacker("local")
    assert attack.join().status == "ok"
    (attack.home / "policy.toml").write_text(SiloPolicy(aggregations=("secagg",), trusts=("local",)).to_toml())
    attack.silo = Silo(attack.home)
    refused(attack, attack.ask(attack.manifest(attack.model())), "rule aggregations")


# Manifests that would undercount

UNDERCOUNTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "less noise than planned": ({}, {"noise_multiplier": 0.01}, "plans 0 such uses"),
    "another sampling rate": ({}, {"sampling_rate": 0.001}, "plans 0 such uses"),
    "trust downgraded": ({}, {"trust": "none", "noise_multiplier": 0.0}, "trust"),
    "no step charged": ({}, {"steps": 0}, "at least once"),
    "the other record set": ({}, {"dataset": "holdout"}, "would charge"),
    "larger delta": ({}, {"delta": 0.1}, "delta"),
    "scores charged to training records": (
        {"phase": "evaluate", "channels": (metric_channel(2 * CLASSES + 1, 5.0),)}, {}, "would charge",
    ),
    "scores with hardly any noise": (
        {"phase": "evaluate", "channels": (metric_channel(2 * CLASSES + 1, 5.0),)},
        {"dataset": "holdout", "sampling_rate": 1.0, "noise_multiplier": 5.0, "clip": 1e-8}, "changes the scores",
    ),
    "scores charged as if records were sampled": (
        {"phase": "evaluate", "channels": (metric_channel(2 * CLASSES + 1, 5.0),)},
        {"dataset": "holdout", "sampling_rate": 0.01, "noise_multiplier": 5.0, "clip": 1.0}, "every record once",
    ),
    "another configuration": ({"config_hash": b"x" * 32}, {}, "configuration"),
    "another session": ({"session": b"y" * 16}, {}, "session"),
    "another mask": ({"mask_hash": b"z" * 32}, {}, "mask"),
    "another model": ({"model_hash": b"z" * 32}, {}, "model"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDERCOUNTS)
def test_a_manifest_that_would_undercount_is_refused(case: str, attacker) -> None:
    fields, terms, rule = UNDERCOUNTS[case]
    attack = attacker("local")
    assert attack.join().status == "ok"
    manifest = replace(attack.manifest(attack.model(), **fields), privacy=attack.terms(**terms))
    refused(attack, attack.ask(manifest), rule)


@pytest.mark.parametrize("name", ["sampling_rate", "noise_multiplier", "clip", "delta", "colluders", "steps"])
def test_terms_that_are_no_numbers_are_no_manifest(name: str, attacker) -> None:
    attack = attacker("local")
    assert attack.join().status == "ok"
    for value in (math.nan, math.inf, -1.0):
        with pytest.raises(ProtocolError):
            attack.terms(**{name: value})


def test_no_more_uses_than_the_plan_says(attacker) -> None:
    attack = attacker("local")
    attack.planned["train"] = [Mechanism(attack.config.sampling_rate, MULTIPLIER, 2)]
    assert attack.join().status == "ok"
    for round in (1, 2):
        assert attack.ask(attack.manifest(attack.model(), round=round)).status == "ok", attack.log()
    reply = attack.ask(attack.manifest(attack.model(), round=3))
    assert (reply.status, reply.error) == ("refused", "BudgetExhausted")
    assert attack.lines() == 2


# Lengths that are not those of the contribution


@pytest.mark.parametrize("length", [2, 1 << 31, (1 << 32) - 1])
def test_a_channel_longer_than_the_contribution_allocates_nothing(length: int, attacker) -> None:
    """Dither and noise are drawn by the manifest's length, gigabytes of them, if it is not looked at first."""
    attack = attacker("local")
    attack.planned["train"].append(Mechanism(1.0, 5.0, 3))
    assert attack.join().status == "ok", attack.log()
    terms = attack.terms(sampling_rate=1.0, noise_multiplier=5.0, clip=1.0)
    honest = attack.manifest(attack.model(), phase="census", channels=(count_channel(5.0),), privacy=terms)
    assert attack.ask(honest).status == "ok", attack.log()
    longer = replace(honest, attempt=1, channels=(replace(count_channel(5.0), length=length),))
    tracemalloc.start()
    try:
        reply = attack.ask(longer)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert replace(reply, head=b"") == Reply("failed")
    assert f"channel count has 1 coordinates, not {length}" in attack.log()
    assert peak < 8 << 20


# Models as oracles


@pytest.mark.parametrize(
    ("name", "shape", "outputs"), [("mlp", (1, 8, 8), 3), ("mlp", (5,), 10), ("cnn-tanh", (1, 8, 8), 10)]
)
def test_a_model_of_another_shape_is_refused_before_records_are_touched(name, shape, outputs, attacker) -> None:
    attack = attacker("local")
    assert attack.join().status == "ok"
    model = attack.model(dense_spec(name, shape, outputs))
    refused(attack, attack.ask(attack.manifest(model), model), "not this run's")


def test_what_fails_after_the_records_were_touched_is_not_named(attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoflip_secure.errors import DataError
    from autoflip_secure.federation.contribution import Contributor

    def telling(*_: object) -> None:
        raise DataError("patient 17 has label 3")

    monkeypatch.setattr(Contributor, "contribute", telling)
    attack = attacker("local")
    assert attack.join().status == "ok"
    reply = attack.ask(attack.manifest(attack.model()))
    assert (reply.status, reply.reply, reply.error) == ("failed", b"", "")
    assert attack.lines() == 1, "the line stays spent"
    assert (attack.home / "silo.log").stat().st_mode & 0o777 == 0o600


# Differences of sums


def test_without_dp_a_second_cohort_for_one_round_is_refused(attacker) -> None:
    attack = attacker("none")
    assert attack.join().status == "ok"
    first = attack.manifest(attack.model())
    assert attack.ask(first).status == "ok", attack.log()
    assert attack.ask(replace(first, attempt=1)).status == "ok", "a retry with the same cohort is allowed"
    second = replace(first, cohorts=((1, 2, 3),), minimum=(3,))
    refused(attack, attack.ask(second), "another cohort", lines=2)


def test_a_round_that_was_asked_for_goes_on_without_a_silo_that_was_removed(
    attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's removal says so, not the coordinator; how few may be left is the next rule's to say."""
    attack = attacker("none")
    assert attack.join().status == "ok"
    first = attack.manifest(attack.model())
    assert attack.ask(first).status == "ok", attack.log()
    left = replace(first, cohorts=((1, 2, 3),), minimum=(3,))
    refused(attack, attack.ask(left), "another cohort", lines=1)
    admission = attack.silo._session._admission
    fewer = Roster(admission.roster.coordinator, admission.roster.entries[:3])
    monkeypatch.setattr(attack.silo._session, "_admission", replace(admission, roster=fewer))
    assert attack.ask(left).status == "refused"
    assert "the joined run opens none below" in attack.log().splitlines()[-1]
    other = replace(first, cohorts=((1, 2),), minimum=(2,))
    assert attack.ask(other).status == "refused"
    assert "none below" not in attack.log().splitlines()[-1]


@pytest.mark.parametrize("trust", ["none", "local"])
def test_no_sum_is_opened_with_fewer_survivors_than_the_reviewed_run_opens(attacker, trust: str) -> None:
    attack = attacker(trust)
    assert attack.join().status == "ok", attack.log()
    honest = attack.manifest(attack.model())
    # Within the policy: all of a cohort of three. The officer read of four.
    lower = replace(honest, cohorts=((1, 2, 3),), minimum=(3,))
    refused(attack, attack.ask(lower), "the joined run opens none below", lines=0)


def test_without_dp_a_sum_and_squares_of_one_round_are_not_had_one_after_the_other(attacker) -> None:
    """Each alone is opened with a survivor less than both at once."""
    attack = attacker("none")
    assert attack.join().status == "ok"
    model = attack.model()
    first = attack.manifest(model, phase="explore", channels=(deviation_channel(int(model.mask.sum())),))
    assert attack.ask(first).status == "ok", attack.log()
    for phase in ("explore", "train"):
        second = attack.manifest(model, phase=phase, attempt=1)
        refused(attack, attack.ask(second), "other channels", lines=1)


def test_without_dp_a_round_beyond_the_joined_run_is_refused(attacker) -> None:
    """Under DP the plan says how many there may be."""
    attack = attacker("none")
    assert attack.join().status == "ok"
    late = attack.manifest(attack.model(), round=attack.config.rounds)
    refused(attack, attack.ask(late), "beyond the 6")


def test_squares_are_refused_under_distributed_noise(tmp_path: Path) -> None:
    attack = Attacker(tmp_path / "run", "distributed")
    attack.joined = attack.request()
    manifest = attack.manifest(attack.model(), channels=(deviation_channel(10),))
    policy = SiloPolicy(trusts=("distributed",), channels=("deviation",))
    with pytest.raises(ProtocolError, match="linear"):
        policy.check_manifest(manifest)


# Secrets on disk


def test_spent_slot_secrets_are_gone_from_database_and_log(tmp_path: Path) -> None:
    from autoflip_secure.sim import main

    options = ["--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "1", "--prune", "none", "--quiet"]
    run = tmp_path / "run"
    import autoflip_secure.secagg.state as state

    seen: list[bytes] = []
    original = state.SiloState.spend

    def spend(self: Any, *arguments: Any, **options: Any) -> Any:
        secret = original(self, *arguments, **options)
        seen.extend([secret.seed, secret.mask_key])
        return secret

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.SiloState, "spend", spend)
        assert main([*options, "--colluders", "0", "--workers", "0", "--run-dir", str(run)]) == 0
    assert len(seen) == 8
    for number in range(1, 5):
        for path in silo_folder(run, number).glob("state.sqlite*"):
            data = path.read_bytes()
            assert not [secret for secret in seen if secret in data], path


def test_join_requests_from_noise_are_refused(attacker) -> None:
    attack = attacker("local")
    for message in (b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb([b"", b""]), msgpack.packb("x" * 100)):
        reply = attack.silo.answer(Request(JOIN_STAGE, 0, 0, message))
        assert reply.status == "refused", message
