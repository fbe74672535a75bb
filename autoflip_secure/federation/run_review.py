"""What a run that a silo was asked to join would do there: for the officer who approves or denies it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoflip_secure.config import LOCAL_ONLY_FIELDS, ResolvedConfig
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.federation.admission import Admission
from autoflip_secure.federation.approvals import APPROVED, ApprovalStore, AskedRun, Decision, Pins
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.outflow import Outflow, outflows
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.policy_rules import RULES, Rule
from autoflip_secure.parties.roster import Roster
from autoflip_secure.privacy.accounting import Mechanism, epsilon, merged
from autoflip_secure.privacy.ledger_export import utc
from autoflip_secure.privacy.ledger_reading import LedgerEntry, open_read_only, read_ledger
from autoflip_secure.privacy.ledger_report import mechanisms, within_year
from autoflip_secure.privacy.plan import DATASETS, accounting_delta

__all__ = ["STATE", "Difference", "RunReview", "Spending", "Verdict", "pins_of", "read_admission", "review"]

STATE = "state.sqlite"
OFFICERS_WORD = frozenset({Rule.APPROVAL, Rule.DENIED, Rule.ROSTER})
"""Rules that ask what an officer said, which is what a review is for."""

BUDGET = "epsilon caps"
"""The ledger's own refusal, in the table of rules."""


@dataclass(frozen=True)
class Spending:
    """Epsilon of a record set at the run's delta: now, and after all that the run plans; caps of the policy."""

    dataset: str
    now: float
    after: float
    cap: float
    run: float
    run_cap: float
    year_now: float
    year_after: float
    year_cap: float

    @property
    def fits(self) -> bool:
        """Whether every cap holds."""
        return self.after <= self.cap and self.run <= self.run_cap and self.year_after <= self.year_cap


@dataclass(frozen=True)
class Difference:
    """An option that the run that was approved last had otherwise."""

    option: str
    before: Any
    now: Any


@dataclass(frozen=True)
class Verdict:
    """Whether a rule lets the run in; why not, or what it asks for."""

    rule: str
    holds: bool
    words: str


@dataclass(frozen=True)
class RunReview:
    """All that an officer is shown of a run.

    Attributes
    ----------
    run : AskedRun
        Its request can be read.
    history : tuple of Decision
        Oldest first.
    coordinator : str
        Identity key, hexadecimal.
    silos : tuple of str
        Names in the roster.
    task : Task
    parameters : int
        Of the network before anything is pruned.
    initial_model, code : bytes
        What an approval would pin, as this silo has it now.
    outflows : tuple of Outflow
    spending : tuple of Spending
        Empty without DP.
    differences : tuple of Difference
    compared_to : str
        Name of the run that was approved last; empty where there is none.
    verdicts : tuple of Verdict
    decided : tuple of str
        Why the officer's word, or that there is none, keeps the silo from the run now; empty where nothing does.
    """

    run: AskedRun
    history: tuple[Decision, ...]
    coordinator: str
    silos: tuple[str, ...]
    task: Task
    parameters: int
    initial_model: bytes
    code: bytes
    outflows: tuple[Outflow, ...]
    spending: tuple[Spending, ...]
    differences: tuple[Difference, ...]
    compared_to: str
    verdicts: tuple[Verdict, ...]
    decided: tuple[str, ...]

    @property
    def request(self) -> JoinRequest:
        """The request, which can be read."""
        assert self.run.request is not None
        return self.run.request

    @property
    def config(self) -> ResolvedConfig:
        """The run's options."""
        return self.request.config

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """Rules that refuse the run whoever approves it."""
        return tuple(verdict for verdict in self.verdicts if not verdict.holds)

    def values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        config, request = self.config, self.request
        privacy = {
            "trust": config.trust,
            "epsilon": config.dp_epsilon,
            "delta": config.dp_delta if config.trust != "none" else None,
            "unit": self.task.unit,
            "colluders": config.colluders,
            "clip": config.clip if config.trust != "none" else None,
            "planned": {name: [asdict(m) for m in planned] for name, planned in request.planned.items()},
        }
        return {
            "run": self.run.digest.hex(),
            "state": self.run.state,
            "asked": utc(self.run.asked),
            "session": request.session.hex(),
            "coordinator": self.coordinator,
            "silos": list(self.silos),
            "decisions": [{"verdict": each.verdict, "who": each.who, "time": utc(each.time)} for each in self.history],
            "task": {"name": self.task.name, "kind": self.task.kind, "note": self.task.note},
            "dataset": config.dataset,
            "network": {"name": config.model, "parameters": self.parameters, "initial_model": self.initial_model.hex()},
            "rounds": config.rounds,
            "local_steps": config.local_steps,
            "aggregation": config.aggregation,
            "leaves": [asdict(each) for each in self.outflows],
            "privacy": privacy,
            "spending": [{name: _finite(value) for name, value in asdict(each).items()} for each in self.spending],
            "code": {"here": self.code.hex(), "coordinator": request.code.hex()},
            "compared_to": self.compared_to,
            "differences": [asdict(each) for each in self.differences],
            "decision_refuses": list(self.decided),
            "rules": [asdict(each) for each in self.verdicts],
            "options": config.model_dump(mode="json", exclude_none=True),
        }


def read_admission(home: Path, approvals: ApprovalStore) -> Admission:
    """What the silo of this folder holds requests against, as its next message would find it.

    Raises
    ------
    ConfigError
        A file is missing: the silo is not enrolled.
    """
    try:
        task = (home / "task.json").read_text()
        roster = Roster.from_bytes((home / "roster.bin").read_bytes())
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; run `autoflip-secure silo install BUNDLE`") from error
    return Admission(home, SiloPolicy.read(home / "policy.toml"), task, roster, code_digest(), approvals)


