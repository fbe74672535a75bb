"""The coordinator's side of an epoch's key set-up: OpenEpoch -> AdvertisedEpoch -> KeyedEpoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.signing import digest_of
from autoflip_secure.parties.wire import HASH_BYTES, KEY_BYTES
from autoflip_secure.secagg.dealing import DealingContext, box_bytes, parcels
from autoflip_secure.secagg.desk import SecAggDesk
from autoflip_secure.secagg.epoch import check_mask_keys, epoch_hash, keys_hash, read_advertisement, read_dealing
from autoflip_secure.secagg.graph import ShareGraph
from autoflip_secure.secagg.setup_messages import (
    Advertisement,
    AdvertiseReply,
    AdvertiseRequest,
    Dealing,
    Delivered,
    Delivery,
    ShareReply,
    ShareRequest,
)
from autoflip_secure.sums.secure_sum import Exchange

__all__ = ["AdvertisedEpoch", "Advertiser", "Dealer", "KeyedEpoch", "OpenEpoch"]


@dataclass(frozen=True)
class Advertiser:
    """A silo whose public keys are known; `signed` is its signed advertisement."""

    signed: bytes = field(repr=False)
    advertisement: Advertisement
    mask_keys: bytes = field(repr=False)
    commitments: bytes = field(repr=False)

    def mask_key(self, slot: int) -> bytes:
        """Public mask key of a slot, 32 bytes."""
        return self.mask_keys[KEY_BYTES * slot : KEY_BYTES * (slot + 1)]

    def commitment(self, slot: int) -> bytes:
        """Commitment to the self-mask seed of a slot, 32 bytes."""
        return self.commitments[KEY_BYTES * slot : KEY_BYTES * (slot + 1)]


@dataclass(frozen=True)
class Dealer:
    """A silo that dealt its secrets; `boxes` and `rows` are by recipient, boxes until they are delivered."""

    signed: bytes = field(repr=False)
    dealing: Dealing
    parcels: bytes = field(repr=False)
    boxes: dict[int, bytes] = field(repr=False)
    rows: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True)
class OpenEpoch:
    """An epoch whose number is taken."""

    desk: SecAggDesk
    number: int
    slots: int

    def advertise(self, exchange: Exchange, silos: Iterable[int] | None = None) -> AdvertisedEpoch:
        """Ask every silo of the roster, or `silos`, for its keys.

        Raises
        ------
        Abort
            Fewer than t silos answered.
        """
        desk, head = self.desk, self.desk.head(self.number)
        request = desk.signed(AdvertiseRequest(head.session, head.roster_hash, head.epoch, self.slots))

        def read(silo: int, reply: bytes) -> Advertiser:
            message = AdvertiseReply.from_bytes(reply)
            advertisement = read_advertisement(message.advertisement, desk.roster, head, self.slots)
            if advertisement.silo != silo:
                raise ProtocolError(f"silo {silo} sent the advertisement of silo {advertisement.silo}")
            check_mask_keys(advertisement, message.mask_keys)
            if digest_of(message.commitments) != advertisement.commitments_hash:
                raise ProtocolError(f"silo {silo} sent commitments that it did not sign for")
            return Advertiser(message.advertisement, advertisement, message.mask_keys, message.commitments)

        asked = desk.roster.silos if silos is None else silos
        advertisers = desk.ask(exchange, "advertise", dict.fromkeys(asked, request), read)
        desk.require(len(advertisers), "advertised keys", "advertise")
        return AdvertisedEpoch(desk, self.number, self.slots, advertisers)


@dataclass(frozen=True)
class AdvertisedEpoch:
    """An epoch whose public keys are known."""

    desk: SecAggDesk
    number: int
    slots: int
    advertisers: Mapping[int, Advertiser]

    def share(self, exchange: Exchange) -> KeyedEpoch:
        """Let every advertiser deal its secrets.

        Raises
        ------
        Abort
            Fewer than t silos dealt, or no share graph of these advertisers bears what is planned for.
        """
        desk, head = self.desk, self.desk.head(self.number)
        graph = desk.share_graph(len(self.advertisers))
        advertisements = tuple(advertiser.signed for advertiser in self.advertisers.values())
        keys, advertisers = keys_hash(graph, advertisements), tuple(self.advertisers)
        request = desk.signed(
            ShareRequest(head.session, head.roster_hash, head.epoch, graph.holders, graph.threshold, advertisements)
        )

        def read(silo: int, reply: bytes) -> Dealer:
            message = ShareReply.from_bytes(reply)
            dealing = read_dealing(message.dealing, desk.roster, head, keys, advertisers, graph)
            if dealing.silo != silo:
                raise ProtocolError(f"silo {silo} sent the dealing of silo {dealing.silo}")
            if not len(message.boxes) == len(message.rows) == len(dealing.recipients):
                raise ProtocolError(f"silo {silo} did not deal to each of {len(dealing.recipients)} silos")
            sent = parcels(message.boxes, message.rows)
            if digest_of(sent) != dealing.parcels_hash or set(map(len, message.rows)) != {2 * HASH_BYTES * self.slots}:
                raise ProtocolError(f"silo {silo} sent boxes or commitments that it did not sign for")
            if set(map(len, message.boxes)) != {box_bytes(self.slots)}:
                raise ProtocolError(f"silo {silo} sent boxes of another size than {box_bytes(self.slots)} bytes")
            boxes = dict(zip(dealing.recipients, message.boxes, strict=True))
            return Dealer(
                message.dealing, dealing, sent, boxes, dict(zip(dealing.recipients, message.rows, strict=True))
            )

        dealers = desk.ask(exchange, "share", dict.fromkeys(advertisers, request), read)
        desk.require(len(dealers), "dealt shares", "share")
        context = DealingContext(head.session, head.roster_hash, head.epoch, keys)
        epoch = KeyedEpoch(desk, context, graph, self.slots, self.advertisers, dealers)
        desk.events("epoch_opened", {"epoch": self.number, "silos": list(epoch.members), "slots": self.slots})
        return epoch


@dataclass
class KeyedEpoch:
    """An epoch ready for rounds; it hands out each slot once and remembers who has its delivery."""

    desk: SecAggDesk
    context: DealingContext
    graph: ShareGraph
    slots: int
    advertisers: Mapping[int, Advertiser]
    dealers: Mapping[int, Dealer]
    delivered: set[int] = field(default_factory=set)
    used: int = 0

    def __post_init__(self) -> None:
        self.members = tuple(self.dealers)
        self._dealings = tuple(dealer.signed for dealer in self.dealers.values())
        self.epoch_hash = epoch_hash(self.context.keys_hash, self._dealings)
        self._peers: dict[int, set[int]] = {silo: set() for silo in self.members}
        self._owners: dict[int, set[int]] = {silo: set() for silo in self.members}
        for silo, dealer in self.dealers.items():
            for recipient in dealer.dealing.recipients:
                if recipient in self._peers:
                    self._peers[silo].add(recipient)
                    self._peers[recipient].add(silo)
                    self._owners[recipient].add(silo)

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

    def peers(self, silo: int) -> set[int]:
        """Members that a member shares pair masks with: those it dealt to and those that dealt to it."""
        return self._peers[silo] - {silo}

    def holders(self, owner: int) -> tuple[int, ...]:
        """Silos that a member dealt its shares to, ascending."""
        return self.dealers[owner].dealing.recipients

    def owners(self, silo: int) -> set[int]:
        """Members whose shares a member was dealt."""
        return self._owners[silo]

    def delivery(self, silo: int) -> bytes:
        """What the peers of a silo sent for it, empty where it is known to have it."""
        if silo in self.delivered:
            return b""
        peers = tuple(self._delivered_by(peer, silo).to_bytes() for peer in sorted(self._peers[silo]))
        return Delivery(self._dealings, peers).to_bytes()

    def _delivered_by(self, peer: int, silo: int) -> Delivered:
        dealer, mask_keys = self.dealers[peer], self.advertisers[peer].mask_keys
        if silo not in dealer.boxes:
            return Delivered(peer, mask_keys, b"", b"")
        return Delivered(peer, mask_keys, dealer.parcels, dealer.boxes[silo])

    def has_delivery(self, silos: Iterable[int]) -> None:
        """Note that silos answered a request that held their delivery; what they have is not kept."""
        for silo in set(silos) - self.delivered:
            self.delivered.add(silo)
            for peer in self._peers[silo]:
                self.dealers[peer].boxes.pop(silo, None)

    def row(self, dealer: int, recipient: int) -> bytes:
        """Commitments of a dealer to all shares it dealt to a recipient."""
        return self.dealers[dealer].rows[recipient]
