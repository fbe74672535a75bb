"""Harrell's C-index: exact from single patients, and from a histogram that may be noised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import DataError

__all__ = ["RISK_EDGES", "concordance", "concordance_from_cells", "survival_cells", "survival_shape"]

PAIRS_AT_ONCE = 1 << 22

RISK_EDGES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Public edges of the bins of log hazard ratio, over the baseline.

Measured on the 222 test patients of tcga-brca (32 deaths; C-index 0.84) at the noise of epsilon 8 (standard deviation
1.34 a cell). With one cut of follow-up these six bins are off by 0.060 (root mean square), -0.012 of it without noise;
three bins by 0.061, -0.042 of it without noise; twelve bins by 0.079. Two cuts: 0.083, four cuts: 0.106. Cells cost
noise, so data of few events do with one cut; coarse bins draw the index to one half, coarse intervals away from it.
"""


def concordance(risk: NDArray[np.floating], time: NDArray[np.floating], event: NDArray[np.bool_]) -> float | None:
    """Share of comparable pairs in which the patient with the earlier event has the higher risk (Harrell et al. 1982).

    A pair is comparable where one patient has the event and the other is still at risk at that time: later, or
    censored at the same time. Equal risks count one half. None where there is no such pair.

    Parameters
    ----------
    risk, time : float arrays, shape (n,)
        Not NaN; `time` on any scale that keeps the order.
    event : bool array, shape (n,)

    Raises
    ------
    DataError
        Shapes that do not match.
    """
    if risk.ndim != 1 or not risk.shape == time.shape == event.shape:
        raise DataError(f"risks, times and events of shapes {risk.shape}, {time.shape}, {event.shape} do not match")
    concordant = pairs = 0.0
    events, stride = np.flatnonzero(event), max(1, PAIRS_AT_ONCE // max(1, len(risk)))
    for start in range(0, len(events), stride):
        first = events[start : start + stride, None]
        at_risk = (time > time[first]) | ((time == time[first]) & ~event)
        higher, equal = at_risk & (risk[first] > risk), at_risk & (risk[first] == risk)
        concordant += float(higher.sum() + equal.sum() / 2)
        pairs += float(at_risk.sum())
    return concordant / pairs if pairs else None


def survival_shape(cuts: tuple[float, ...]) -> tuple[int, int, int]:
    """Bins of risk, intervals of follow-up, and whether the event was seen."""
    return len(RISK_EDGES) + 1, len(cuts) + 1, 2


def survival_cells(
    risk: NDArray[np.floating], time: NDArray[np.floating], event: NDArray[np.bool_], cuts: tuple[float, ...]
) -> NDArray[np.int64]:
    """The one cell that each patient is counted in, shape (n,), as an index into the flat histogram.

    A risk that is not a number counts as that of the baseline.
    """
    risk_bin = np.searchsorted(RISK_EDGES, np.nan_to_num(risk.astype(np.float64), nan=0.0), side="right")
    interval = np.searchsorted(cuts, time.astype(np.float64), side="right")
    shape = survival_shape(cuts)
    return np.asarray(np.ravel_multi_index((risk_bin, interval, event.astype(np.int64)), shape), np.int64)


def concordance_from_cells(cells: NDArray[np.floating], cuts: tuple[float, ...]) -> tuple[float, float]:
    """(C-index, comparable pairs) as far as the cells tell; the index is NaN where there is no pair.

    A patient with an event is compared with all of later intervals; pairs within an interval are left out, because
    cells do not tell who was first. Equal bins of risk count one half. Both sums are products of counts of different
    intervals, whose noise is independent: they stay unbiased under noise, their ratio nearly so.
    """
    counts = np.asarray(cells, np.float64).reshape(survival_shape(cuts))
    events, everybody = counts[..., 1], counts.sum(axis=2)
    later = everybody.sum(axis=1, keepdims=True) - np.cumsum(everybody, axis=1)
    lower = np.cumsum(later, axis=0) - later / 2
    pairs = float((events * later.sum(axis=0)).sum())
    return (float((events * lower).sum()) / pairs if pairs else float("nan")), pairs
