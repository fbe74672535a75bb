"""autoflip-secure silo review, approve, deny, policy check: what an officer sees and decides."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.cli import main
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.approvals import officer
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.initial_model import start_hash
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.policy_rules import RULES
from autoflip_secure.federation.review_text import CHANNEL_WORDS
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.plan import accounting_delta
from autoflip_secure.sums.channels import CHANNEL_NAMES, TAG_CHANNEL

LOCAL = {"dp_epsilon": 8.0, "dp_trust": "local"}


class Officer:
    """At the command line of one silo; `out` and `err` are what the last command printed."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._home, self._capsys = home, capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._capsys.readouterr()
        code = main(["silo", *arguments, "--home", str(self._home)])
        self.out, self.err = self._capsys.readouterr()
        return code

    def values(self, *arguments: str) -> dict[str, Any]:
        assert self(*arguments, "--json") == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def at(capsys: pytest.CaptureFixture[str]) -> Callable[[Any], Officer]:
    """at(silo) -> its officer."""
    return lambda silo: Officer(silo.home, capsys)


def test_a_silo_that_nobody_asked_says_so(institution, at) -> None:
    command = at(institution(each=True))
    assert command("review") == 0
    assert command.out == "no run was asked for yet\n"
    assert command.values("review") == {"runs": []}


def test_the_list_names_runs_states_and_who_decided(institution, at) -> None:
    silo = institution(each=True)
    requests = [silo.asked(bytes([number]) * 16) for number in range(3)]
    for request in requests:
        silo.join(request)
    command = at(silo)
    digests = [request.digest().hex() for request in requests]
    assert command("approve", digests[0], "--yes") == 0, command.err
    assert command("deny", digests[1][:32], "--yes") == 0, command.err
    assert command("review") == 0
    rows = [line for line in command.out.splitlines() if any(digest[:32] in line for digest in digests)]
    assert [state for row in rows for state in ("pending", "approved", "denied") if state in row] == [
        "approved", "denied", "pending",
    ]  # fmt: skip
    assert [officer() in row for row in rows] == [True, True, False]
    listed = command.values("review")["runs"]
    assert [(row["run"], row["state"]) for row in listed] == list(
        zip(digests, ("approved", "denied", "pending"), strict=True)
    )


def test_an_approved_run_goes_on_and_a_denied_one_stops(institution, at) -> None:
    silo = institution(each=True, **LOCAL)
    assert silo.join().error == "ApprovalPending"
    command, digest = at(silo), silo.request.digest().hex()
    assert command("approve", digest[:32], "--yes") == 0, command.err
    assert f"approved {digest}" in command.out
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute(round=0).status == "ok", silo.refusal
    assert command("deny", digest[:32], "--yes") == 0
    assert silo.contribute(round=1).status == "refused"
    assert silo.join().error == "PolicyRefusal:denied"


def test_a_decision_is_asked_for_after_the_review_was_shown(institution, at, monkeypatch: pytest.MonkeyPatch) -> None:
    silo = institution(each=True)
    silo.join()
    command, digest = at(silo), silo.request.digest().hex()
    for answer, code, state in ((False, 130, "pending"), (True, 0, "approved")):
        monkeypatch.setattr("click.termui.visible_prompt_func", lambda _, answer=answer: "y" if answer else "n")
        assert command("approve", digest) == code
        assert "What would leave" in command.out
        assert [run.state for run in silo.store().runs()] == [state]
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert command("deny", digest) == 130
    assert [run.state for run in silo.store().runs()] == ["approved"]


def test_a_short_start_of_a_digest_is_enough_to_look_and_not_to_approve(institution, at) -> None:
    silo = institution(each=True)
    silo.join()
    command, digest = at(silo), silo.request.digest().hex()
    assert command.values("review", digest[:4])["run"] == digest
    assert command("approve", digest[:31], "--yes") == 2
    assert "give 32 or more hexadecimal digits" in command.err
    assert "a shorter one could be that of another run by now" in command.err


@pytest.mark.parametrize("command", [("review", "abcdefabcdefabcdef"), ("approve", "ab" * 16), ("deny", "ab" * 16)])
def test_a_run_that_nobody_asked_for_is_bad_input(command: tuple[str, ...], institution, at) -> None:
    officer_of = at(institution(each=True))
    more = () if command[0] == "review" else ("--yes",)
    assert officer_of(*command, *more) == 2
    assert officer_of.err.count("\n") == 1
    assert "no such run was asked for" in officer_of.err


