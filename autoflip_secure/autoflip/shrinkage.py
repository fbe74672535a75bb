"""Estimates that carry known noise, pulled towards their layer as far as noise explains their spread."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["shrunk_energy", "shrunk_to_layer"]

Values = NDArray[np.float64]


def shrunk_to_layer(estimates: Values, variance: Values, layer: NDArray[np.int64]) -> Values:
    """Empirical Bayes within each layer: e_u becomes m + r (e_u - m).

    Of k estimates of a layer with mean m, sample variance s^2 and mean noise variance v, the part
    r = max(0, 1 - v / s^2) of the spread is real (Efron and Morris 1973). Without noise nothing changes; where noise
    hides all differences every unit gets its layer's mean.

    Parameters
    ----------
    estimates, variance : float64 (n,)
        Unbiased estimates, and the variance that noise gives each: a function of public figures.
    layer : int64 (n,)
        What belongs together.
    """
    shrunk = estimates.astype(np.float64)
    for index in np.unique(layer):
        of = layer == index
        centre = estimates[of].mean()
        shrunk[of] = centre + _real(estimates[of], variance[of]) * (estimates[of] - centre)
    return shrunk


def shrunk_energy(energy: Values, variance: Values, layer: NDArray[np.int64]) -> Values:
    """The same for energies, which are not negative: max(m' + r (e_u - m), sqrt(r v)), m' = max(m, sqrt(v / k)).

    Without noise this is max(e_u, 0). In noise that hides all differences max(e_u, 0) would be 0 for nearly half of the
    units, on no evidence: no unit is condemned by an estimate within sqrt(r v), the deviation that remains, of 0. A
    layer whose mean is below what noise alone gives it is taken at that, so that layers stay comparable.

    Parameters
    ----------
    energy, variance : float64 (n,)
        As in `shrunk_to_layer`.
    layer : int64 (n,)
        What belongs together.
    """
    shrunk = np.maximum(energy, 0.0)
    for index in np.unique(layer):
        of = layer == index
        noise = float(variance[of].mean())
        if noise <= 0:
            continue
        own, real = energy[of], _real(energy[of], variance[of])
        centre = max(float(own.mean()), math.sqrt(noise / own.size))
        shrunk[of] = np.maximum(centre + real * (own - own.mean()), math.sqrt(real * noise))
    return shrunk


def _real(own: Values, variance: Values) -> float:
    """Part of the spread of one layer's estimates that noise does not explain; 1 without noise."""
    noise = float(variance.mean())
    if noise <= 0:
        return 1.0
    spread = float(own.var(ddof=1)) if own.size > 1 else 0.0
    return max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
