"""Medians of times measured in turn, so that what else the machine does falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["interleaved", "medians"]

WARM_UP = 2
LEAST_TURNS = 5
MOST_TURNS = 200


def interleaved(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Call each in turn, over and over, for about `seconds` in all, between 5 and 200 turns after two to warm up.

    Returns
    -------
    list of list of float
        Seconds of every call, one list a callable; equal places belong to one turn.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(WARM_UP):
        for call in calls:
            call()
    started = time.perf_counter()
    while len(taken[0]) < LEAST_TURNS or (len(taken[0]) < MOST_TURNS and time.perf_counter() - started < seconds):
        for call, times in zip(calls, taken, strict=True):
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
    return taken


def medians(taken: Sequence[Sequence[float]]) -> list[float]:
    """Median of each list."""
    return [statistics.median(times) for times in taken]
