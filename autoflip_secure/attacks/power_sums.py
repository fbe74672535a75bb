"""Sum and squares of the same coordinates, of two silos: their own values, up to which is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["found_pairs", "pairs_solved", "two_values"]

Values = NDArray[np.float64]

TOLERANCE = 0.05
STEPS, LEAST_MOVE = 10, 1.0 / 32767
"""Coordinates that move less than so many steps of the usual grid are not counted: rounding is all that is seen."""


def two_values(total: Values, squares: Values) -> tuple[Values, Values]:
    """Larger and smaller of a and b from a + b and a^2 + b^2, each of shape (coordinates,).

    Both are (s +- sqrt(2 q - s^2)) / 2, the roots of x^2 - s x + (s^2 - q) / 2. Rounding may leave 2 q - s^2 below 0,
    where it is taken for 0.
    """
    gap = np.sqrt(np.maximum(2.0 * squares - total**2, 0.0))
    return (total + gap) / 2.0, (total - gap) / 2.0


def found_pairs(guessed: tuple[Values, Values], one: Values, other: Values, tolerance: float) -> NDArray[np.bool_]:
    """Where both values were found, bool (coordinates,): each within `tolerance` of the larger of the two."""
    high, low = np.maximum(one, other), np.minimum(one, other)
    room = tolerance * np.maximum(np.abs(high), np.abs(low))
    return np.asarray((np.abs(guessed[0] - high) <= room) & (np.abs(guessed[1] - low) <= room))


def pairs_solved(vectors: Sequence[Mapping[str, Values]]) -> tuple[list[float], list[float]]:
    """What sum and squares tell of pairs of silos.

    Parameters
    ----------
    vectors : sequence of mapping of str to float64 array
        Contributions of silos to one round, by channel; those without `update` and `deviation` are passed over.

    Returns
    -------
    lists of float
        For each of disjoint pairs the share of coordinates solved; and by halving the sum, without squares. One left
        over is passed over.
    """
    both = [channels for channels in vectors if {"update", "deviation"} <= channels.keys()]
    solved: list[float] = []
    halved: list[float] = []
    for one, other in zip(both[::2], both[1::2], strict=False):
        total, squares = one["update"] + other["update"], one["deviation"] + other["deviation"]
        mine = (one["update"], other["update"])
        moved = np.maximum(np.abs(mine[0]), np.abs(mine[1])) > STEPS * LEAST_MOVE
        for guessed, shares in ((two_values(total, squares), solved), ((total / 2, total / 2), halved)):
            shares.append(float(found_pairs(guessed, *mine, TOLERANCE)[moved].mean()))
    return solved, halved
