"""Shamir's secret sharing over the prime field of 2^256 + 297, so that 32-byte secrets fit whole.

A. Shamir, How to share a secret, CACM 22 (1979). A polynomial of degree threshold - 1 with the secret at zero;
`threshold` shares fix it, fewer say nothing about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from autoflip_secure.errors import ProtocolError
from autoflip_secure.sums.randomness import SecretRandomness

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "combine", "lagrange_at_zero", "split"]

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
# 384 random bits reduced modulo the prime are within 2^-127 of uniform.
COEFFICIENT_BYTES = 48


def split(secrets: Sequence[bytes], threshold: int, points: Sequence[int]) -> list[list[bytes]]:
    """Deal every secret to all points.

    Parameters
    ----------
    secrets : sequence of bytes, 32 each
    threshold : int
        Shares needed to recover a secret.
    points : sequence of int
        Distinct positive points, at least `threshold` of them.

    Returns
    -------
    list over secrets of list over points of bytes, 33 each (big-endian)

    Raises
    ------
    ProtocolError
        A threshold the points cannot meet, or points that are not distinct and positive.
    """
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ProtocolError(f"cannot share among {len(points)} points with a threshold of {threshold}")
    if any(len(secret) != SECRET_BYTES for secret in secrets):
        raise ProtocolError(f"a shared secret has {SECRET_BYTES} bytes")
    degree = threshold - 1
    random = _random_elements(len(secrets) * degree)
    return [
        _evaluate(int.from_bytes(secret, "big"), random[index * degree : (index + 1) * degree], points)
        for index, secret in enumerate(secrets)
    ]


def _evaluate(secret: int, coefficients: Sequence[int], points: Sequence[int]) -> list[bytes]:
    shares = []
    for point in points:
        # Points are small, so one reduction at the end beats one a step.
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point
        shares.append(((value + secret) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def _random_elements(count: int) -> list[int]:
    if count == 0:
        return []
    pool = SecretRandomness().words(count * COEFFICIENT_BYTES // 8).tobytes()
    starts = range(0, count * COEFFICIENT_BYTES, COEFFICIENT_BYTES)
    return [int.from_bytes(pool[start : start + COEFFICIENT_BYTES], "big") % PRIME for start in starts]


@lru_cache(maxsize=64)
def lagrange_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Coefficients l_i with sum l_i f(x_i) = f(0) for every polynomial of degree below the number of points.

    Raises
    ------
    ProtocolError
        Points that are not distinct and positive.
    """
    _check_points(points)
    coefficients = []
    for point in points:
        numerator = denominator = 1
        for other in points:
            if other != point:
                numerator *= other
                denominator *= other - point
        coefficients.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(coefficients)


def combine(points: tuple[int, ...], shares: Sequence[bytes]) -> bytes | None:
    """The secret behind exactly `threshold` shares, 32 bytes; None where the shares are of no 32-byte secret.

    A wrong share gives a wrong secret, or None: the caller compares the result with a public key or a commitment.
    """
    coefficients = lagrange_at_zero(points)
    total = sum(
        coefficient * int.from_bytes(share, "big") for coefficient, share in zip(coefficients, shares, strict=True)
    )
    value = total % PRIME
    return value.to_bytes(SECRET_BYTES, "big") if value < 1 << (8 * SECRET_BYTES) else None


def _check_points(points: Sequence[int]) -> None:
    if any(point < 1 for point in points) or len(set(points)) != len(points):
        raise ProtocolError("points of a secret sharing are not distinct and positive")
