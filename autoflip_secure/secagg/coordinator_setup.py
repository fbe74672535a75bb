"""The coordinator's side of an epoch's key set-up: OpenEpoch -> AdvertisedEpoch -> KeyedEpoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoflip_secure.errors import ProtocolError
from autoflip_secure.secagg.dealing import DealingContext
from autoflip_secure.secagg.desk import Desk
from autoflip_secure.secagg.epoch import epoch_hash, keys_hash, read_advertisement, read_dealing
from autoflip_secure.secagg.setup_messages import Advertisement, AdvertiseRequest, Delivery, ShareReply, ShareRequest
from autoflip_secure.secagg.signing import digest_of
from autoflip_secure.secagg.wire import HASH_BYTES
from autoflip_secure.sums.secure_sum import Exchange

__all__ = ["AdvertisedEpoch", "KeyedEpoch", "OpenEpoch"]


@dataclass(frozen=True)
class OpenEpoch:
    """An epoch whose number is taken."""

    desk: Desk
    number: int
    slots: int

    def advertise(self, exchange: Exchange) -> AdvertisedEpoch:
        """Ask every silo of the roster for its keys.

        Raises
        ------
        Abort
            Fewer than t silos answered.
        """
        desk, head = self.desk, self.desk.head(self.number)
        request = desk.signed(AdvertiseRequest(head.session, head.roster_hash, head.epoch, self.slots))

        def read(silo: int, reply: bytes) -> tuple[bytes, Advertisement]:
            message = read_advertisement(reply, desk.roster, head, self.slots)
            if message.silo != silo:
                raise ProtocolError(f"silo {silo} sent the advertisement of silo {message.silo}")
            return reply, message

        answers = desk.ask(exchange, "advertise", dict.fromkeys(desk.roster.silos, request), read)
        desk.require(len(answers), "advertised keys", "advertise")
        signed = tuple(reply for reply, _ in answers.values())
        messages = {silo: message for silo, (_, message) in answers.items()}
        return AdvertisedEpoch(desk, self.number, self.slots, signed, messages)


@dataclass(frozen=True)
class AdvertisedEpoch:
    """An epoch whose public keys are known."""

    desk: Desk
    number: int
    slots: int
    signed: tuple[bytes, ...]
    advertisements: Mapping[int, Advertisement]

    def share(self, exchange: Exchange) -> KeyedEpoch:
        """Let every advertiser deal its secrets.

        Raises
        ------
        Abort
            Fewer than t silos dealt.
        """
        desk, head = self.desk, self.desk.head(self.number)
        keys, recipients = keys_hash(self.signed), tuple(self.advertisements)
        request = desk.signed(ShareRequest(head.session, head.roster_hash, head.epoch, self.signed))

        def read(silo: int, reply: bytes) -> ShareReply:
            message = ShareReply.from_bytes(reply)
            dealing = read_dealing(message.dealing, desk.roster, head, keys, recipients)
            if dealing.silo != silo:
                raise ProtocolError(f"silo {silo} sent the dealing of silo {dealing.silo}")
            if not len(message.boxes) == len(message.rows) == len(recipients):
                raise ProtocolError(f"silo {silo} did not deal to each of {len(recipients)} silos")
            for index, (box, row) in enumerate(zip(message.boxes, message.rows, strict=True)):
                committed = digest_of(box) == dealing.box_hash(index) and digest_of(row) == dealing.row_hash(index)
                if not committed or len(row) != 2 * HASH_BYTES * self.slots:
                    raise ProtocolError(f"silo {silo} sent boxes or commitments that it did not sign for")
            return message

        answers = desk.ask(exchange, "share", dict.fromkeys(recipients, request), read)
        desk.require(len(answers), "dealt shares", "share")
        context = DealingContext(head.session, head.roster_hash, head.epoch, keys)
        epoch = KeyedEpoch(desk, context, self.slots, self.advertisements, answers)
        desk.events("epoch_opened", {"epoch": self.number, "silos": list(epoch.members), "slots": self.slots})
        return epoch


@dataclass
class KeyedEpoch:
    """An epoch ready for rounds; it hands out each slot once and remembers who has its delivery."""

    desk: Desk
    context: DealingContext
    slots: int
    advertisements: Mapping[int, Advertisement]
    replies: Mapping[int, ShareReply]
    delivered: set[int] = field(default_factory=set)
    used: int = 0

    def __post_init__(self) -> None:
        self.members = tuple(self.replies)
        self.recipients = tuple(self.advertisements)
        self.epoch_hash = epoch_hash(self.context.keys_hash, [reply.dealing for reply in self.replies.values()])

    @property
    def number(self) -> int:
        """The epoch's number."""
        return self.context.epoch

    def take_slot(self) -> int:
        """The next unused slot."""
        slot = self.used
        if slot >= self.slots:
            raise ProtocolError(f"epoch {self.number} has no slot left")
        self.used += 1
        return slot

    def delivery(self, silo: int) -> bytes:
        """Dealings and boxes for a silo, empty where it confirmed to have them."""
        if silo in self.delivered:
            return b""
        index = self.recipients.index(silo)
        dealings = tuple(reply.dealing for reply in self.replies.values())
        return Delivery(dealings, tuple(reply.boxes[index] for reply in self.replies.values())).to_bytes()

    def row(self, dealer: int, recipient: int) -> bytes:
        """Commitments of a dealer to all shares it dealt to a recipient."""
        return self.replies[dealer].rows[self.recipients.index(recipient)]