def test_a_review_shows_what_runs_and_what_leaves(institution, at, task) -> None:
    silo = institution(each=True, prune="autoflip", **LOCAL)
    planned = {"train": [Mechanism(0.2, 2.0, 5)], "holdout": [Mechanism(1.0, 9.0, 2)]}
    silo.join(silo.asked(planned=planned))
    command = at(silo)
    made = command.values("review", silo.request.digest().hex())
    assert made["state"] == "pending"
    (word,) = made["decision_refuses"]
    assert word.startswith("refused by rule approval: ")
    assert made["coordinator"] == silo.folder.roster().coordinator.hex()
    assert made["network"] == {
        "name": "mlp", "parameters": silo.model.weights.size, "initial_model": start_hash(silo.model).hex(),
    }  # fmt: skip
    assert made["code"] == {"here": code_digest().hex(), "coordinator": code_digest().hex()}
    leaves = {(each["phase"], channel["name"]): channel for each in made["leaves"] for channel in each["channels"]}
    assert {name for _, name in leaves} == {"update", "deviation", "unit_energy", "metric"}
    assert leaves["train", "update"]["numbers"] == silo.model.weights.size
    assert {(*each["cohorts"], *each["minimum"]) for each in made["leaves"]} == {(4, 4)}
    assert made["privacy"]["planned"]["holdout"] == [{"sampling_rate": 1.0, "noise_multiplier": 9.0, "count": 2}]
    joined = {rule for rule, each in RULES.items() if each.when != "round"} - {"approval", "denied", "roster"}
    assert {row["rule"] for row in made["rules"]} == joined | {"epsilon caps"}
    assert all(row["holds"] for row in made["rules"])
    assert command("review", silo.request.digest().hex()) == 0
    for words in (
        silo.request.digest().hex(), "What would leave", "squared length of each unit's update", "Rules of this silo",
        "this silo's noise alone keeps the promise", "epsilon 8 at delta 1e-05, of one record, for the whole run",
        "No run was approved before", "the same",
    ):  # fmt: skip
        assert words in command.out, words
    assert "FAIL" not in command.out


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_a_review_of_a_run_with_proved_models_says_so(trust: str, institution, at) -> None:
    silo = institution(each=True, dp_epsilon=8.0, dp_trust=trust, aggregation="secagg", prove_models=True)
    silo.join(silo.asked())
    command = at(silo)
    made = command.values("review", silo.request.digest().hex())
    tags = [channel for each in made["leaves"] for channel in each["channels"] if channel["name"] == "tag"]
    assert {(channel["numbers"], channel["bits"]) for channel in tags} == {(80 if trust == "distributed" else 64, 64)}
    assert command("review", silo.request.digest().hex()) == 0
    for words in ("proved: this silo computes each one itself", "proof that the sum is of what silos sent"):
        assert words in command.out


def test_a_review_names_the_blocks(institution, at) -> None:
    """With whom a hospital is summed together or not at all, and what else single sums would tell."""
    silo = institution(each=True, silos=6, block=3, aggregation="secagg", min_cohort=0.5)
    silo.join(silo.asked())
    command = at(silo)
    assert command("review", silo.request.digest().hex()) == 0
    names = [entry.name for entry in silo.folder.roster().entries]
    told = " ".join(command.out.split())
    assert f"{', '.join(names[:3])}; {', '.join(names[3:])}" in told
    alone = institution(each=True, silos=6, aggregation="secagg")
    alone.join(alone.asked())
    command = at(alone)
    assert command("review", alone.request.digest().hex()) == 0
    assert "whose difference tells of it alone" in " ".join(command.out.split())


def test_every_channel_has_words_for_an_officer() -> None:
    assert set(CHANNEL_WORDS) == CHANNEL_NAMES | {TAG_CHANNEL}


def test_a_review_says_what_the_ledger_would_be(institution, at) -> None:
    silo = institution(each=True, policy={"epsilon": 9.0, "epsilon_per_year": 8.5}, **LOCAL)
    silo.join()
    silo.approve()
    assert silo.join().status == "ok", silo.refusal
    for round in (1, 2):
        assert silo.contribute(round=round).status == "ok", silo.refusal
    spent = silo.lines()
    assert spent == 2
    delta = accounting_delta("local", 1e-5)
    steps = silo.config.local_steps
    used, planned = Mechanism(0.2, 2.0, 2 * steps), Mechanism(0.2, 2.0, 5)
    (own,) = at(silo).values("review", silo.request.digest().hex())["spending"]
    assert own["now"] == own["year_now"] == pytest.approx(epsilon([used], delta))
    assert own["run"] == own["after"] == own["year_after"] == pytest.approx(epsilon([planned], delta)), (
        "not counted twice"
    )
    assert (own["cap"], own["run_cap"], own["year_cap"]) == (9.0, 8.0, 8.5)
    silo.join(silo.asked(b"\x01" * 16))
    (other,) = at(silo).values("review", silo.request.digest().hex())["spending"]
    both = epsilon([Mechanism(0.2, 2.0, 2 * steps + 5)], delta)
    assert other["after"] == other["year_after"] == pytest.approx(both)
    assert other["run"] == pytest.approx(epsilon([planned], delta))


