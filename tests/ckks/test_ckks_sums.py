"""Sums are exact, bit for bit, whoever drops out, and the noise that hides the rest is the noise that was promised."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from autoflip_secure.ckks import coordinator as coordinator_module
from autoflip_secure.ckks.messages import Opening
from autoflip_secure.ckks.packing import rows_of, words_of
from autoflip_secure.ckks.parameters import DEGREE, ENCODING_STD, MODULUS_BITS, NOISE_STD, parameters_for
from autoflip_secure.ckks.reference import masked_key
from autoflip_secure.ckks.ring import ring
from autoflip_secure.ckks.summation import encrypt, open_part, read_sum
from autoflip_secure.errors import Abort
from autoflip_secure.parties.agreement import Agreement, public_key
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import unpack_integers, word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.words import ContributionWords, PackedWords, all_words

UPDATE = ChannelSpec("update", 7, 16, 1.0)


def channels_of(length):
    """16 and 24 bits; the second channel starts within a polynomial and within no word of the first."""
    return ChannelSpec("update", length, 16, 1.0), ChannelSpec("count", 2 * length + 1, 24, 1.0)


def values_of(fed, value):
    """A contribution of all silos with the same value everywhere: value(spec)."""

    def contribute(silo):
        def words(bound):
            silos = len(bound.cohorts[bound.cohort_of(silo)])
            values = {spec.name: np.broadcast_to(value(spec), spec.length).astype(np.int64) for spec in bound.channels}
            fed.vectors[silo] = all_words(ContributionWords(values, bound.channels, silos))
            return PackedWords(fed.vectors[silo].copy())

        return words

    return contribute


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_pattern_of_dropouts(federation, n):
    fed = federation(n, slots=64)
    patterns = [present for size in range(3, n + 1) for present in combinations(fed.everyone, size)]
    for present in patterns:
        exchange = fed.exchange(drop={"encrypt": set(fed.everyone) - set(present)})
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), present)
    assert fed.epochs == [1], "nobody who was missing cost the others anything"
    assert len(patterns) == {3: 1, 4: 5, 5: 16}[n]


@pytest.mark.parametrize("length", [1, DEGREE - 1, DEGREE, DEGREE + 1, 3 * DEGREE + 5])
def test_lengths_and_channels(federation, length):
    fed = federation(4, channels=(ChannelSpec("update", length, 16, 1.0),))
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4))
    manifest = fed.manifest(channels=channels_of(length))
    fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange(drop={"encrypt": {2}})), (1, 3, 4))


def test_more_polynomials_than_a_batch(federation):
    fed = federation(3, channels=(ChannelSpec("update", 65 * DEGREE + 1, 16, 1.0),))
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))


def test_cohorts_with_different_moduli(federation):
    fed = federation(
        9, slots=64, channels=(ChannelSpec("update", DEGREE + 7, 18, 1.0), ChannelSpec("metric", 3, 9, 1.0))
    )
    manifest = fed.manifest((1, 2, 3), (4, 5, 6, 7, 8, 9))
    assert [fed.parameters(manifest, cohort).modulus_bits for cohort in (0, 1)] == [40, 48]
    fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange()), (1, 2, 3), (4, 5, 6, 7, 8, 9))
    fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange(drop={"encrypt": {5, 8}})), (1, 2, 3), (4, 6, 7, 9))
    fed.assert_exact(
        fed.coordinator.sum(fed.manifest((1, 3, 5, 7), (2, 6, 8)), fed.exchange()), (1, 3, 5, 7), (2, 6, 8)
    )
    assert fed.epochs == [1]


def test_one_epoch_serves_all_moduli(federation):
    """Its rounds' channels ask for another modulus each; the last ones are cut in two, and need a small one."""
    fed = federation(4, slots=64)
    used = []
    for bits in (16, 24, 28, 12, 29, 32):
        manifest = fed.manifest(channels=(ChannelSpec("update", 100, bits, 1.0),))
        used.append(fed.parameters(manifest).modulus_bits)
        fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange()), (1, 2, 3, 4))
    assert used == [40, 48, 56, 40, 40, 40]
    assert fed.epochs == [1]


