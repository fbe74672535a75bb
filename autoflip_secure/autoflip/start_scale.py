"""The scale of untrained weights, given back to what pruning left of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.units import UnitMap

__all__ = ["at_scale"]


def at_scale(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    units: UnitMap,
    left: UnitMap,
    kept: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Weights of a pruned network, each unit's and output's incoming ones as long as they were, shape (left size,).

    Initial weights are drawn so that a unit's input has the variance its activation needs, 1 / fan-in each (LeCun et
    al. 1998; Glorot and Bengio 2010). Of a unit with a part p of its weights left it is p of that: gradients shrink
    with it, layer by layer, and a sparse network learns slowly at first. Scaling what is left by
    ||w_u|| / ||w_u masked|| is what a draw for the smaller network would have given. Trained weights are left alone:
    theirs is learnt.

    Parameters
    ----------
    before : float32 (units.size,)
        Weights before pruning.
    after : float32 (left.size,)
        Weights after it, masked ones 0.
    units, left : UnitMap
        Of the network before and after.
    kept : int64 (left.size,)
        Flat indices of `before` that `after` consists of.
    """
    owner = np.full(left.groups, -1, np.int64)
    owner[left.owner] = units.owner[kept]
    was = units.group_sum(np.where(units.prunable, before.astype(np.float64) ** 2, 0.0))[owner]
    now = left.group_sum(np.where(left.prunable, after.astype(np.float64) ** 2, 0.0))
    scale = np.sqrt(np.divide(was, now, out=np.ones_like(now), where=(now > 0) & (was > 0)))
    return np.where(left.prunable, after * scale[left.owner], after).astype(np.float32)
