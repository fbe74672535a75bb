"""Dealing shares: boxes of encrypted shares for every recipient, and commitments that tell a liar from a bad dealer.

For each slot a silo shares two secrets among its recipients. A recipient's box holds, slot by
slot, `nonce | share` of the self-mask seed and of the mask key. The dealer publishes SHA-256 of every `nonce | share`
(a recipient's row) under its signature. A revealed share that does not match the row is the responder's lie; shares
that match and still give a wrong secret are the dealer's.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.parties.signing import digest_of
from autoflip_secure.parties.wire import HASH_BYTES, PROTOCOL
from autoflip_secure.secagg.keys import SlotSecret, box_key
from autoflip_secure.secagg.setup_messages import Advertisement, Dealing, ShareReply
from autoflip_secure.secagg.shamir import SHARE_BYTES, split
from autoflip_secure.sums.randomness import SecretRandomness

__all__ = [
    "KEY",
    "REVEALED_BYTES",
    "SEED",
    "DealingContext",
    "box_bytes",
    "deal",
    "leaf_at",
    "open_box",
    "parcel_at",
    "parcels",
    "revealed_holds",
    "share_at",
]

SEED, KEY = 0, 1
NONCE_BYTES = 16
GCM_NONCE_BYTES = 12
GCM_TAG_BYTES = 16
REVEALED_BYTES = NONCE_BYTES + SHARE_BYTES
SLOT_BYTES = 2 * REVEALED_BYTES
PARCEL_BYTES = 2 * HASH_BYTES


@dataclass(frozen=True)
class DealingContext:
    """What every box and commitment of an epoch is bound to."""

    session: bytes
    roster_hash: bytes
    epoch: int
    keys_hash: bytes

    def associated_data(self, sender: int, receiver: int) -> bytes:
        """Associated data of the box from `sender` to `receiver`."""
        head = struct.pack(">III", sender, receiver, self.epoch)
        return PROTOCOL + head + self.session + self.roster_hash + self.keys_hash

    def leaf_prefix(self, dealer: int, recipient: int) -> bytes:
        """What a share commitment hashes before slot, kind, nonce and share."""
        return PROTOCOL + b"|share|" + self.keys_hash + struct.pack(">II", dealer, recipient)


def deal(
    context: DealingContext,
    silo: int,
    box_private: bytes,
    recipients: Mapping[int, Advertisement],
    secrets: Sequence[SlotSecret],
    threshold: int,
) -> tuple[Dealing, ShareReply]:
    """Share all secrets of an epoch among `recipients`.

    Returns
    -------
    the dealing to be signed, and the reply whose `dealing` field is still empty

    Raises
    ------
    ProtocolError
        A box key of low order, or fewer recipients than the threshold.
    """
    silos = tuple(sorted(recipients))
    agreement = Agreement(box_private)
    boxes, rows = [], []
    for receiver, plaintext in zip(silos, _plaintexts(secrets, threshold, silos), strict=True):
        rows.append(_row(context, silo, receiver, plaintext))
        key = box_key(agreement.with_peer(recipients[receiver].box_key), context.keys_hash, silo, receiver)
        nonce = os.urandom(GCM_NONCE_BYTES)
        boxes.append(nonce + AESGCM(key).encrypt(nonce, plaintext, context.associated_data(silo, receiver)))
    dealing = Dealing(
        context.session,
        context.roster_hash,
        context.epoch,
        silo,
        context.keys_hash,
        silos,
        digest_of(parcels(boxes, rows)),
    )
    return dealing, ShareReply(b"", tuple(boxes), tuple(rows))


def parcels(boxes: Sequence[bytes], rows: Sequence[bytes]) -> bytes:
    """What a dealing hashes: for every recipient the SHA-256 of its box and of its row, 64 bytes."""
    return b"".join(digest_of(box) + digest_of(row) for box, row in zip(boxes, rows, strict=True))


def parcel_at(dealing: Dealing, parcels: bytes, recipient: int) -> tuple[bytes, bytes]:
    """SHA-256 of the box and of the row of a recipient.

    Raises
    ------
    ProtocolError
        These are not the parcels the dealer signed for, or there is none for the recipient.
    """
    if digest_of(parcels) != dealing.parcels_hash or len(parcels) != PARCEL_BYTES * len(dealing.recipients):
        raise ProtocolError(f"the parcels of silo {dealing.silo} are not those it signed for")
    if recipient not in dealing.recipients:
        raise ProtocolError(f"silo {dealing.silo} dealt nothing to silo {recipient}")
    start = PARCEL_BYTES * dealing.recipients.index(recipient)
    return parcels[start : start + HASH_BYTES], parcels[start + HASH_BYTES : start + PARCEL_BYTES]


def _plaintexts(secrets: Sequence[SlotSecret], threshold: int, recipients: Sequence[int]) -> list[bytes]:
    shared = split([secret for slot in secrets for secret in (slot.seed, slot.mask_key)], threshold, recipients)
    plaintexts = []
    for index in range(len(recipients)):
        pool = SecretRandomness().words(len(shared) * NONCE_BYTES // 8).tobytes()
        nonces = (pool[start : start + NONCE_BYTES] for start in range(0, len(pool), NONCE_BYTES))
        plaintexts.append(b"".join(nonce + shares[index] for nonce, shares in zip(nonces, shared, strict=True)))
    return plaintexts


def _row(context: DealingContext, dealer: int, recipient: int, plaintext: bytes) -> bytes:
    prefix = context.leaf_prefix(dealer, recipient)
    starts = range(0, len(plaintext), REVEALED_BYTES)
    return b"".join(
        _leaf(prefix, index >> 1, index & 1, plaintext[start : start + REVEALED_BYTES])
        for index, start in enumerate(starts)
    )


def _leaf(prefix: bytes, slot: int, kind: int, revealed: bytes) -> bytes:
    return hashlib.sha256(prefix + struct.pack(">IB", slot, kind) + revealed).digest()


def open_box(
    context: DealingContext,
    agreement: Agreement,
    dealer: Advertisement,
    recipient: int,
    box: bytes,
    row_hash: bytes,
) -> bytes | None:
    """All shares one dealer dealt to `recipient`, or None where the dealer cheated.

    The caller has already checked that `box` is the one the dealer signed for, so a box that does not decrypt, or whose
    shares are not those committed to, is the dealer's doing.
    """
    try:
        key = box_key(agreement.with_peer(dealer.box_key), context.keys_hash, dealer.silo, recipient)
        sealed = context.associated_data(dealer.silo, recipient)
        plaintext = AESGCM(key).decrypt(box[:GCM_NONCE_BYTES], box[GCM_NONCE_BYTES:], sealed)
    except (InvalidTag, ValueError, ProtocolError):
        return None
    if len(plaintext) != SLOT_BYTES * dealer.slots:
        return None
    row = _row(context, dealer.silo, recipient, plaintext)
    return plaintext if hmac.compare_digest(digest_of(row), row_hash) else None


def box_bytes(slots: int) -> int:
    """Size of a box: nonce, the shares of all slots, and the tag of 16 bytes."""
    return GCM_NONCE_BYTES + SLOT_BYTES * slots + GCM_TAG_BYTES


def share_at(plaintext: bytes, slot: int) -> bytes:
    """Both `nonce | share` of a slot, seed first, 98 bytes."""
    return plaintext[SLOT_BYTES * slot : SLOT_BYTES * (slot + 1)]


def leaf_at(row: bytes, slot: int, kind: int) -> bytes:
    """Commitment to one share, 32 bytes."""
    start = HASH_BYTES * (2 * slot + kind)
    return row[start : start + HASH_BYTES]


def revealed_holds(
    context: DealingContext, dealer: int, recipient: int, slot: int, kind: int, revealed: bytes, row: bytes
) -> bool:
    """Whether a revealed `nonce | share` is the one `dealer` committed to for `recipient`."""
    leaf = _leaf(context.leaf_prefix(dealer, recipient), slot, kind, revealed)
    return hmac.compare_digest(leaf, leaf_at(row, slot, kind))
