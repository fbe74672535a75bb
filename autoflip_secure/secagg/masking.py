"""Encoding and masking in one walk: each range of words is encoded, masked and handed on while it is in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.secagg.mask_workers import WorkerMaskStream, use_workers
from autoflip_secure.secagg.prg import MaskStream
from autoflip_secure.sums.words import RANGE_WORDS, WordSource

__all__ = ["masked_words"]

FEWEST_SHARED_KEYS = 16
"""Encoding stays in this process: with fewer masks beside it, sharing them out gains nothing."""
SHARED_RANGE_WORDS = 1 << 21
"""Large enough to be worth dividing: 16 MB."""


def masked_words(source: WordSource, keys: Sequence[bytes], signs: Sequence[int]) -> Iterator[memoryview]:
    """The masked words of a source, as little-endian bytes, part by part.

    Memory does not grow with the vector. Where there is enough to do, worker processes share the masking.

    Yields
    ------
    memoryview of bytes
        Good until the next part is asked for: all parts share one buffer.
    """
    if len(keys) >= FEWEST_SHARED_KEYS and use_workers(source.size, len(keys)):
        with WorkerMaskStream(keys, signs) as shared:
            yield from _parts(source, shared, SHARED_RANGE_WORDS)
    else:
        yield from _parts(source, MaskStream(keys, signs), RANGE_WORDS)


def _parts(source: WordSource, stream: MaskStream | WorkerMaskStream, step: int) -> Iterator[memoryview]:
    encoded = np.empty(min(step, source.size), np.uint64)
    # What is handed out never holds clear words, not even if somebody keeps it too long.
    masked = np.empty_like(encoded)
    for start in range(0, source.size, step):
        size = min(step, source.size - start)
        source.fill(start, encoded[:size])
        stream.apply(encoded[:size])
        masked[:size] = encoded[:size]
        yield _bytes(masked[:size])


def _bytes(words: NDArray[np.uint64]) -> memoryview:
    return words.astype("<u8", copy=False).data.cast("B")
