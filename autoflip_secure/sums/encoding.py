"""Fixed-point encoding: clip, scale, stochastic rounding, and the layout of integers in words of Z_2^64.

Packing (see `words`) is linear: the words of a and of b add up to those of a + b in Z_2^64 for any integers, also ones
outside their field, so the sum of packed words is a function of the sum of the integer vectors and of nothing else.
`unpack` reads balanced (signed) digits, hence an excess of one silo over its own field does no harm while the sum stays
within its field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import EncodingError
from autoflip_secure.sums.channels import ChannelSpec

__all__ = [
    "Rounding",
    "dequantise",
    "field_width",
    "fields_per_word",
    "quantise",
    "recentre",
    "spilled_words",
    "unpack",
    "unpack_integers",
    "unpack_sum",
    "word_count",
]

WORD_BITS = 64
FINE_BITS = 32
COARSE_BITS = 16
MOST_COARSE_BITS = 16
BLOCK = 1 << 15
# Scaling rounds by 2^-52 at most, so a value this far inside its limit cannot leave the grid.
INNER = 1 - 2.0**-40
LEAST_UNIT = 2.0**-1000


def field_width(bits: int, silos: int) -> int:
    """Bits a field takes so that a sum over `silos` silos fits: bits + ceil(log2(silos))."""
    if silos < 1:
        raise EncodingError(f"cannot size a field for {silos} silos")
    return bits + (silos - 1).bit_length()


def recentre(integers: NDArray[np.int64], spec: ChannelSpec, silos: int) -> None:
    """Bring integers back, in place, to the range a field of the sum can hold, centred on 0.

    For a sum whose noise made it wrap round and from which part of the noise was then subtracted.
    """
    half = np.int64(1) << np.int64(field_width(spec.bits, silos) - 1)
    integers += half
    np.remainder(integers, 2 * half, out=integers)
    integers -= half


def fields_per_word(spec: ChannelSpec, silos: int) -> int:
    """Coordinates that share a word of 64 bits."""
    width = field_width(spec.bits, silos)
    if width > WORD_BITS:
        raise EncodingError(
            f"channel {spec.name}: {spec.bits} bits for {silos} silos do not fit a {WORD_BITS}-bit word"
        )
    return WORD_BITS // width


def word_count(specs: Sequence[ChannelSpec], silos: int) -> int:
    """Words of a whole contribution: for each channel ceil(length / fields per word)."""
    return sum(-(-spec.length // fields_per_word(spec, silos)) for spec in specs)


class Rounding:
    """Stochastic rounding of one channel, at most `BLOCK` coordinates at a time, in scratch memory of its own.

    A value x becomes y = x / step, clipped to [-levels, levels] and rounded to the nearest multiple of 2^-F; with a
    dither word w of F bits the result is floor(y + w 2^-F), in integers. F is 32 (fine) or 16 (coarse).

    - With w fixed the result is a function of the value alone, and monotone in it.
    - It is off by less than one step, since whole steps are multiples of 2^-F.
    - The mean over w is y exactly, hence the bias is that of y: at most 2^-(F+1) step plus the rounding of doubles,
      |x / step| 2^-52. Together less than 2^-16 step (coarse, values of up to 16 bits), 2^-27 (fine, up to 25 bits).

    The bound on sensitivity in privacy.discrete_noise is for fine rounding; coarse is for values that carry no noise
    of ours, or all of it already.

    Parameters
    ----------
    spec : ChannelSpec
    coarse : bool
        16 fraction bits instead of 32, which is faster; for channels of up to 16 bits only.
    scratch : float64 array, shape (min(BLOCK, length),), optional
        Memory to work in, free again between calls; a caller that has use for it in turn stays in the cache.

    Attributes
    ----------
    dither_type : numpy dtype
        Type of the dither words, uint16 or uint32.

    Raises
    ------
    EncodingError
        Too many bits for coarse rounding, or a limit that doubles cannot divide by.
    """

    def __init__(self, spec: ChannelSpec, *, coarse: bool = False, scratch: NDArray[np.float64] | None = None) -> None:
        if coarse and spec.bits > MOST_COARSE_BITS:
            raise EncodingError(f"channel {spec.name}: coarse rounding of {spec.bits} bits; the most is 16")
        self._spec = spec
        self._fraction = COARSE_BITS if coarse else FINE_BITS
        unit = 2.0**-self._fraction * spec.step
        if unit < LEAST_UNIT:
            raise EncodingError(f"channel {spec.name}: limit {spec.limit} is too small to be divided")
        # A product is three times as fast; a quotient has one rounding less.
        self._operation: np.ufunc = np.multiply if coarse else np.divide
        self._operand = 1.0 / unit if coarse else unit
        size = min(BLOCK, spec.length)
        self._scaled = np.empty(size, np.float64) if scratch is None else scratch
        self._fixed: NDArray[np.signedinteger] = np.empty(size, np.int32 if coarse else np.int64)
        self.dither_type = np.dtype(np.uint16 if coarse else np.uint32)

    def round(self, values: NDArray[np.floating], dither: NDArray[np.unsignedinteger]) -> NDArray[np.signedinteger]:
        """Rounded values, within [-levels, levels]: int32 (coarse) or int64, overwritten by the next call.

        Parameters
        ----------
        values : float array, shape (size,), 1 <= size <= BLOCK
        dither : array of `dither_type`, shape (size,)
            Uniform words; must not depend on the data.

        Raises
        ------
        EncodingError
            A value is not finite.
        """
        spec, scaled, fixed = self._spec, self._scaled[: values.size], self._fixed[: values.size]
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise EncodingError(
                f"channel {spec.name}: a value is not finite; training diverged, lower the learning rate"
            )
        np.copyto(scaled, values)
        inside = max(-low, high) <= spec.limit * INNER
        if not inside:
            np.clip(scaled, -spec.limit, spec.limit, out=scaled)
        self._operation(scaled, self._operand, out=scaled)
        np.rint(scaled, out=scaled)
        if not inside:
            end = math.ldexp(spec.levels, self._fraction)
            np.clip(scaled, -end, end, out=scaled)
        np.copyto(fixed, scaled, casting="unsafe")
        # At the upper end this is 2^31 - 1 or 2^63 - 1 with the largest dither, and never more.
        fixed += dither
        fixed >>= self._fraction
        return fixed


def quantise(values: NDArray[np.floating], spec: ChannelSpec, dither: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Clip to the public range and round stochastically to the grid: floor(x / step + u), u uniform on [0, 1).

    See `Rounding` (fine) for what holds of the result.

    Parameters
    ----------
    values : float array, shape (spec.length,)
    dither : uint32 array, shape (spec.length,)
        Uniform words; must not depend on the data. With them fixed the rounding is a function of the value alone,
        which is what the sensitivity bound in privacy.discrete_noise uses.

    Returns
    -------
    int64 array, shape (spec.length,), within [-spec.levels, spec.levels].

    Raises
    ------
    EncodingError
        Wrong length, or a value that is not finite.
    """
    if values.shape != (spec.length,) or dither.shape != (spec.length,):
        raise EncodingError(f"channel {spec.name}: expected {spec.length} values, got shape {values.shape}")
    rounding = Rounding(spec)
    integers = np.empty(spec.length, np.int64)
    for start in range(0, spec.length, BLOCK):
        part = slice(start, start + BLOCK)
        integers[part] = rounding.round(values[part], dither[part])
    return integers


