"""Arithmetic modulo the primes of the rings, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.ckks.modular import MOST_BITS, add, multiply, subtract
from autoflip_secure.ckks.parameters import DEGREE, MODULUS_BITS
from autoflip_secure.ckks.ring import ring

OPERATIONS = [(add, lambda a, b: a + b), (subtract, lambda a, b: a - b), (multiply, lambda a, b: a * b)]
bits_and_operands = st.sampled_from(MODULUS_BITS).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.tuples(operands(bits), operands(bits)), min_size=1, max_size=30))
)


def operands(bits):
    """Numbers below the modulus: any, the smallest, the largest, those about its half and about powers of two."""
    q = ring(bits).modulus
    powers = st.builds(lambda power, off: ((1 << power) + off) % q, st.integers(0, bits - 1), st.integers(-2, 2))
    ends = st.builds(lambda end, off: (end + off) % q, st.sampled_from([0, q // 2, q // 3]), st.integers(-2, 2))
    return st.integers(0, q - 1) | powers | ends


@settings(max_examples=150, deadline=None)
@given(bits_and_operands)
def test_as_python_counts(case):
    bits, pairs = case
    q = ring(bits).modulus
    a, b = (np.array(values, np.uint64) for values in zip(*pairs, strict=True))
    for operation, expected in OPERATIONS:
        result = operation(a, b, q)
        assert result.dtype == np.uint64
        assert result.tolist() == [expected(x, y) % q for x, y in pairs]


@pytest.mark.parametrize("bits", MODULUS_BITS)
@pytest.mark.parametrize("near", [True, False])
def test_many_products(bits, near):
    """Where the quotient of doubles is most wrong: operands just below the modulus, and anywhere."""
    q = ring(bits).modulus
    random = np.random.default_rng(bits)
    low = q - (1 << 24) if near else 0
    a, b = (random.integers(low, q, 20_000, np.uint64) for _ in range(2))
    exact = [x * y % q for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert multiply(a, b, q).tolist() == exact


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_extremes(bits):
    q = ring(bits).modulus
    ends = np.array([0, 1, q // 2, q // 2 + 1, q - 2, q - 1], np.uint64)
    for operation, expected in OPERATIONS:
        table = operation(ends[:, None], ends[None, :], q)
        assert table.tolist() == [[expected(x, y) % q for y in ends.tolist()] for x in ends.tolist()]


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_operands_are_broadcast_and_kept(bits):
    lattice = ring(bits)
    random = np.random.default_rng(bits)
    rows = random.integers(0, lattice.modulus, (3, DEGREE), np.uint64)
    row = random.integers(0, lattice.modulus, DEGREE, np.uint64)
    before = rows.copy(), row.copy()
    for operation, expected in zip(
        (lattice.add, lattice.subtract, lattice.multiply), (value[1] for value in OPERATIONS), strict=True
    ):
        result = operation(rows, row)
        assert result.shape == (3, DEGREE)
        assert int(result[2, 7]) == expected(int(rows[2, 7]), int(row[7])) % lattice.modulus
    np.testing.assert_array_equal(rows, before[0])
    np.testing.assert_array_equal(row, before[1])


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_moduli_are_the_primes_that_the_transform_needs(bits):
    """The largest prime below 2^bits that is 1 modulo 2 N, hence odd and within reach of the doubles' quotient."""
    q = ring(bits).modulus
    assert bits <= MOST_BITS
    candidates = range((1 << bits) - 2 * DEGREE + 1, q, -2 * DEGREE)
    assert q % (2 * DEGREE) == 1
    assert is_prime(q)
    assert not any(map(is_prime, candidates))


def is_prime(number):
    """Miller-Rabin with the bases that decide every number below 2^64."""
    power, odd = 0, number - 1
    while odd % 2 == 0:
        power, odd = power + 1, odd // 2
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(base, odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(power - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True
