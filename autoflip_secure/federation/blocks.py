"""Blocks: silos that are summed together or not at all, so that differences of sums show blocks and no single silo.

Whatever sums of a run are opened, over however many rounds and attempts and whoever is said to be absent, each is a sum
over whole blocks; so is every linear combination of them. Batches of users that take part together are from So et al.,
"Securing Secure Aggregation: Mitigating Multi-Round Privacy Leakage in Federated Learning" (AAAI 2023); here silos
enforce them where single ones drop out, too.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

__all__ = [
    "Blocks",
    "block_size",
    "deal_blocks",
    "fewest_in_blocks",
    "inside",
    "least_block",
    "still_enrolled",
]

Blocks = tuple[tuple[int, ...], ...]

SMALLEST = 3
"""Silos of the smallest block."""


def least_block(colluders: int, moments: int) -> int:
    """Fewest silos of a block whose sum tells no single one: colluders + 1 + moments.

    Colluders take themselves out of it. One sum hides two silos from each other; two about the same coordinates (a sum
    and squares) hide three.
    """
    return colluders + 1 + moments


def block_size(least: int) -> int:
    """The smallest of 3, 6, 12, ... that is `least` or more.

    Blocks of one of these sizes are made of whole blocks of any smaller one, so runs that need larger blocks than
    others of the same silos do not subtract to anything smaller.
    """
    size = SMALLEST
    while size < least:
        size *= 2
    return size


def deal_blocks(silos: int, size: int) -> Blocks:
    """Silos 1..n in blocks of `size`, ascending; what is left over is in the last one, of up to 2 size - 1 silos.

    By place and not by lot: another run of the same silos has the same blocks, and its coordinator does not choose who
    is in which; the federation's owner, who numbers silos, does. A silo that is added moves the last block alone; sums
    before and after then subtract to the new one.
    """
    starts = range(0, max(1, silos // size) * size, size)
    ends = [*starts[1:], silos]
    return tuple(tuple(range(start + 1, end + 1)) for start, end in zip(starts, ends, strict=True))


def inside(blocks: Iterable[Sequence[int]], cohorts: Sequence[Collection[int]]) -> Blocks:
    """Those blocks that are part of a cohort to the last silo."""
    sets = [set(cohort) for cohort in cohorts]
    return tuple(tuple(block) for block in blocks if any(each.issuperset(block) for each in sets))


def in_whole_blocks(blocks: Blocks, present: Collection[int]) -> frozenset[int]:
    """Those of `present` whose block is there to the last; all of them where there are no blocks."""
    there = frozenset(present)
    return frozenset(silo for block in blocks if there.issuperset(block) for silo in block) if blocks else there


def still_enrolled(cohort: Sequence[int], blocks: Iterable[Sequence[int]], enrolled: Container[int]) -> tuple[int, ...]:
    """A cohort less the silos that were removed from the roster, and less the rest of their blocks: a sum with that
    rest and one without the removed would show either."""
    broken = {silo for block in blocks for silo in block if any(other not in enrolled for other in block)}
    return tuple(silo for silo in cohort if silo in enrolled and silo not in broken)


def fewest_in_blocks(sizes: Sequence[int], least: int) -> int:
    """Fewest silos of some whole blocks that are `least` or more; more than all of them where none are enough."""
    reached = {0}
    for size in sizes:
        reached |= {total + size for total in reached}
    return min((total for total in reached if total >= least), default=max(least, sum(sizes) + 1))
