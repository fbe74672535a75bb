"""Compaction: physically removing dead units, as a smaller spec and the indices of the parameters that survive."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import ConfigError
from autoflip_secure.models.spec import ModelSpec, unit_layers

__all__ = ["Compaction", "compact"]


@dataclass(frozen=True, eq=False)
class Compaction:
    """What is left of a network.

    Attributes
    ----------
    spec : ModelSpec
        The compacted network.
    kept : int64 (new size,)
        Old flat indices that survive, in the new layout's order: `new = old[kept]` for parameters, velocity,
        guidance and masks alike.
    kept_units : int64 (new units,)
        Old numbers of the units that survive: `new = old[kept_units]` for values a unit.
    """

    spec: ModelSpec
    kept: NDArray[np.int64]
    kept_units: NDArray[np.int64]


def compact(spec: ModelSpec, dead_units: NDArray[np.bool_]) -> Compaction:
    """Remove the dead units of `spec` on every side: incoming, normalisation and outgoing.

    The compacted network computes what the old one computes with all incoming and normalisation parameters of the dead
    units at zero: every activation here maps 0 to 0, and a dead normalisation group is a whole group.

    Removal keeps the order of the remaining rows and columns of each tensor, and a tensor's sub-block read row by row
    visits its elements in the tensor's own order. Hence the new layout's order is the old one's.

    Raises
    ------
    ConfigError
        A layer would lose its last unit.
    EncodingError
        `dead_units` has another length than the spec has units.
    """
    units = UnitMap.of(spec)
    kept = np.flatnonzero(~units.parameters_of(dead_units))
    dead = np.bincount(units.layer[dead_units], minlength=len(spec.widths))
    layers = unit_layers(spec)
    for layer, gone in zip(layers, dead, strict=True):
        if gone == layer.units:
            raise ConfigError(f"layer {layer.module} would lose its last unit; the network was left as it is")
    widths = tuple(layer.width - int(gone) * layer.granularity for layer, gone in zip(layers, dead, strict=True))
    return Compaction(replace(spec, widths=widths), kept, np.flatnonzero(~dead_units))