def test_an_approval_that_no_longer_holds_is_shown_and_can_be_given_again(institution, at) -> None:
    silo = institution(each=True)
    silo.join()
    silo.approve(code=b"c" * 32)
    command, digest = at(silo), silo.request.digest().hex()
    (word,) = command.values("review", digest)["decision_refuses"]
    assert word.startswith("refused by rule code: the run was approved for code 6363")
    assert command("approve", digest, "--yes") == 0, command.err
    made = command.values("review", digest)
    assert made["decision_refuses"] == []
    assert [(each["verdict"], each["who"]) for each in made["decisions"]] == [
        ("approved", "officer"), ("approved", officer()),
    ]  # fmt: skip


def test_a_run_that_costs_too_much_fails_by_the_caps_and_is_not_approved(institution, at) -> None:
    silo = institution(each=True, policy={"epsilon": 8.0, "epsilon_per_run": 0.5}, **LOCAL)
    silo.join()
    command, digest = at(silo), silo.request.digest().hex()
    rows = {row["rule"]: row for row in command.values("review", digest)["rules"]}
    assert not rows["epsilon caps"]["holds"]
    assert command("approve", digest, "--yes") == 2
    assert "this silo would refuse it" in command.err
    assert [run.state for run in silo.store().runs()] == ["pending"]


def test_failing_rules_are_shown_and_keep_a_run_from_being_approved(institution, at) -> None:
    silo = institution(each=True, policy={"channels": ("count",), "min_silos": 5, "models": ("lenet",)})
    silo.join()
    command, digest = at(silo), silo.request.digest().hex()
    rows = {row["rule"]: row for row in command.values("review", digest)["rules"]}
    assert {rule for rule, row in rows.items() if not row["holds"]} == {"channels", "min_silos", "models"}
    assert command("review", digest) == 0
    assert command.out.count("FAIL") == 3
    assert "refuse the run, whoever approves it, by: min_silos, channels, models" in command.out
    assert command("approve", digest, "--yes") == 2
    assert "refused by rule channels: update would leave; accepted are count" in command.err
    assert [run.state for run in silo.store().runs()] == ["pending"]


def test_a_review_names_what_differs_from_the_run_approved_last(institution, at) -> None:
    silo = institution(each=True)
    silo.join()
    command = at(silo)
    first = silo.request.digest().hex()
    assert command("approve", first, "--yes") == 0, command.err
    options = {**silo.config.model_dump(), "seed": 5, "update_limit": 2.0, "workers": 9}
    later = silo.asked(b"\x01" * 16, config=ResolvedConfig.create(**options), code=b"c" * 32)
    silo.join(later)
    made = command.values("review", later.digest().hex())
    assert made["compared_to"] == first
    assert {each["option"]: (each["before"], each["now"]) for each in made["differences"]} == {
        "seed": (0, 5),
        "update_limit": (1.0, 2.0),
        "code of the coordinator": (code_digest().hex(), (b"c" * 32).hex()),
    }
    assert command("review", later.digest().hex()) == 0
    assert f"Other options than the run approved last, {first}" in command.out
    assert f"another: {(b'c' * 32).hex()}" in command.out


