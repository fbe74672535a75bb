"""Each rule of a silo's policy refuses its violation, by its name, before the records are touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autoflip_secure.errors import ApprovalPending, PolicyRefusal, Refusal
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.policy_rules import RULES, Rule, public_name, public_names, refusal, rules_table
from autoflip_secure.federation.terms import deviation_channel, metric_channel, update_channel
from autoflip_secure.federation.wire import Reply
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry

LOCAL = {"dp_epsilon": 8.0, "dp_trust": "local"}
NOISED_SUMS = {"dp_epsilon": 8.0, "dp_trust": "distributed"}

Make = Callable[..., Any]
Violation = Callable[[Make], tuple[Any, Reply]]


def joining(policy: dict[str, Any], **options: Any) -> Violation:
    """A run that another policy would let in."""

    def violate(institution: Make) -> tuple[Any, Reply]:
        silo = institution(policy=policy, **options)
        return silo, silo.join()

    return violate


def a_round(terms: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **changes: Any) -> Violation:
    """A round that the joined run does not have."""

    def violate(institution: Make) -> tuple[Any, Reply]:
        silo = institution(**(options or {}))
        assert silo.join().status == "ok", silo.refusal
        return silo, silo.contribute(terms=terms, **changes)

    return violate


def records_elsewhere(institution: Make) -> tuple[Any, Reply]:
    silo = institution()
    elsewhere = silo.home.parent / "elsewhere"
    (silo.home / "data").rename(elsewhere)
    (silo.home / "data").symlink_to(elsewhere)
    return silo, silo.join()


def another_task(institution: Make) -> tuple[Any, Reply]:
    silo = institution()
    return silo, silo.join(silo.asked(task=silo.task.replace("toy", "tox")))


def no_plan(institution: Make) -> tuple[Any, Reply]:
    silo = institution(**LOCAL)
    return silo, silo.join(silo.asked(planned={}))


def denied(institution: Make) -> tuple[Any, Reply]:
    silo = institution()
    assert silo.join().status == "ok", silo.refusal
    silo.store().deny(silo.request.digest(), "officer")
    return silo, silo.join()


def a_silo_more(institution: Make) -> tuple[Any, Reply]:
    silo = institution(each=True)
    silo.join()
    fewer = silo.folder.roster()
    silo.approve(roster=Roster(fewer.coordinator, fewer.entries[:-1]).to_bytes())
    return silo, silo.join()


def nobody_approved(institution: Make) -> tuple[Any, Reply]:
    silo = institution(each=True)
    return silo, silo.join()


def squares_under_distributed_noise(institution: Make) -> tuple[Any, Reply]:
    silo = institution(policy={"simulated": True}, **NOISED_SUMS)
    assert silo.join().status == "ok", silo.refusal
    update = update_channel(silo.config, silo.model.weights.size)
    return silo, silo.contribute(channels=(update, deviation_channel(silo.model.weights.size)))


def a_second_cohort(institution: Make) -> tuple[Any, Reply]:
    silo = institution(silos=5)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute().status == "ok", silo.refusal
    return silo, silo.contribute(attempt=1, cohorts=((1, 2, 3, 4),), minimum=(4,))


def a_silo_without_its_block(institution: Make) -> tuple[Any, Reply]:
    """Three silos of two blocks: the sum would be over one block and a single silo of the other."""
    silo = institution(silos=6, block=3, min_cohort=0.5)
    assert silo.join().status == "ok", silo.refusal
    return silo, silo.contribute(cohorts=((1, 2, 3, 4),), minimum=(4,), blocks=((1, 2, 3), (4,)))


def a_model_made_up(institution: Make) -> tuple[Any, Reply]:
    silo = institution()
    assert silo.join().status == "ok", silo.refusal
    return silo, silo.contribute(silo.wrong_model(), round=0)


def a_second_model(institution: Make) -> tuple[Any, Reply]:
    silo = institution()
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute().status == "ok", silo.refusal
    return silo, silo.contribute(silo.wrong_model(), attempt=1)


def a_model_without_its_sums(institution: Make) -> tuple[Any, Reply]:
    silo = institution()
    silo.config = silo.config.model_copy(update={"prove_models": True})
    assert silo.join(silo.asked()).status == "ok", silo.refusal
    return silo, silo.contribute(round=1)


VIOLATIONS: dict[Rule, Violation] = {
    Rule.AGGREGATIONS: joining({"aggregations": ("secagg",)}),
    Rule.TRUSTS: joining({"trusts": ("local",)}),
    Rule.EPSILON: joining({"epsilon": 7.9}, **LOCAL),
    Rule.DELTA: joining({"delta": 0.9e-5}),
    Rule.COLLUDERS: joining({"colluders": 1}, **LOCAL),
    Rule.MIN_COHORT: joining({"min_cohort": 0.9}, silos=10),
    Rule.MIN_SILOS: joining({"min_silos": 5}),
    Rule.MIN_BLOCK: joining({"min_block": 4}, silos=6, block=3),
    Rule.MIN_THRESHOLD: joining({"min_threshold": 4}),
    Rule.CHANNELS: joining({"channels": ("update",)}, prune="autoflip", cohorts=1, warm_start=False),
    Rule.MODELS: joining({"models": ("lenet",)}),
    Rule.ROTATING_COHORTS: joining({}, silos=16, cohort_filter=True, allow_cohort_rotation=True),
    Rule.PROVED_MODELS: joining({"proved_models": True}),
    Rule.SIMULATED: joining({}, dropout=0.1),
    Rule.CODE: joining({"code": ("ab" * 32,)}),
    Rule.DATA: records_elsewhere,
    Rule.TASK: another_task,
    Rule.PLAN: no_plan,
    Rule.DENIED: denied,
    Rule.ROSTER: a_silo_more,
    Rule.APPROVAL: nobody_approved,
    Rule.SESSION: a_round(session=b"x" * 16),
    Rule.RUN: a_round(config_hash=b"x" * 32),
    Rule.ROUNDS: a_round(round=4),
    Rule.TERMS: a_round({"steps": 0}),
    Rule.LINEAR: squares_under_distributed_noise,
    Rule.GRID: a_round(options={**NOISED_SUMS, "bits": 8, "policy": {"simulated": True}}),
    Rule.COHORTS: a_second_cohort,
    Rule.BLOCKS: a_silo_without_its_block,
    Rule.MODEL: a_round(model_hash=b"x" * 32),
    Rule.ONE_MODEL: a_second_model,
    Rule.INITIAL_MODEL: a_model_made_up,
    Rule.PROOF: a_model_without_its_sums,
}
"""One for each rule; nothing else is wrong in it."""

FIRST_LINES = {Rule.COHORTS: 1, Rule.ONE_MODEL: 1}
"""Ledger lines of what was right before."""


def test_every_rule_is_explained_and_violated() -> None:
    assert set(VIOLATIONS) == set(RULES) == set(Rule)
    assert {each.when for each in RULES.values()} == {"join", "round", "both"}


@pytest.mark.parametrize("rule", Rule)
def test_a_violation_is_refused_by_its_rule(rule: Rule, institution) -> None:
    silo, reply = VIOLATIONS[rule](institution)
    said = silo.refusal
    assert reply.status == "refused", said
    assert reply.reply == b""
    assert f"refused by rule {rule}: " in said
    assert said.endswith(RULES[rule].remedy), "what to do"
    assert silo.lines() == FIRST_LINES.get(rule, 0), "the records were touched"


@pytest.mark.parametrize("rule", Rule)
def test_the_coordinator_learns_rules_while_joining_and_no_later(rule: Rule, institution) -> None:
    silo, reply = VIOLATIONS[rule](institution)
    joins = RULES[rule].when != "round"
    expected = f"PolicyRefusal:{rule}" if joins else "PolicyRefusal"
    assert reply.error == ("ApprovalPending" if rule is Rule.APPROVAL else expected), silo.refusal


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (Rule.TRUSTS, {"terms": {"trust": "local", "noise_multiplier": 2.0, "clip": 1.0}}),
        (Rule.DELTA, {"terms": {"delta": 1.1e-5}}),
        (Rule.COLLUDERS, {"terms": {"colluders": 0}}),
        (Rule.MIN_COHORT, {"minimum": (4,)}),
        (Rule.MIN_SILOS, {"cohorts": ((1, 2, 3, 4),), "minimum": (4,)}),
        (Rule.MIN_THRESHOLD, {"threshold": 2}),
        # Without DP nothing says at joining whether scores will be asked for.
        (
            Rule.CHANNELS,
            {"phase": "evaluate", "channels": (metric_channel(7, 0.0),), "terms": {"dataset": "holdout", "steps": 1}},
        ),
    ],
)
def test_a_limit_holds_for_each_round_too(rule: Rule, changes: dict[str, Any], institution) -> None:
    tight = {
        "trusts": ("none",), "delta": 1e-5, "colluders": 1, "min_cohort": 0.8, "min_silos": 5, "min_threshold": 3,
        "channels": ("update", "count"),
    }  # fmt: skip
    silo = institution(policy=tight, silos=6, colluders=1)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute(threshold=5).status == "ok", silo.refusal
    reply = silo.contribute(**{"threshold": 5, **changes})
    assert reply == Reply("refused", error="PolicyRefusal")
    assert f"refused by rule {rule}: " in silo.refusal
    assert silo.lines() == 1


def test_a_round_has_no_channel_that_the_joined_run_has_not(institution) -> None:
    """Although the policy would let it leave: it was in no review."""
    silo = institution()
    assert silo.join().status == "ok", silo.refusal
    update = update_channel(silo.config, silo.model.weights.size)
    for channels in ((deviation_channel(silo.model.weights.size),), (update, deviation_channel(5))):
        assert silo.contribute(channels=channels).status == "refused"
        assert "refused by rule channels: deviation would leave; the run this silo joined has none" in silo.refusal
    assert silo.contribute(channels=(update,)).status == "ok", silo.refusal


def test_records_that_move_away_between_rounds_are_not_read(institution) -> None:
    silo = institution()
    assert silo.join().status == "ok", silo.refusal
    train = silo.home / "data" / "train.npz"
    elsewhere = silo.home / "train.npz"
    train.rename(elsewhere)
    train.symlink_to(elsewhere)
    assert silo.contribute().status == "refused"
    assert "refused by rule data: " in silo.refusal
    assert silo.lines() == 0


def test_records_elsewhere_are_read_where_the_policy_names_their_folder(institution, tmp_path) -> None:
    elsewhere = tmp_path / "archive"
    silo = institution(policy={"data": elsewhere})
    (silo.home / "data").rename(elsewhere)
    (silo.home / "data").symlink_to(elsewhere)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute().status == "ok", silo.refusal


def test_round_0_starts_from_the_model_of_the_configuration(institution) -> None:
    silo = institution()
    assert silo.join().status == "ok", silo.refusal
    rounded = replace(silo.model, weights=silo.model.weights + 1e-6, records=81)
    for model in (silo.model, rounded):
        assert silo.contribute(model, round=0).status == "ok", silo.refusal
    dead = replace(silo.model, mask=silo.model.mask.copy(), weights=silo.model.weights.copy())
    dead.mask[3], dead.weights[3] = False, 0
    voted = replace(silo.model, votes=silo.model.weights * 0 + 1)
    for model in (silo.wrong_model(), dead, voted):
        channels = (update_channel(silo.config, int(model.mask.sum())),)
        assert silo.contribute(model, round=0, channels=channels).status == "refused"
        assert "refused by rule initial_model: " in silo.refusal
    assert silo.contribute(silo.wrong_model(), round=1).status == "ok", "later models rest on sums"


def test_a_round_is_tried_again_with_its_model_and_the_next_may_have_another(institution) -> None:
    silo = institution()
    assert silo.join().status == "ok", silo.refusal
    for attempt, model in enumerate((silo.model, silo.model, silo.wrong_model(), silo.model)):
        expected = "refused" if attempt == 2 else "ok"
        assert silo.contribute(model, attempt=attempt).status == expected, silo.refusal
    silo.restart()
    assert silo.contribute(silo.wrong_model(), attempt=4).status == "refused", "it is remembered"
    assert silo.contribute(silo.wrong_model(), round=2).status == "ok", silo.refusal


def test_under_dp_the_plan_counts_models(institution) -> None:
    silo = institution(**LOCAL)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute().status == "ok", silo.refusal
    assert silo.contribute(silo.wrong_model(), attempt=1).status == "ok", silo.refusal


def test_with_standing_approval_networks_and_code_have_to_be_listed(institution) -> None:
    for setting, rule in (("models", Rule.MODELS), ("code", Rule.CODE)):
        silo = institution(policy={setting: ()})
        assert silo.join().error == f"PolicyRefusal:{rule}"


def test_a_policy_that_changed_counts_at_the_next_join(institution) -> None:
    silo = institution(policy={"models": ("lenet",)})
    assert silo.join().status == "refused"
    silo.policy(
        **{
            **vars(SiloPolicy(proved_models=False, min_block=1, reply_every=0.0)),
            "approval": "each",
            "aggregations": ("none",),
            "trusts": ("none",),
        }
    )
    assert silo.join().error == "ApprovalPending"


def test_names_that_may_travel_are_those_of_the_enumeration() -> None:
    for rule in Rule:
        made = refusal(rule, "asked")
        assert isinstance(made, ApprovalPending) == (rule is Rule.APPROVAL)
        assert made.rule == rule
        name = public_name(made, joining=True)
        assert name in public_names() | {"ApprovalPending"}
        assert public_name(made, joining=False) == type(made).__name__
    for other in (PolicyRefusal("words", "made up"), PolicyRefusal("words"), Refusal("words"), ValueError("words")):
        assert public_name(other, joining=True) == type(other).__name__


def test_the_table_of_rules_has_them_all() -> None:
    rows = rules_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(Rule)
    assert all(row.count("|") == 5 for row in rows)


def test_a_new_silo_in_the_roster_is_told_from_one_that_left(institution) -> None:
    silo = institution(each=True)
    silo.join()
    roster = silo.folder.roster()
    entries, stranger = roster.entries, RosterEntry(9, "stranger", Identity.generate().public)
    silo.approve(roster=Roster(roster.coordinator, (*entries, stranger)).to_bytes())
    assert silo.join().status == "ok", silo.refusal
    changed = replace(entries[1], public=stranger.public)
    for other in ((entries[0], changed, *entries[2:]), (replace(entries[0], name="x"), *entries[1:])):
        silo.approve(roster=Roster(roster.coordinator, other).to_bytes())
        assert silo.join().error == "PolicyRefusal:roster"
    silo.approve(roster=Roster(Identity.generate().public, entries).to_bytes())
    assert silo.join().error == "PolicyRefusal:roster"
