"""Blocks: silos that are summed together or not at all, so that differences of sums show blocks and no single silo.

Whatever sums of a run are opened, over however many rounds and attempts and whoever is said to be absent, each is a sum
over whole blocks; so is every linear combination of them. Batches of users that take part together are from So et al.,
"Securing Secure Aggregation: Mitigating Multi-Round Privacy Leakage in Federated Learning" (AAAI 2023); here silos
enforce them where single ones drop out, too.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

from autoflip_secure.sums.manifest import Blocks

__all__ = [
    "block_size",
    "deal_blocks",
    "fewest_in_blocks",
    "ids_of",
    "inside",
    "least_block",
    "still_enrolled",
]

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


def ids_of(parts: Iterable[Sequence[int]], ids: Sequence[int]) -> list[list[int]]:
    """Silos by their ids, of parts that the schedule knows by places 1, 2, ...; without `ids` places are ids."""
    return [[ids[place - 1] if ids else place for place in part] for part in parts]


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
