"""Mask expansion: the AES-256-CTR keystream of a 32-byte key, read as little-endian 64-bit words.

The vector is walked once: each chunk stays in the processor's cache while every mask is added to it, and the keystream
is written into one preallocated buffer (`update_into`), which is several times faster than expanding mask by mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

__all__ = ["apply_masks"]

CHUNK_WORDS = 8192
WORD_BYTES = 8
BLOCK_BYTES = 16


def apply_masks(words: NDArray[np.uint64], keys: Sequence[bytes], signs: Sequence[int]) -> None:
    """Add (sign > 0) or subtract (sign < 0) the keystream of every key to `words` in place, modulo 2^64.

    A key must never be used for two vectors. The counter starts at zero, hence keys have to be derived one a vector
    (see `keys`).

    Parameters
    ----------
    words : uint64 array, shape (size,), contiguous
    keys : sequence of bytes, 32 each
    signs : sequence of int, as long as `keys`
    """
    streams = [Cipher(algorithms.AES(key), modes.CTR(bytes(BLOCK_BYTES))).encryptor() for key in keys]
    operations = [np.add if sign > 0 else np.subtract for sign in signs]
    pairs = list(zip(streams, operations, strict=True))
    zeros = memoryview(bytes(min(CHUNK_WORDS, max(words.size, 1)) * WORD_BYTES))
    buffer = bytearray(len(zeros))
    keystream = np.frombuffer(buffer, "<u8")
    for start in range(0, words.size, CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        clear, mask = zeros[: chunk.size * WORD_BYTES], keystream[: chunk.size]
        for stream, operation in pairs:
            stream.update_into(clear, buffer)
            operation(chunk, mask, out=chunk)
