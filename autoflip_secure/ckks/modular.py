"""Arithmetic modulo one prime of at most 56 bits on arrays of 64-bit words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_BITS", "add", "multiply", "subtract"]

MOST_BITS = 56
"""Of a modulus. A quotient of doubles is off by less than 2^6 then, so a remainder stays within 64 bits with sign."""

Words = NDArray[np.uint64]


def add(a: Words, b: Words, modulus: int) -> Words:
    """a + b mod modulus; operands below the modulus, shapes as numpy broadcasts them."""
    total = a + b
    return np.where(total >= modulus, total - np.uint64(modulus), total)


def subtract(a: Words, b: Words, modulus: int) -> Words:
    """a - b mod modulus; operands below the modulus."""
    return np.where(a >= b, a - b, a + (np.uint64(modulus) - b))


def multiply(a: Words, b: Words, modulus: int) -> Words:
    """a * b mod modulus; operands below the modulus.

    The quotient is taken in doubles: each of its five roundings is off by 2^-53 of it at most, it is below 2^56, so it
    is off by less than 2^6, cutting included. The remainder for it, computed modulo 2^64, is below 2^62 in size and
    exact.
    """
    quotient = (a.astype(np.float64) * b.astype(np.float64) / float(modulus)).astype(np.uint64)
    remainder = (a * b - quotient * np.uint64(modulus)).view(np.int64)
    return np.remainder(remainder, np.int64(modulus)).view(np.uint64)
