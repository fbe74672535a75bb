"""Agreement pooled over rounds before the ratio, and shrunk towards its layer by what the noise is known to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.agreement import FLOOR_DEVIATIONS
from autoflip_secure.autoflip.pooling import channel_sum
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.sums.channels import Aggregate

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PooledAgreement:
    """Sums over rounds of numerator and denominator by unit, and the variance that noise alone gives each."""

    shared: Values
    energy: Values
    shared_variance: Values
    energy_variance: Values
    shared_slope: Values
    energy_slope: Values

    @classmethod
    def of(cls, aggregates: Sequence[Aggregate], units: UnitMap) -> Self:
        m = len(aggregates)
        means = np.stack([channel_sum(a, "update", units.size) / a.silos for a in aggregates])
        v = np.array([a.mean_noise_std("update") ** 2 for a in aggregates])
        d = units.unit_sum(np.ones(units.size))
        squares = units.unit_sum((means**2).sum(axis=0))
        shared = (units.unit_sum(means.sum(axis=0) ** 2) - squares) / (m * (m - 1))
        pairs = (v.sum() ** 2 - (v**2).sum()) / 2
        ones = np.ones(units.count)
        return cls(
            shared,
            squares / m - d * v.mean(),
            (2 / (m * (m - 1))) ** 2 * d * pairs,
            2 * d * (v**2).sum() / m**2,
            np.maximum(shared, 0) * 4 * v.sum() / m**2 * ones,
            np.maximum(shared, 0) * 4 * v.sum() / m**2 * ones,
        )

    def __add__(self, other: PooledAgreement) -> PooledAgreement:
        return PooledAgreement(*(getattr(self, n) + getattr(other, n) for n in self.__dataclass_fields__))

    @property
    def denominator(self) -> Values:
        return np.maximum(self.energy, FLOOR_DEVIATIONS * np.sqrt(self.energy_variance))

    @property
    def rho(self) -> Values:
        return self.shared / np.maximum(self.denominator, 1e-300)

    @property
    def variance(self) -> Values:
        """Of rho, by noise."""
        top = self.shared_variance + self.shared_slope
        below = self.energy_variance + self.energy_slope
        return (top + np.clip(self.rho, 0, 1) ** 2 * below) / np.maximum(self.denominator, 1e-300) ** 2

    @property
    def overall(self) -> float:
        below = max(self.energy.sum(), FLOOR_DEVIATIONS * np.sqrt(self.energy_variance.sum()))
        return float(self.shared.sum() / max(below, 1e-300))

    def per_layer(self, units: UnitMap) -> Values:
        energy = np.maximum(
            units.layer_sum(self.energy), FLOOR_DEVIATIONS * np.sqrt(units.layer_sum(self.energy_variance))
        )
        return units.layer_sum(self.shared) / np.maximum(energy, 1e-300)

    def shrunk(self, units: UnitMap) -> Values:
        rho, variance = self.rho, self.variance
        out = rho.copy()
        for layer in range(len(units.layer_sizes)):
            mine = units.layer == layer
            s2, r = variance[mine], rho[mine]
            if not (s2 > 0).all():
                continue
            w = 1 / s2
            centre = (w * r).sum() / w.sum()
            excess = (w * (r - centre) ** 2).sum() - (len(r) - 1)
            spread = max(0.0, excess / (w.sum() - (w**2).sum() / w.sum()))
            both = 1 / (s2 + spread)
            centre = (both * r).sum() / both.sum()
            keep = spread * both
            out[mine] = keep * r + (1 - keep) * centre
        return out