EXTREMES = {
    "all at the top": lambda spec: spec.levels,
    "all at the bottom": lambda spec: -spec.levels,
    "alternating": lambda spec: np.where(np.arange(spec.length) % 2, spec.levels, -spec.levels),
    "alternating by twos": lambda spec: np.where(np.arange(spec.length) % 4 < 2, spec.levels, -spec.levels),
    "one field": lambda spec: np.where(np.arange(spec.length) == 5, -spec.levels, 0),
    "all equal": lambda spec: 1,
    "all zero": lambda spec: 0,
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_values(federation, extreme):
    """Four silos fill their fields to the last few steps; every silo is at the same end."""
    fed = federation(4, slots=64)
    for bits in (16, 24, 28, 32):
        manifest = fed.manifest(channels=(ChannelSpec("update", DEGREE, bits, 1.0),))
        fed.contribute = values_of(fed, EXTREMES[extreme])
        fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange()), (1, 2, 3, 4))


def test_values_that_meet_in_one_coefficient(federation):
    """Signs are those of a power of X in the slots: of all values on the grid these have the largest coefficient."""
    fed = federation(4, channels=(ChannelSpec("update", DEGREE, 16, 1.0),))
    lattice = ring(fed.parameters(fed.manifest()).modulus_bits)
    x = transform_of_x(lattice)
    for power in (1, DEGREE // 2 + 1, DEGREE - 1):
        monomial = np.array([[pow(word, power, lattice.modulus) for word in x.tolist()]], np.uint64)
        signs = np.where(lattice.decoded(monomial, 1.0)[0] < 0, -1, 1)
        fed.contribute = values_of(fed, lambda spec, signs=signs: signs * spec.levels)
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4))


def transform_of_x(lattice):
    """NTT words of X: those of the polynomial whose slot j is its value at zeta^(3^j), zeta = exp(i pi / N)."""
    powers = [pow(3, j, 2 * DEGREE) for j in range(DEGREE // 2)]
    plain = lattice._seal.Plaintext()
    lattice._encoder.encode(np.exp(1j * np.pi * np.array(powers) / DEGREE).tolist(), 1.0, plain)
    words = lattice._words(plain, DEGREE)
    assert {pow(word, DEGREE, lattice.modulus) for word in words.tolist()} == {lattice.modulus - 1}, "X^N = -1"
    return words


@pytest.mark.parametrize("n", [3, 5])
def test_fields_that_overflow_are_read_like_any_words(federation, n):
    """Noise may leave its field: the integers that the words hold are those of the plain sum."""
    fed = federation(n, channels=channels_of(50))

    def contribute(silo):
        def words(manifest):
            # Any words are a contribution of fields that use the whole width of the sum.
            size = word_count(manifest.channels, n)
            narrow = fed.random.integers(-(2**62), 2**62, size, np.int64) if silo < 3 else np.zeros(size, np.int64)
            fed.vectors[silo] = narrow.view(np.uint64)
            return PackedWords(fed.vectors[silo])

        return words

    fed.contribute = contribute
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange())
    expected = unpack_integers(fed.plain_sum(item.silos), fed.channels, n)
    for name, integers in unpack_integers(item.words, fed.channels, n).items():
        np.testing.assert_array_equal(integers, expected[name])


# Fields that are cut in two


@pytest.mark.parametrize("n", [17, 33])
def test_wide_fields_of_many_silos(federation, n):
    """32 bits, where one silo is missing: any values, then every silo at one end or where the cut borrows."""
    channels = ChannelSpec("update", 100, 16, 1.0), ChannelSpec("count", DEGREE, 32, 1.0)
    fed = federation(n, channels=channels)
    present = fed.everyone[:1] + fed.everyone[2:]
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"encrypt": {2}})), present)
    assert len(fed.replies["encrypt", 1][0]) > 3 * DEGREE * fed.parameters(fed.manifest()).coefficient_bytes
    ends = np.array([1, -1, 2**15, -(2**15), 2**15 - 1, -(2**15) - 1, 2**31 - 1, -(2**31) + 1])

    def edges(spec):
        return np.resize(ends, spec.length) if spec.bits == 32 else -spec.levels

    fed.contribute = values_of(fed, edges)
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"encrypt": {2}}))
    fed.assert_exact([item], present)
    sums = unpack_integers(item.words, channels, n)
    np.testing.assert_array_equal(sums["count"], (n - 1) * np.resize(ends, DEGREE))
    np.testing.assert_array_equal(sums["update"], np.full(100, -(n - 1) * channels[0].levels))


