"""The coordinator's standing tools, with the share graph that the run's colluders and dropouts ask for."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.errors import Abort, ConfigError
from autoflip_secure.parties.desk import Desk
from autoflip_secure.secagg.graph import MAX_COMPLETE, SAFE_BITS, ShareGraph, complete_graph, share_graph

__all__ = ["SecAggDesk"]

DEFAULT_DROPOUT = 0.05


@dataclass(frozen=True)
class SecAggDesk(Desk):
    """A desk that knows who is to share secrets with whom.

    Attributes
    ----------
    colluders, dropout : int, float
        Colluding silos to be borne, and fraction of silos expected to drop: they size the share graph of a roster
        that is too large for a complete one.
    """

    colluders: int = 0
    dropout: float = DEFAULT_DROPOUT

    def share_graph(self, advertisers: int) -> ShareGraph:
        """Who shares with whom among so many advertisers: all with all in a roster of up to 100.

        Raises
        ------
        Abort
            The advertisers are too few for the colluders and dropouts planned for.
        """
        if len(self.roster.entries) <= MAX_COMPLETE:
            return complete_graph(len(self.roster.entries))
        try:
            return share_graph(advertisers, self.colluders, self.dropout, sigma=SAFE_BITS)
        except ConfigError as error:
            raise Abort(
                f"{error}; the model is unchanged, try again when more silos are there", stage="share"
            ) from error
