"""The coordinator's cohort filter in a run: judges each round's sums, says so in events, and hands on what is left.

Sums that are marked as outside their bounds are left out, with the filter or without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.cohort_axis import CohortAxis
from autoflip_secure.autoflip.cohort_filter import Verdict, filtered, judge
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.rotation import rotation_bound
from autoflip_secure.federation.schedule import RoundPlan, Schedule
from autoflip_secure.sums.channels import Aggregate

__all__ = ["CohortWatch"]

NAMED_BELOW = 1.0
"""A cohort of less weight is named in events."""


class CohortWatch:
    """The filter where `--cohort-filter` asks for it; else sums pass as they are.

    It judges by what the round sends: updates where there are any, else the deviations of exploration. What updates
    tell of fixed cohorts adds up over the rounds; cohorts that rotate are judged by each round alone.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        schedule: Schedule,
        event: Callable[..., None],
        facts: dict[str, Any] | None = None,
    ) -> None:
        self._config, self._schedule, self._event = config, schedule, event
        fixed = config.cohort_filter and not config.allow_cohort_rotation
        self._axis = None
        if fixed:
            self._axis = CohortAxis.of(config.cohorts) if facts is None else CohortAxis.from_json(facts)

    def facts(self) -> dict[str, Any] | None:
        """What a checkpoint keeps, and a resumed run's watch is made with."""
        return None if self._axis is None else self._axis.to_json()

    def begin(self) -> None:
        """Say once what the filter opens: the cohorts, and how soon rotating ones determine single silos."""
        config = self._config
        if not config.cohort_filter:
            return
        cohorts = [list(cohort) for cohort in self._schedule.plan(0).cohorts]
        if not config.allow_cohort_rotation:
            self._event("cohort_filter", cohorts=cohorts, rotates=False)
            return
        bound = rotation_bound(self._schedule)
        self._event("cohort_filter", cohorts=cohorts, rotates=True, **bound.facts(), warning=bound.sentence())

    def passed(
        self,
        round: int,
        plan: RoundPlan,
        aggregates: Sequence[Aggregate],
        live: NDArray[np.bool_],
        silo_variance: float = 0.0,
    ) -> list[Aggregate]:
        """The sums to go on with, in the full layout: those of cohorts of weight above 0, weighed.

        Only `live` coordinates are judged: masked ones are not sent and carry no noise. `silo_variance` is what silos
        add to each of theirs on their own (trust local); from here on the sums say so themselves.
        """
        if not self._config.cohort_filter:
            return [aggregate for aggregate in aggregates if not aggregate.outside]
        channel = "update" if "update" in aggregates[0].channels else "deviation"
        if silo_variance and channel == "update":
            noise = [(aggregate.silos * silo_variance) ** 0.5 for aggregate in aggregates]
            aggregates = [
                replace(a, noise_std={**a.noise_std, "update": std}) for a, std in zip(aggregates, noise, strict=True)
            ]
        verdict = judge(
            np.stack([aggregate.mean(channel)[live] for aggregate in aggregates]),
            np.array([aggregate.mean_noise_std(channel) for aggregate in aggregates]),
            self._axis,
            learns=channel == "update",
        )
        verdict = _without(verdict, np.array([aggregate.outside for aggregate in aggregates]))
        for index in np.flatnonzero(verdict.weights < NAMED_BELOW):
            self._event("cohort_filtered", round=round, **self._told(plan, verdict, int(index)))
        return filtered(aggregates, verdict)

    @staticmethod
    def _told(plan: RoundPlan, verdict: Verdict, index: int) -> dict[str, Any]:
        return {
            "cohort": index,
            "silos": list(plan.cohorts[index]),
            "cosine": round(float(verdict.cosines[index]), 4),
            "norm": round(float(verdict.norms[index]), 6),
            "z": round(float(verdict.z[index]), 2),
            "weight": round(float(verdict.weights[index]), 4),
            "along_axis": verdict.along_axis,
        }


def _without(verdict: Verdict, outside: NDArray[np.bool_]) -> Verdict:
    """The verdict with no weight for cohorts that are outside their bounds. They were compared with the others: were
    they not, one of them would be enough to leave fewer cohorts than can be told apart."""
    if not outside.any():
        return verdict
    weights = np.where(outside, 0.0, verdict.weights)
    return replace(verdict, weights=weights if weights.any() else (~outside).astype(np.float64))
