"""The review of a run as tables for a terminal, in words for a data-protection officer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from autoflip_secure.federation.approvals import AskedRun
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.privacy.ledger_export import utc
from autoflip_secure.privacy.ledger_tables import cap_text, epsilon_text, table

if TYPE_CHECKING:
    from autoflip_secure.federation.run_review import RunReview

__all__ = ["policy_parts", "review_parts", "runs_table"]

SECONDS = len("2026-01-31T12:00:00")

PROVED_WORDS = {
    True: "proved: this silo computes each one itself from the sums before it; every sum is shown to all silos",
    False: "NOT PROVED: the coordinator may send any, also one that makes a sum show single records or silos",
}
CHANNEL_WORDS = {
    "update": "how the model should change, a number for each parameter",
    "deviation": "squared distance of each parameter from the common start",
    "unit_energy": "squared length of each unit's update",
    "gradient": "mean gradient of parameters that are pruned",
    "mask": "which parameters this silo would keep",
    "count": "how many records there are",
    "metric": "how many held-out records are scored how",
    "clip_bits": "how many gradients are within the clip",
    "tag": "proof that the sum is of what silos sent; it follows from the sum and from keys",
}
TRUST_WORDS = {
    "distributed": "every silo adds its part of the noise; the promise holds against the coordinator and {colluders} "
    "colluding silo(s)",
    "local": "this silo's noise alone keeps the promise, whoever colludes",
    "none": "NO differential privacy: what sums show about single patients is not bounded",
}
MOST_BLOCKS = 16
"""Blocks that a review lists by the names in them."""

AGGREGATION_WORDS = {
    "secagg": "secure aggregation: the coordinator sees sums only",
    "ckks": "homomorphic encryption: the coordinator sees sums only",
    "none": "IN CLEAR: the coordinator sees this silo's own numbers",
}


def runs_table(runs: Sequence[AskedRun]) -> Any:
    """One row a run."""
    made = table(
        "Runs this silo was asked to join", "run", "state", "asked (UTC)", "decided (UTC)", "by", "what"
    )  # fmt: skip
    for run in runs:
        decided = run.decision
        what = "cannot be read by this version"
        if run.request is not None:
            config = run.request.config
            budget = f"epsilon {config.dp_epsilon:g} ({config.trust})" if config.dp_epsilon else "no DP"
            what = _plain(f"{config.dataset}, {config.model}, {config.rounds} rounds, {budget}")
        made.add_row(
            run.name, run.state, _date(run.asked), _date(decided.time) if decided else "-",
            _plain(decided.who) if decided else "-", what,
        )  # fmt: skip
    return made


def review_parts(review: RunReview) -> Iterator[Any]:
    """Tables and lines, in the order in which they are printed."""
    config, request = review.config, review.request
    said = "; ".join(f"{each.verdict} by {_plain(each.who)}, {_date(each.time)}" for each in review.history)
    facts = table(f"Run {review.run.digest.hex()}", "", "")
    rows = {
        "state": review.run.state,
        "asked for": f"{_date(review.run.asked)} UTC, by the coordinator with the key {review.coordinator}",
        "decisions so far": said or "none",
        "the officer's word": "; ".join(review.decided) or "lets the run in",
        "records": f"{_plain(config.dataset)}, task {_plain(review.task.name)} ({review.task.kind})",
        "network": f"{_plain(config.model)}, {review.parameters} parameters",
        "training": f"{config.rounds} rounds, {config.local_steps} local step(s) each; pruning: {config.prune}",
        "silos": f"{len(review.silos)} in the roster: {_plain(', '.join(review.silos))}",
        "sums": AGGREGATION_WORDS[config.aggregation],
        "differences of sums": _blocks(review),
        "colluders": f"{config.colluders} silo(s) that work with the coordinator are tolerated",
        "privacy": TRUST_WORDS[config.trust].format(colluders=config.colluders),
        "promise": _promise(review),
        "initial model": review.initial_model.hex(),
        "later models": PROVED_WORDS[config.prove_models],
        "code here": review.code.hex(),
        "code of the coordinator": "the same" if request.code == review.code else f"another: {request.code.hex()}",
    }
    for name, value in rows.items():
        facts.add_row(name, value)
    yield facts
    yield _leaving(review)
    if request.planned:
        yield _planned(review)
        yield _costs(review)
    yield from _differences(review)
    yield _rules(review)
    if review.failed:
        failed = ", ".join(verdict.rule for verdict in review.failed)
        yield f"This silo would refuse the run, whoever approves it, by: {failed}"


def policy_parts(policy: SiloPolicy, code: str) -> Iterator[Any]:
    """Each setting, its value, and what it does."""
    made = table("policy.toml", "setting", "value", "meaning")
    for name, field in SiloPolicy.model_fields.items():
        made.add_row(name, _value(getattr(policy, name)), field.description or "")
    yield made
    yield f"code installed here: {code}"


def _leaving(review: RunReview) -> Any:
    how = "IN CLEAR" if review.config.aggregation == "none" else "always as part of a sum"
    made = table(
        f"What would leave, {how} (numbers at most: pruning makes vectors shorter)",
        "phase", "#rounds", "channel", "#numbers", "#bits each", "#silos of a sum", "#opened with at least", "meaning",
    )  # fmt: skip
    for each in review.outflows:
        rounds = "as asked" if each.rounds is None else str(each.rounds)
        sizes, least = (", ".join(map(str, sorted(set(numbers)))) for numbers in (each.cohorts, each.minimum))
        for channel in each.channels:
            made.add_row(
                each.phase, rounds, channel.name, str(channel.numbers), str(channel.bits), sizes, least,
                CHANNEL_WORDS[channel.name],
            )  # fmt: skip
    return made


def _planned(review: RunReview) -> Any:
    made = table("Planned uses of the records", "records", "#uses", "#sampling rate", "#noise multiplier")
    for dataset, planned in review.request.planned.items():
        for use in planned:
            made.add_row(_plain(dataset), str(use.count), f"{use.sampling_rate:.4g}", f"{use.noise_multiplier:.4g}")
    return made


def _costs(review: RunReview) -> Any:
    made = table(
        f"Epsilon at delta {review.config.dp_delta:g}, by ledger and plan",
        "records", "#this run", "#cap", "#year now", "#year after", "#cap", "#all runs now", "#after", "#cap",
    )  # fmt: skip
    for each in review.spending:
        made.add_row(
            each.dataset, epsilon_text(each.run), cap_text(each.run_cap), epsilon_text(each.year_now),
            epsilon_text(each.year_after), cap_text(each.year_cap), epsilon_text(each.now), epsilon_text(each.after),
            cap_text(each.cap),
        )  # fmt: skip
    return made


def _differences(review: RunReview) -> Iterator[Any]:
    if not review.compared_to:
        yield "No run was approved before"
        return
    if not review.differences:
        yield f"All options are those of the run approved last, {review.compared_to}"
        return
    made = table(f"Other options than the run approved last, {review.compared_to}", "option", "then", "now")
    for each in review.differences:
        made.add_row(each.option, _value(each.before), _value(each.now))
    yield made


def _rules(review: RunReview) -> Any:
    made = table("Rules of this silo", "rule", "verdict", "")
    for verdict in review.verdicts:
        made.add_row(verdict.rule, Text("pass" if verdict.holds else "FAIL"), _plain(verdict.words))
    return made


def _promise(review: RunReview) -> str:
    config = review.config
    if config.dp_epsilon is None:
        return "none"
    return f"epsilon {config.dp_epsilon:g} at delta {config.dp_delta:g}, of one {review.task.unit}, for the whole run"


def _blocks(review: RunReview) -> str:
    config = review.config
    if config.block == 1:
        return "sums with and without this silo may be opened, whose difference tells of it alone"
    blocks = Schedule(config).blocks
    # Silos that have left already are in no block: then places are no names any more.
    names = review.silos if len(review.silos) == config.silos else tuple(f"#{i + 1}" for i in range(config.silos))
    listed = "; ".join(", ".join(_plain(names[place - 1]) for place in block) for block in blocks[:MOST_BLOCKS])
    more = f"; and {len(blocks) - MOST_BLOCKS} more blocks" if len(blocks) > MOST_BLOCKS else ""
    return f"tell of whole blocks only, one that drops out takes its block along: {listed}{more}"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, map(str, value))) or "-"
    return "-" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """Without what could steer a terminal: names come from the coordinator."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _date(seconds: float) -> str:
    return utc(seconds)[:SECONDS]
