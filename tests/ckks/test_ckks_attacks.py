"""Attacks on CKKS sums: each fails here, and works where the defence is taken out or in the usual set-ups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from autoflip_secure.ckks import summation
from autoflip_secure.ckks.parameters import DEGREE, CkksParameters, parameters_for
from autoflip_secure.ckks.reference import UniformPolynomials, masked_key, reference_key
from autoflip_secure.ckks.ring import Ring, SecretKey, ring
from autoflip_secure.errors import Abort
from autoflip_secure.parties.agreement import Agreement, fresh_key, public_key
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.randomness import SecretRandomness

Words = NDArray[np.uint64]
SILOS = 5
CHANNEL = ChannelSpec("update", DEGREE, 16, 1.0)


def inverse(lattice: Ring, words: Words) -> Words:
    """One over each NTT word; a uniform polynomial has no zero among them, up to 4096 / q."""
    return np.array([pow(int(word), -1, lattice.modulus) for word in words.reshape(-1)], np.uint64).reshape(words.shape)


def encoded(lattice: Ring, values: NDArray[np.float64], scale: float) -> Words:
    """The plaintext polynomial of a row of values, shape (1, N)."""
    plain = lattice._seal.Plaintext()
    lattice._encoder.encode(values.reshape(-1).view(np.complex128).tolist(), scale, plain)
    return lattice._words(plain, DEGREE).reshape(1, DEGREE)


def noise(lattice: Ring) -> Words:
    """A polynomial of fresh encryption noise, shape (1, N)."""
    key = lattice.fresh_key()
    cipher, own = lattice.encrypted(key, np.zeros((1, DEGREE)), 1.0)
    return lattice.add(cipher, lattice.multiply(own, key.words))


def readable(lattice: Ring, parameters: CkksParameters, opened: Words) -> bool:
    """Whether the coordinator would take this for a sum."""
    try:
        summation.read_sum(lattice, parameters, opened)
    except Abort:
        return False
    return True


@dataclass
class Silos:
    """The lattice side of a federation: keys and updates of silos 1..n, and sums of chosen slots."""

    lattice: Ring
    parameters: CkksParameters
    keys: dict[int, SecretKey]
    agreements: dict[int, bytes]
    updates: dict[int, NDArray[np.float64]]
    references: dict[int, Words] = field(default_factory=dict)

    def reference(self, slot: int) -> Words:
        if slot not in self.references:
            digest = slot.to_bytes(32, "big")
            key = reference_key(digest, 0, self.lattice.bits)
            self.references[slot] = UniformPolynomials(self.lattice, key).next(1)
        return self.references[slot]

    def ciphertext(self, silo: int, slot: int) -> Words:
        reference, row = self.reference(slot), self.updates[silo].reshape(1, -1)
        return summation.encrypt(self.lattice, self.parameters, self.keys[silo], reference, row)

    def opening(self, slot: int, survivors: Sequence[int]) -> bytes:
        return bytes([slot]) * 16 + bytes(sorted(survivors)).ljust(16, b"\0")

    def share(self, silo: int, slot: int, survivors: Sequence[int]) -> Words:
        others = {peer: public_key(self.agreements[peer]) for peer in survivors if peer != silo}
        agreement = Agreement(self.agreements[silo])
        return masked_key(self.lattice, self.keys[silo].words, agreement, others, self.opening(slot, survivors), silo)

    def part(self, silo: int, slot: int, survivors: Sequence[int], *, noisy: bool = True) -> Words:
        share, reference = self.share(silo, slot, survivors), self.reference(slot)
        if not noisy:
            return self.lattice.multiply(reference, share)
        key, secret = self.keys[silo], SecretRandomness()
        return summation.open_part(self.lattice, self.parameters, key, share, reference, secret)

    def added(self, polynomials: Sequence[Words]) -> Words:
        total = polynomials[0]
        for polynomial in polynomials[1:]:
            total = self.lattice.add(total, polynomial)
        return total

    def opened(self, slot: int, survivors: Sequence[int], *, noisy: bool = True) -> Words:
        ciphertexts = [self.ciphertext(silo, slot) for silo in survivors]
        return self.added([*ciphertexts, *(self.part(silo, slot, survivors, noisy=noisy) for silo in survivors)])

    def key_sum(self, silos: Sequence[int]) -> Words:
        return self.added([self.keys[silo].words for silo in silos])


@pytest.fixture(scope="module")
def silos() -> Silos:
    parameters = parameters_for([CHANNEL], SILOS)
    lattice, generator = ring(parameters.modulus_bits), np.random.default_rng(7)
    ids = range(1, SILOS + 1)
    return Silos(
        lattice,
        parameters,
        {silo: lattice.fresh_key() for silo in ids},
        {silo: fresh_key() for silo in ids},
        {silo: generator.integers(-CHANNEL.levels, CHANNEL.levels + 1, DEGREE).astype(np.float64) for silo in ids},
    )


ALL = tuple(range(1, SILOS + 1))


def test_an_honest_sum_is_read(silos: Silos) -> None:
    whole = summation.read_sum(silos.lattice, silos.parameters, silos.opened(0, ALL))
    assert (whole == sum(silos.updates.values())).all()


# Keys from released aggregates (Li and Micciancio, Eurocrypt 2021)


def key_from_release(
    lattice: Ring, cipher: Words, reference: Words, released: NDArray[np.float64], scale: float
) -> Words:
    """The key under which `cipher` + reference * key encodes what was released, if the release is exact."""
    difference = lattice.subtract(encoded(lattice, released, scale), cipher)
    return lattice.multiply(difference, inverse(lattice, reference))[0]


def test_one_shared_key_is_recovered_from_one_aggregate_released_in_float64() -> None:
    """The set-up of other frameworks: one key, the sum decrypted and passed on as floating-point numbers."""
    lattice, scale, generator = ring(56), 2.0**38, np.random.default_rng(1)
    shared = lattice.fresh_key()
    pairs = [lattice.encrypted(shared, generator.normal(0, 0.01, (1, DEGREE)), scale) for _ in range(SILOS)]
    cipher, own = pairs[0]
    for more, again in pairs[1:]:
        cipher, own = lattice.add(cipher, more), lattice.add(own, again)
    released = lattice.decoded(lattice.add(cipher, lattice.multiply(own, shared.words)), scale)
    assert (key_from_release(lattice, cipher, own, released, scale) == shared.words).all()
    rounded = np.round(released, 3)
    assert (key_from_release(lattice, cipher, own, rounded, scale) != shared.words).mean() > 0.99


@pytest.mark.parametrize(("rounded", "noisy"), [(True, True), (True, False), (False, True), (False, False)])
def test_an_observer_of_ciphertexts_and_releases_needs_both_defences_gone(
    silos: Silos, rounded: bool, noisy: bool
) -> None:
    lattice, parameters = silos.lattice, silos.parameters
    cipher = silos.added([silos.ciphertext(silo, 1) for silo in ALL])
    parts = silos.added([silos.part(silo, 1, ALL, noisy=noisy) for silo in ALL])
    released = lattice.decoded(lattice.add(cipher, parts), parameters.scale)
    released = np.rint(released) if rounded else released
    found = key_from_release(lattice, cipher, silos.reference(1), released, parameters.scale)
    assert (found == silos.key_sum(ALL)).all() == (not rounded and not noisy)
    if rounded or noisy:
        assert (found != silos.key_sum(ALL)).mean() > 0.99


# Keys from the parts of an opening: what the coordinator itself sees


def key_from_parts(silos: Silos, parts: Sequence[Words], slot: int) -> Words:
    """Sum of the keys, if the parts carry no noise."""
    return silos.lattice.multiply(silos.added(parts), inverse(silos.lattice, silos.reference(slot)))[0]


def test_parts_do_not_give_keys(silos: Silos) -> None:
    parts = [silos.part(silo, 2, ALL) for silo in ALL]
    assert (key_from_parts(silos, parts, 2) != silos.key_sum(ALL)).mean() > 0.99


def test_without_noise_in_the_parts_two_sums_give_a_silos_key_and_its_update(silos: Silos) -> None:
    """What the noise is for: the difference of the keys of two lists is one silo's key, which opens its ciphertexts."""
    lattice, some = silos.lattice, ALL[:-1]
    sums = {
        survivors: key_from_parts(silos, [silos.part(s, slot, survivors, noisy=False) for s in survivors], slot)
        for slot, survivors in ((3, ALL), (4, some))
    }
    key = lattice.subtract(sums[ALL], sums[some])
    assert (key == silos.keys[SILOS].words).all()
    opened = lattice.add(silos.ciphertext(SILOS, 5), lattice.multiply(silos.reference(5), key))
    assert (summation.read_sum(lattice, silos.parameters, opened) == silos.updates[SILOS]).all()


