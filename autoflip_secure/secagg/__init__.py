"""SecAgg-S: sums of vectors of which the coordinator learns nothing but the sum.

Specification: protocols/secagg/README.md. Nothing here trains, touches a network or imports torch.
"""

from autoflip_secure.parties.identity import Identity, verify
from autoflip_secure.parties.roster import MAX_SILOS, MIN_SILOS, Roster, RosterEntry
from autoflip_secure.parties.rules import SiloRules, most_colluders, share_threshold
from autoflip_secure.secagg.coordinator import SecAggCoordinator
from autoflip_secure.secagg.silo import SecAggSilo

__all__ = [
    "MAX_SILOS",
    "MIN_SILOS",
    "Identity",
    "Roster",
    "RosterEntry",
    "SecAggCoordinator",
    "SecAggSilo",
    "SiloRules",
    "most_colluders",
    "share_threshold",
    "verify",
]
