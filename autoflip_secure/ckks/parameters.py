"""Sizes of the lattice and of its noise, chosen for one cohort's sum, and why they are safe and exact.

Derivations: protocols/ckks/parameters.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoflip_secure.errors import ConfigError
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import field_width

__all__ = ["DEGREE", "LOW_BITS", "MODULUS_BITS", "NOISE_STD", "CkksParameters", "parameters_for", "value_widths"]

DEGREE = 4096
"""Of the ring, N. The homomorphic encryption standard allows 109 bits of modulus for 128-bit security here, and 58 for
256-bit security (ternary secret, classical attacks; Albrecht et al. 2018, table 1)."""

MODULUS_BITS = (40, 48, 56)
"""Sizes of the modulus to choose from: whole bytes, so that coefficients are sent without waste."""

NOISE_STD = math.sqrt(21 / 2)
"""Standard deviation of SEAL's encryption noise: a centred binomial of 21 pairs of bits."""

ENCODING_STD = math.sqrt(1 / 12)
"""Of the rounding of a coefficient when values are encoded."""

SAFETY = 9.0
"""Standard deviations of all noise of a sum that lie between a value and the border of its grid point: the chance that
a value is read wrong is below 2.3e-19, and such a sum is noticed."""

LEAST_SMUDGING = 64.0
"""Smudging over encryption noise, at least, coefficient by coefficient. A key opens one sum."""

WIDEST_FIELD = 30
"""Bits of a field that is encrypted as one value; wider ones are cut in two."""

LOW_BITS = 16
"""Bits of the lower part of a field that is cut."""


@dataclass(frozen=True)
class CkksParameters:
    """One choice of sizes.

    Attributes
    ----------
    modulus_bits : int
        Of the one prime modulus q.
    scale : float
        What one step of the grid becomes in the plaintext.
    smudging : float
        Standard deviation, in grid steps, of the noise that each silo's partial decryption adds to a value.
    width : int
        Bits of the signed field that a sum has to fit.
    """

    modulus_bits: int
    scale: float
    smudging: float
    width: int

    @property
    def coefficient_bytes(self) -> int:
        """Bytes of one coefficient on the wire."""
        return self.modulus_bits // 8

    @property
    def smudging_ratio(self) -> float:
        """Smudging over encryption noise, coefficient by coefficient."""
        return self.smudging * self.scale / (math.sqrt(DEGREE / 2) * NOISE_STD)


def value_widths(bits: int, silos: int) -> tuple[int, ...]:
    """Bits that the sums of a coordinate's values take: one value a coordinate, or its lower and its upper part."""
    width = field_width(bits, silos)
    if width <= WIDEST_FIELD:
        return (width,)
    return field_width(LOW_BITS, silos), width - LOW_BITS


def parameters_for(channels: Sequence[ChannelSpec], silos: int) -> CkksParameters:
    """The smallest modulus that holds the sums of a cohort exactly and drowns encryption noise in smudging.

    Parameters
    ----------
    channels : sequence of ChannelSpec
    silos : int
        Size of the cohort.

    Raises
    ------
    ConfigError
        No modulus is large enough; the message says what to lower.
    """
    width = max(bits for spec in channels for bits in value_widths(spec.bits, silos))
    for bits in MODULUS_BITS:
        chosen = _with_modulus(bits, width, silos)
        if chosen is not None and chosen.smudging_ratio >= LEAST_SMUDGING:
            return chosen
    raise ConfigError(
        f"--aggregation ckks holds no sums of {width} bits over {silos} silos with enough smudging; "
        "use fewer silos a cohort, or fewer --bits"
    )


def _with_modulus(bits: int, width: int, silos: int) -> CkksParameters | None:
    """All that q leaves room for: a plaintext's coefficients are within q / 2 for every sum that fits its fields.

    A slot holds two values, so it is at most sqrt(2) 2^(width - 1) in size, and no coefficient of the plaintext is
    larger than the scale times that.
    """
    # SEAL's primes lie within 2^-20 of a power of two; one percent is for the noise.
    scale = 0.99 * 2.0 ** (bits - 1) / (math.sqrt(2.0) * 2.0 ** (width - 1))
    allowed = (0.5 / SAFETY) ** 2 / silos
    # Per silo the noise of its encryption and of its partial decryption, and the rounding of both plaintexts.
    encryption = 2 * (NOISE_STD**2 + ENCODING_STD**2) * (DEGREE / 2) / scale**2
    if encryption >= allowed:
        return None
    return CkksParameters(bits, scale, math.sqrt(allowed - encryption), width)
