"""What every step of the coordinator shares: its identity, the roster, the session, and how it asks and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import share_threshold
from autoflip_secure.parties.signing import sign_message
from autoflip_secure.sums.secure_sum import Exchange

__all__ = ["Desk", "Events"]

Events = Callable[[str, dict[str, Any]], None]
R = TypeVar("R")


@dataclass(frozen=True)
class Desk:
    """The coordinator's standing tools.

    Attributes
    ----------
    events : callable
        events(name, details): silo_dropped, silo_misbehaved, silo_excluded, dealing_rejected, epoch_opened.
    """

    identity: Identity
    roster: Roster
    session: bytes
    events: Events

    @property
    def threshold(self) -> int:
        """Silos that must take part in every step, t."""
        return share_threshold(len(self.roster.entries))

    def head(self, epoch: int) -> Head:
        """Head of a message of an epoch."""
        return Head(self.session, self.roster.hash(), epoch)

    def signed(self, message: Head) -> bytes:
        """A request with the coordinator's signature."""
        return sign_message(self.identity, message)

    def ask(
        self, exchange: Exchange, stage: str, requests: Mapping[int, bytes], read: Callable[[int, bytes], R]
    ) -> dict[int, R]:
        """Send requests and read the replies; a reply that does not hold counts as none.

        Parameters
        ----------
        read : callable
            read(silo, reply), raising ProtocolError for a reply that breaks the protocol.

        Returns
        -------
        dict of int to what `read` returned, ascending by silo
        """
        accepted: dict[int, R] = {}
        answered = set()
        for silo, reply in exchange(stage, requests):
            if silo in answered or silo not in requests:
                continue
            answered.add(silo)
            try:
                accepted[silo] = read(silo, reply)
            except ProtocolError as error:
                self.misbehaved(silo, stage, str(error))
            del reply  # a masked vector may be large, and the next one is fetched before this name is used again
        for silo in sorted(set(requests) - answered):
            self.events("silo_dropped", {"silo": silo, "stage": stage})
        return dict(sorted(accepted.items()))

    def misbehaved(self, silo: int, stage: str, reason: str) -> None:
        """Report a silo whose answer broke the protocol; for this attempt it counts as dropped."""
        self.events("silo_misbehaved", {"silo": silo, "stage": stage, "reason": reason})

    def require(self, silos: int, what: str, stage: str, least: int | None = None) -> None:
        """Raise Abort unless `silos` reaches `least`, or else t."""
        least = self.threshold if least is None else least
        if silos < least:
            raise Abort(
                f"{silos} of {len(self.roster.entries)} silos {what}, {least} are needed; "
                "the model is unchanged, try again with a fresh slot",
                stage=stage,
            )
