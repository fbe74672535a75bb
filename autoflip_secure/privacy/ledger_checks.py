"""Checks a ledger by recomputing it: epsilon of its lines by accountants that share no code, held against its caps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoflip_secure.privacy.accounting import COARSE_EPSILON, Mechanism, epsilon
from autoflip_secure.privacy.ledger_reading import LedgerEntry, LedgerRecord
from autoflip_secure.privacy.ledger_report import Limits, limits_of, mechanisms, sessions, within_year
from autoflip_secure.privacy.ledger_units import bounds_patient

__all__ = ["TOLERANCE", "Recomputed", "cap_failures", "differs", "recompute", "unit_failures"]

TOLERANCE = 0.01
"""Largest relative difference between two recomputations of one epsilon."""
LEAST_DIFFERENCE = 5e-4
"""Below this difference in epsilon the accountants' own grids are all that differs."""


@dataclass(frozen=True)
class Recomputed:
    """Epsilon of one composition by three accountants; each is an upper bound on the true one.

    Attributes
    ----------
    delta : float
    prv, pld, rdp : float
        Opacus' PRV, dp-accounting's PLD, Opacus' RDP (looser, by some ten percent).
    """

    delta: float
    prv: float
    pld: float
    rdp: float

    @property
    def difference(self) -> float:
        """Relative difference of PRV and PLD."""
        if self.prv == self.pld:
            return 0.0
        return abs(self.prv - self.pld) / max(self.prv, self.pld)

    @property
    def independent(self) -> bool:
        """Whether PRV and PLD are two computations: beyond what PRV can work with, `epsilon` takes PLD for it, and
        beyond `COARSE_EPSILON` RDP for both."""
        return self.prv != self.pld and self.rdp <= COARSE_EPSILON

    @property
    def proven(self) -> float:
        """The smallest of the bounds."""
        return min(self.prv, self.pld, self.rdp)

    def failures(self) -> list[str]:
        """What is wrong, in words."""
        if differs(self.prv, self.pld):
            words = f"PRV gives epsilon {self.prv:.4f} and PLD {self.pld:.4f}, {self.difference:.1%} apart"
        elif differs(max(self.prv, self.pld), self.rdp) and max(self.prv, self.pld) > self.rdp:
            words = f"PRV ({self.prv:.4f}) or PLD ({self.pld:.4f}) is above the looser bound of RDP, {self.rdp:.4f}"
        else:
            return []
        return [f"{words} at delta {self.delta:.6g}"]


def differs(one: float, other: float) -> bool:
    """Whether two figures of one epsilon differ by more than accountants do."""
    if one == other:
        return False
    gap = abs(one - other)
    return not gap <= max(LEAST_DIFFERENCE, TOLERANCE * max(one, other)) or math.isinf(gap)


def recompute(uses: Sequence[Mechanism], delta: float) -> Recomputed:
    """Epsilon of `uses` at `delta`, three times."""
    return Recomputed(delta, epsilon(uses, delta, "prv"), epsilon(uses, delta, "pld"), epsilon(uses, delta, "rdp"))


def cap_failures(record: LedgerRecord, dataset: str, policy: Limits | None, now: float) -> list[str]:
    """Where a record set's spending was above what its sessions recorded as allowed, or is above the policy's caps.

    A session is held against its caps as they stood with its last line, by the lines up to that one.
    """
    entries = record.of(dataset)
    failures = []
    for session in sessions(entries):
        own = [entry for entry in entries if entry.line.session == session]
        terms = own[-1].terms
        if terms is not None:
            caps = Limits(terms.delta, terms.epsilon, terms.per_run, terms.per_year, f"session {session.hex()[:8]}")
            up_to = [entry for entry in record.entries if entry.number <= own[-1].number]
            failures += _over(up_to, dataset, own, caps, own[-1].line.time)
    if policy is not None:
        last = [entry for entry in entries if entry.line.session == entries[-1].line.session]
        failures += _over(record.entries, dataset, last, limits_of(record, dataset, policy), now)
    return failures


def unit_failures(record: LedgerRecord, dataset: str) -> list[str]:
    """Sessions whose caps bound a patient's loss and count lines that bound a record's only."""
    entries = record.of(dataset)
    failures = []
    for session in sessions(entries):
        last = [entry for entry in entries if entry.line.session == session][-1]
        if last.terms is None or not bounds_patient(last) or math.isinf(min(last.terms.epsilon, last.terms.per_year)):
            continue
        counted = [entry for entry in entries if entry.number <= last.number and not bounds_patient(entry)]
        if counted:
            failures.append(
                f"session {session.hex()[:8]} caps what a patient lost, but {sum(e.line.count for e in counted)} uses "
                f"counted in it bound a record's loss only (from line {counted[0].number} on)"
            )
    return failures


def _over(
    entries: Sequence[LedgerEntry], dataset: str, own: Iterable[LedgerEntry], caps: Limits, now: float
) -> list[str]:
    scopes = (
        ("in all", caps.epsilon, [entry for entry in entries if entry.line.dataset == dataset]),
        ("in one run", caps.per_run, own),
        ("within 365 days", caps.per_year, within_year(entries, dataset, now)),
    )
    failures = []
    for words, cap, counted in scopes:
        uses = mechanisms(counted)
        if math.isinf(cap) or epsilon(uses, caps.delta) <= cap:
            continue
        # Every accountant's figure is an upper bound, so one within the cap proves the cap.
        spent = recompute(uses, caps.delta).proven
        if spent > cap:
            failures.append(f"epsilon {spent:.4f} was spent {words}, the cap is {cap:g} ({caps.source})")
    return failures