def test_the_same_two_sums_with_noise_open_nothing(silos: Silos) -> None:
    lattice, some = silos.lattice, ALL[:-1]
    sums = {
        survivors: key_from_parts(silos, [silos.part(s, slot, survivors) for s in survivors], slot)
        for slot, survivors in ((3, ALL), (4, some))
    }
    key = lattice.subtract(sums[ALL], sums[some])
    opened = lattice.add(silos.ciphertext(SILOS, 5), lattice.multiply(silos.reference(5), key))
    assert not readable(lattice, silos.parameters, opened)


def test_noise_of_the_parts_is_as_large_as_the_specification_says(silos: Silos) -> None:
    """Of one part, its share known: the smudging and one encryption's noise, in steps of the grid."""
    exact, noisy = silos.part(1, 6, ALL, noisy=False), silos.part(1, 6, ALL)
    values = silos.lattice.decoded(silos.lattice.subtract(noisy, exact), silos.parameters.scale)
    assert values.std() == pytest.approx(silos.parameters.smudging, rel=0.1)
    assert silos.parameters.smudging_ratio >= 64


# One silo's ciphertext in the place of the sum, and ciphertexts computed from others'


@dataclass
class JointKey:
    """The usual construction: public keys under a common a add up, and all silos decrypt c1 together."""

    silos: Silos
    common: Words
    public: Words

    @classmethod
    def of(cls, silos: Silos) -> JointKey:
        lattice = silos.lattice
        common = UniformPolynomials(lattice, os.urandom(32)).next(1)
        shares = [lattice.subtract(noise(lattice), lattice.multiply(common, silos.keys[silo].words)) for silo in ALL]
        return cls(silos, common, silos.added(shares))

    def encrypt(self, silo: int) -> tuple[Words, Words]:
        lattice, scale = self.silos.lattice, self.silos.parameters.scale
        once = lattice.fresh_key().words
        message = lattice.add(encoded(lattice, self.silos.updates[silo], scale), noise(lattice))
        return (
            lattice.add(lattice.multiply(self.public, once), message),
            lattice.add(lattice.multiply(self.common, once), noise(lattice)),
        )

    def decrypt(self, cipher: Words, second: Words) -> Words:
        """All silos' partial decryptions of whatever the coordinator calls the sum's second half."""
        lattice = self.silos.lattice
        parts = [lattice.add(lattice.multiply(second, self.silos.keys[s].words), noise(lattice)) for s in ALL]
        return lattice.add(cipher, self.silos.added(parts))

    def values(self, opened: Words) -> NDArray[np.float64]:
        return self.silos.lattice.decoded(opened, self.silos.parameters.scale)[0]


