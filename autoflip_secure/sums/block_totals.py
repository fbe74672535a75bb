"""What a coordinator adds up as contributions arrive: sums of whole blocks, since no other may be opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import Abort
from autoflip_secure.sums.manifest import Manifest

__all__ = ["BlockTotals", "add_words"]

T = TypeVar("T")


def add_words(total: NDArray[np.uint64], words: NDArray[np.uint64]) -> None:
    """Add in Z_2^64, in place."""
    np.add(total, words, out=total)


class BlockTotals(Generic[T]):
    """Running totals of one attempt, a cohort each, of blocks that are complete.

    A block's own total is kept until its last silo has come, and is then added to its cohort's: memory holds a total a
    cohort and one for each block that has begun and is not complete.

    Parameters
    ----------
    manifest : Manifest
    new : callable
        new(cohort) -> an empty total.
    merge : callable
        merge(total, block) adds a block's total to its cohort's.
    """

    def __init__(self, manifest: Manifest, new: Callable[[int], T], merge: Callable[[T, T], None]) -> None:
        self._manifest, self._new, self._merge = manifest, new, merge
        self.cohorts = [new(index) for index in range(len(manifest.cohorts))]
        """The totals, by cohort."""
        self._block_of = {silo: block for block in manifest.blocks for silo in block}
        self._begun: dict[tuple[int, ...], T] = {}
        self._arrived: set[int] = set()

    def of(self, silo: int) -> T:
        """The total that a silo's contribution is to be added to."""
        cohort = self._manifest.cohort_of(silo)
        block = self._block_of.get(silo)
        if block is None:
            return self.cohorts[cohort]
        if block not in self._begun:
            self._begun[block] = self._new(cohort)
        return self._begun[block]

    def has(self, silo: int) -> None:
        """Note that a silo's contribution is in the total that `of` gave."""
        self._arrived.add(silo)
        block = self._block_of.get(silo)
        if block is not None and self._arrived.issuperset(block):
            self._merge(self.cohorts[self._manifest.cohort_of(silo)], self._begun.pop(block))

    def survivors(self, stage: str, what: str) -> tuple[tuple[int, ...], ...]:
        """Whose contributions the cohorts' totals hold; what silos of incomplete blocks sent is in none.

        Raises
        ------
        Abort
            A cohort fell below its minimum.
        """
        found = self._manifest.each_whole(self._arrived)
        for present, cohort, least in zip(found, self._manifest.cohorts, self._manifest.minimum, strict=True):
            if len(present) < least:
                sent = len(self._arrived.intersection(cohort))
                alone = f", {sent - len(present)} of them without their whole block" if sent > len(present) else ""
                raise Abort(
                    f"{sent} of {len(cohort)} silos of a cohort sent a {what}{alone}, {least} are needed; "
                    "the model is unchanged, try again with a fresh slot",
                    stage=stage,
                )
        return found

    @property
    def left_out(self) -> tuple[int, ...]:
        """Silos that contributed, and are in no total because their block is incomplete; ascending."""
        return tuple(sorted(self._arrived.difference(*self._manifest.each_whole(self._arrived))))
