"""Against whom the lines of a ledger hold: noise summed over silos is smaller for whoever knows more silos' shares.

Lines noised for one colluder do not stop a run that promises three: its own lines keep its promise, and caps count
every line at face value, each against the adversary that its session named. What must not happen is that one figure
seems to hold against all of them, so epsilon is told apart by adversary. How much a line costs against more colluders
than it names depends on how many silos added noise, which the ledger does not record: against them it is not bounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoflip_secure.privacy.accounting import epsilon, merged
from autoflip_secure.privacy.ledger_reading import LedgerEntry

__all__ = ["Adversary", "adversaries"]


@dataclass(frozen=True)
class Adversary:
    """The coordinator with some silos, as a session named it, and what a record set's lines cost against it.

    Attributes
    ----------
    colluders : float
        Silos that work with the coordinator; infinite for all others together (trust local).
    epsilon : float
        Of the uses whose noise holds against it.
    uses : int
        Number of these.
    weaker : int
        Uses that hold against fewer colluders only, which `epsilon` leaves out.
    weaker_hold : float
        The most colluders that any of those bears; 0 where there are none.
    """

    colluders: float
    epsilon: float
    uses: int
    weaker: int
    weaker_hold: float


def adversaries(entries: Sequence[LedgerEntry], delta: float) -> tuple[Adversary, ...]:
    """Every adversary that the lines of a record set name, the weakest first; epsilon at `delta`."""
    named = {_bears(entry) for entry in entries if _promises(entry)}
    return tuple(_against(entries, colluders, delta) for colluders in sorted(named))


def _against(entries: Sequence[LedgerEntry], colluders: float, delta: float) -> Adversary:
    holding = [entry for entry in entries if _bears(entry) >= colluders]
    weaker = [entry for entry in entries if _bears(entry) < colluders]
    return Adversary(
        colluders,
        epsilon(merged(entry.line.mechanism for entry in holding), delta),
        sum(entry.line.count for entry in holding),
        sum(entry.line.count for entry in weaker),
        max(map(_bears, weaker), default=0),
    )


def _promises(entry: LedgerEntry) -> bool:
    trusted = entry.terms is not None and entry.terms.trust in ("local", "distributed")
    return trusted and entry.line.noise_multiplier > 0


def _bears(entry: LedgerEntry) -> float:
    """Colluders that a line's cost holds against; what is not noised costs the same against everybody."""
    if entry.line.noise_multiplier == 0 or (entry.terms is not None and entry.terms.trust == "local"):
        return math.inf
    return entry.terms.colluders if entry.terms is not None else 0
