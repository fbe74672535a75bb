"""What is found by somebody who makes one guess for all silos of a sum: all that the sum alone can be used for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_common_guess", "smallest_sums"]


def best_common_guess(held: Sequence[frozenset[int]], group: Sequence[int], guesses: int) -> int:
    """Classes found by the best guess that is the same for all silos of a group: those that most of them hold.

    Parameters
    ----------
    held : sequence of frozenset of int
        Classes of silo 1, 2, ...
    group : sequence of int
        Numbers of silos, from 1.
    guesses : int
        How many classes are guessed of each.
    """
    counts = np.bincount([name for silo in group for name in held[silo - 1]])
    return int(np.sort(counts)[::-1][:guesses].sum())


def smallest_sums(present: NDArray[np.float64]) -> list[list[int]]:
    """Numbers of the silos of each sum that has no smaller one in it, from their presence, shape (sums, silos)."""
    rows = np.unique(present, axis=0)
    smaller = [np.flatnonzero((rows <= row).all(axis=1)) for row in rows]
    return [(np.flatnonzero(row) + 1).tolist() for row, within in zip(rows, smaller, strict=True) if len(within) == 1]
