"""Mask expansion: the AES-256-CTR keystream of a 32-byte key, read as little-endian 64-bit words.

The vector is walked once: each chunk stays in the processor's cache while every mask is added to it, and the keystream
is written into one preallocated buffer (`update_into`), which is several times faster than expanding mask by mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

__all__ = ["MaskStream", "apply_masks"]

CHUNK_WORDS = 1 << 15
WORD_BYTES = 8
BLOCK_BYTES = 16
WORDS_PER_BLOCK = BLOCK_BYTES // WORD_BYTES
CLEAR = memoryview(bytes(CHUNK_WORDS * WORD_BYTES))


class MaskStream:
    """The masks of one vector, applied to it chunk by chunk from its start (or from a word in it) to its end.

    A key must never be used for two vectors. The counter of the vector's first word is zero, hence keys have to be
    derived one a vector (see `keys`).

    Parameters
    ----------
    keys : sequence of bytes, 32 each
    signs : sequence of int, as long as `keys`
        > 0: the mask is added; otherwise subtracted. Modulo 2^64.
    start : int
        Word of the vector the first chunk begins with; even, since a block of the cipher is two words.

    Raises
    ------
    ValueError
        Not as many signs as keys, a key of another length, or an odd or negative start.
    """

    def __init__(self, keys: Sequence[bytes], signs: Sequence[int], start: int = 0) -> None:
        if start < 0 or start % WORDS_PER_BLOCK:
            raise ValueError(f"masks cannot start at word {start}: it is not a whole number of cipher blocks")
        if any(len(key) != 32 for key in keys):
            raise ValueError("a mask key is 32 bytes")
        counter = (start // WORDS_PER_BLOCK).to_bytes(BLOCK_BYTES, "big")
        streams = [Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor() for key in keys]
        operations = [np.add if sign > 0 else np.subtract for sign in signs]
        self._pairs = list(zip(streams, operations, strict=True))
        self._keystream = np.empty(0, "<u8")

    def apply(self, chunk: NDArray[np.uint64]) -> None:
        """Mask the next words, `chunk` of shape (size,), in place."""
        if self._keystream.size < min(chunk.size, CHUNK_WORDS):
            self._keystream = np.empty(min(chunk.size, CHUNK_WORDS), "<u8")
        for start in range(0, chunk.size, CHUNK_WORDS):
            self._apply(chunk[start : start + CHUNK_WORDS])

    def _apply(self, words: NDArray[np.uint64]) -> None:
        mask = self._keystream[: words.size]
        clear, buffer = CLEAR[: words.size * WORD_BYTES], mask.data.cast("B")
        for stream, operation in self._pairs:
            stream.update_into(clear, buffer)
            operation(words, mask, out=words)


def apply_masks(words: NDArray[np.uint64], keys: Sequence[bytes], signs: Sequence[int]) -> None:
    """Add (sign > 0) or subtract the keystream of every key to `words` in place, modulo 2^64.

    Large work is shared with worker processes where there are any (see `mask_workers`); the result is the same.

    Parameters
    ----------
    words : uint64 array, shape (size,)
    keys, signs
        As for `MaskStream`.
    """
    # Imported here: mask_workers is built on MaskStream.
    from autoflip_secure.secagg.mask_workers import WorkerMaskStream, use_workers

    if not use_workers(words.size, len(keys)):
        MaskStream(keys, signs).apply(words)
        return
    with WorkerMaskStream(keys, signs) as stream:
        stream.apply(words)
