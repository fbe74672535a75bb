"""Guidance: the per-parameter map of importance; follows the model where silos agree, keeps its past elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.agreement import Agreement
from autoflip_secure.autoflip.compaction import Compaction
from autoflip_secure.autoflip.pooling import debiased_energy, min_max
from autoflip_secure.autoflip.shrinkage import shrunk_to_layer
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import ConfigError, EncodingError
from autoflip_secure.sums.channels import Aggregate

__all__ = ["Guidance", "Level", "observed_guidance"]

Level = Literal["unit", "parameter"]
Flags = NDArray[np.bool_]


def observed_guidance(
    aggregates: Sequence[Aggregate], units: UnitMap, level: Level, live: Flags | None = None
) -> NDArray[np.float64]:
    """What one round says: per-tensor min-max of (S / n)^2, debiased by the known noise variance and clipped at 0.

    At level `unit` the debiased energy is averaged over the live incoming parameters of each unit (and of each output
    neuron) first, and then clipped: under noise a single coordinate's energy is mostly noise, and clipping before
    averaging would turn that noise into energy.
    """
    energy = debiased_energy(aggregates, units.size, live)
    if level == "unit":
        counted = units.group_sum(np.ones(units.size) if live is None else live)
        pooled = units.group_sum(energy) / np.maximum(counted, 1.0)
        energy = pooled[units.owner]
    elif level != "parameter":
        raise ConfigError(f"guidance level {level!r} is unknown; use unit or parameter")
    return min_max(np.maximum(energy, 0.0), units.layout, live)


@dataclass(frozen=True, eq=False)
class Guidance:
    """State kept from round to round; an update gives a new one.

    Attributes
    ----------
    values : float32 (size,)
        G, importance in [0, 1] by parameter.
    agreement_average : float64 (units,)
        Exponential moving average of raw rho. Averaged before clipping, so that noise around 0 averages out.
    overall_average : float
        The same of the whole-model agreement, for the record.
    rounds : int
        Rounds averaged so far; with 0 nothing is known and agreement counts as 1.
    agreement_variance : float64 (units,)
        Variance that known noise gives `agreement_average`; None is none.
    """

    values: NDArray[np.float32]
    agreement_average: NDArray[np.float64]
    overall_average: float = 1.0
    rounds: int = 0
    agreement_variance: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.values).all() or self.values.min() < 0 or self.values.max() > 1:
            raise EncodingError("guidance values must lie within [0, 1]")
        if not np.isfinite(self.agreement_average).all():
            raise EncodingError("an agreement average is not finite")

    @classmethod
    def start(cls, values: NDArray[np.floating], units: UnitMap) -> Guidance:
        """Guidance before the first round, from the explored map, shape (size,)."""
        if values.shape != (units.size,):
            raise EncodingError(f"guidance of shape {values.shape} does not fit {units.size} parameters")
        return cls(values.astype(np.float32), np.ones(units.count), agreement_variance=np.zeros(units.count))

    @property
    def agreement(self) -> NDArray[np.float64]:
        """Averaged agreement of each unit, within [0, 1], shape (units,)."""
        return np.clip(self.agreement_average, 0.0, 1.0)

    def believed_agreement(self, units: UnitMap) -> NDArray[np.float64]:
        """The same, each unit's share of it pulled towards its layer as far as noise may have made it, shape (units,).

        Under strong noise all units of a layer have one value, which ranks none of them.
        """
        return np.clip(shrunk_to_layer(self.agreement_average, self.known_variance, units.layer), 0.0, 1.0)

    @property
    def known_variance(self) -> NDArray[np.float64]:
        """`agreement_variance`, zeros where there is none, shape (units,)."""
        return np.zeros(self.agreement_average.size) if self.agreement_variance is None else self.agreement_variance

    def update(
        self,
        aggregates: Sequence[Aggregate],
        agreement: Agreement,
        units: UnitMap,
        *,
        rate: float = 0.1,
        agreement_rate: float = 0.1,
        level: Level = "parameter",
        live: Flags | None = None,
    ) -> Guidance:
        """One round: G <- (1 - rate a) G + rate a Ghat, a the round's clipped agreement of the parameter's unit.

        Parameters of the output layer take the whole model's agreement. Masked parameters keep their guidance: they
        were not trained, so the round says nothing about them.

        Parameters
        ----------
        rate, agreement_rate : float
            Step of the guidance and of the agreement average, within [0, 1]; a rate of 0 keeps the explored map. The
            average is the plain mean of its first 1 / agreement_rate rounds: were it set by the first one alone, that
            round's noise would keep 0.66 of the weight after five rounds.
        level : unit or parameter
            Where Ghat is pooled; use unit for sums that carry noise.
        live : bool (size,), optional
            The mask the round trained under; default all live.
        """
        for name, number in (("rate", rate), ("agreement_rate", agreement_rate)):
            if not 0 <= number <= 1:
                raise ConfigError(f"guidance {name} must lie within [0, 1], got {number}")
        observed = observed_guidance(aggregates, units, level, live)
        weight = rate * units.spread(agreement.clipped, outputs=min(max(agreement.overall, 0.0), 1.0))
        if live is not None:
            weight = np.where(live, weight, 0.0)
        values = (1 - weight) * self.values + weight * observed
        step = max(agreement_rate, 1.0 / (self.rounds + 1))
        return Guidance(
            np.clip(values, 0.0, 1.0).astype(np.float32),
            (1 - step) * self.agreement_average + step * agreement.rho,
            (1 - step) * self.overall_average + step * agreement.overall,
            self.rounds + 1,
            (1 - step) ** 2 * self.known_variance + step**2 * agreement.variance,
        )

    def compact(self, compaction: Compaction) -> Guidance:
        """The guidance of the compacted network."""
        kept_units = self.agreement_average[compaction.kept_units]
        variance = self.known_variance[compaction.kept_units]
        return Guidance(self.values[compaction.kept], kept_units, self.overall_average, self.rounds, variance)
