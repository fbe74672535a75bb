"""--dropout: silos that disappear, for simulation. Which and when follows from the seed, so runs can be compared."""

from __future__ import annotations

from autoflip_secure.seeds import stream

__all__ = ["DROPPING_STAGES", "drops"]

DROPPING_STAGES = {"secagg": ("masked", "confirm", "unmask"), "none": ("clear",)}
"""Stages of one round at which a simulated silo may disappear; it stays away for the rest of the attempt."""


def drops(aggregation: str, probability: float, seed: int, *, silo: int, round: int, attempt: int, stage: str) -> bool:
    """Whether `silo` is away at `stage` of this attempt: it drops with `probability`, at a uniformly drawn stage."""
    stages = DROPPING_STAGES[aggregation]
    if probability == 0 or stage not in stages:
        return False
    draw = stream(seed, "dropout", round, attempt, silo)
    if draw.random() >= probability:
        return False
    return stages.index(stage) >= int(draw.integers(len(stages)))
