"""Uniform words for rounding and noise, from the operating system's entropy or, with DP off, from a named stream.

Secret words are the keystream of AES-256-CTR under a fresh key from `os.urandom`, which is far faster than asking the
operating system for every byte.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from autoflip_secure.seeds import stream

__all__ = ["Randomness", "ReproducibleRandomness", "SecretRandomness", "dither"]

KEY_BYTES = 32
BLOCK_BYTES = 16
WORD_BYTES = 8
CLEAR = memoryview(bytes(1 << 18))


class Randomness(Protocol):
    """A source of uniform 64-bit words."""

    def fill(self, out: NDArray[np.uint64]) -> None:
        """Overwrite `out` (contiguous) with fresh uniform words, the ones `words(out.size)` would have returned."""
        ...

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` fresh uniform words."""
        ...


class SecretRandomness:
    """Words nobody can predict who does not have the key: AES-256-CTR, one key an object.

    Parameters
    ----------
    key : bytes, 32, optional
        Used for this object only; by default fresh from the operating system.
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = os.urandom(KEY_BYTES) if key is None else key
        self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(BLOCK_BYTES))).encryptor()

    def fill(self, out: NDArray[np.uint64]) -> None:
        step = len(CLEAR) // WORD_BYTES
        for start in range(0, out.size, step):
            part = out[start : start + step]
            # Several times faster than `update`, which allocates what it returns.
            self._keystream.update_into(CLEAR[: part.nbytes], part.data.cast("B"))

    def words(self, count: int) -> NDArray[np.uint64]:
        drawn = np.empty(count, np.uint64)
        self.fill(drawn)
        return drawn

    def __repr__(self) -> str:
        return "SecretRandomness()"

    def __reduce__(self) -> str:
        raise TypeError("secret randomness cannot be copied or stored")


class ReproducibleRandomness:
    """Words of a named stream of the run seed: rounding with DP off, and tests."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self._generator = stream(seed, *names)

    def fill(self, out: NDArray[np.uint64]) -> None:
        out[:] = self.words(out.size)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._generator.integers(0, 2**64, count, np.uint64)


def dither(randomness: Randomness, count: int) -> NDArray[np.uint32]:
    """`count` uniform 32-bit words for stochastic rounding, shape (count,)."""
    return randomness.words(-(-count // 2)).view(np.uint32)[:count]
