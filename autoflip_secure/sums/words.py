"""A contribution's packed words, produced range by range.

Masking adds to every word once; a source that hands out its words in ranges lets encoding and masking share one walk
through the vector, in the processor's cache, with memory that does not grow with the vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import EncodingError
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import BLOCK, MOST_COARSE_BITS, Rounding, field_width, fields_per_word
from autoflip_secure.sums.randomness import Randomness

__all__ = [
    "RANGE_WORDS",
    "ContributionWords",
    "FloatChannel",
    "PackedWords",
    "WordSource",
    "WordsWithTail",
    "all_words",
]

RANGE_WORDS = BLOCK
"""Range to ask for at a time: a few buffers of this size fit the L2 cache, and calls into numpy are no burden."""


class WordSource(Protocol):
    """Words to be summed, without saying where they come from."""

    @property
    def size(self) -> int:
        """Number of words."""
        ...

    @property
    def removable(self) -> bytes | None:
        """Root of the noise chain, 32 bytes (see `noise_chain`); None where no noise is to be removed."""
        ...

    def fill(self, start: int, out: NDArray[np.uint64]) -> None:
        """Write words [start, start + out.size) into `out`, shape (count,), contiguous.

        Every range is asked for once, in ascending order and without gaps.

        Raises
        ------
        EncodingError
            A value cannot be encoded. Earlier ranges may have been masked by then, so the slot counts as spent.
        ValueError
            The ranges are out of order or past the end.
        """
        ...


@dataclass(frozen=True, repr=False)
class FloatChannel:
    """A channel not yet rounded: real values, and where the dither for rounding them comes from.

    Attributes
    ----------
    values : float32 or float64 array, shape (length,)
        Read once, in slices; may be a memory-mapped file. float32 in channels of up to 16 bits is rounded with 16 bits
        of dither, everything else with 32 (see `encoding.Rounding`). Where the privacy of a round rests on the
        rounded integers, use `quantise` and add the noise to its result.
    randomness : Randomness
        Used for this channel only.
    """

    values: NDArray[np.float32] | NDArray[np.float64]
    randomness: Randomness


class PackedWords:
    """Words that are in memory already.

    Parameters
    ----------
    words : uint64 array, shape (size,)
        Only read.
    removable : bytes, 32, optional
        Root of the chain of the removable noise in them.
    """

    def __init__(self, words: NDArray[np.uint64], removable: bytes | None = None) -> None:
        if words.dtype != np.uint64 or words.ndim != 1:
            raise EncodingError(f"packed words are a vector of uint64, not {words.dtype} of shape {words.shape}")
        self._words, self.removable = words, removable
        self._order = _Order(words.size)

    @property
    def size(self) -> int:
        return self._words.size

    def fill(self, start: int, out: NDArray[np.uint64]) -> None:
        self._order.take(start, out.size)
        out[:] = self._words[start : start + out.size]


class ContributionWords:
    """All channels of a contribution as one word stream, in the manifest's order.

    A channel's words are planar: with m words, field j of word i holds coordinate j * m + i.

    Parameters
    ----------
    channels : mapping of str to int64 array or FloatChannel
        By name; a `Contribution`'s `values`, or real vectors that are rounded on the way. Shape (length,) each.
    specs : sequence of ChannelSpec
        The manifest's channels.
    silos : int
        Size of the cohort.
    removable : bytes, 32, optional
        Root of the chain of the removable noise in the channels.

    Raises
    ------
    EncodingError
        Channels, lengths or types are not those of `specs`.
    """

    def __init__(
        self,
        channels: Mapping[str, NDArray[np.int64] | FloatChannel],
        specs: Sequence[ChannelSpec],
        silos: int,
        removable: bytes | None = None,
    ) -> None:
        if set(channels) != {spec.name for spec in specs}:
            raise EncodingError(
                f"a contribution holds {sorted(channels)}, the manifest asks {[spec.name for spec in specs]}"
            )
        self.removable = removable
        self._channels = [_ChannelWords(channels[spec.name], spec, silos) for spec in specs]
        self._order = _Order(sum(channel.size for channel in self._channels))

    @property
    def size(self) -> int:
        return self._order.size

    def fill(self, start: int, out: NDArray[np.uint64]) -> None:
        self._order.take(start, out.size)
        first = 0
        for channel in self._channels:
            lower, upper = max(start, first), min(start + out.size, first + channel.size)
            if lower < upper:
                channel.fill(lower - first, out[lower - start : upper - start])
            first += channel.size


def all_words(source: WordSource) -> NDArray[np.uint64]:
    """The whole stream at once, shape (source.size,)."""
    words = np.empty(source.size, np.uint64)
    source.fill(0, words)
    return words


class WordsWithTail:
    """The words of a source, and then more words that may depend on them, as one source.

    Parameters
    ----------
    source : WordSource
        Its errors pass through.
    length : int
        Words of the tail.
    """

    def __init__(self, source: WordSource, length: int) -> None:
        self._source = source
        self._order = _Order(source.size + length)

    @property
    def size(self) -> int:
        return self._order.size

    @property
    def removable(self) -> bytes | None:
        return self._source.removable

    def fill(self, start: int, out: NDArray[np.uint64]) -> None:
        # The tail depends on every word before it, so the order is not left to the source alone.
        self._order.take(start, out.size)
        words = out[: max(self._source.size - start, 0)]
        if words.size:
            self._source.fill(start, words)
            self._pass(words)
        if words.size < out.size:
            first = start + words.size - self._source.size
            out[words.size :] = self._tail()[first : first + out.size - words.size]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size})"

    def _pass(self, words: NDArray[np.uint64]) -> None:
        """Told of the source's words, range by range."""

    def _tail(self) -> NDArray[np.uint64]:
        """All words of the tail, asked for after all words of the source."""
        raise NotImplementedError