def dequantise(integers: NDArray[np.int64], spec: ChannelSpec) -> NDArray[np.float64]:
    """Integers of the grid back to the channel's own unit."""
    return integers.astype(np.float64) * spec.step


def unpack(words: NDArray[np.uint64], spec: ChannelSpec, silos: int) -> NDArray[np.int64]:
    """Integers of summed words (see `words`): balanced digits, exact while every sum is within its signed field."""
    fields, width = fields_per_word(spec, silos), field_width(spec.bits, silos)
    size = -(-spec.length // fields)
    if words.shape != (size,):
        raise EncodingError(f"channel {spec.name}: expected {size} words, got shape {words.shape}")
    half = 1 << (width - 1)
    bias = sum(half << (plane * width) for plane in range(fields)) % (1 << WORD_BITS)
    shifted = words + np.uint64(bias)
    mask = np.uint64((1 << width) - 1 if width < WORD_BITS else (1 << WORD_BITS) - 1)
    integers = np.empty(fields * size, np.int64)
    for plane in range(fields):
        digits = (shifted >> np.uint64(plane * width)) & mask
        integers[plane * size : (plane + 1) * size] = (digits - np.uint64(half)).view(np.int64)
    return integers[: spec.length]


def spilled_words(words: NDArray[np.uint64], specs: Sequence[ChannelSpec], silos: int) -> Mapping[str, int]:
    """By channel, how many summed words no integers within their signed fields add up to.

    Such integers leave what a word has beyond its last field at 0, once their signs are carried, and so the places
    after a channel's last coordinate.
    """
    found: dict[str, int] = {}
    start = 0
    for spec in specs:
        fields, width = fields_per_word(spec, silos), field_width(spec.bits, silos)
        size = -(-spec.length // fields)
        bias = sum(1 << (plane * width + width - 1) for plane in range(fields)) % (1 << WORD_BITS)
        shifted = words[start : start + size] + np.uint64(bias)
        spilled = np.zeros(size, np.bool_)
        if fields * width < WORD_BITS:
            spilled |= shifted >> np.uint64(fields * width) != 0
        for place in range(spec.length, fields * size):
            plane, word = divmod(place, size)
            digit = (int(shifted[word]) >> (plane * width)) & ((1 << width) - 1)
            spilled[word] |= digit != 1 << (width - 1)
        found[spec.name] = int(np.count_nonzero(spilled))
        start += size
    return found


def unpack_sum(
    words: NDArray[np.uint64], specs: Sequence[ChannelSpec], silos: int
) -> Mapping[str, NDArray[np.float64]]:
    """Decode a summed word stream, by channel, in the channels' own units. `silos` is the size of the cohort."""
    integers = unpack_integers(words, specs, silos)
    return {spec.name: dequantise(integers[spec.name], spec) for spec in specs}


def unpack_integers(
    words: NDArray[np.uint64], specs: Sequence[ChannelSpec], silos: int
) -> Mapping[str, NDArray[np.int64]]:
    """The integers of a summed word stream, by channel. `silos` is the size of the cohort."""
    if words.shape != (word_count(specs, silos),):
        raise EncodingError(f"a sum of {words.size} words does not fit its channels ({word_count(specs, silos)} words)")
    sums: dict[str, NDArray[np.int64]] = {}
    start = 0
    for spec in specs:
        stop = start + word_count([spec], silos)
        sums[spec.name] = unpack(words[start:stop], spec, silos)
        start = stop
    return sums
