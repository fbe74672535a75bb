"""Own energy: how far silos move each parameter on average, whether or not their updates cancel in the sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.pooling import channel_sum, pooled_mean
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.sums.channels import Aggregate

__all__ = ["own_energy"]

Values = NDArray[np.float64]


def own_energy(aggregates: Sequence[Aggregate], units: UnitMap, live: NDArray[np.bool_]) -> Values:
    """Mean over silos of their squared update by parameter, from the sums of one round, shape (size,).

    Exactly the mean deviation where deviations were summed. Where only squares by unit were (channel unit_energy), the
    energy of the mean update times n / (1 + (n - 1) rho) of the parameter's unit, n silos, rho their agreement: that
    undoes what cancelled, so that a unit's parameters add up to Q_u / n exactly. Output neurons, of which no squares
    are sent, take the factor of all units together. A unit whose updates cancel altogether shares Q_u / n out evenly
    among its live parameters.

    Parameters
    ----------
    aggregates : sequence of Aggregate
        One a cohort, with deviation (size,), or update (size,) and unit_energy (units,); no DP noise, which squares of
        single updates would mostly consist of.
    live : bool (size,)
        The mask the round trained under; other parameters get 0.
    """
    if "deviation" in aggregates[0].channels:
        mean, _ = pooled_mean(aggregates, "deviation", units.size)
        return np.where(live, np.maximum(mean, 0.0), 0.0)
    silos = sum(aggregate.silos for aggregate in aggregates)
    squares = np.sum([channel_sum(aggregate, "unit_energy", units.count) for aggregate in aggregates], axis=0)
    own = np.maximum(squares, 0.0) / silos
    shared = np.where(live, pooled_mean(aggregates, "update", units.size)[0] ** 2, 0.0)
    by_unit = units.unit_sum(shared)
    factor = np.divide(own, by_unit, out=np.zeros_like(own), where=by_unit > 0)
    whole = float(own.sum() / by_unit.sum()) if by_unit.sum() > 0 else 1.0
    energy = shared * units.spread(factor, outputs=whole)
    even = np.where(by_unit > 0, 0.0, own) / np.maximum(units.unit_sum(live), 1.0)
    return energy + np.where(live, units.spread(even, outputs=0.0), 0.0)
