"""Ed25519 identity keys: who a party is, fixed at provisioning."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from autoflip_secure.errors import InputError
from autoflip_secure.parties.wire import PROTOCOL
from autoflip_secure.storage import write_atomically

__all__ = ["Identity", "remember_verifications", "verify"]

READABLE_BY_OTHERS = 0o077
LONGEST_REMEMBERED = 1 << 13
"""Bytes of a message worth keeping: statements, advertisements and dealings, not requests."""


class Identity:
    """A long-term signing key. The key never shows in repr, errors or pickles."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity that lives in memory only."""
        return cls(Ed25519PrivateKey.from_private_bytes(os.urandom(32)))

    @classmethod
    def create(cls, path: Path) -> Identity:
        """A fresh identity, stored at `path` (PKCS#8 PEM, mode 0600).

        Raises
        ------
        InputError
            The file exists; it is kept, since a party that loses its identity must be enrolled again.
        StorageError
            The file cannot be written.
        """
        if path.exists():
            raise InputError(f"{path} already holds a file and is kept; name another path or remove it yourself")
        identity = cls.generate()
        pem = identity._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomically(path, pem, secret=True)
        return identity

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The identity stored at `path`.

        Raises
        ------
        InputError
            The file is missing, is no Ed25519 key, or other users of the machine may read it.
        """
        try:
            mode, pem = path.stat().st_mode, path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the identity {path}: {error.strerror}") from error
        if mode & READABLE_BY_OTHERS:
            raise InputError(
                f"the identity {path} is open to other users (mode {mode & 0o777:o}); run: chmod 600 {path}"
            )
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            # The parser's own error is not passed on: it may quote the file.
            raise InputError(f"{path} is not an Ed25519 identity; restore it or enrol again with a new one")
        return cls(key)

    @property
    def public(self) -> bytes:
        """Public key, 32 raw bytes."""
        return self._public

    def sign(self, domain: bytes, message: bytes) -> bytes:
        """Signature, 64 bytes, over `message` for one purpose; in another domain it is worth nothing."""
        return self._key.sign(_tagged(domain, message))

    def __repr__(self) -> str:
        return f"Identity(public={self._public.hex()[:16]}...)"

    def __reduce__(self) -> str:
        raise TypeError("an identity cannot be pickled or copied; use create and load")


def verify(public: bytes, domain: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is one of `public` over `message` for `domain`."""
    check = _check if len(message) > LONGEST_REMEMBERED else _remembering or _check
    return check(public, domain, message, signature)


def remember_verifications(count: int) -> None:
    """Check the same signature over the same message once in this process, for the last `count` of them.

    For simulations: their silos share a process and all check the signatures of all others. Off unless called.
    """
    global _remembering
    _remembering = lru_cache(count)(_check)


def _check(public: bytes, domain: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _tagged(domain, message))
    except (InvalidSignature, ValueError):
        return False
    return True


_remembering: Callable[[bytes, bytes, bytes, bytes], bool] | None = None


def _tagged(domain: bytes, message: bytes) -> bytes:
    return PROTOCOL + len(domain).to_bytes(2, "big") + domain + message
