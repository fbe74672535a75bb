"""The subnetwork that a server sends in place of its whole network: EFLPrune's rule.

EFLPrune as the AutoFLIP paper (arXiv 2405.10271) calls it is Wu, Song and Zeng 2023, "Efficient federated learning on
resource-constrained edge devices based on model pruning", Complex & Intelligent Systems 9, 6999-7013, doi
10.1007/s40747-023-01120-5. Its abstract says what is done here: before each release the server selects neurons or
filters, and the clients train that subnetwork; the aggregated parameters go back into the complete network, in which
those that were not sent keep their values (model reconstruction, parameter reuse), so that every one can be selected
again. The mask is the server's and the same for everybody, so a sum over silos is all it takes: no silo has a mask of
its own.

The abstract is silent on how a neuron's importance is measured and on how layers share the budget. Chosen here: the
norm of its incoming weights, and the ranking and FLOP budget that all methods here share (`unit_budget`). By that norm
units that are trained mostly outgrow those that are not, so a selection may well stay what the initial values made it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.compaction import Compaction, compact
from autoflip_secure.autoflip.mask import choose_mask
from autoflip_secure.autoflip.scores import magnitude_scores
from autoflip_secure.autoflip.settings import PruneSettings
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.spec import ModelSpec

__all__ = ["WholeNetwork", "positions"]


@dataclass(frozen=True, eq=False)
class WholeNetwork:
    """The complete network that only the server holds.

    Attributes
    ----------
    spec : ModelSpec
        Dense.
    weights : float32 (size,)
    """

    spec: ModelSpec
    weights: NDArray[np.float32]

    def select(self, settings: PruneSettings) -> Compaction:
        """The subnetwork of the largest units that meets the budget; `kept` are its places in the whole."""
        units = UnitMap.of(self.spec)
        scores = magnitude_scores(self.weights, units)
        everything = np.ones(units.size, np.bool_)
        decision = choose_mask(self.spec, units, scores.parameters, scores.units, settings, everything)
        return compact(self.spec, decision.dead_units)

    def rebuilt(self, kept: NDArray[np.int64], trained: NDArray[np.float32]) -> WholeNetwork:
        """With `trained` at the places `kept`, and all others as they were.

        Raises
        ------
        EncodingError
            Another number of parameters than places.
        """
        if trained.shape != kept.shape:
            raise EncodingError(f"{trained.size} parameters do not fit {kept.size} places of the whole network")
        weights = self.weights.copy()
        weights[kept] = trained
        return WholeNetwork(self.spec, weights)


def positions(kept: NDArray[np.int64], earlier: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place in `kept` its index in `earlier`, or -1 where it was not there. Both ascending."""
    found = np.minimum(np.searchsorted(earlier, kept), earlier.size - 1)
    return np.where(earlier[found] == kept, found, -1)
