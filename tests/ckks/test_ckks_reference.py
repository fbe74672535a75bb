"""Polynomials that follow from keys: uniform, the same for everybody who has the key, and masks that cancel."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.ckks.parameters import DEGREE, MODULUS_BITS
from autoflip_secure.ckks.reference import UniformPolynomials, masked_key, pair_key, reference_key
from autoflip_secure.ckks.ring import ring
from autoflip_secure.parties.agreement import Agreement, public_key

KEY = bytes(range(32))
each_modulus = pytest.mark.parametrize("bits", MODULUS_BITS)


def polynomials(bits, count, key=KEY):
    return UniformPolynomials(ring(bits), key).next(count)


@each_modulus
def test_uniform_below_the_modulus(bits):
    """Chi-square over 256 ranges and over the low byte; the limits are the 1 - 10^-6 quantiles, the key is fixed."""
    q, words = ring(bits).modulus, polynomials(bits, 64)
    assert words.shape == (64, DEGREE)
    assert int(words.max()) < q
    for bins in (words.reshape(-1) // np.uint64(q // 256 + 1), words.reshape(-1) & np.uint64(255)):
        counts = np.bincount(bins.astype(np.int64), minlength=256)
        expected = words.size / 256
        assert counts.size == 256
        assert ((counts - expected) ** 2 / expected).sum() < 371
    assert abs(float(words.mean()) / q - 0.5) < 5 / np.sqrt(12 * words.size)
    # Neighbours in a polynomial, and polynomials, are independent.
    centred = words / q - 0.5
    for other in (np.roll(centred, 1, 1), np.roll(centred, 1, 0)):
        assert abs((centred * other).mean()) < 5 / 12 / np.sqrt(words.size)


def test_the_largest_coefficients_occur(monkeypatch):
    """Words are left out, not reduced: with a modulus just above half of 2^bits, low values are as frequent as high."""

    class Small:
        bits, modulus = 8, 131

    words = UniformPolynomials(Small(), KEY).next(16)
    counts = np.bincount(words.reshape(-1).astype(np.int64), minlength=256)
    expected = words.size / 131
    assert not counts[131:].any()
    assert ((counts[:131] - expected) ** 2 / expected).sum() < 221


@each_modulus
def test_words_are_the_keystream_cut_to_the_modulus(bits):
    q = ring(bits).modulus
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 3 * DEGREE))
    words = [word & ((1 << bits) - 1) for word in struct.unpack(f"<{3 * DEGREE}Q", stream)]
    expected = [word for word in words if word < q][: 2 * DEGREE]
    assert polynomials(bits, 2).reshape(-1).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MODULUS_BITS),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.binary(min_size=32, max_size=32),
)
def test_batches_do_not_matter(bits, counts, key):
    source = UniformPolynomials(ring(bits), key)
    parts = np.concatenate([source.next(count) for count in counts])
    np.testing.assert_array_equal(parts, polynomials(bits, sum(counts), key))


def test_batches_do_not_matter_where_words_are_left_out():
    class Small:
        bits, modulus = 8, 131

    source = UniformPolynomials(Small(), KEY)
    parts = np.concatenate([source.next(count) for count in (1, 3, 1, 2)])
    np.testing.assert_array_equal(parts, UniformPolynomials(Small(), KEY).next(7))


@each_modulus
def test_another_key_gives_other_polynomials(bits):
    assert not (polynomials(bits, 1) == polynomials(bits, 1, bytes(32))).any()


def test_every_sum_has_a_reference_key_of_its_own():
    digests = [bytes(32), bytes(31) + b"\1", b"\1" + bytes(31)]
    keys = {reference_key(digest, cohort, bits) for digest in digests for cohort in (0, 1) for bits in MODULUS_BITS}
    assert len(keys) == len(digests) * 2 * len(MODULUS_BITS)
    assert all(len(key) == 32 for key in keys)
    assert reference_key(KEY, 1, 40) == reference_key(KEY, 1, 40)


PRIVATE = {silo: bytes([silo]) * 32 for silo in (1, 2, 3, 5, 8, 13)}
PUBLIC = {silo: public_key(private) for silo, private in PRIVATE.items()}
AGREEMENTS = {silo: Agreement(private) for silo, private in PRIVATE.items()}
OPENING, OTHER_OPENING = bytes(32), bytes(31) + b"\1"


def key_of_pair(silo, peer, opening=OPENING, bits=40):
    return pair_key(AGREEMENTS[silo], PUBLIC[peer], opening, silo, peer, bits)


def test_both_silos_of_a_pair_have_the_same_key_and_nobody_else():
    pairs = [(silo, peer) for silo in PRIVATE for peer in PRIVATE if silo < peer]
    keys = {
        key_of_pair(silo, peer, opening, bits)
        for silo, peer in pairs
        for opening in (OPENING, OTHER_OPENING)
        for bits in MODULUS_BITS
    }
    assert len(keys) == len(pairs) * 2 * len(MODULUS_BITS)
    assert all(key_of_pair(silo, peer) == key_of_pair(peer, silo) for silo, peer in pairs)


def share(bits, silo, survivors, secret, opening=OPENING):
    others = {peer: PUBLIC[peer] for peer in survivors if peer != silo}
    return masked_key(ring(bits), secret, AGREEMENTS[silo], others, opening, silo)


def secrets_of(bits, silos):
    random = np.random.default_rng(bits)
    return {silo: random.integers(0, ring(bits).modulus, DEGREE, np.uint64) for silo in silos}


def total(bits, polynomials):
    lattice, sum_ = ring(bits), np.zeros(DEGREE, np.uint64)
    for polynomial in polynomials:
        sum_ = lattice.add(sum_, polynomial)
    return sum_


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODULUS_BITS), st.sets(st.sampled_from(sorted(PRIVATE)), min_size=2))
def test_masks_of_any_silos_cancel(bits, silos):
    secrets = secrets_of(bits, silos)
    shares = [share(bits, silo, silos, secrets[silo]) for silo in sorted(silos)]
    np.testing.assert_array_equal(total(bits, shares), total(bits, secrets.values()))


@each_modulus
@pytest.mark.parametrize("fault", ["one missing", "another opening", "another list"])
def test_masks_do_not_cancel(bits, fault):
    """What is left is uniform: no coefficient is right, and the high bits are spread evenly."""
    q, silos = ring(bits).modulus, (1, 2, 3, 5)
    secrets = secrets_of(bits, silos)
    shares = {silo: share(bits, silo, silos, secrets[silo]) for silo in silos}
    if fault == "one missing":
        del shares[5], secrets[5]
    elif fault == "another opening":
        shares[5] = share(bits, 5, silos, secrets[5], OTHER_OPENING)
    else:
        shares[5] = share(bits, 5, (1, 2, 5), secrets[5])
    left = ring(bits).subtract(total(bits, shares.values()), total(bits, secrets.values()))
    counts = np.bincount((left // np.uint64(q // 16 + 1)).astype(np.int64), minlength=16)
    assert np.count_nonzero(left) == DEGREE
    assert ((counts - DEGREE / 16) ** 2 / (DEGREE / 16)).sum() < 60


@each_modulus
def test_a_share_shows_nothing_of_its_key(bits):
    """It is the key plus a uniform polynomial: of a key of zeros it is that polynomial, spread evenly."""
    q = ring(bits).modulus
    alone = share(bits, 1, (1, 2), np.zeros(DEGREE, np.uint64))
    counts = np.bincount((alone // np.uint64(q // 16 + 1)).astype(np.int64), minlength=16)
    assert ((counts - DEGREE / 16) ** 2 / (DEGREE / 16)).sum() < 60
    np.testing.assert_array_equal(alone, polynomials(bits, 1, key_of_pair(1, 2, bits=bits))[0])


def test_lower_id_adds():
    zeros = np.zeros(DEGREE, np.uint64)
    lower, higher = share(40, 1, (1, 2), zeros), share(40, 2, (1, 2), zeros)
    np.testing.assert_array_equal(ring(40).add(lower, higher), zeros)
    np.testing.assert_array_equal(lower, polynomials(40, 1, key_of_pair(2, 1))[0])