def test_a_joint_public_key_opens_whatever_the_coordinator_sends(silos: Silos) -> None:
    """One silo's ciphertext, and a sum from which a colluding silo took all others out: every honest silo helps."""
    joint = JointKey.of(silos)
    ciphertexts = {silo: joint.encrypt(silo) for silo in ALL}
    alone = joint.values(joint.decrypt(*ciphertexts[1]))
    lattice = silos.lattice
    # Silo 5 works with the coordinator and sends the others' negative; silos 1 to 4 are in the sum as they should be.
    zero = np.zeros((1, DEGREE), np.uint64)
    taken_out = tuple(
        lattice.subtract(zero, silos.added([ciphertexts[silo][half] for silo in (2, 3, 4)])) for half in (0, 1)
    )
    everything = tuple(
        silos.added([*(ciphertexts[silo][half] for silo in (1, 2, 3, 4)), taken_out[half]]) for half in (0, 1)
    )
    cancelled = joint.values(joint.decrypt(*everything))
    for found in (alone, cancelled):
        assert np.corrcoef(found, silos.updates[1])[0, 1] > 0.999
        assert abs(np.corrcoef(found, silos.updates[2])[0, 1]) < 0.1


def test_here_one_silos_ciphertext_is_not_opened_in_the_place_of_the_sum(silos: Silos) -> None:
    parts = silos.added([silos.part(silo, 7, ALL) for silo in ALL])
    victim = silos.ciphertext(1, 7)
    five_times = silos.added([victim] * SILOS)
    for claimed in (victim, five_times):
        assert not readable(silos.lattice, silos.parameters, silos.lattice.add(claimed, parts))