def test_decisions_stand_in_the_audit_log_of_the_silo(institution, at) -> None:
    silo = institution(each=True)
    silo.join()
    command, digest = at(silo), silo.request.digest()
    assert command("approve", digest.hex(), "--yes") == 0, command.err
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute().status == "ok", silo.refusal
    assert command("deny", digest.hex(), "--yes") == 0, command.err
    assert silo.contribute(round=2).status == "refused"
    lines = [json.loads(line) for line in (silo.home / "audit.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert [kind for kind in kinds if kind in ("approved", "denied")] == ["approved", "denied"]
    decided = {line["kind"]: line for line in lines}
    for kind in ("approved", "denied"):
        assert (decided[kind]["run"], decided[kind]["who"]) == (digest.hex(), officer())
    assert decided["approved"]["code"] == code_digest().hex()
    assert main(["audit", "verify", str(silo.home)]) == 0


def test_a_request_of_another_version_is_listed_and_cannot_be_approved(institution, at) -> None:
    silo = institution(each=True)
    silo.join()
    with sqlite3.connect(silo.home / "state.sqlite") as database:
        database.execute("UPDATE asked_runs SET request = x'00'")
    command, digest = at(silo), silo.request.digest().hex()
    assert command("review") == 0
    assert "cannot be read by this version" in command.out
    assert command("approve", digest, "--yes") == 2
    assert "wait until the coordinator asks again" in command.err


def test_names_from_the_coordinator_do_not_steer_the_terminal(institution, at) -> None:
    silo = institution(each=True)
    options = {**silo.config.model_dump(), "dataset": "digits\x1b[2J\nrun  approved"}
    silo.join(silo.asked(config=ResolvedConfig.create(**{**options, "model": "mlp\x1b[2J"})))
    silo.join(silo.asked(config=ResolvedConfig.create(**options)))
    command = at(silo)
    for arguments in (("review",), ("review", silo.request.digest().hex())):
        assert command(*arguments) == 0
        assert "?[2J" in command.out
        assert "\x1b" not in command.out
        assert not [line for line in command.out.splitlines() if line.startswith("run  approved")]


def test_a_folder_that_is_no_silo_s_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Officer(tmp_path, capsys)
    for arguments in (("review",), ("approve", "ab" * 16, "--yes"), ("deny", "ab" * 16, "--yes")):
        assert command(*arguments) == 2
        assert "is no silo's folder" in command.err
    assert list(tmp_path.iterdir()) == [], "nothing was made"


def test_a_silo_without_a_bundle_is_told_to_install_one(institution, at) -> None:
    silo = institution(each=True)
    (silo.home / "roster.bin").unlink()
    command = at(silo)
    assert command("review") == 2
    assert "run `autoflip-secure silo install BUNDLE`" in command.err


# policy.toml


def test_a_policy_is_explained_setting_by_setting(institution, at) -> None:
    command = at(institution(each=True))
    assert command("policy", "check") == 0
    for name, field in SiloPolicy.model_fields.items():
        assert field.description, name
        assert name in command.out
    assert code_digest().hex() in command.out
    values = command.values("policy", "check")
    assert values["code"] == code_digest().hex()
    assert set(values["policy"]) == set(SiloPolicy.model_fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('channels = ["updates"]', "'updates' is none of clip_bits, count"),
        ('aggregations = ["secagg", "plain"]', "'plain' is none of secagg, ckks, none"),
        ('trusts = ["central"]', "'central' is none of distributed, local, none"),
        ('code = ["abc"]', "'abc' is not a digest of 64 lower-case hexadecimal digits"),
        ('approval = "never"', "approval"),
        ("min_silos = 2", "min_silos"),
        ("min_threshold = 2", "min_threshold"),
        ('models = ["resnet1800"]', "unknown network 'resnet1800'"),
        ("surprise = 1", "surprise"),
        ("epsilon = = 1", "policy.toml"),
    ],
)
def test_a_policy_that_cannot_be_used_is_bad_input(text: str, words: str, institution, at) -> None:
    silo = institution(each=True)
    (silo.home / "policy.toml").write_text(text)
    command = at(silo)
    assert command("policy", "check") == 2
    assert words in command.err
    assert command.err.count("\n") == 1


def test_records_outside_of_the_policy_s_folder_are_found_by_the_check(institution, at, tmp_path: Path) -> None:
    silo = institution(each=True, policy={"data": tmp_path / "archive"})
    command = at(silo)
    assert command("policy", "check") == 2
    assert "refused by rule data" in command.err


def test_a_decision_pins_what_is_installed_here(institution, at) -> None:
    silo = institution(each=True)
    silo.join()
    assert at(silo)("approve", silo.request.digest().hex(), "--yes") == 0
    decision = silo.store().decision(silo.request.digest())
    assert decision is not None
    assert decision.who == officer()
    pins = decision.pins
    assert pins is not None
    assert (pins.code, pins.model) == (code_digest(), start_hash(silo.model))
    assert pins.roster == silo.folder.roster().to_bytes()
    assert replace(decision, pins=None) in [
        replace(each, pins=None) for each in silo.store().history(silo.request.digest())
    ]
