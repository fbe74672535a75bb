"""Fixed-point encoding: clip, scale, stochastic rounding, planar packing into words of Z_2^64.

Packing is linear: `pack(a) + pack(b) == pack(a + b)` in Z_2^64 for any integers, also ones outside their field, so the
sum of packed words is a function of the sum of the integer vectors and of nothing else. `unpack` reads balanced
(signed) digits, hence an excess of one silo over its own field does no harm while the sum stays within its field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import EncodingError
from autoflip_secure.sums.channels import ChannelSpec, Contribution

__all__ = ["dequantise", "field_width", "pack", "pack_contribution", "quantise", "unpack", "unpack_sum", "word_count"]

WORD_BITS = 64
DITHER_BITS = 32


def field_width(bits: int, silos: int) -> int:
    """Bits a field takes so that a sum over `silos` silos fits: bits + ceil(log2(silos))."""
    if silos < 1:
        raise EncodingError(f"cannot size a field for {silos} silos")
    return bits + (silos - 1).bit_length()


def _fields_per_word(spec: ChannelSpec, silos: int) -> int:
    width = field_width(spec.bits, silos)
    if width > WORD_BITS:
        raise EncodingError(
            f"channel {spec.name}: {spec.bits} bits for {silos} silos do not fit a {WORD_BITS}-bit word"
        )
    return WORD_BITS // width


def word_count(specs: Sequence[ChannelSpec], silos: int) -> int:
    """Words of a whole contribution: for each channel ceil(length / fields per word)."""
    return sum(-(-spec.length // _fields_per_word(spec, silos)) for spec in specs)


def quantise(values: NDArray[np.floating], spec: ChannelSpec, dither: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Clip to the public range and round stochastically to the grid: floor(x / step + u), u uniform on [0, 1).

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
    if not np.isfinite(values).all():
        raise EncodingError(f"channel {spec.name}: a value is not finite; training diverged, lower the learning rate")
    scaled = np.clip(values.astype(np.float64), -spec.limit, spec.limit) / spec.step
    scaled += dither * 2.0**-DITHER_BITS
    rounded = np.floor(scaled, out=scaled).astype(np.int64)
    return np.clip(rounded, -spec.levels, spec.levels, out=rounded)


def dequantise(integers: NDArray[np.int64], spec: ChannelSpec) -> NDArray[np.float64]:
    """Integers of the grid back to the channel's own unit."""
    return integers.astype(np.float64) * spec.step


def pack(integers: NDArray[np.int64], spec: ChannelSpec, silos: int) -> NDArray[np.uint64]:
    """Planar packing: with m words, field j of word i holds coordinate j * m + i.

    Returns
    -------
    uint64 array, shape (ceil(length / fields per word),)
    """
    if integers.shape != (spec.length,):
        raise EncodingError(f"channel {spec.name}: expected {spec.length} integers, got shape {integers.shape}")
    fields, width = _fields_per_word(spec, silos), field_width(spec.bits, silos)
    size = -(-spec.length // fields)
    raw = integers.view(np.uint64)
    words = raw[:size].copy()
    for plane in range(1, fields):
        part = raw[plane * size : (plane + 1) * size]
        words[: part.size] += part << np.uint64(plane * width)
    return words


def unpack(words: NDArray[np.uint64], spec: ChannelSpec, silos: int) -> NDArray[np.int64]:
    """Inverse of `pack` on sums: balanced digits, exact while every sum is within its signed field."""
    fields, width = _fields_per_word(spec, silos), field_width(spec.bits, silos)
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


def pack_contribution(contribution: Contribution, specs: Sequence[ChannelSpec], silos: int) -> NDArray[np.uint64]:
    """All channels as one word stream, in the manifest's order; `silos` is the size of the cohort."""
    if set(contribution.values) != {spec.name for spec in specs}:
        raise EncodingError(
            f"a contribution holds {sorted(contribution.values)}, the manifest asks {[spec.name for spec in specs]}"
        )
    return np.concatenate([pack(contribution.values[spec.name], spec, silos) for spec in specs])


def unpack_sum(
    words: NDArray[np.uint64], specs: Sequence[ChannelSpec], silos: int
) -> Mapping[str, NDArray[np.float64]]:
    """Decode a summed word stream, by channel, in the channels' own units. `silos` is the size of the cohort."""
    if words.shape != (word_count(specs, silos),):
        raise EncodingError(f"a sum of {words.size} words does not fit its channels ({word_count(specs, silos)} words)")
    sums: dict[str, NDArray[np.float64]] = {}
    start = 0
    for spec in specs:
        stop = start + word_count([spec], silos)
        sums[spec.name] = dequantise(unpack(words[start:stop], spec, silos), spec)
        start = stop
    return sums
