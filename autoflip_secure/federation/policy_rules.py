"""Names of the rules by which a silo refuses a run or a round, and what each is about.

A name may travel to the coordinator when a run is joined, before any record is touched; the words of a refusal, and the
names of refusals in later stages, stay in the silo's own log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from autoflip_secure.errors import ApprovalPending, PolicyRefusal

__all__ = ["RULES", "Explained", "Rule", "public_name", "public_names", "refusal", "rules_table"]


class Rule(StrEnum):
    """One rule, by the name that refusals start with. `RULES` explains them."""

    # Settings of policy.toml, or limits it implies
    AGGREGATIONS = "aggregations"
    TRUSTS = "trusts"
    EPSILON = "epsilon"
    DELTA = "delta"
    COLLUDERS = "colluders"
    MIN_COHORT = "min_cohort"
    MIN_SILOS = "min_silos"
    MIN_BLOCK = "min_block"
    MIN_THRESHOLD = "min_threshold"
    CHANNELS = "channels"
    MODELS = "models"
    ROTATING_COHORTS = "rotating_cohorts"
    PROVED_MODELS = "proved_models"
    SIMULATED = "simulated"
    CODE = "code"
    DATA = "data"
    # The run itself, and what an officer said about it
    TASK = "task"
    PLAN = "plan"
    DENIED = "denied"
    ROSTER = "roster"
    APPROVAL = "approval"
    # A round against the run that was joined
    SESSION = "session"
    RUN = "run"
    ROUNDS = "rounds"
    TERMS = "terms"
    LINEAR = "linear"
    GRID = "grid"
    COHORTS = "cohorts"
    BLOCKS = "blocks"
    MODEL = "model"
    ONE_MODEL = "one_model"
    INITIAL_MODEL = "initial_model"
    PROOF = "proof"


@dataclass(frozen=True)
class Explained:
    """A rule in words: what it asks for, when it is checked (join, round or both), and what to do after a refusal.

    What is checked when a run is joined is checked again by a silo that was restarted since.
    """

    asks: str
    when: str
    remedy: str


_ASK_LESS = "ask for what the policy accepts, or have the silo change {} in its policy.toml"
_NOT_HONEST = "an honest coordinator of this version never asks for it; find out what the coordinator runs"

RULES: dict[Rule, Explained] = {
    Rule.AGGREGATIONS: Explained("the kind of sum is among `aggregations`", "join", _ASK_LESS.format("aggregations")),
    Rule.TRUSTS: Explained("the trust mode is among `trusts`", "both", _ASK_LESS.format("trusts")),
    Rule.EPSILON: Explained("the run's epsilon is at most `epsilon`", "join", _ASK_LESS.format("epsilon")),
    Rule.DELTA: Explained("delta is at most `delta`", "both", _ASK_LESS.format("delta")),
    Rule.COLLUDERS: Explained(
        "at least `colluders` colluding silos are tolerated", "both", _ASK_LESS.format("colluders")
    ),
    Rule.MIN_COHORT: Explained(
        "at least `min_cohort` of each cohort must survive", "both", _ASK_LESS.format("min_cohort")
    ),
    Rule.MIN_SILOS: Explained(
        "no sum over fewer than `min_silos` silos may be opened", "both", _ASK_LESS.format("min_silos")
    ),
    Rule.MIN_BLOCK: Explained(
        "at least `min_block` silos, and enough for the colluders, are summed together or not at all",
        "join",
        "start the run with a larger --block, or have the silo change min_block in its policy.toml",
    ),
    Rule.MIN_THRESHOLD: Explained(
        "a silo's secret takes at least `min_threshold` key shares to recover",
        "both",
        "enrol more silos, or have the silo change min_threshold in its policy.toml",
    ),
    Rule.CHANNELS: Explained("only vectors named in `channels` leave", "both", _ASK_LESS.format("channels")),
    Rule.MODELS: Explained(
        "the network is among `models`, where the policy lists any or approves nothing by hand",
        "join",
        _ASK_LESS.format("models"),
    ),
    Rule.ROTATING_COHORTS: Explained(
        "cohorts and participants are the same in every round, or `rotating_cohorts` allows that they change",
        "join",
        _ASK_LESS.format("rotating_cohorts"),
    ),
    Rule.PROVED_MODELS: Explained(
        "the run proves that each model follows from the sums before it, unless `proved_models` is false",
        "join",
        "start the run with --prove-models, or have the silo set proved_models = false in its policy.toml",
    ),
    Rule.SIMULATED: Explained(
        "options that exist for tests run in simulations only", "join", "leave the option out; no institution takes it"
    ),
    Rule.CODE: Explained(
        "the autoflip_secure code installed here is the one that was approved, and among `code` where that lists any",
        "both",
        "read `silo review RUN` and approve again for the code installed now, or list its digest in code",
    ),
    Rule.DATA: Explained(
        "the records lie in the folder `data`, also behind symbolic links",
        "both",
        "move the records there, or name their folder as data in policy.toml",
    ),
    Rule.TASK: Explained(
        "the task is the one this silo was provisioned with",
        "join",
        "install the federation's newest bundle everywhere",
    ),
    Rule.PLAN: Explained("a run under DP plans its use of the records", "join", _NOT_HONEST),
    Rule.DENIED: Explained(
        "no officer of this silo denied the run",
        "both",
        "start a new run that meets the silo's objections, or have the silo run `silo approve RUN`",
    ),
    Rule.ROSTER: Explained(
        "no silo or key joined the roster since the run was approved; silos may have left",
        "both",
        "read `silo review RUN` and approve again for the roster installed now",
    ),
    Rule.APPROVAL: Explained(
        "an officer of this silo approved this very run, unless the policy's approval is standing",
        "both",
        "read `silo review RUN` and answer with `silo approve RUN` or `silo deny RUN`",
    ),
    Rule.SESSION: Explained("a round belongs to the session that was joined", "round", _NOT_HONEST),
    Rule.RUN: Explained(
        "a round has configuration, trust mode, colluders and delta of the run that was joined", "round", _NOT_HONEST
    ),
    Rule.ROUNDS: Explained("without DP, no round comes after the run's last", "round", _NOT_HONEST),
    Rule.TERMS: Explained("the ledger line describes all that the round does to the records", "round", _NOT_HONEST),
    Rule.LINEAR: Explained("under distributed noise only sums leave, no squares", "round", _NOT_HONEST),
    Rule.GRID: Explained(
        "the grid of noised sums is fine enough for the promise",
        "round",
        "give the run more --bits, or fewer where told",
    ),
    Rule.COHORTS: Explained(
        "no second sum of a round, over other silos or channels, tells single silos by its difference",
        "round",
        _NOT_HONEST,
    ),
    Rule.BLOCKS: Explained(
        "silos that the joined run sums together or not at all are in a round's sum together, or not at all",
        "round",
        _NOT_HONEST,
    ),
    Rule.MODEL: Explained(
        "the model sent is the one the manifest names, of the run's network and shape", "round", _NOT_HONEST
    ),
    Rule.ONE_MODEL: Explained(
        "without DP, a round that is tried again trains the same model",
        "round",
        "a coordinator that lost its checkpoint begins a new run; else find out what it runs",
    ),
    Rule.INITIAL_MODEL: Explained(
        "round 0 starts from the model that configuration and task give, as approved",
        "round",
        "install the same release on both sides and approve again; if it persists the coordinator made up a model",
    ),
}


# This one may be met by an honest coordinator that lost its files, or where one silo's tag is wrong.
RULES[Rule.PROOF] = Explained(
    "in a run that proves its models, model, channels and clip of a round are those that this silo computes from the "
    "opened sums so far, which silos of the run made",
    "round",
    "once, after a silo lost files or sent a wrong tag, it mends itself; if it persists install the same release "
    "everywhere; a coordinator that lost its `proofs` begins a new run; else find out what it runs",
)


def refusal(rule: Rule, asked: str, said: str = "") -> PolicyRefusal:
    """The refusal by a rule: what was asked, what the policy says, what to do."""
    words = "; ".join(part for part in (asked, said, RULES[rule].remedy) if part)
    kind = ApprovalPending if rule is Rule.APPROVAL else PolicyRefusal
    return kind(f"refused by rule {rule}: {words}", rule)


def public_name(error: Exception, *, joining: bool) -> str:
    """What the coordinator may know of an error: its class, and while a run is joined the rule of a policy.

    Later refusals may depend on more than what the coordinator sent, and their rule is nobody else's business.
    """
    name, rule = type(error).__name__, getattr(error, "rule", "")
    return f"{name}:{rule}" if joining and type(error) is PolicyRefusal and rule in RULES else name


def public_names() -> frozenset[str]:
    """All names with a rule that `public_name` gives."""
    return frozenset(f"{PolicyRefusal.__name__}:{rule}" for rule in Rule if rule is not Rule.APPROVAL)


def rules_table() -> str:
    """All rules as a Markdown table, for the documentation."""
    rows = ["| rule | a silo answers only if | checked at | after a refusal |", "|---|---|---|---|"]
    when = {"join": "join", "round": "each round", "both": "join and each round"}
    rows += [f"| `{rule}` | {each.asks} | {when[each.when]} | {each.remedy} |" for rule, each in RULES.items()]
    return "\n".join(rows) + "\n"
