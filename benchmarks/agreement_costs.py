"""What cohorts cost while they last: noise of the sum over all silos, and the budget that noise would have bought."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agreement_simulation import configuration, plan_of

from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.schedule import Schedule

CHOICES = ((10, 2), (20, 2), (20, 3), (20, 4))
EPSILONS = (1.0, 2.0, 4.0, 8.0)


def variance_factor(silos: int, cohorts: int) -> float:
    """Noise variance of the sum over all silos, as a multiple of (sigma clip)^2, all alive: sum of s / (s - c)."""
    config = configuration(dp_epsilon=8.0, silos=silos, cohorts=cohorts)
    sizes = [len(cohort) for cohort in Schedule(config).plan(0).cohorts]
    return sum(size / (size - config.colluders) for size in sizes)


def costs() -> list[dict[str, Any]]:
    """One row a choice of cohorts and of the rounds that have them.

    `effective_epsilon`: what the promise could have been with one cohort and as much noise over the whole run: the
    planned noise multiplier grows by the root of the mean factor, and the accountant says what that costs.
    """
    rows = []
    for silos, cohorts in CHOICES:
        try:
            factor = variance_factor(silos, cohorts) / variance_factor(silos, 1)
        except ConfigError:
            continue
        base = configuration(dp_epsilon=8.0, silos=silos)
        every = len(range(0, base.rounds, base.agreement_every))
        # Round 0 is of both kinds.
        for when, rounds in (("exploration and every 20th round", 20 + every - 1), ("every 20th round", every)):
            mean = 1 + (factor - 1) * rounds / base.rounds
            effective = {}
            for epsilon in EPSILONS:
                plan = plan_of(configuration(dp_epsilon=epsilon, silos=silos))
                louder = replace(plan, noise_multiplier=plan.noise_multiplier * mean**0.5)
                effective[f"{epsilon:g}"] = round(louder.cost("train"), 3)
            rows.append(
                {"silos": silos, "cohorts": cohorts, "when": when, "rounds": rounds, "variance": round(factor, 3),
                 "mean_variance": round(mean, 3), "effective_epsilon": effective}
            )  # fmt: skip
    return rows
