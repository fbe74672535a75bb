"""Agreement: how far silos pull a unit the same way, 1 for identical updates and 0 for independent ones.

Two estimators (autoflip.md, phase 2). `moments` needs each silo's squared unit norms beside its update; `cross_cohort`
needs only the sums of two or more disjoint cohorts, and is the form for sums that carry distributed noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.pooling import channel_sum, pooled_mean
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.sums.channels import Aggregate

__all__ = ["Agreement", "cross_cohort", "moments", "update_variance"]

Values = NDArray[np.float64]

FLOOR_DEVIATIONS = 3.0


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of one round.

    Attributes
    ----------
    rho : float64 (units,)
        Raw estimate; may leave [0, 1]. Units that did not move (masked ones) have 0.
    energy : float64 (units,)
        The denominator of each unit's estimate.
    overall : float
        Ratio of the numerators and denominators of all units, pooled before any floor; 0 where nothing moved. Without
        noise it is the mean of rho weighted by energy.
    per_layer : float64 (layers,)
        The same within each unit layer.
    variance : float64 (units,)
        Variance that the known noise gives rho, to first order; public.
    """

    rho: Values
    energy: Values
    overall: float
    per_layer: Values
    variance: Values

    @property
    def clipped(self) -> Values:
        """rho within [0, 1], for use as a weight."""
        return np.clip(self.rho, 0.0, 1.0)


def _agreement(shared: Values, energy: Values, noise: tuple[Values, Values, float], units: UnitMap) -> Agreement:
    """Ratios by unit, by layer and of the whole model.

    `noise` holds the variances that noise alone gives numerators and denominators, and what noise times signal adds to
    both per unit of energy. Both move together with the latter where cohorts agree, which leaves 1 - rho^2 of it.

    Each denominator has a floor of `FLOOR_DEVIATIONS` standard deviations, `spread` being the variance noise alone
    gives each unit's energy. Pooling comes first: the floors of units in noise add up to many times the floor of their
    sum, and means of floored ratios would read as no agreement whatever the silos do.
    """
    alone, spread, steeper = noise

    def floored(pooled: Values, variance: Values) -> Values:
        return np.maximum(pooled, FLOOR_DEVIATIONS * np.sqrt(variance))

    below = floored(energy, spread)
    counted = np.where(below > 0, shared, 0.0)
    overall = _ratio(counted.sum(keepdims=True), floored(energy.sum(keepdims=True), spread.sum(keepdims=True)))
    per_layer = _ratio(units.layer_sum(counted), floored(units.layer_sum(energy), units.layer_sum(spread)))
    rho = _ratio(counted, below)
    square = np.minimum(rho**2, 1.0)
    variance = _ratio(alone + square * spread + (1.0 - square) * steeper * np.maximum(energy, 0.0), below**2)
    return Agreement(rho, below, float(overall[0]), per_layer, variance)


def _ratio(numerator: Values, denominator: Values) -> Values:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def moments(
    aggregates: Sequence[Aggregate], units: UnitMap, live: NDArray[np.bool_] | None = None, silo_variance: float = 0.0
) -> Agreement:
    """rho_u = (||S_u||^2 - Q_u) / ((n - 1) Q_u) with S the sum of updates, Q_u the sum of the silos' ||D_k,u||^2.

    ||S_u||^2 - Q_u is the sum of the inner products of all ordered pairs of different silos, and (n - 1) Q_u what that
    would be were all updates equal. Independent zero-mean updates give 0 in expectation, identical ones 1. The n silos
    of all cohorts count as one sum: pairs within and between cohorts alike.

    Where silos noised their own updates (trust local), each of a unit's d_u live coordinates carries a known variance v
    a silo. It cancels in the numerator; n d_u v is taken off the denominator, whose floor is 3 sqrt(2 n d_u) v, as in
    `cross_cohort`. Variance of rho_u to first order: noise alone gives the numerator 2 n d_u v^2 / (n - 1) and the
    denominator 2 n d_u v^2; noise times signal gives either 4 v Q_u, exact where all silos agree.

    Parameters
    ----------
    aggregates : sequence of Aggregate
        One a cohort: channels update (size,), masked coordinates 0, and unit_energy (units,).
    live : bool (size,), optional
        Live coordinates, the only ones that carry noise; default all.
    silo_variance : float
        v; 0 without DP.

    Raises
    ------
    EncodingError
        Channels are missing or of another length, one silo only, or a sum carries privacy noise.
    """
    silos = sum(aggregate.silos for aggregate in aggregates)
    if silos < 2:
        raise EncodingError("agreement compares silos; a sum of one silo has none")
    if any(aggregate.mean_noise_std("update") > 0 for aggregate in aggregates):
        raise EncodingError(
            "the sum carries distributed noise, which does not protect squares; use the agreement between cohorts"
        )
    total = np.sum([channel_sum(aggregate, "update", units.size) for aggregate in aggregates], axis=0)
    noisy = units.unit_sum(np.ones(units.size) if live is None else live)
    sent = np.sum([channel_sum(aggregate, "unit_energy", units.count) for aggregate in aggregates], axis=0)
    squares = np.maximum(sent, 0.0)
    shared = (units.unit_sum(total**2) - squares) / (silos - 1)
    spread = 2 * silos * noisy * silo_variance**2
    noise = (spread / (silos - 1), spread, 4 * silo_variance)
    return _agreement(shared, squares - silos * noisy * silo_variance, noise, units)