class _Order:
    """Holds callers to ascending ranges without gaps: the dither is a stream, and no word may be encoded twice."""

    def __init__(self, size: int) -> None:
        self.size, self._next = size, 0

    def take(self, start: int, count: int) -> None:
        if start != self._next or start + count > self.size:
            raise ValueError(f"words {start}..{start + count} of {self.size} were asked for, {self._next} is next")
        self._next += count


class _Integers:
    """Coordinates that are on the grid already."""

    def __init__(self, integers: NDArray[np.int64], spec: ChannelSpec) -> None:
        if integers.shape != (spec.length,) or integers.dtype != np.int64:
            raise EncodingError(
                f"channel {spec.name}: expected {spec.length} integers, got {integers.dtype} of shape {integers.shape}"
            )
        self._integers = integers

    def begin_block(self, words: int) -> None:
        pass

    def part(self, plane: int, offset: int, start: int, stop: int) -> NDArray[np.signedinteger]:
        return self._integers[start:stop]


class _Rounded:
    """Coordinates rounded when asked for. The dither is drawn a block of words at a time, hence a coordinate has the
    same dither whatever ranges the words are asked in."""

    def __init__(self, channel: FloatChannel, spec: ChannelSpec, fields: int, scratch: NDArray[np.float64]) -> None:
        # A memory-mapped file's own array class makes every slice of it slow.
        values: NDArray[np.floating] = np.asarray(channel.values)
        if values.shape != (spec.length,):
            raise EncodingError(f"channel {spec.name}: expected {spec.length} values, got shape {values.shape}")
        if values.dtype not in (np.float32, np.float64):
            raise EncodingError(f"channel {spec.name}: values are {values.dtype}, not float32 or float64")
        coarse = values.dtype == np.float32 and spec.bits <= MOST_COARSE_BITS
        self._values, self._randomness, self._fields = values, channel.randomness, fields
        self._rounding = Rounding(spec, coarse=coarse, scratch=scratch)
        self._drawn = np.empty(self._draws(scratch.size), np.uint64)

    def _draws(self, words: int) -> int:
        return -(-words * self._fields * self._rounding.dither_type.itemsize // 8)

    def begin_block(self, words: int) -> None:
        drawn = self._drawn[: self._draws(words)]
        self._randomness.fill(drawn)
        count = words * self._fields
        self._dither = drawn.view(self._rounding.dither_type)[:count].reshape(self._fields, words)

    def part(self, plane: int, offset: int, start: int, stop: int) -> NDArray[np.signedinteger]:
        dither = self._dither[plane, offset : offset + stop - start]
        return self._rounding.round(self._values[start:stop], dither)


class _ChannelWords:
    """The words of one channel, planar: field j of word i holds coordinate j * size + i."""

    def __init__(self, channel: NDArray[np.int64] | FloatChannel, spec: ChannelSpec, silos: int) -> None:
        self._fields, self._width = fields_per_word(spec, silos), field_width(spec.bits, silos)
        self._length, self.size = spec.length, -(-spec.length // self._fields)
        # One piece of memory for two uses that alternate, to leave more of the cache to the masks.
        scratch = np.empty(min(BLOCK, self.size))
        self._shifted = scratch.view(np.int64)
        self._coordinates = (
            _Rounded(channel, spec, self._fields, scratch)
            if isinstance(channel, FloatChannel)
            else _Integers(channel, spec)
        )

    def fill(self, start: int, out: NDArray[np.uint64]) -> None:
        """Words [start, start + out.size); the ranges of all calls are ascending and gapless."""
        stop = start + out.size
        for block in range(start - start % BLOCK, stop, BLOCK):
            if block >= start:
                self._coordinates.begin_block(min(BLOCK, self.size - block))
            lower, upper = max(block, start), min(block + BLOCK, stop)
            self._pack(lower, out[lower - start : upper - start].view(np.int64))

    def _pack(self, start: int, words: NDArray[np.int64]) -> None:
        offset = start % BLOCK
        # Plane 0 is never cut short, as size <= length.
        words[:] = self._coordinates.part(0, offset, start, start + words.size)
        for plane in range(1, self._fields):
            first = plane * self.size + start
            stop = min(first + words.size, self._length)
            if first >= stop:
                break
            shifted = self._shifted[: stop - first]
            shifted[:] = self._coordinates.part(plane, offset, first, stop)
            shifted <<= plane * self._width
            words[: shifted.size] += shifted