def pins_of(admission: Admission, request: JoinRequest) -> Pins:
    """What an approval given now holds on to."""
    from autoflip_secure.federation.initial_model import initial_model, start_hash

    model = start_hash(initial_model(request.config, Task.from_json(request.task)))
    return Pins(admission.code, model, admission.roster.to_bytes())


def review(admission: Admission, run: AskedRun, *, now: float | None = None) -> RunReview:
    """Look at a run as the silo would.

    Parameters
    ----------
    now : float, optional
        Seconds since 1970, for the epsilon of the last 365 days; the clock's if absent.

    Raises
    ------
    ConfigError
        The request is another version's, or no round can be planned with its options.
    """
    # Here, since it loads torch, which takes seconds: lists of runs do without.
    from autoflip_secure.federation.initial_model import initial_model, start_hash

    request = run.request
    if request is None or admission.approvals is None:
        raise ConfigError(
            f"RUN {run.name}: was asked for under another version of autoflip-secure and cannot be read; wait until "
            "the coordinator asks again"
        )
    task, store = Task.from_json(request.task), admission.approvals
    model = initial_model(request.config, task)
    spending = _spending(admission, request, time.time() if now is None else now)
    earlier = _approved_before(store.runs(), run)
    return RunReview(
        run,
        store.history(run.digest),
        admission.roster.coordinator.hex(),
        tuple(entry.name for entry in admission.roster.entries),
        task,
        model.weights.size,
        start_hash(model),
        admission.code,
        outflows(request.config, task, request.planned),
        spending,
        () if earlier is None else _differences(earlier, request),
        "" if earlier is None else earlier.digest().hex(),
        (*_verdicts(list(admission.rule_refusals(request))), _budget_verdict(spending, request.config)),
        tuple(map(str, admission.decision_refusals(run.digest))),
    )


def _verdicts(refused: Sequence[PolicyRefusal]) -> tuple[Verdict, ...]:
    said = {refusal.rule: str(refusal) for refusal in refused}
    rules = [rule for rule, each in RULES.items() if each.when != "round" and rule not in OFFICERS_WORD]
    return tuple(Verdict(rule, rule not in said, said.get(rule, RULES[rule].asks)) for rule in rules)


def _budget_verdict(spending: Sequence[Spending], config: ResolvedConfig) -> Verdict:
    over = [each.dataset for each in spending if not each.fits]
    if over:
        words = f"the {' and '.join(over)} records would cost more than epsilon, epsilon_per_run or epsilon_per_year"
    elif config.trust == "none":
        words = "the run promises no differential privacy, so the ledger counts uses only"
    else:
        words = "what the ledger says and all that the run plans stay within every cap"
    return Verdict(BUDGET, not over, words)


def _spending(admission: Admission, request: JoinRequest, now: float) -> tuple[Spending, ...]:
    config, policy = request.config, admission.policy
    if config.trust == "none":
        return ()
    entries, delta = _entries(admission.folder / STATE), accounting_delta(config.trust, config.dp_delta)
    made = []
    for dataset in DATASETS:
        planned = _uses(request.planned.get(dataset, []))
        if not planned:
            continue
        lines = [entry for entry in entries if entry.line.dataset == dataset]
        year = within_year(entries, dataset, now)
        epsilons = []
        for counted in (lines, year, []):
            before = _uses(mechanisms(counted))
            own = _uses(mechanisms(entry for entry in lines if entry.line.session == request.session))
            # As the ledger counts: what the session has used already is part of what it planned.
            after = _uses(mechanisms(e for e in counted if e.line.session != request.session)) + (own | planned)
            epsilons += [epsilon(_mechanisms(each), delta) for each in (before, after)]
        total, total_after, in_year, year_after, _, run = epsilons
        made.append(
            Spending(
                dataset, total, total_after, policy.budget(config.trust),
                run, policy.budget_per_run(config.trust, config.dp_epsilon),
                in_year, year_after, policy.budget_per_year(config.trust),
            )
        )  # fmt: skip
    return tuple(made)


def _entries(state: Path) -> tuple[LedgerEntry, ...]:
    with open_read_only(state) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'privacy_ledger'").fetchone():
            return ()
    return read_ledger(state).entries


def _uses(done: Iterable[Mechanism]) -> Counter[tuple[float, float]]:
    return Counter({(m.sampling_rate, m.noise_multiplier): m.count for m in merged(done)})


def _mechanisms(uses: Counter[tuple[float, float]]) -> tuple[Mechanism, ...]:
    return merged(Mechanism(rate, noise, count) for (rate, noise), count in uses.items())


def _approved_before(runs: Iterable[AskedRun], run: AskedRun) -> JoinRequest | None:
    """The run whose approval is the latest, but this one."""
    approved = [each for each in runs if each.state == APPROVED and each.digest != run.digest and each.request]
    latest = max(approved, key=lambda each: each.decision.time if each.decision else 0.0, default=None)
    return None if latest is None else latest.request


def _differences(before: JoinRequest, now: JoinRequest) -> tuple[Difference, ...]:
    left, right = (_options(request) for request in (before, now))
    names = [name for name in right if left.get(name) != right[name]]
    return tuple(Difference(name, left.get(name), right[name]) for name in names)


def _options(request: JoinRequest) -> dict[str, Any]:
    options = request.config.model_dump(mode="json", exclude=set(LOCAL_ONLY_FIELDS))
    return {**options, "task": request.task, "code of the coordinator": request.code.hex()}


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and math.isinf(value) else value
