"""Dynamic sparse training from sums: FedDST's rule, a random sparse start and a mask that is readjusted now and then.

FedDST (Bibikar et al. 2022, arXiv 2112.09824, after RigL, Evci et al. 2020, arXiv 1911.11134): the network is sparse
from the start, layer by layer as `erk_counts` says; on readjustment rounds a cosine-annealed fraction of each layer's
weights, the smallest, dies and as many masked ones, those with the largest gradient, are regrown at zero.

As published each silo readjusts a mask of its own and uploads it, and the server averages each weight over the silos
that hold it before it prunes back by magnitude. Here the mask is one for all and is chosen from sums: silos train under
it, the masked weights' gradients are summed, and the sum chooses which of them grow. What the paper averages over the
holders is then a plain mean. A weight that dies in a readjustment is no candidate of the same one, as its gradient was
not sent.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError

__all__ = ["INITIAL_FRACTION", "cosine_fraction", "erk_counts", "random_mask", "readjusted_mask"]

Flags = NDArray[np.bool_]

INITIAL_FRACTION = 0.5
"""Share of a layer's weights in play at the start: the default of --readjustment-ratio in the authors' code (dst.py of
github.com/bibikar/feddst), which anneals it by a cosine over the first half of the rounds as `cosine_fraction` does."""


def cosine_fraction(round: int, end: int, initial: float = INITIAL_FRACTION) -> float:
    """alpha_r = alpha / 2 (1 + cos(pi r / R_end)), 0 from R_end on."""
    return 0.0 if round >= end else initial / 2 * (1 + math.cos(math.pi * round / end))


def erk_counts(units: UnitMap, density: float) -> list[tuple[slice, int]]:
    """Where each weight tensor lies, and how many of its weights live.

    Erdos-Renyi-kernel densities (Mocanu et al. 2018; Evci et al. 2020): in proportion to (in + out + kernel sides) over
    (in * out * kernel area), at most 1, so that `density` of all weights live; each tensor keeps one at least.
    """
    tensors = [(where, shape) for _, where, shape in units.layout.slices() if units.prunable[where].all()]
    sizes = np.array([where.stop - where.start for where, _ in tensors], np.float64)
    raw = np.array([sum(shape) for _, shape in tensors]) / sizes
    full = np.zeros(sizes.size, np.bool_)
    scale = 0.0
    while not full.all():
        scale = max(0.0, density * sizes.sum() - sizes[full].sum()) / (raw * sizes)[~full].sum()
        over = ~full & (scale * raw > 1)
        if not over.any():
            break
        full |= over
    counts = np.maximum(1, np.round(np.where(full, 1.0, scale * raw) * sizes)).astype(int)
    return [(where, int(count)) for (where, _), count in zip(tensors, counts, strict=True)]


def random_mask(units: UnitMap, density: float, generator: np.random.Generator) -> Flags:
    """A sparse start, shape (size,): of each weight tensor `erk_counts` weights drawn at random; the rest all lives."""
    mask = np.ones(units.size, np.bool_)
    for where, count in erk_counts(units, density):
        size = where.stop - where.start
        mask[where] = False
        mask[where.start + generator.permutation(size)[:count]] = True
    return mask


def readjusted_mask(
    units: UnitMap,
    mask: Flags,
    weights: NDArray[np.floating],
    gradient: NDArray[np.floating],
    density: float,
    fraction: float,
) -> Flags:
    """The mask after one readjustment, shape (size,).

    Of each weight tensor's budget k (`erk_counts`) the largest k - floor(fraction * k) live weights stay, and masked
    ones fill the budget by the size of their summed gradient. Where there are too few masked ones, fewer weights die.
    Ties go to the lower index.

    Parameters
    ----------
    mask : bool (size,)
        The mask in force.
    weights, gradient : float arrays (size,)
        `gradient` counts where the mask is False only.

    Raises
    ------
    EncodingError
        Arrays of another length, or values that are not finite.
    """
    for array in (mask, weights, gradient):
        if array.shape != (units.size,):
            raise EncodingError(f"an array of shape {array.shape} does not fit a network of {units.size} parameters")
    if not (np.isfinite(weights).all() and np.isfinite(gradient).all()):
        raise EncodingError("a weight or gradient is not finite; training diverged, lower the learning rate")
    fresh = mask.copy()
    for where, budget in erk_counts(units, density):
        live = where.start + np.flatnonzero(mask[where])
        masked = where.start + np.flatnonzero(~mask[where])
        stay = min(live.size, max(budget - math.floor(fraction * budget), budget - masked.size))
        grow = budget - stay
        fresh[where] = False
        fresh[live[np.argsort(-np.abs(weights[live]), kind="stable")[:stay]]] = True
        fresh[masked[np.argsort(-np.abs(gradient[masked]), kind="stable")[:grow]]] = True
    return fresh
