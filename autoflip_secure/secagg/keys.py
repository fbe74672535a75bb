"""Key schedule: fresh secrets, and HKDF-SHA256 with one label a purpose.

Every key is bound to what it is for. Mask keys take the manifest's digest as salt, so silos that were shown different
manifests derive masks that do not cancel.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from autoflip_secure.parties.agreement import fresh_key
from autoflip_secure.parties.wire import KEY_BYTES, PROTOCOL

__all__ = [
    "SlotSecret",
    "box_key",
    "fresh_slot_secrets",
    "pair_mask_key",
    "seed_commitment",
    "self_mask_key",
]


@dataclass(frozen=True)
class SlotSecret:
    """A silo's two secrets of one slot.

    Attributes
    ----------
    seed : bytes, 32
        Self-mask seed, b in the protocol.
    mask_key : bytes, 32
        X25519 private key of the pair masks.
    """

    seed: bytes = field(repr=False)
    mask_key: bytes = field(repr=False)


def fresh_slot_secrets(slots: int) -> tuple[SlotSecret, ...]:
    """Secrets of a whole epoch."""
    return tuple(SlotSecret(os.urandom(KEY_BYTES), fresh_key()) for _ in range(slots))


def pair_mask_key(shared: bytes, digest: bytes, one: int, other: int, slot: int, cohort: int) -> bytes:
    """Key of the mask two silos of a cohort share.

    HKDF(X25519(sk_i, pk_j), salt = manifest digest,
         info = protocol | "pair mask" | lower id | higher id | slot | cohort index)
    """
    low, high = min(one, other), max(one, other)
    return _derive(shared, digest, b"pair mask", struct.pack(">IIII", low, high, slot, cohort))


def self_mask_key(seed: bytes, digest: bytes, silo: int, slot: int) -> bytes:
    """Key of a silo's own mask: HKDF(b, salt = manifest digest, info = protocol | "self mask" | id | slot)."""
    return _derive(seed, digest, b"self mask", struct.pack(">II", silo, slot))


def box_key(shared: bytes, keys_hash: bytes, sender: int, receiver: int) -> bytes:
    """AES-256-GCM key of the one box a silo sends to another in an epoch; each direction has its own."""
    return _derive(shared, keys_hash, b"share box", struct.pack(">II", sender, receiver))


def seed_commitment(seed: bytes, session: bytes, epoch: int, silo: int, slot: int) -> bytes:
    """Hash commitment to a self-mask seed, 32 bytes; hiding because the seed has 256 bits of entropy."""
    label = PROTOCOL + b"|seed commitment|" + session + struct.pack(">III", epoch, silo, slot)
    return hashlib.sha256(label + seed).digest()


def _derive(secret: bytes, salt: bytes, label: bytes, context: bytes) -> bytes:
    info = PROTOCOL + b"|" + label + b"|" + context
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, info).derive(secret)
