"""Silos that are summed together or not at all: what a coordinator gets that wants a part of a block."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from autoflip_secure.errors import PolicyRefusal, Refusal
from autoflip_secure.federation.blocks import least_block
from autoflip_secure.parties.rules import check_survivors
from autoflip_secure.secagg import SiloRules
from autoflip_secure.secagg.coordinator_setup import OpenEpoch
from autoflip_secure.sums.noise_chain import later_link

SIX = (1, 2, 3, 4, 5, 6)
BLOCKS = (1, 2, 3), (4, 5, 6)
ONE_MISSING = ((1, 2, 3, 4, 5),)


def subsets(silos):
    """All, the empty one too."""
    return [some for size in range(len(silos) + 1) for some in combinations(silos, size)]


def opened_lists(manifest, silos):
    """Lists of one cohort that silos help to open."""
    found = []
    for some in subsets(silos):
        try:
            check_survivors(manifest, (some,), SiloRules(0, minimum_fraction=0.0), silos)
        except Refusal:
            continue
        found.append(some)
    return found


def opened(attack, survivors, silos=SIX):
    """What the coordinator makes of an attempt in which `silos` send vectors: the sum over `survivors`."""
    for silo in silos:
        attack.masked(silo)
    confirmations = [attack.confirm(silo, survivors) for silo in SIX][:5]
    for silo in SIX:
        attack.unmask(silo, survivors, confirmations)
    return sum(attack.spoils.residue(attack.manifest.slot, silo) for silo in survivors[0])


# Lists


def test_lists_are_opened_that_hold_whole_blocks(federation):
    assert opened_lists(federation(6).manifest(blocks=BLOCKS), SIX) == [*BLOCKS, SIX]


def test_no_sums_add_up_to_less_than_a_block(federation):
    """Whichever lists are opened, how often and with whatever factors. Without blocks everything follows from some."""
    fed, blocks = federation(7), ((1, 4), (2, 3, 7), (5,), (6,))
    one_hot = {silos: np.isin(range(1, 8), silos).astype(int) for silos in subsets(range(1, 8))}

    def told(manifest):
        """Sets of silos whose sum follows from sums that may be opened."""
        sums = [one_hot[silos] for silos in opened_lists(manifest, tuple(range(1, 8)))]
        rank = np.linalg.matrix_rank(sums)
        return {silos for silos, row in one_hot.items() if np.linalg.matrix_rank([*sums, row]) == rank}

    assert told(fed.manifest()) == set(one_hot)
    unions = {tuple(sorted(sum(some, ()))) for some in subsets(blocks)}
    assert told(fed.manifest(blocks=blocks)) == unions


@pytest.mark.parametrize(("colluders", "moments"), [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("too_few", [0, 1])
def test_colluders_of_one_block_leave_the_others_of_it_together(federation, colluders, moments, too_few):
    """Two by one sum, three by two sums of the same silos (a sum and squares). Of a smaller block too few are left."""
    size = least_block(colluders, moments) - too_few
    silos = tuple(range(1, 13))
    blocks = tuple(silos[start : start + size] for start in range(0, 12, size))
    others = blocks[0][colluders:]

    def row(of):
        return np.isin(silos, of).astype(int)

    lists = opened_lists(federation(len(silos)).manifest(blocks=blocks), silos)
    known = [*map(row, lists), *(row([silo]) for silo in blocks[0][:colluders])]
    rank = np.linalg.matrix_rank(known)
    told = {some for some in subsets(others) if some and np.linalg.matrix_rank([*known, row(some)]) == rank}
    assert told == {others}
    assert (len(others) > moments) == (not too_few), "of as many silos as sums, sums tell single ones"


@pytest.mark.parametrize("survivors", [ONE_MISSING, ((1, 2, 4, 5),), ((2, 3, 4, 5, 6),)])
def test_list_with_a_part_of_a_block(federation, dishonest, survivors):
    """Of the silo's own block or of another's."""
    attack = dishonest(federation(6), blocks=BLOCKS)
    for silo in SIX:
        attack.masked(silo)
    for silo in SIX:
        with pytest.raises(Refusal, match="refused by rule blocks"):
            attack.confirm(silo, survivors)
        assert attack.slot_is_closed(silo)
    attack.assert_hidden(*SIX)


def test_list_with_a_part_of_a_block_of_another_cohort(federation, dishonest):
    """Helpers, and silos of a cohort without blocks of more than one, look at all lists."""
    attack = dishonest(federation(8), (1, 2, 3), (4, 5, 6, 7), blocks=((1,), (2,), (3,), (4, 5), (6, 7)))
    for silo in range(1, 8):
        attack.masked(silo)
    for silo in (1, 4, 8):
        with pytest.raises(Refusal, match="refused by rule blocks"):
            attack.confirm(silo, ((1, 2, 3), (4, 5, 6)))


def test_silos_with_keys_count_in_whole_blocks(federation, dishonest):
    """Five of six have keys, four are needed, and no more than three could be summed: no vector is computed."""
    fed = federation(6)
    present = fed.exchange(absent=lambda stage, silo: silo == 4)
    epoch = OpenEpoch(fed.desk, 1, 2).advertise(present).share(present)
    attack = dishonest(fed, epoch=epoch, minimum=4, blocks=BLOCKS)
    with pytest.raises(PolicyRefusal, match="3 silos could take part, this silo's rules need 4"):
        attack.masked(1)
    assert attack.slot_is_closed(1)
    assert not fed.vectors
    dishonest(fed, epoch=epoch, minimum=4).masked(1)


# Silos that are left out


def test_two_attempts_do_not_differ_by_a_silo(federation, dishonest):
    """Without blocks they do: everybody is in the first, silo 6 is said to be absent from the second."""
    fed = federation(6)
    words = fed.contribute_the_same()
    one, other = opened(dishonest(fed), (SIX,)), opened(dishonest(fed), ONE_MISSING)
    np.testing.assert_array_equal(one - other, words[6])
    for asked in (SIX, ONE_MISSING[0]):
        with pytest.raises(Refusal, match="refused by rule blocks"):
            opened(dishonest(fed, blocks=BLOCKS), ONE_MISSING, asked)
    one, other = opened(dishonest(fed, blocks=BLOCKS), (SIX,)), opened(dishonest(fed, blocks=BLOCKS), BLOCKS[:1])
    np.testing.assert_array_equal(one - other, words[4] + words[5] + words[6])


def test_vectors_that_are_left_out_stay_masked(federation, dishonest):
    """All six sent theirs, silo 6 is said to be absent; the mask keys of its block are given up, the seeds are not."""
    attack = dishonest(federation(6), blocks=BLOCKS)
    opened(attack, BLOCKS[:1])
    fed, slot = attack.fed, attack.manifest.slot
    attack.assert_hidden(*SIX)
    left = {silo: attack.spoils.residue(slot, silo) - fed.vectors[silo] for silo in SIX}
    assert [silos for silos in subsets(SIX) if silos and not sum(left[silo] for silo in silos).any()] == [BLOCKS[0]]


def test_coordinator_says_whom_it_left_out(federation):
    fed = federation(6)
    manifest = fed.manifest(blocks=BLOCKS)
    fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange(lambda *at: at == ("masked", 2))), BLOCKS[1])
    assert fed.named("block_incomplete") == [{"silos": [1, 3]}]
    assert fed.named("silo_dropped") == [{"silo": 2, "stage": "masked"}]
    fed.assert_exact(fed.coordinator.sum(manifest, fed.exchange()), SIX)
    assert len(fed.named("block_incomplete")) == 1


def test_vector_that_does_not_hold_leaves_its_block_out(federation):
    fed = federation(6)

    def tamper(stage, silo, reply):
        return reply[:-1] + bytes([reply[-1] ^ 1]) if (stage, silo) == ("masked", 5) else reply

    fed.assert_exact(fed.coordinator.sum(fed.manifest(blocks=BLOCKS), fed.exchange(tamper=tamper)), BLOCKS[0])
    assert [event["silo"] for event in fed.named("silo_misbehaved")] == [5]
    assert fed.named("block_incomplete") == [{"silos": [4, 6]}]


def test_each_cohort_has_blocks_of_its_own(federation):
    fed, cohorts = federation(10), ((1, 2, 3, 4, 9), (5, 6, 7, 8, 10))
    blocks = (1, 2), (3, 4, 9), (5, 6, 7), (8, 10)
    gone = {1, 10}
    exchange = fed.exchange(lambda stage, silo: stage == "masked" and silo in gone)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(*cohorts, blocks=blocks), exchange), (3, 4, 9), (5, 6, 7))


def test_silos_whose_block_has_no_keys_use_no_records(federation):
    """Nor are they asked to; they help."""
    fed, asked = federation(6), {}

    def exchange(stage, requests):
        asked[stage] = set(requests)
        return fed.exchange(lambda stage, silo: silo == 4)(stage, requests)

    fed.assert_exact(fed.coordinator.sum(fed.manifest(blocks=BLOCKS), exchange), BLOCKS[0])
    assert (set(fed.vectors), asked["masked"], asked["confirm"]) == ({1, 2, 3}, {1, 2, 3}, {1, 2, 3, 5, 6})


def test_silos_that_are_left_out_count_as_missing(federation):
    """For the noise that the others owe; of their own none is in the sum, and they reveal no link."""
    fed, blocks = federation(9), ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    exchange = fed.exchange(lambda *at: at == ("masked", 9))
    (item,) = fed.coordinator.sum(fed.manifest(blocks=blocks), exchange)
    assert item.links == {silo: later_link(fed.roots[silo], 3) for silo in range(1, 7)}


def test_silo_told_of_other_blocks_is_in_no_sum(federation, dishonest):
    """The others' manifest has none: nobody takes its vector for theirs."""
    attack = dishonest(federation(6))
    for silo in SIX:
        attack.masked(silo, replace(attack.manifest, blocks=BLOCKS) if silo == 1 else None)
    for silo in SIX:
        with pytest.raises(Refusal, match=r"receipts|manifest"):
            attack.confirm(silo, (SIX,))