@pytest.mark.parametrize("silos", [17, 33, 2000])
@pytest.mark.parametrize("end", [1, -1])
def test_wide_fields_of_whole_cohorts_are_read(silos, end):
    """All silos at one end, or half of them at either end: one ciphertext stands for all that hold the same."""
    spec = ChannelSpec("count", DEGREE, 32, 1.0)
    parameters = parameters_for([spec], silos)
    lattice = ring(parameters.modulus_bits)
    key = lattice.fresh_key()
    values = [np.full(DEGREE, end * spec.levels), np.resize([-end * spec.levels, end * (2**15 - 1)], DEGREE)]
    words = [all_words(ContributionWords({"count": item}, [spec], silos)) for item in values]
    ciphers = [noisy(lattice, parameters, key, rows_of(item, [spec], silos)) for item in words]
    for counts in ((silos, 0), (silos // 2, silos - silos // 2)):
        opened = lattice.add(*(lattice.multiply(c, np.uint64(k)) for c, k in zip(ciphers, counts, strict=True)))
        whole = read_sum(lattice, parameters, opened)
        expected = sum(np.uint64(count) * item for count, item in zip(counts, words, strict=True))
        np.testing.assert_array_equal(words_of(whole, [spec], silos), expected)
        sums = unpack_integers(expected, [spec], silos)["count"]
        np.testing.assert_array_equal(sums, sum(count * item for count, item in zip(counts, values, strict=True)))


# Noise


@pytest.fixture
def opened(monkeypatch):
    """What coordinators open, before they round it: (parameters, values) of every sum."""
    seen = []

    def spy(lattice, parameters, polynomials):
        seen.append((parameters, lattice.decoded(polynomials, parameters.scale).reshape(-1)))
        return read_sum(lattice, parameters, polynomials)

    monkeypatch.setattr(coordinator_module, "read_sum", spy)
    return seen


@pytest.mark.parametrize(("n", "missing", "bits"), [(3, 0, 16), (4, 0, 24), (5, 0, 16), (5, 2, 16), (4, 1, 28)])
def test_noise_of_a_sum_is_as_large_as_predicted(federation, opened, n, missing, bits):
    """Of every silo in the sum its smudging and two encryptions; 1/18 step in all where nobody is missing."""
    spec = ChannelSpec("update", 8 * DEGREE, bits, 1.0)
    fed = federation(n, slots=64, channels=(spec,))
    drop = {"encrypt": set(fed.everyone[:missing])}
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange(drop=drop))
    ((parameters, values),) = opened
    noise = values - unpack_integers(item.words, fed.channels, n)["update"]
    fresh = 2 * (NOISE_STD**2 + ENCODING_STD**2) * (DEGREE / 2) / parameters.scale**2
    expected = math.sqrt((n - missing) * (parameters.smudging**2 + fresh))
    assert expected == pytest.approx(math.sqrt((n - missing) / n) / 18)
    assert np.std(noise) == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.size))
    assert abs(np.mean(noise)) < 5 * expected / math.sqrt(noise.size)
    assert np.abs(noise).max() < 7 * expected
    # Neighbours, and real parts of one polynomial and the next, are independent.
    for lag in (1, DEGREE):
        assert abs(np.mean(noise[lag:] * noise[:-lag])) < 5 * expected**2 / math.sqrt(noise.size)


