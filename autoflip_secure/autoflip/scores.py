"""Keep-scores: the higher, the longer a parameter or unit lives. All from sums and the public model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.compaction import Compaction
from autoflip_secure.autoflip.guidance import Guidance
from autoflip_secure.autoflip.pooling import debiased_energy, pooled_mean
from autoflip_secure.autoflip.shrinkage import shrunk_energy
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.sums.channels import Aggregate

__all__ = ["EnergyAccumulator", "KeepScores", "guidance_scores", "magnitude_scores", "mean_scores", "product_scores"]

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class KeepScores:
    """Scores of one moment of training, all finite and not negative.

    Attributes
    ----------
    parameters : float64 (size,)
    units : float64 (units,)
    """

    parameters: Values
    units: Values


@dataclass(frozen=True, eq=False)
class EnergyAccumulator:
    """Energy of the mean update, added up over rounds.

    Attributes
    ----------
    energy : float64 (size,)
        Sum over rounds of M^2 minus the known noise variance of M; unbiased for the sum of the squared true means, so
        single entries may be negative. Pool over a unit before using it.
    variance : float64 (size,)
        Sum over rounds of 2 v^2 + 4 v (M^2 - v), the variance that noise of variance v in M gives `energy`; public.
        Unbiased, so single entries may be negative too.
    rounds : int
        Rounds added.
    """

    energy: Values
    variance: Values
    rounds: int = 0

    @classmethod
    def empty(cls, size: int) -> EnergyAccumulator:
        """Nothing added yet."""
        return cls(np.zeros(size), np.zeros(size))

    def add(self, aggregates: Sequence[Aggregate], live: Flags | None = None) -> EnergyAccumulator:
        """Add one round, all its cohorts together; masked coordinates (not `live`) add nothing."""
        energy = debiased_energy(aggregates, self.energy.size, live)
        _, noise = pooled_mean(aggregates, "update", self.energy.size)
        spread = 2 * noise**2 + 4 * noise * energy
        if live is not None:
            spread = np.where(live, spread, 0.0)
        return EnergyAccumulator(self.energy + energy, self.variance + spread, self.rounds + 1)

    def add_exact(self, energy: Values) -> EnergyAccumulator:
        """Add a round's energy by parameter that carries no noise, shape (size,)."""
        return EnergyAccumulator(self.energy + energy, self.variance, self.rounds + 1)

    def by_group(self, units: UnitMap) -> Values:
        """Energy of each unit and output neuron as far as noise leaves it (`shrinkage.shrunk_energy`), (groups,)."""
        layers = np.concatenate([units.layer, np.full(units.spec.outputs, len(units.spec.widths))])
        return shrunk_energy(units.group_sum(self.energy), units.group_sum(self.variance), layers)

    def compact(self, compaction: Compaction) -> EnergyAccumulator:
        """The energy of the compacted network."""
        return EnergyAccumulator(self.energy[compaction.kept], self.variance[compaction.kept], self.rounds)


def mean_scores(parameters: Values, units: UnitMap) -> KeepScores:
    """Scores of parameters, and of a unit the mean over its weights: its fan-in is no merit of its own."""
    weights = units.unit_sum(units.prunable)
    return KeepScores(parameters, units.unit_sum(np.where(units.prunable, parameters, 0.0)) / weights)


def magnitude_scores(weights: NDArray[np.floating], units: UnitMap) -> KeepScores:
    """|w|; of a unit the norm of its weights."""
    sizes = np.abs(weights.astype(np.float64))
    return KeepScores(sizes, np.sqrt(units.unit_sum(np.where(units.prunable, sizes, 0.0) ** 2)))


def guidance_scores(guidance: Guidance, units: UnitMap) -> KeepScores:
    """K = G * agreement (autoflip.md, mask), for sums without distributed noise; a unit has the mean of its weights.

    Outputs are no units and keep by G alone. The whole model's agreement is no stand-in: silos of different classes
    have one below zero, hence 0, and a high threshold would then leave each output its first few weights, whichever.
    """
    return mean_scores(guidance.values * units.spread(guidance.agreement, outputs=1.0), units)


def product_scores(
    weights: NDArray[np.floating],
    accumulator: EnergyAccumulator,
    units: UnitMap,
    agreement: Values | None = None,
) -> KeepScores:
    """Size times shared energy, the score that kept most accuracy under distributed noise (autoflip.md, prototype).

    Unit: ||w_u|| sqrt(E_u), w_u its incoming weights without bias and normalisation, E_u the accumulated debiased
    energy of all its incoming parameters, as far as noise leaves it (`shrinkage.shrunk_energy`; at small epsilon the
    units of a layer share one value and size alone ranks them). Parameter: |w| sqrt(mean of E over its unit or output
    neuron).

    Parameters
    ----------
    weights : float array (size,)
        The current model.
    agreement : float64 (units,), optional
        Factor within [0, 1] on units and on the parameters of units.
    """
    if weights.shape != (units.size,) or accumulator.energy.shape != (units.size,):
        raise EncodingError(
            f"weights of shape {weights.shape} and energy of shape {accumulator.energy.shape} "
            f"do not fit a network of {units.size} parameters"
        )
    if not np.isfinite(weights).all():
        raise EncodingError("a weight is not finite; training diverged, lower the learning rate")
    factor = np.ones(units.count) if agreement is None else agreement
    energy = accumulator.by_group(units)
    squares = np.where(units.prunable, weights.astype(np.float64) ** 2, 0.0)
    root_mean = np.sqrt(energy / units.group_sum(np.ones(units.size)))
    parameters = np.abs(weights.astype(np.float64)) * root_mean[units.owner] * units.spread(factor, outputs=1.0)
    return KeepScores(parameters, np.sqrt(units.unit_sum(squares) * energy[: units.count]) * factor)
