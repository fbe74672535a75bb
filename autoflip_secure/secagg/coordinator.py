"""The coordinator half of the SecAgg-S secure sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autoflip_secure.errors import ConfigError
from autoflip_secure.parties.desk import Events
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.keyed_sums import DEFAULT_SLOTS, KeyedSums, check_enrolled
from autoflip_secure.parties.roster import Roster
from autoflip_secure.secagg.coordinator_round import MaskedStage
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch, OpenEpoch
from autoflip_secure.secagg.desk import DEFAULT_DROPOUT, SecAggDesk
from autoflip_secure.secagg.graph import MAX_COMPLETE
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum, Exchange

__all__ = ["SecAggCoordinator"]

ABORTS_BEFORE_NEW_KEYS = 2


class SecAggCoordinator(KeyedSums[KeyedEpoch]):
    """Runs secure sums; sees only masked vectors, and shares of secrets that open no more than a cohort's sum.

    Parameters
    ----------
    identity : Identity
    roster : Roster
    session : bytes, 16
    slots, first_epoch, on_epoch
        See `KeyedSums`.
    events : callable
        events(name, details), see `parties.desk.Desk`.
    colluders, dropout : int, float
        Size the share graph of a roster above 100 silos, see `desk.SecAggDesk`.

    Raises
    ------
    InputError
        The identity is not the roster's coordinator, or a number is out of range.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        session: bytes,
        *,
        slots: int = DEFAULT_SLOTS,
        first_epoch: int,
        on_epoch: Callable[[int], None],
        events: Events,
        colluders: int = 0,
        dropout: float = DEFAULT_DROPOUT,
    ) -> None:
        check_enrolled(identity, roster, session)
        self._graphs = SecAggDesk(identity, roster, session, events, colluders, dropout)
        super().__init__(
            self._graphs,
            slots=slots,
            first_epoch=first_epoch,
            on_epoch=on_epoch,
            aborts_before_new_keys=ABORTS_BEFORE_NEW_KEYS,
        )

    def _check(self, manifest: Manifest) -> None:
        super()._check(manifest)
        if len(manifest.cohorts) > 1 and len(self._desk.roster.entries) > MAX_COMPLETE:
            raise ConfigError(
                f"the manifest names {len(manifest.cohorts)} cohorts; above {MAX_COMPLETE} silos a sum has one"
            )

    def _set_up(self, number: int, exchange: Exchange, invited: Sequence[int]) -> KeyedEpoch:
        return OpenEpoch(self._graphs, number, self._slots).advertise(exchange, invited).share(exchange)

    def _attempt(self, epoch: KeyedEpoch, manifest: Manifest, exchange: Exchange) -> tuple[CohortSum, ...]:
        return MaskedStage(epoch, manifest).collect(exchange).collect(exchange).collect(exchange)
