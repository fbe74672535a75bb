"""X25519 agreement between two silos, and which of the two adds what they share."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.wire import KEY_BYTES

__all__ = ["Agreement", "fresh_key", "is_low_order", "pair_sign", "public_key"]

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


def fresh_key() -> bytes:
    """A private X25519 key, 32 bytes."""
    return os.urandom(KEY_BYTES)


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


def pair_sign(silo: int, peer: int) -> int:
    """+1 where `silo` adds the mask it shares with `peer`, -1 where it subtracts it: the lower id adds."""
    return 1 if silo < peer else -1