def test_here_a_ciphertext_computed_from_others_makes_the_sum_unreadable(silos: Silos) -> None:
    lattice = silos.lattice
    honest = {silo: silos.ciphertext(silo, 8) for silo in (1, 2, 3, 4)}
    negative = lattice.subtract(np.zeros((1, DEGREE), np.uint64), silos.added([honest[silo] for silo in (2, 3, 4)]))
    parts = [silos.part(silo, 8, ALL) for silo in ALL]
    assert not readable(lattice, silos.parameters, silos.added([*honest.values(), negative, *parts]))


def test_here_a_ciphertext_of_another_slot_makes_the_sum_unreadable(silos: Silos) -> None:
    ciphertexts = [silos.ciphertext(silo, 9) for silo in ALL[:-1]]
    replayed = silos.ciphertext(SILOS, 8)
    parts = [silos.part(silo, 9, ALL) for silo in ALL]
    assert not readable(silos.lattice, silos.parameters, silos.added([*ciphertexts, replayed, *parts]))


# Collusion of all but one, and silos that were told different things


def test_all_but_one_and_the_coordinator_open_nothing_without_the_last_silos_part(silos: Silos) -> None:
    """They know every key and every mask but silo 1's key, its ciphertext of slot 11, and its part of slot 10."""
    lattice = silos.lattice
    target = silos.ciphertext(1, 11)
    others = silos.added(
        [lattice.multiply(silos.reference(11), silos.share(silo, 11, ALL)) for silo in ALL if silo != 1]
    )
    ciphertexts = silos.added([silos.ciphertext(silo, 11) for silo in ALL])
    assert not readable(lattice, silos.parameters, silos.added([ciphertexts, others])), "its part is missing"

    for noisy in (True, False):
        part = silos.part(1, 10, ALL, noisy=noisy)
        masks = lattice.subtract(silos.share(1, 10, ALL), silos.keys[1].words)  # each is shared with a colluder
        key = lattice.subtract(lattice.multiply(part, inverse(lattice, silos.reference(10))), masks)
        opened = lattice.add(target, lattice.multiply(silos.reference(11), key))
        assert readable(lattice, silos.parameters, opened) == (not noisy)


def test_all_but_two_learn_the_sum_of_the_two_and_no_more(silos: Silos) -> None:
    whole = summation.read_sum(silos.lattice, silos.parameters, silos.opened(12, ALL))
    rest = whole - sum(silos.updates[silo] for silo in (3, 4, 5))
    assert (rest == silos.updates[1] + silos.updates[2]).all()
    lattice = silos.lattice
    for silo in (1, 2):
        part = silos.part(silo, 12, ALL)
        opened = lattice.add(silos.ciphertext(silo, 12), part)
        assert not readable(lattice, silos.parameters, opened), "a mask shared by the two honest silos is left"


@pytest.mark.parametrize("told", [(1, 2, 3), (1, 2, 4), (1, 2, 3, 4)])
def test_silos_that_were_told_different_survivors_open_no_sum(silos: Silos, told: tuple[int, ...]) -> None:
    """Silo 1 is told a list of its own; no choice of ciphertexts fits the parts."""
    parts = silos.added([silos.part(silo, 13, told if silo == 1 else ALL) for silo in ALL])
    for claimed in (ALL, told):
        ciphertexts = silos.added([silos.ciphertext(silo, 13) for silo in claimed])
        assert not readable(silos.lattice, silos.parameters, silos.lattice.add(ciphertexts, parts))


def test_a_single_part_looks_uniform(silos: Silos) -> None:
    """Masks hide each silo's key in its own part: without all the others' it tells nothing, noise or not."""
    lattice = silos.lattice
    share = silos.share(1, 14, ALL)
    assert abs(float(share.astype(np.float64).mean()) / lattice.modulus - 0.5) < 6 * np.sqrt(1 / 12 / DEGREE)
    again = silos.share(1, 15, ALL)
    assert (share != again).mean() > 0.99, "another mask in every slot"