def update_variance(aggregates: Sequence[Aggregate], units: UnitMap, live: NDArray[np.bool_]) -> float:
    """Variance of the update over silos, its mean over the live parameters of units: sum_u (Q_u / n - ||S_u / n||^2)
    over their number. Output neurons, of which no squares are sent, are left out; noise that silos add to their own
    updates is in it.

    Parameters
    ----------
    aggregates : sequence of Aggregate
        One a cohort: channels update (size,), masked coordinates 0, and unit_energy (units,).
    live : bool (size,)

    Raises
    ------
    EncodingError
        Channels are missing or of another length.
    """
    mean, _ = pooled_mean(aggregates, "update", units.size)
    squares = sum(float(channel_sum(aggregate, "unit_energy", units.count).sum()) for aggregate in aggregates)
    spread = squares / sum(aggregate.silos for aggregate in aggregates) - float(units.unit_sum(mean**2).sum())
    return max(0.0, spread) / max(1.0, float(units.unit_sum(live).sum()))


def cross_cohort(aggregates: Sequence[Aggregate], units: UnitMap, live: NDArray[np.bool_] | None = None) -> Agreement:
    """Agreement between the mean updates M_c of m >= 2 disjoint cohorts, from their sums alone.

    mu2_u = (||sum_c M_c,u||^2 - sum_c ||M_c,u||^2) / (m (m - 1)) estimates the squared norm of what all cohorts share;
    independent noise cancels in it in expectation. rho_u = mu2_u / max(e_u, floor_u), where e_u is the mean of
    ||M_c,u||^2 less the known noise variance of the unit's d_u live coordinates.

    floor_u is 3 standard deviations of e_u under noise alone, 3 sqrt(2 d_u sum_c sigma_c^4) / m (0 without noise). For
    pure noise rho_u then has mean 0 (turning the sign of one cohort's noise turns mu2_u and leaves e_u) and standard
    deviation about 1 / (3 sqrt(m - 1)); a signal below the floor is reported as weak, never as strong, agreement.

    Variance of rho_u to first order, v_c being the noise variance of a coordinate of M_c: noise alone gives mu2_u
    (2 / (m (m - 1)))^2 d_u sum_{b<c} v_b v_c and e_u 2 d_u sum_c v_c^2 / m^2; noise times signal gives either about
    4 e_u sum_c v_c / m^2, exact for two cohorts of one size.

    Parameters
    ----------
    aggregates : sequence of Aggregate
        One a cohort, channel update (size,), masked coordinates 0.
    live : bool (size,), optional
        Live coordinates, the only ones that carry noise; default all.

    Raises
    ------
    EncodingError
        Fewer than two cohorts, or a channel that is missing or of another length.
    """
    cohorts = len(aggregates)
    if cohorts < 2:
        raise EncodingError(f"agreement between cohorts needs at least two cohort sums, got {cohorts}")
    means = np.stack([channel_sum(a, "update", units.size) / a.silos for a in aggregates])
    variances = np.array([a.mean_noise_std("update") ** 2 for a in aggregates])
    noisy = units.unit_sum(np.ones(units.size) if live is None else live)
    squares = units.unit_sum((means**2).sum(axis=0))
    shared = (units.unit_sum(means.sum(axis=0) ** 2) - squares) / (cohorts * (cohorts - 1))
    spread = 2 * noisy * (variances**2).sum() / cohorts**2
    pairs = (variances.sum() ** 2 - (variances**2).sum()) / 2
    alone = (2 / (cohorts * (cohorts - 1))) ** 2 * noisy * pairs
    steeper = 4 * float(variances.sum()) / cohorts**2
    return _agreement(shared, squares / cohorts - noisy * variances.mean(), (alone, spread, steeper), units)
