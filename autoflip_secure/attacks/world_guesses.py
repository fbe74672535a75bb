"""Which of two worlds a run was made in, told from its public figures by a classifier trained on other runs.

The classifier is ridge regression on the worlds, -1 and 1. There are far more figures than runs, so it is solved for
weights of runs (its dual form) under a kernel; figures that are alike form groups, and each group counts as much as any
other, however many numbers it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Figures", "pairs_told"]

Figures = Mapping[str, NDArray[np.float64]]
"""Figures of one run: for each group an array of a length that is the same in all runs."""

RIDGE = 0.1
"""In mean diagonals of the kernel."""
KNOWN = 4
"""Pairs that the adversary has before it is asked."""


def pairs_told(pairs: Sequence[tuple[Figures, Figures]], *choices: Sequence[str]) -> tuple[int, int]:
    """Of how many pairs (world 0, world 1) the adversary tells which is which, and of how many it is asked.

    It is asked of one pair after the other, and trains on those before it, which it knows by then; the first `KNOWN`
    are only trained on. So each answer is right with the same probability whatever the earlier ones were, 1/2 where
    nothing tells the worlds apart and at most `settings.PrivacyProfile.area` under DP: exact intervals of a proportion
    hold. (Training on all other pairs would make answers depend on each other.)

    Parameters
    ----------
    choices : sequence of str, each
        Groups of figures to judge by. It takes the choice that told most of the pairs before, the first of equals.
    """
    runs, coin = [run for pair in pairs for run in pair], np.random.default_rng(0)
    record, right = np.zeros(len(choices), np.int64), 0
    for asked in range(1, len(pairs)):
        told = [_tells(runs[: 2 * asked + 2], groups, coin) for groups in choices]
        if asked >= KNOWN:
            right += told[int(np.argmax(record))]
        record += told
    return right, len(pairs) - KNOWN


def _tells(runs: Sequence[Figures], groups: Sequence[str], coin: np.random.Generator) -> bool:
    """Whether the last two runs are told right by a classifier trained on the others; a tie is decided by a coin."""
    count = len(runs) - 2
    known, kernel = slice(0, count), _kernel(runs, count, groups)
    ridge = RIDGE * float(np.trace(kernel[known, known])) / count or 1.0
    weights = np.linalg.solve(kernel[known, known] + ridge * np.eye(count), np.tile([-1.0, 1.0], count // 2))
    first, second = kernel[count:, known] @ weights
    return bool(second > first) if first != second else bool(coin.random() < 1 / 2)


def _kernel(runs: Sequence[Figures], known: int, groups: Sequence[str]) -> NDArray[np.float64]:
    """Mean over groups of the inner products of standardised figures, shape (runs, runs).

    Means and deviations are those of the first `known` runs; a figure that is the same in all of them is left out.
    """
    total = np.zeros((len(runs), len(runs)))
    for group in groups:
        figures = np.stack([run[group] for run in runs])
        spread = figures[:known].std(axis=0)
        telling = spread > 0
        if telling.any():
            standard = (figures[:, telling] - figures[:known, telling].mean(axis=0)) / spread[telling]
            total += standard @ standard.T / telling.sum() / len(groups)
    return total
