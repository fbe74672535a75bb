"""Messages of an epoch's key set-up. See protocols/secagg/README.md for who sends what."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.head import MAX_SLOTS, Head
from autoflip_secure.parties.wire import (
    HASH_BYTES,
    KEY_BYTES,
    MAX_ID,
    Message,
    want_bytes,
    want_ids,
    want_int,
    want_tuple,
)

__all__ = [
    "AdvertiseReply",
    "AdvertiseRequest",
    "Advertisement",
    "Dealing",
    "Delivered",
    "Delivery",
    "ShareReply",
    "ShareRequest",
]


@dataclass(frozen=True, repr=False)
class AdvertiseRequest(Head):
    """coordinator -> silo: open an epoch of `slots` one-time slots."""

    KIND = "advertise request"
    slots: int

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("the number of slots", self.slots, 1, MAX_SLOTS)


@dataclass(frozen=True, repr=False)
class Advertisement(Head):
    """silo -> all: what an epoch's public keys are known by.

    box_key is a public key of 32 bytes; the keys and commitments of the slots travel apart, under their SHA-256.
    """

    KIND = "advertisement"
    silo: int
    slots: int
    box_key: bytes
    mask_keys_hash: bytes
    commitments_hash: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_int("the number of slots", self.slots, 1, MAX_SLOTS)
        want_bytes("a box key", self.box_key, KEY_BYTES)
        want_bytes("the hash of mask keys", self.mask_keys_hash, HASH_BYTES)
        want_bytes("the hash of commitments", self.commitments_hash, HASH_BYTES)


@dataclass(frozen=True, repr=False)
class AdvertiseReply(Message):
    """silo -> coordinator: signed advertisement, and what it hashes.

    mask_keys and commitments hold 32 bytes a slot: X25519 public keys, and hash commitments to the self-mask seeds.
    """

    KIND = "advertise reply"
    advertisement: bytes
    mask_keys: bytes
    commitments: bytes

    def __post_init__(self) -> None:
        want_bytes("an advertisement", self.advertisement)
        want_bytes("mask keys", self.mask_keys)
        want_bytes("commitments", self.commitments, len(self.mask_keys))


@dataclass(frozen=True, repr=False)
class ShareRequest(Head):
    """coordinator -> silo: the signed advertisements of the epoch, ascending by silo, and who is to hold shares.

    holders is how many others each silo shares its secrets with, 0 for all advertisers (itself included); threshold is
    how many of their shares recover a secret.
    """

    KIND = "share request"
    holders: int
    threshold: int
    advertisements: tuple[bytes, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("the number of share holders", self.holders)
        want_int("the threshold", self.threshold, 1)
        if 0 < self.holders < self.threshold:
            raise ProtocolError(f"{self.holders} holders have fewer shares than a threshold of {self.threshold}")
        _want_blobs("advertisements", self.advertisements)


@dataclass(frozen=True, repr=False)
class Dealing(Head):
    """silo -> all: to whom it dealt, and the SHA-256 of its parcels.

    Parcels hold, 64 bytes a recipient, the SHA-256 of its box and of its row of share commitments.
    """

    KIND = "dealing"
    silo: int
    keys_hash: bytes
    recipients: tuple[int, ...]
    parcels_hash: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a keys hash", self.keys_hash, HASH_BYTES)
        want_ids("recipients", self.recipients)
        want_bytes("a hash of parcels", self.parcels_hash, HASH_BYTES)


@dataclass(frozen=True, repr=False)
class ShareReply(Message):
    """silo -> coordinator: signed dealing; boxes to pass on; rows of share commitments for the coordinator to keep."""

    KIND = "share reply"
    dealing: bytes
    boxes: tuple[bytes, ...]
    rows: tuple[bytes, ...]

    def __post_init__(self) -> None:
        want_bytes("a dealing", self.dealing)
        _want_blobs("boxes", self.boxes)
        _want_blobs("rows", self.rows)


@dataclass(frozen=True, repr=False)
class Delivered(Message):
    """One peer's part of a delivery: its mask keys; and where it dealt to the receiver, its parcels and the box."""

    KIND = "delivered"
    silo: int
    mask_keys: bytes
    parcels: bytes
    box: bytes

    def __post_init__(self) -> None:
        want_int("a silo id", self.silo, 1, MAX_ID)
        for what, value in (("mask keys", self.mask_keys), ("parcels", self.parcels), ("a box", self.box)):
            want_bytes(what, value)


@dataclass(frozen=True, repr=False)
class Delivery(Message):
    """coordinator -> silo, inside the first request of a round: all signed dealings, and what the silo's peers sent.

    Both ascending by silo; peers are the `Delivered` of everyone who dealt to the receiver or to whom it dealt.
    """

    KIND = "delivery"
    dealings: tuple[bytes, ...]
    peers: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _want_blobs("dealings", self.dealings)
        _want_blobs("peers", self.peers)


def _want_blobs(what: str, value: object) -> None:
    want_tuple(what, value)
    assert isinstance(value, tuple)
    for blob in value:
        want_bytes(f"an item of {what}", blob)
