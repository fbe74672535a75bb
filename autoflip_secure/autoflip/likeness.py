"""How like two maps of importance are: whether exploring once is enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.scores import mean_scores
from autoflip_secure.autoflip.units import UnitMap

__all__ = ["MapLikeness", "compare_maps"]

Values = NDArray[np.float64]

BEST_SHARE = 0.25


@dataclass(frozen=True)
class MapLikeness:
    """A map beside the first one.

    Attributes
    ----------
    cosine : float
        Between the maps over live parameters; 0 where one of them is zero. Maps are not negative, so it is high by
        construction.
    chance : float
        What `cosine` would be on average were the entries of each tensor shuffled.
    rank : float
        Spearman's correlation of the units' scores, ranks taken within each layer; 0 by chance.
    overlap : float
        Of the best quarter of each layer's units in the first map, the share that this map has there too; a quarter by
        chance.
    """

    cosine: float
    chance: float
    rank: float
    overlap: float


def compare_maps(
    first: NDArray[np.floating], found: NDArray[np.floating], units: UnitMap, live: NDArray[np.bool_]
) -> MapLikeness:
    """Compare two maps of the same network, shape (size,); masked parameters (not `live`) count in neither."""
    one, other = (np.where(live, values, 0.0).astype(np.float64) for values in (first, found))
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    scores = [mean_scores(values, units).units for values in (one, other)]
    return MapLikeness(
        cosine=float(one @ other) / norms if norms else 0.0,
        chance=_shuffled_product(one, other, units, live) / norms if norms else 0.0,
        rank=_rank_correlation(scores[0], scores[1], units),
        overlap=_overlap(scores[0], scores[1], units),
    )


def _shuffled_product(one: Values, other: Values, units: UnitMap, live: NDArray[np.bool_]) -> float:
    """Expected inner product after shuffling the live entries of each tensor: the sum of n mean(one) mean(other)."""
    counts = [(int(live[where].sum()), one[where].sum(), other[where].sum()) for _, where, _ in units.layout.slices()]
    return float(sum(a * b / n for n, a, b in counts if n))


def _rank_correlation(one: Values, other: Values, units: UnitMap) -> float:
    """Correlation of ranks within layers, each layer's centred and as a fraction of its size, all layers together."""
    from scipy.stats import rankdata  # half a second to import, and few runs explore again

    ranks = np.zeros((2, units.count))
    for layer, size in enumerate(units.layer_sizes):
        members = units.layer == layer
        for row, scores in zip(ranks, (one, other), strict=True):
            row[members] = (rankdata(scores[members]) - (size + 1) / 2) / size
    norms = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1]) / norms if norms else 0.0


def _overlap(one: Values, other: Values, units: UnitMap) -> float:
    shared = total = 0
    for layer, size in enumerate(units.layer_sizes):
        members = np.flatnonzero(units.layer == layer)
        count = max(1, round(BEST_SHARE * int(size)))
        best = [set(members[np.argsort(-scores[members], kind="stable")[:count]]) for scores in (one, other)]
        shared, total = shared + len(best[0] & best[1]), total + count
    return shared / total
