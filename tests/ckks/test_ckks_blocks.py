"""Silos that are summed together or not at all: sums of whole blocks, and openings of less that silos refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import combinations

import numpy as np
import pytest

from autoflip_secure.ckks.packing import words_of
from autoflip_secure.ckks.ring import ring
from autoflip_secure.ckks.summation import read_sum
from autoflip_secure.errors import Abort, PolicyRefusal, Refusal
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import later_link
from autoflip_secure.sums.words import ContributionWords, PackedWords, all_words

FIVE = (1, 2, 3, 4, 5)
BLOCKS = (1, 2, 3), (4, 5)
ONE_MISSING = (1, 2, 3, 4)


def of_same_words(fed):
    """The silos contribute the same again and again, as the updates of a round do nearly; what that is."""
    values = {silo: {spec.name: fed.draw(spec) for spec in fed.channels} for silo in fed.everyone}
    words = {silo: all_words(ContributionWords(of_silo, fed.channels, fed.n)) for silo, of_silo in values.items()}
    fed.contribute = lambda silo: lambda manifest: PackedWords(words[silo].copy())
    return words


def opened(attack, survivors, silos=FIVE):
    """What the coordinator makes of ciphertexts of `silos` where those of `survivors` are to be opened: their sum."""
    fed, manifest = attack.fed, attack.manifest
    sent = {silo: fed.split("encrypt", attack.encrypt(silo), manifest)[0] for silo in silos}
    parts = [fed.split("open", attack.open(silo, (survivors,)), manifest)[0] for silo in survivors]
    return sum_of(attack, sent, survivors, parts), sent, parts


def sum_of(attack, sent, silos, parts):
    """Words that some ciphertexts and parts open to."""
    parameters = attack.fed.parameters(attack.manifest)
    total = reduce(ring(parameters.modulus_bits).add, [*(sent[silo] for silo in silos), *parts])
    return words_of(read_sum(ring(parameters.modulus_bits), parameters, total), attack.manifest.channels, attack.fed.n)


@pytest.mark.parametrize("gone", [gone for size in range(6) for gone in combinations(FIVE, size)])
def test_every_pattern_of_absence(federation, gone):
    fed = federation(5)
    manifest, exchange = fed.manifest(blocks=BLOCKS), fed.exchange(drop={"encrypt": gone})
    survivors = tuple(silo for block in BLOCKS if not set(block) & set(gone) for silo in block)
    left = [silo for silo in FIVE if silo not in (*gone, *survivors)]
    if len(survivors) >= 3:
        fed.assert_exact(fed.coordinator.sum(manifest, exchange), survivors)
        assert fed.named("block_incomplete") == [{"silos": left}] * bool(left)
        return
    alone = f", {len(left)} of them without their whole block" if left else ""
    words = f"{5 - len(gone)} of 5 silos of a cohort sent a ciphertext{alone}, 3 are needed"
    with pytest.raises(Abort, match=words) as caught:
        fed.coordinator.sum(manifest, exchange)
    assert (caught.value.stage, caught.value.blamed) == ("encrypt", ())


@pytest.mark.parametrize("survivors", [ONE_MISSING, (1, 2, 4, 5), (1, 2, 5)])
def test_list_with_a_part_of_a_block(federation, dishonest, survivors):
    """Of the silo's own block or of another's; and the slot is closed."""
    attack = dishonest(federation(5), blocks=BLOCKS)
    for silo in FIVE:
        attack.encrypt(silo)
    for silo in survivors:
        with pytest.raises(Refusal, match="refused by rule blocks"):
            attack.open(silo, (survivors,))
        assert attack.fed.stage_of(silo) == "closed"
        assert not attack.fed.secrets(silo, slot=0)


def test_list_with_a_part_of_a_block_of_another_cohort(federation, dishonest):
    attack = dishonest(federation(7), (1, 2, 3), (4, 5, 6, 7), blocks=((1, 2, 3), (4, 5), (6, 7)))
    attack.encrypt(1)
    with pytest.raises(Refusal, match="refused by rule blocks"):
        attack.open(1, ((1, 2, 3), (4, 5, 6)))


def test_silos_with_keys_count_in_whole_blocks(federation):
    """Four of five have keys, four are needed, and no more than three could be summed: nothing is computed."""
    fed = federation(5)
    honest = fed.read_request("encrypt", fed.caught_at("encrypt", drop={"keys": {4}})[1])
    manifest = replace(Manifest.from_bytes(honest.manifest), minimum=(4,))
    in_blocks = replace(honest, manifest=replace(manifest, blocks=BLOCKS).to_bytes())
    with pytest.raises(PolicyRefusal, match="3 silos could take part, this silo's rules need 4"):
        fed.answer("encrypt", 1, fed.signed(in_blocks))
    assert not fed.vectors
    fed.answer("encrypt", 1, fed.signed(replace(honest, manifest=replace(manifest, slot=1).to_bytes())))


def test_silos_whose_block_has_no_keys_use_no_records(federation):
    """Nor are they asked to."""
    fed = federation(5)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(blocks=BLOCKS), fed.exchange(drop={"keys": {4}})), BLOCKS[0])
    assert {silo for stage, silo in fed.requests if stage == "encrypt"} == set(fed.vectors) == set(BLOCKS[0])


def test_two_attempts_do_not_differ_by_a_silo(federation, dishonest):
    """Without blocks they do: everybody is in the first, silo 5 is said to be absent from the second."""
    fed = federation(5)
    words = of_same_words(fed)
    one, other = (opened(dishonest(fed), survivors)[0] for survivors in (FIVE, ONE_MISSING))
    np.testing.assert_array_equal(one - other, words[5])
    for asked in (FIVE, ONE_MISSING):
        with pytest.raises(Refusal, match="refused by rule blocks"):
            opened(dishonest(fed, blocks=BLOCKS), ONE_MISSING, asked)
    one, other = (opened(dishonest(fed, blocks=BLOCKS), survivors)[0] for survivors in (FIVE, BLOCKS[0]))
    np.testing.assert_array_equal(one - other, words[4] + words[5])


def test_ciphertexts_that_are_left_out_stay_closed(federation, dishonest):
    """All five sent theirs, silo 5 is said to be absent: the parts open the sum of the other block alone."""
    attack = dishonest(federation(5), blocks=BLOCKS)
    total, sent, parts = opened(attack, BLOCKS[0])
    np.testing.assert_array_equal(total, attack.fed.plain_sum(BLOCKS[0]))
    for silos in ((4,), (5,), (4, 5), ONE_MISSING, FIVE):
        with pytest.raises(Abort, match="do not fit"):
            sum_of(attack, sent, silos, parts)


def test_ciphertext_that_does_not_hold_leaves_its_block_out(federation):
    fed = federation(5)

    def tamper(stage, silo, reply):
        return reply[:-1] + bytes([reply[-1] ^ 1]) if (stage, silo) == ("encrypt", 4) else reply

    fed.assert_exact(fed.coordinator.sum(fed.manifest(blocks=BLOCKS), fed.exchange(tamper=tamper)), BLOCKS[0])
    assert [event["silo"] for event in fed.named("silo_misbehaved")] == [4]
    assert fed.named("block_incomplete") == [{"silos": [5]}]


def test_each_cohort_has_blocks_of_its_own(federation):
    fed, cohorts = federation(10), ((1, 2, 3, 4, 9), (5, 6, 7, 8, 10))
    manifest = fed.manifest(*cohorts, blocks=((1, 2), (3, 4, 9), (5, 6, 7), (8, 10)))
    fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange(drop={"encrypt": {1, 10}})), (3, 4, 9), (5, 6, 7))


def test_silos_that_are_left_out_count_as_missing(federation):
    """For the noise that the others owe; of their own none is in the sum, and they reveal no link."""
    fed, blocks = federation(9), ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    (item,) = fed.coordinator.sum(fed.manifest(blocks=blocks), fed.exchange(drop={"encrypt": {9}}))
    assert item.links == {silo: later_link(fed.roots[silo], 3) for silo in range(1, 7)}