@pytest.mark.parametrize("modulus_bits", MODULUS_BITS)
def test_every_part_is_smudged_by_itself(modulus_bits):
    """p - a sigma of one silo: its own smudging and one encryption's noise, afresh in every part."""
    bits = {40: 16, 48: 24, 56: 28}[modulus_bits]
    parameters = parameters_for([ChannelSpec("update", 1, bits, 1.0)], 4)
    assert parameters.modulus_bits == modulus_bits
    lattice, random = ring(modulus_bits), np.random.default_rng(bits)
    key = lattice.fresh_key()
    share = random.integers(0, lattice.modulus, DEGREE, np.uint64)
    reference = random.integers(0, lattice.modulus, (8, DEGREE), np.uint64)
    product, noises = lattice.multiply(reference, share), []
    for _ in range(2):
        part = open_part(lattice, parameters, key, share, reference, SecretRandomness())
        noises.append(lattice.decoded(lattice.subtract(part, product), parameters.scale).reshape(-1))
    fresh = (NOISE_STD**2 + ENCODING_STD**2) * (DEGREE / 2) / parameters.scale**2
    expected = math.sqrt(parameters.smudging**2 + fresh)
    for noise in noises:
        assert np.std(noise) == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.size))
    assert abs(np.mean(noises[0] * noises[1])) < 5 * expected**2 / math.sqrt(noises[0].size)


@pytest.mark.parametrize("modulus_bits", MODULUS_BITS)
def test_every_part_has_encryption_noise_besides(modulus_bits):
    """As it shows where nothing is smudged: with smudging 64 times as large it would not be missed."""
    parameters = parameters_for([ChannelSpec("update", 1, {40: 16, 48: 24, 56: 28}[modulus_bits], 1.0)], 4)
    lattice, random = ring(modulus_bits), np.random.default_rng(modulus_bits)
    key, bare = lattice.fresh_key(), replace(parameters, smudging=0.0)
    share = random.integers(0, lattice.modulus, DEGREE, np.uint64)
    reference = random.integers(0, lattice.modulus, (4, DEGREE), np.uint64)
    part = open_part(lattice, bare, key, share, reference, SecretRandomness())
    noise = lattice.decoded(lattice.subtract(part, lattice.multiply(reference, share)), bare.scale)
    expected = NOISE_STD * math.sqrt(DEGREE / 2) / bare.scale
    assert np.std(noise) == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.size))


def test_smudging_is_of_each_silo_and_slot_alone(federation):
    """What is left of a part once its masked key is known: as large as it should be, and unlike that of any other."""
    fed = federation(3, channels=(ChannelSpec("update", 2 * DEGREE, 16, 1.0),))
    keys, noises = {}, []

    def exchange(stage, requests):
        if stage == "open":
            keys.update({silo: fed.secrets(silo, slot=len(fed.requests["open", silo])) for silo in requests})
        yield from fed.exchange()(stage, requests)

    for slot in (0, 1):
        fed.coordinator.sum(fed.manifest(), exchange)
        manifest = Manifest.from_bytes(fed.read_request("encrypt", fed.requests["encrypt", 1][-1]).manifest)
        parameters, opening = fed.parameters(manifest), Opening(manifest.digest(), 0, fed.everyone).hash()
        lattice, publics = ring(parameters.modulus_bits), {silo: public_key(keys[silo][0]) for silo in fed.everyone}
        for silo, (agreement, words) in keys.items():
            others = {peer: key for peer, key in publics.items() if peer != silo}
            secret = np.frombuffer(words, np.uint64)
            share = masked_key(lattice, secret, Agreement(agreement), others, opening, silo)
            part, _ = fed.split("open", fed.replies["open", silo][slot], manifest)
            noise = lattice.subtract(part, lattice.multiply(fed.reference(manifest), share))
            noises.append(lattice.decoded(noise, parameters.scale).reshape(-1))
    assert len(noises) == 6
    for noise in noises:
        assert np.std(noise) == pytest.approx(parameters.smudging, rel=5 / math.sqrt(2 * noise.size) + 1e-3)
    correlations = np.corrcoef(noises)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(2 * DEGREE)


