"""How soon the sums of rotating cohorts determine single silos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.option_checks import draws_silos
from autoflip_secure.federation.schedule import Schedule

__all__ = ["RotationBound", "cohorts_change", "determined", "rotation_bound", "warnings_of"]

TOLERANCE = 1e-8


@dataclass(frozen=True)
class RotationBound:
    """Rounds after which sums over drawn cohorts determine silos whose updates stay the same.

    Every round's cohorts add up to the same total, so r rounds of m cohorts have rank 1 + r (m - 1) at most, and no
    plan determines n silos in fewer than (n - 1) / (m - 1) rounds. The other figures are of this run's own cohorts.

    Attributes
    ----------
    silos, cohorts : int
    least : int
        ceil((n - 1) / (m - 1)).
    one, all : int or None
        Rounds after which the first silo, and every silo, is determined; None: not within the run.
    """

    silos: int
    cohorts: int
    least: int
    one: int | None
    all: int | None

    def facts(self) -> dict[str, Any]:
        """For events.jsonl."""
        return {"rounds_least": self.least, "rounds_to_one_silo": self.one, "rounds_to_all_silos": self.all}

    def sentence(self) -> str:
        """For people."""
        one, every = ("not within the run" if n is None else f"after {n} rounds" for n in (self.one, self.all))
        return (
            f"cohorts rotate: were silos' updates constant, sums of {self.cohorts} cohorts would determine a first "
            f"single silo {one} and all {self.silos} {every} (no plan needs fewer than {self.least}; silos that "
            "collude lower it)"
        )


def cohorts_change(config: ResolvedConfig) -> bool:
    """Whether a run plans to sum other silos in one round than in another.

    Then sums with and without a silo tell what it holds as a whole, which labels for instance. DP bounds what is told
    of one patient, not that: threat_models/differences.md.
    """
    return config.allow_cohort_rotation or draws_silos(config)


def determined(sums: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which unknowns a 0/1 matrix of sums (rows) determines: those whose unit vector lies in its row space, bool (n,).

    The projection on the row space, V V^T of its right singular vectors, has 1 on the diagonal exactly there.
    """
    _, values, right = np.linalg.svd(sums, full_matrices=False)
    rank = int((values > TOLERANCE * values.max()).sum())
    return np.asarray((right[:rank] ** 2).sum(axis=0) > 1 - TOLERANCE)


def rotation_bound(schedule: Schedule) -> RotationBound:
    """Bound of a run's own plan; survivors are taken to be the whole cohorts."""
    first = schedule.plan(0)
    silos = schedule.whole().cohorts[0]
    rows: list[NDArray[np.float64]] = []
    one = None
    for round in range(schedule.rounds):
        rows += [np.isin(silos, cohort).astype(float) for cohort in schedule.plan(round).cohorts]
        known = determined(np.array(rows))
        if one is None and known.any():
            one = round + 1
        if known.all():
            return _bound(len(silos), len(first.cohorts), one, round + 1)
    return _bound(len(silos), len(first.cohorts), one, None)


def warnings_of(config: ResolvedConfig) -> list[str]:
    """What must be said before a run starts: spoilt on purpose, or cohorts that rotate."""
    found = []
    if config.bad_silos is not None:
        found.append(f"some silos spoil the sums on purpose (--bad-silos {config.bad_silos})")
    if config.allow_cohort_rotation:
        found.append(rotation_bound(Schedule(config)).sentence())
    return found


def _bound(silos: int, cohorts: int, one: int | None, every: int | None) -> RotationBound:
    return RotationBound(silos, cohorts, -(-(silos - 1) // (cohorts - 1)), one, every)
