"""--dropout: silos that disappear, for simulation. Which and when follows from the seed, so runs can be compared."""

from __future__ import annotations

import math

from autoflip_secure.seeds import stream

__all__ = ["DROPPING_STAGES", "drops", "likely_dropout"]

DROPPING_STAGES = {
    "secagg": ("masked", "confirm", "unmask"),
    "ckks": ("encrypt", "open"),
    "none": ("clear",),
}
"""Stages of one round at which a simulated silo may disappear; it stays away for the rest of the attempt."""


LEAST_DROPOUT = 0.05
"""Fraction of silos that may drop unannounced in any run."""


def likely_dropout(probability: float, silos: int, block: int = 1, minimum: int = 0) -> float:
    """Fraction of the silos that a round has to bear: three standard deviations above the mean.

    One that drops takes its block along, so it is blocks that are missing; no more than a sum over `minimum` can spare.
    """
    lost, least = (1 - (1 - each) ** block for each in (probability, LEAST_DROPOUT))
    borne = max(least, lost + 3 * math.sqrt(lost * (1 - lost) / max(1, silos // block)))
    return borne if block == 1 else min(borne, max(LEAST_DROPOUT, 1 - minimum / silos))


def drops(aggregation: str, probability: float, seed: int, *, silo: int, round: int, attempt: int, stage: str) -> bool:
    """Whether `silo` is away at `stage` of this attempt: it drops with `probability`, at a uniformly drawn stage."""
    stages = DROPPING_STAGES[aggregation]
    if probability == 0 or stage not in stages:
        return False
    draw = stream(seed, "dropout", round, attempt, silo)
    if draw.random() >= probability:
        return False
    return stages.index(stage) >= int(draw.integers(len(stages)))
