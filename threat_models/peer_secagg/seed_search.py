"""Search for the seed of a Flower mask of which one value is known.

`pseudo_rand_gen` folds its seed to 32 bits by XOR and hands them to numpy's RandomState, which is MT19937 with Knuth's
initialisation (Matsumoto and Nishimura 1998, with the 2002 initialisation). The first 32-bit output depends on state
words 0, 1 and 397 only, so a candidate costs 397 steps of one multiplication each, here for many candidates at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

MULTIPLIER, TWIST = np.uint32(1812433253), np.uint32(0x9908B0DF)
HIGH, LOW = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
MIDDLE = 397
BATCH_BITS = 17

PAIR_BITS = 28
PRIVATE_BITS = 32


def private_seed(index: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Candidates for a folded private seed: all 32-bit values."""
    return index


def pair_seed(index: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Candidates for a folded pair seed: 28 bits spread over four bytes, since the seed is text with 7-bit letters."""
    seed = np.zeros_like(index)
    for byte in range(4):
        seed |= (index >> np.uint32(7 * byte) & np.uint32(0x7F)) << np.uint32(8 * byte)
    return seed


def index_of_pair_seed(seed: int) -> int:
    """Inverse of `pair_seed`, to choose a part of the space that holds a given seed."""
    return sum((seed >> (8 * byte) & 0x7F) << (7 * byte) for byte in range(4))


def fold(seed: bytes) -> int:
    """The 32 bits that are left of a seed in `pseudo_rand_gen`: XOR of its little-endian 32-bit words."""
    return int(np.bitwise_xor.reduce(np.frombuffer(seed, "<u4")))


def first_value(seeds: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """First 32-bit output of numpy's RandomState for every seed.

    Parameters
    ----------
    seeds : uint32 array, shape (k,)

    Returns
    -------
    uint32 array, shape (k,)
    """
    word, shifted = seeds.copy(), np.empty_like(seeds)
    for step in range(1, MIDDLE + 1):
        np.right_shift(word, np.uint32(30), out=shifted)
        np.bitwise_xor(word, shifted, out=word)
        np.multiply(word, MULTIPLIER, out=word)
        np.add(word, np.uint32(step), out=word)
        if step == 1:
            second = word.copy()
    joined = (seeds & HIGH) | (second & LOW)
    value = word ^ (joined >> np.uint32(1)) ^ ((second & np.uint32(1)) * TWIST)
    value ^= value >> np.uint32(11)
    value ^= value << np.uint32(7) & np.uint32(0x9D2C5680)
    value ^= value << np.uint32(15) & np.uint32(0xEFC60000)
    return value ^ value >> np.uint32(18)


def candidates(
    known: int, space: Callable[[NDArray[np.uint32]], NDArray[np.uint32]], start: int, stop: int
) -> Iterator[int]:
    """Folded seeds of `space`, indices start..stop - 1, whose first mask value is `known`."""
    for low in range(start, stop, 1 << BATCH_BITS):
        index = np.arange(low, min(low + (1 << BATCH_BITS), stop), dtype=np.uint64).astype(np.uint32)
        seeds = space(index)
        yield from map(int, seeds[first_value(seeds) == np.uint32(known)])
