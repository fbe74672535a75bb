"""Cumulative distribution of |X| for a discrete Gaussian X, in 192-bit fixed point.

P(X = k) is proportional to exp(-k^2 / (2 std^2)) on the integers (Canonne, Kamath and Steinke 2020). Successive
weights follow p(k+1) = p(k) r(k) and r(k+1) = r(k) exp(-1 / std^2), so two integer products a value build the table.

Error. With F = 272 fractional bits and truncation e = 2^-F: |err r(k)| <= (2k + 1) e and |err p(k)| <= (k + 1)^2 e. For
std <= 2e5 there are K < 2^22 values, hence every cumulative value is within K (K + 1)^2 2 e < 2^-204 of the truth
before it is cut to 192 bits. Weights under 2^-192 are lumped into the last value; all told the total variation distance
to the exact distribution is below K 2^-191 + 2^-177 < 2^-160 (`TABLE_ERROR`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

__all__ = ["TABLE_ERROR", "CumulativeTable", "cumulative_table"]

TABLE_BITS = 192
TABLE_BYTES = TABLE_BITS // 8
FRACTION_BITS = 272
TABLE_ERROR = 2.0**-160
START_BITS = 16
MOST_VALUES = 1 << 23
"""Of all tables kept together, 32 bytes each."""
PRECISION = Context(prec=110, Emin=-(10**9), Emax=10**9)


@dataclass(frozen=True, repr=False, eq=False)
class CumulativeTable:
    """Values c(k) = P(|X| <= k) 2^192 for k = 0 .. K - 1; a uniform U < 2^192 stands for |X| = #{k : c(k) <= U}.

    Attributes
    ----------
    high : uint64 array, shape (K,)
        The 64 leading bits.
    entries : bytes
        Every value whole, big-endian, 24 bytes each: byte order is numerical order.
    starts : int32 array, shape (2^16 + 1,)
        For each value of a word's first 16 bits how many of `high` are at most the least such word; most words are
        decided by it, ten times as fast as by a search.
    """

    high: NDArray[np.uint64]
    entries: bytes
    starts: NDArray[np.int32]

    def entry(self, index: int) -> bytes:
        """c(index), 24 bytes."""
        return self.entries[TABLE_BYTES * index : TABLE_BYTES * (index + 1)]

    def search(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """How many of `high` are at most each word, shape (words.size,)."""
        leading = (words >> np.uint64(64 - START_BITS)).astype(np.int64)
        found = self.starts[leading].astype(np.int64)
        undecided = np.flatnonzero(found != self.starts[leading + 1])
        found[undecided] = np.searchsorted(self.high, words[undecided], "right")
        return found

    def resolve(self, word: int, rest: bytes) -> int:
        """Value of one draw from all its 192 bits: the leading word and 16 further bytes."""
        start, stop = np.searchsorted(self.high, np.uint64(word), "left"), np.searchsorted(self.high, word, "right")
        return bisect_right(range(int(stop)), word.to_bytes(8, "big") + rest, int(start), int(stop), key=self.entry)


def _weights(std: float) -> Iterator[int]:
    """p(k) 2^272 with p(0) = 1, until p(k) < 2^-192."""
    variance = PRECISION.multiply(Decimal(std), Decimal(std))
    rate = PRECISION.divide(Decimal(-1), variance)
    scale = Decimal(1 << FRACTION_BITS)
    ratio = int(PRECISION.multiply(PRECISION.exp(PRECISION.divide(rate, Decimal(2))), scale))
    shrink = int(PRECISION.multiply(PRECISION.exp(rate), scale))
    weight = 1 << FRACTION_BITS
    while weight >> (FRACTION_BITS - TABLE_BITS):
        yield weight
        weight = weight * ratio >> FRACTION_BITS
        ratio = ratio * shrink >> FRACTION_BITS


_tables: OrderedDict[float, CumulativeTable] = OrderedDict()
"""The tables used last, as many as `MOST_VALUES` allows; a round with a hundred silos draws from a dozen."""


def cumulative_table(std: float) -> CumulativeTable:
    """Build (or recall) the table of one standard deviation, in steps; about 1 microsecond a value, 16 std values."""
    table = _tables.pop(std, None) or _build(std)
    _tables[std] = table
    while len(_tables) > 1 and sum(kept.high.size for kept in _tables.values()) > MOST_VALUES:
        _tables.popitem(last=False)
    return table


def _build(std: float) -> CumulativeTable:
    one = 1 << FRACTION_BITS
    total = sum(2 * weight for weight in _weights(std)) - one
    entries = bytearray()
    reached = -one
    for weight in _weights(std):
        reached += 2 * weight
        if reached < total:  # the last value takes what is left
            entries += ((reached << TABLE_BITS) // total).to_bytes(TABLE_BYTES, "big")
    high = np.frombuffer(entries, ">u8").reshape(-1, 3)[:, 0].astype(np.uint64)
    edges = np.arange(1 << START_BITS, dtype=np.uint64) << np.uint64(64 - START_BITS)
    starts = np.append(np.searchsorted(high, edges, "right"), high.size).astype(np.int32)
    return CumulativeTable(high, bytes(entries), starts)
