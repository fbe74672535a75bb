"""The sizes chosen: what they promise is worked out here again, from the sizes alone."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.ckks import parameters as parameters_module
from autoflip_secure.ckks.parameters import DEGREE, MODULUS_BITS, NOISE_STD, parameters_for
from autoflip_secure.ckks.ring import ring
from autoflip_secure.errors import ConfigError
from autoflip_secure.sums.channels import ChannelSpec

DOCUMENT = Path(__file__).parents[2] / "protocols" / "ckks" / "parameters.md"
LEAST_RATIO, WIDEST, LOW = 64, 30, 16
TO_SLOTS = math.sqrt(DEGREE / 2)
BINOMIAL = 21 / 2
ROUNDING = 1 / 12


def channel(bits, name="update"):
    return ChannelSpec(name, 10, bits, 1.0)


def total_std(chosen, silos):
    """Standard deviation, in steps, of all noise in one value of a sum over the whole cohort."""
    fresh = 2 * (BINOMIAL + ROUNDING) * (DEGREE / 2) / chosen.scale**2
    return math.sqrt(silos * (chosen.smudging**2 + fresh))


def values_of(bits, silos):
    """Largest size of one silo's value and of a sum over the cohort, for each value that a coordinate gives."""
    largest = 2 ** (bits - 1) - 1
    if bits + math.ceil(math.log2(silos)) <= WIDEST:
        return [(largest, silos * largest)]
    lower, upper = 2 ** (LOW - 1), (largest + 2 ** (LOW - 1)) // 2**LOW
    return [(lower, silos * lower), (upper, silos * upper)]


def check(chosen, values, silos):
    """A choice of sizes, for values of which each silo's and the sum are at most so large."""
    q = ring(chosen.modulus_bits).modulus
    one, all_ = (max(sizes) for sizes in zip(*values, strict=True))
    assert all_ <= 2 ** (chosen.width - 1), "a sum fits its signed field"

    # Coefficients of a plaintext are within q / 2, with room for ten deviations of the noise.
    noise = total_std(chosen, silos) * chosen.scale / TO_SLOTS
    assert math.sqrt(2) * 2 ** (chosen.width - 1) * chosen.scale + 10 * noise < q / 2
    # SEAL encodes one silo's values only where coefficients are below a quarter of 2^bits.
    assert math.sqrt(2) * (one + 1) * chosen.scale < 2 ** (chosen.modulus_bits - 2)

    smudging = chosen.smudging * chosen.scale / TO_SLOTS
    assert smudging / math.sqrt(BINOMIAL) >= LEAST_RATIO
    assert chosen.smudging_ratio == pytest.approx(smudging / math.sqrt(BINOMIAL))

    total = total_std(chosen, silos)
    assert total == pytest.approx(1 / 18, rel=1e-9), "all the room there is goes to smudging, and no more"
    assert math.erfc(0.5 / total / math.sqrt(2)) < 2.3e-19, "the chance that a value is read wrong"
    assert chosen.coefficient_bytes * 8 == chosen.modulus_bits


@pytest.mark.parametrize("bits", range(2, 33))
def test_every_choice(bits):
    """Every cohort of up to 100 silos, those about a power of two, where a field grows, and the largest."""
    powers = (near + (1 << power) for power in range(7, 11) for near in (-1, 0, 1))
    for silos in (*range(3, 101), *powers, 1999, 2000):
        chosen, values = parameters_for([channel(bits)], silos), values_of(bits, silos)
        check(chosen, values, silos)
        if len(values) == 1:
            assert chosen.width == bits + math.ceil(math.log2(silos))
        else:
            assert chosen.width == max(LOW, bits - LOW) + math.ceil(math.log2(silos))


def test_smallest_modulus_that_serves():
    """With one size less the smudging would be too small: the scale is halved with every bit."""
    seen = set()
    for bits in range(2, 33):
        for silos in (3, 4, 5, 9, 17, 33, 65, 100, 1000, 2000):
            chosen = parameters_for([channel(bits)], silos)
            seen.add(chosen.modulus_bits)
            for smaller in filter(chosen.modulus_bits.__gt__, MODULUS_BITS):
                scale = chosen.scale * 2.0 ** (smaller - chosen.modulus_bits)
                left = (1 / 18) ** 2 / silos - 2 * (BINOMIAL + ROUNDING) * (DEGREE / 2) / scale**2
                assert left <= 0 or math.sqrt(left / BINOMIAL) * scale / TO_SLOTS < LEAST_RATIO
    assert seen == set(MODULUS_BITS)


def test_widest_value_decides():
    """Of all channels; of one that is cut, its wider part."""
    narrow, wide = channel(16), channel(24, "count")
    assert parameters_for([narrow, wide], 5) == parameters_for([wide], 5)
    assert parameters_for([wide, narrow], 5) != parameters_for([narrow], 5)
    cut = channel(32, "metric")
    assert parameters_for([cut], 17).width == 21
    assert parameters_for([narrow, cut], 17) == parameters_for([cut], 17) == parameters_for([narrow], 17)
    assert parameters_for([channel(20)], 2000).width == 27
    assert parameters_for([wide, cut], 17).width == 29, "a field that is not cut may be the widest"


def test_table_of_the_specification():
    row = r"^\| (\d+) \| (\d+) \| (\d+) \| (\d), (\d) \| (\.\d+) \| (\d+) \|$"
    table = re.findall(row, DOCUMENT.read_text(), re.MULTILINE)
    assert len(table) >= 5
    for numbers in table:
        silos, width, modulus_bits, cipher, part, smudging, ratio = map(float, numbers)
        chosen = parameters_for([channel(16)], int(silos))
        assert (chosen.width, chosen.modulus_bits, chosen.coefficient_bytes) == (width, modulus_bits, cipher)
        assert part == cipher
        assert chosen.smudging == pytest.approx(smudging, rel=0.005)
        assert chosen.smudging_ratio == pytest.approx(ratio, rel=0.005)


@pytest.mark.parametrize(("bits", "silos"), [(16, 2**24), (32, 2**20)])
def test_nothing_fits(bits, silos):
    """Far more silos than a roster takes."""
    with pytest.raises(ConfigError, match=rf"holds no sums of \d+ bits over {silos} silos.*fewer silos.*--bits"):
        parameters_for([channel(bits)], silos)


def test_larger_modulus_is_not_taken_where_there_is_none(monkeypatch):
    assert parameters_for([channel(24)], 5).modulus_bits == 48
    monkeypatch.setattr(parameters_module, "MODULUS_BITS", (40,))
    with pytest.raises(ConfigError, match="holds no sums of 27 bits over 5 silos"):
        parameters_for([channel(24)], 5)


@pytest.mark.parametrize("modulus_bits", MODULUS_BITS)
def test_noise_of_encryption_is_as_stated(modulus_bits):
    """SEAL's noise and the rounding of the plaintext, as they show in values; 65536 values have it within 1.4 %."""
    lattice, scale, rows = ring(modulus_bits), 2.0**20, 16
    key = lattice.fresh_key()
    values = np.random.default_rng(1).uniform(-1, 1, (rows, DEGREE))
    cipher, own = lattice.encrypted(key, values, scale)
    noise = lattice.decoded(lattice.add(cipher, lattice.multiply(own, key.words)), scale) - values
    expected = math.sqrt(NOISE_STD**2 + ROUNDING) * TO_SLOTS / scale
    assert math.isclose(NOISE_STD**2, BINOMIAL)
    assert np.std(noise) == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.size))
    assert abs(np.mean(noise)) < 5 * expected / math.sqrt(noise.size)
    assert np.abs(noise).max() < 7 * expected
