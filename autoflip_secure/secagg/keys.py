"""Key schedule: fresh secrets, X25519 agreement, and HKDF-SHA256 with one label a purpose.

Every key is bound to what it is for. Mask keys take the manifest's digest as salt, so silos that were shown different
manifests derive masks that do not cancel.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from autoflip_secure.errors import ProtocolError
from autoflip_secure.secagg.wire import KEY_BYTES, PROTOCOL

__all__ = [
    "Agreement",
    "SlotSecret",
    "box_key",
    "fresh_key",
    "fresh_slot_secrets",
    "is_low_order",
    "pair_mask_key",
    "pair_sign",
    "public_key",
    "seed_commitment",
    "self_mask_key",
]

FIELD = 2**255 - 19
# Points of order 1, 2, 4 and 8 on Curve25519 and its twist: agreement with them gives zero whatever the other key is.
LOW_ORDER = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        FIELD - 1,
        FIELD,
        FIELD + 1,
    }
)


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


def fresh_key() -> bytes:
    """A private X25519 key, 32 bytes."""
    return os.urandom(KEY_BYTES)


def fresh_slot_secrets(slots: int) -> tuple[SlotSecret, ...]:
    """Secrets of a whole epoch."""
    return tuple(SlotSecret(os.urandom(KEY_BYTES), fresh_key()) for _ in range(slots))


def public_key(private: bytes) -> bytes:
    """X25519 public key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_low_order(public: bytes) -> bool:
    """Whether agreement with this public key would give a value everybody knows."""
    return int.from_bytes(public, "little") & ((1 << 255) - 1) in LOW_ORDER


class Agreement:
    """A private key ready for many X25519 agreements."""

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)

    def with_peer(self, public: bytes) -> bytes:
        """Shared secret, 32 bytes.

        Raises
        ------
        ProtocolError
            The peer's key has low order.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise ProtocolError("a peer's public key has low order") from error

    def __repr__(self) -> str:
        return "Agreement()"


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


def pair_sign(silo: int, peer: int) -> int:
    """+1 where `silo` adds the mask it shares with `peer`, -1 where it subtracts it: the lower id adds."""
    return 1 if silo < peer else -1


def seed_commitment(seed: bytes, session: bytes, epoch: int, silo: int, slot: int) -> bytes:
    """Hash commitment to a self-mask seed, 32 bytes; hiding because the seed has 256 bits of entropy."""
    label = PROTOCOL + b"|seed commitment|" + session + struct.pack(">III", epoch, silo, slot)
    return hashlib.sha256(label + seed).digest()


def _derive(secret: bytes, salt: bytes, label: bytes, context: bytes) -> bytes:
    info = PROTOCOL + b"|" + label + b"|" + context
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, info).derive(secret)
