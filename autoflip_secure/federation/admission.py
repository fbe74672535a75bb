"""Whether a silo may take part in a run: its policy, its task, its code, its records' place, and its officer's word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autoflip_secure.errors import PolicyRefusal
from autoflip_secure.federation.approvals import DENIED, ApprovalStore, Decision
from autoflip_secure.federation.code_digest import installed_digest
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.policy_rules import Rule, refusal
from autoflip_secure.parties.roster import Roster

if TYPE_CHECKING:
    from autoflip_secure.data.task import Task

__all__ = ["Admission"]


@dataclass(frozen=True)
class Admission:
    """What a silo holds a join request against.

    Attributes
    ----------
    folder : Path
        The silo's.
    policy : SiloPolicy
    task : str
        JSON of the task it was provisioned with.
    roster : Roster
    code : bytes, 32
        Of the code this process runs.
    approvals : ApprovalStore or None
        None in a simulation, whose silos agreed to their run when they were made.
    """

    folder: Path
    policy: SiloPolicy
    task: str
    roster: Roster
    code: bytes
    approvals: ApprovalStore | None

    def offer(self, request: JoinRequest) -> None:
        """Keep a request for review, whatever the policy says to it: it may be the policy that has to change."""
        if self.approvals is not None and request.task == self.task:
            self.approvals.offer(request)

    def note_joined(self, request: JoinRequest) -> None:
        """Keep a run that takes place longest of those nobody decided about: `silo deny` has to find it."""
        if self.approvals is not None:
            self.approvals.mark_joined(request.digest())

    def check(self, request: JoinRequest) -> None:
        """Refuse a run that this silo may not take part in.

        Raises
        ------
        PolicyRefusal
            By the first rule it fails; ApprovalPending where nothing but an officer's word is missing.
        """
        for refused in self.refusals(request):
            raise refused

    def refusals(self, request: JoinRequest) -> Iterator[PolicyRefusal]:
        """Why it may not, by all rules it fails; what an officer said comes last."""
        yield from self.rule_refusals(request)
        yield from self.decision_refusals(request.digest())

    def rule_refusals(self, request: JoinRequest) -> Iterator[PolicyRefusal]:
        """Why it may not whoever approved it."""
        if request.task != self.task:
            yield refusal(Rule.TASK, "the run's task is not the one this silo was provisioned for")
        counted = not self._task.nominal_records
        scored = any(mechanism.count for mechanism in request.planned.get("holdout", []))
        enrolled = len(self.roster.entries)
        yield from self.policy.run_refusals(request.config, enrolled=enrolled, counted=counted, scored=scored)
        if request.config.trust != "none" and not request.planned.get("train"):
            yield refusal(Rule.PLAN, "the run promises DP and plans no use of the records")
        yield from self._code_refusals()
        yield from self.policy.data_refusals(self.folder)

    def decision_refusals(self, digest: bytes) -> Iterator[PolicyRefusal]:
        """Why an officer's word, or that there is none, keeps it from a run."""
        if self.approvals is None:
            return
        decision = self.approvals.decision(digest)
        if decision is not None and decision.verdict == DENIED:
            yield refusal(Rule.DENIED, f"run {digest.hex()} was denied")
        elif self.policy.approval == "standing":
            return
        elif decision is None:
            yield refusal(Rule.APPROVAL, f"run {digest.hex()} waits for approval")
        else:
            yield from self._pin_refusals(decision)

    def approved_model(self, digest: bytes) -> bytes | None:
        """`initial_model.start_hash` of the model that was approved; None where no approval says."""
        decision = None if self.approvals is None else self.approvals.decision(digest)
        return None if decision is None or decision.pins is None else decision.pins.model

    @cached_property
    def _task(self) -> Task:
        from autoflip_secure.data.task import Task

        return Task.from_json(self.task)

    def _code_refusals(self) -> Iterator[PolicyRefusal]:
        if self.policy.simulated:
            return
        accepted = self.policy.code
        if installed_digest() != self.code:
            yield refusal(Rule.CODE, "the installed code was changed under the running silo", "restart it first")
        elif accepted and self.code.hex() not in accepted:
            yield refusal(Rule.CODE, f"code {self.code.hex()} is installed here", f"accepted are {', '.join(accepted)}")
        elif not accepted and self.policy.approval == "standing":
            yield refusal(
                Rule.CODE, f"code {self.code.hex()} is installed here", "with standing approval code lists what may run"
            )

    def _pin_refusals(self, decision: Decision) -> Iterator[PolicyRefusal]:
        pins = decision.pins
        if pins is None or pins.code != self.code:
            was = "no code" if pins is None else f"code {pins.code.hex()}"
            yield refusal(Rule.CODE, f"the run was approved for {was}", f"installed is {self.code.hex()}")
            return
        approved = Roster.from_bytes(pins.roster)
        joined = sorted(entry.silo for entry in set(self.roster.entries) - set(approved.entries))
        if joined or approved.coordinator != self.roster.coordinator:
            who = f"silos {joined} are in the roster" if joined else "another coordinator is in the roster"
            yield refusal(Rule.ROSTER, f"{who} since the run was approved")
