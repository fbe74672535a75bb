"""Between a contribution's words, the values that are encrypted, and coefficients on the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.ckks.parameters import DEGREE, LOW_BITS, value_widths
from autoflip_secure.errors import ProtocolError
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import field_width, fields_per_word, unpack_integers, word_count

__all__ = ["from_bytes", "polynomials_of", "rows_of", "to_bytes", "words_of"]


def polynomials_of(channels: Sequence[ChannelSpec], silos: int) -> int:
    """Ciphertexts of a contribution: all values of its fields, N a ciphertext."""
    return -(-sum(spec.length * len(value_widths(spec.bits, silos)) for spec in channels) // DEGREE)


def rows_of(words: NDArray[np.uint64], channels: Sequence[ChannelSpec], silos: int) -> NDArray[np.float64]:
    """The signed fields of packed words, in the channels' order, as rows to be encrypted; zeros at the end.

    A wide field is cut: first the lower parts of all coordinates of its channel, signed too, then the upper ones.
    What a sum of words decodes to (`sums.encoding.unpack`) is what the sum of these values packs to and decodes to.

    Returns
    -------
    float64 array, shape (polynomials, N); whole numbers
    """
    rows = np.zeros(polynomials_of(channels, silos) * DEGREE)
    start = 0
    for spec, integers in zip(channels, unpack_integers(words, channels, silos).values(), strict=True):
        if len(value_widths(spec.bits, silos)) == 1:
            rows[start : start + spec.length] = integers
            start += spec.length
            continue
        upper = (integers + (1 << (LOW_BITS - 1))) >> LOW_BITS
        rows[start : start + spec.length] = integers - (upper << LOW_BITS)
        rows[start + spec.length : start + 2 * spec.length] = upper
        start += 2 * spec.length
    return rows.reshape(-1, DEGREE)


def words_of(values: NDArray[np.int64], channels: Sequence[ChannelSpec], silos: int) -> NDArray[np.uint64]:
    """Packed words whose fields are these: the reverse of `rows_of`, without the zeros at the end."""
    words = np.zeros(word_count(channels, silos), np.uint64)
    first = start = 0
    for spec in channels:
        integers = values[first : first + spec.length]
        first += spec.length
        if len(value_widths(spec.bits, silos)) == 2:
            integers = integers + (values[first : first + spec.length] << LOW_BITS)
            first += spec.length
        fields, width = fields_per_word(spec, silos), field_width(spec.bits, silos)
        size = -(-spec.length // fields)
        for plane in range(fields):
            part = integers[plane * size : (plane + 1) * size]
            words[start : start + part.size] += part.view(np.uint64) << np.uint64(plane * width)
        start += size
    return words


def to_bytes(coefficients: NDArray[np.uint64], width: int) -> bytes:
    """Coefficients one after another, the `width` low bytes of each, little-endian."""
    return coefficients.astype("<u8", copy=False).reshape(-1, 1).view(np.uint8)[:, :width].tobytes()


def from_bytes(data: bytes | memoryview, width: int) -> NDArray[np.uint64]:
    """Coefficients of `to_bytes`, shape (count,).

    Raises
    ------
    ProtocolError
        The bytes are no whole number of coefficients.
    """
    if len(data) % width:
        raise ProtocolError(f"{len(data)} bytes are no whole number of coefficients of {width} bytes")
    coefficients = np.zeros((len(data) // width, 8), np.uint8)
    coefficients[:, :width] = np.frombuffer(data, np.uint8).reshape(-1, width)
    return coefficients.reshape(-1).view("<u8").astype(np.uint64, copy=False)
