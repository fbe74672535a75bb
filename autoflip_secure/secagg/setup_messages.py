"""Messages of an epoch's key set-up. See protocols/secagg/README.md for who sends what."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.errors import ProtocolError
from autoflip_secure.secagg.wire import (
    HASH_BYTES,
    KEY_BYTES,
    MAX_ID,
    SESSION_BYTES,
    Message,
    want_bytes,
    want_ids,
    want_int,
    want_tuple,
)

__all__ = [
    "MAX_SLOTS",
    "AdvertiseRequest",
    "Advertisement",
    "Dealing",
    "Delivery",
    "Head",
    "ShareReply",
    "ShareRequest",
]

MAX_SLOTS = 1024


@dataclass(frozen=True, repr=False)
class Head(Message):
    """What every signed message starts with: the run, the roster it assumes, and the epoch."""

    session: bytes
    roster_hash: bytes
    epoch: int

    def __post_init__(self) -> None:
        want_bytes("a session", self.session, SESSION_BYTES)
        want_bytes("a roster hash", self.roster_hash, HASH_BYTES)
        want_int("an epoch", self.epoch, 0)


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
    """silo -> all: public keys of an epoch.

    box_key is 32 bytes; mask_keys and commitments hold 32 bytes a slot: X25519 public keys and hash commitments to
    the self-mask seeds.
    """

    KIND = "advertisement"
    silo: int
    box_key: bytes
    mask_keys: bytes
    commitments: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a box key", self.box_key, KEY_BYTES)
        want_bytes("mask keys", self.mask_keys)
        want_bytes("commitments", self.commitments, len(self.mask_keys))
        if len(self.mask_keys) % KEY_BYTES:
            raise ProtocolError(f"mask keys are not {KEY_BYTES} bytes a slot")

    @property
    def slots(self) -> int:
        """Number of slots keys are advertised for."""
        return len(self.mask_keys) // KEY_BYTES

    def mask_key(self, slot: int) -> bytes:
        """Public mask key of a slot."""
        return self.mask_keys[KEY_BYTES * slot : KEY_BYTES * (slot + 1)]

    def commitment(self, slot: int) -> bytes:
        """Commitment to the self-mask seed of a slot."""
        return self.commitments[KEY_BYTES * slot : KEY_BYTES * (slot + 1)]


@dataclass(frozen=True, repr=False)
class ShareRequest(Head):
    """coordinator -> silo: the signed advertisements of the epoch, ascending by silo."""

    KIND = "share request"
    advertisements: tuple[bytes, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _want_blobs("advertisements", self.advertisements)


@dataclass(frozen=True, repr=False)
class Dealing(Head):
    """silo -> all: what it dealt. For every recipient the SHA-256 of its box and of its row of share commitments."""

    KIND = "dealing"
    silo: int
    keys_hash: bytes
    recipients: tuple[int, ...]
    box_hashes: bytes
    row_hashes: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a keys hash", self.keys_hash, HASH_BYTES)
        want_ids("recipients", self.recipients)
        want_bytes("box hashes", self.box_hashes, HASH_BYTES * len(self.recipients))
        want_bytes("row hashes", self.row_hashes, HASH_BYTES * len(self.recipients))

    def box_hash(self, index: int) -> bytes:
        """SHA-256 of the box of the recipient at `index`."""
        return self.box_hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)]

    def row_hash(self, index: int) -> bytes:
        """SHA-256 of the row of share commitments of the recipient at `index`."""
        return self.row_hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)]


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
class Delivery(Message):
    """coordinator -> silo, inside the first request of a round: all signed dealings, and the boxes for this silo."""

    KIND = "delivery"
    dealings: tuple[bytes, ...]
    boxes: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _want_blobs("dealings", self.dealings)
        _want_blobs("boxes", self.boxes)
        want_tuple("boxes", self.boxes, len(self.dealings))


def _want_blobs(what: str, value: object) -> None:
    want_tuple(what, value)
    assert isinstance(value, tuple)
    for blob in value:
        want_bytes(f"an item of {what}", blob)