def test_reference_follows_from_manifest_and_cohort(federation, dishonest):
    """A silo's own key opens its ciphertext under the reference of both, and of nothing else."""
    attack = dishonest(federation(6), (1, 2, 3), (4, 5, 6))
    fed, manifest = attack.fed, attack.manifest
    parameters, other = fed.parameters(manifest), replace(manifest, attempt=1)
    lattice = ring(parameters.modulus_bits)
    for silo, cohort in ((1, 0), (4, 1)):
        cipher, _ = fed.split("encrypt", attack.encrypt(silo), manifest, cohort)
        key = np.frombuffer(fed.secrets(silo, slot=0)[1], np.uint64)
        opened = {
            (bound.attempt, index): lattice.add(cipher, lattice.multiply(fed.reference(bound, index), key))
            for bound in (manifest, other)
            for index in (0, 1)
        }
        whole = read_sum(lattice, parameters, opened.pop((0, cohort)))
        np.testing.assert_array_equal(words_of(whole, manifest.channels, 3), fed.vectors[silo])
        for polynomials in opened.values():
            with pytest.raises(Abort):
                read_sum(lattice, parameters, polynomials)


def test_every_ciphertext_has_noise_of_its_own():
    parameters = parameters_for([UPDATE], 4)
    lattice = ring(parameters.modulus_bits)
    key = lattice.fresh_key()
    reference = np.random.default_rng(1).integers(0, lattice.modulus, (4, DEGREE), np.uint64)
    product, noises = lattice.multiply(reference, key.words), []
    for _ in range(2):
        cipher = encrypt(lattice, parameters, key, reference, np.zeros((4, DEGREE)))
        noises.append(lattice.decoded(lattice.add(cipher, product), parameters.scale).reshape(-1))
    expected = NOISE_STD * math.sqrt(DEGREE / 2) / parameters.scale
    for noise in noises:
        assert np.std(noise) == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.size))
    assert abs(np.mean(noises[0] * noises[1])) < 5 * expected**2 / math.sqrt(noises[0].size)


# What is no sum


def noisy(lattice, parameters, key, rows):
    reference = np.zeros((len(rows), DEGREE), np.uint64)
    return encrypt(lattice, parameters, key, reference, rows)


@pytest.mark.parametrize("residue", [0.0, 0.4, 0.44, -0.44])
def test_values_near_whole_numbers_are_read(residue):
    parameters = parameters_for([UPDATE], 3)
    lattice = ring(parameters.modulus_bits)
    rows = np.random.default_rng(1).integers(-1000, 1000, (2, DEGREE)) + residue
    whole = read_sum(lattice, parameters, noisy(lattice, parameters, lattice.fresh_key(), rows))
    np.testing.assert_array_equal(whole, np.rint(rows).reshape(-1))


@pytest.mark.parametrize("fault", ["a value off by 0.45", "a value off by -0.47", "half", "too large", "uniform"])
def test_values_that_are_no_sum_are_refused(fault):
    parameters = parameters_for([UPDATE], 3)
    lattice = ring(parameters.modulus_bits)
    rows = np.zeros((2, DEGREE))
    if fault == "too large":
        rows[1, 7] = 2.0 ** (parameters.width + 1)
    else:
        rows[1, 7] = {"a value off by 0.45": 0.45, "a value off by -0.47": -0.47}.get(fault, 0.5)
    polynomials = noisy(lattice, parameters, lattice.fresh_key(), rows)
    if fault == "uniform":
        polynomials = np.random.default_rng(1).integers(0, lattice.modulus, (2, DEGREE), np.uint64)
    with pytest.raises(Abort, match="do not fit") as caught:
        read_sum(lattice, parameters, polynomials)
    assert caught.value.stage == "open"
