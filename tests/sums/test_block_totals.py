"""Sums of whole blocks, whoever arrives and in whatever order."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.errors import Abort
from autoflip_secure.sums.block_totals import BlockTotals
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from tests.sums.partitions import partitions

COHORTS = (1, 2, 3, 5, 8), (4, 6, 7)
MANIFEST = Manifest(
    bytes(16), 0, 0, bytes(32), 1, 0, "train", COHORTS, (1, 1), 1, bytes(32), bytes(32), bytes(32),
    (ChannelSpec("update", 10, 16, 1.0),), PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
)  # fmt: skip
blocks = st.one_of(st.just(()), st.tuples(*map(partitions, COHORTS)).map(lambda parts: sum(parts, ())))


def arrived(manifest: Manifest, silos: list[int], worthless: Container[int] = ()) -> BlockTotals[list[int]]:
    """Totals that list who is in them; of the worthless a reply came that counts for nothing."""
    totals: BlockTotals[list[int]] = BlockTotals(manifest, lambda cohort: [], list.extend)
    for silo in silos:
        total = totals.of(silo)
        if silo not in worthless:
            total.append(silo)
            totals.has(silo)
    return totals


@given(blocks, st.permutations(range(1, 9)), st.integers(0, 8), st.sets(st.integers(1, 8), max_size=2))
def test_totals_hold_whole_blocks_once(blocks, order, count, worthless):
    there = set(order[:count]) - worthless
    totals = arrived(replace(MANIFEST, blocks=blocks), order[:count], worthless)
    whole = {silo for block in blocks if there >= set(block) for silo in block} if blocks else there
    expected = [[silo for silo in cohort if silo in whole] for cohort in COHORTS]
    assert [sorted(total) for total in totals.cohorts] == expected
    assert totals.left_out == tuple(sorted(there - whole))
    if min(map(len, expected)):
        assert totals.survivors("stage", "word") == tuple(map(tuple, expected))
    else:
        with pytest.raises(Abort):
            totals.survivors("stage", "word")


@pytest.mark.parametrize(
    ("blocks", "silos", "words"),
    [
        ((), [1, 2], "2 of 5 silos of a cohort sent a word, 3 are needed;"),
        (
            ((1, 2, 3), (5, 8), (4, 6, 7)),
            [1, 2],
            "2 of 5 silos of a cohort sent a word, 2 of them without their whole block, 3 are needed;",
        ),
        (
            ((1, 2), (3, 5, 8), (4, 6, 7)),
            [1, 2, 3],
            "3 of 5 silos of a cohort sent a word, 1 of them without their whole block, 3 are needed;",
        ),
    ],
)
def test_too_few_in_whole_blocks(blocks, silos, words):
    with pytest.raises(Abort, match=re.escape(words)) as caught:
        arrived(replace(MANIFEST, blocks=blocks, minimum=(3, 1)), [*silos, 4, 6, 7]).survivors("stage", "word")
    assert (caught.value.stage, caught.value.blamed) == ("stage", ())
