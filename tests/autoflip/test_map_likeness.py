"""How like two maps are, against shuffling, scipy and sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from autoflip_secure.autoflip.likeness import compare_maps
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.models.spec import ModelSpec

UNITS = UnitMap.of(ModelSpec("mlp", (5,), 2, (12, 8)))
LIVE = np.ones(UNITS.size, np.bool_)


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(UNITS.size) ** 3


def test_a_map_is_like_itself_and_scaling_changes_nothing() -> None:
    for scale in (1.0, 0.2):
        likeness = compare_maps(draw(0), scale * draw(0), UNITS, LIVE)
        assert likeness.cosine == pytest.approx(1)
        assert likeness.rank == pytest.approx(1)
        assert likeness.overlap == 1


def test_chance_is_what_shuffling_the_entries_of_each_tensor_gives() -> None:
    first, found = draw(0), draw(1)
    live = np.random.default_rng(2).random(UNITS.size) < 0.7
    generator = np.random.default_rng(3)
    shuffled = []
    for _ in range(2000):
        other = found.copy()
        for _, where, _ in UNITS.layout.slices():
            part, lives = other[where], live[where]
            part[lives] = generator.permutation(part[lives])
        shuffled.append(compare_maps(first, other, UNITS, live).cosine)
    assert compare_maps(first, found, UNITS, live).chance == pytest.approx(np.mean(shuffled), abs=4e-3)
    assert np.mean(shuffled) > 0.2, "far above nothing: maps are not negative"


def test_masked_parameters_count_in_neither() -> None:
    live = np.random.default_rng(2).random(UNITS.size) < 0.7
    first, found = draw(0), draw(1)
    changed = np.where(live, first, 9.0)
    assert compare_maps(changed, found, UNITS, live) == compare_maps(first, found, UNITS, live)


def test_rank_is_spearman_s_within_layers() -> None:
    """Layers apart: what one layer has over another says nothing about which of its units to keep."""
    first, found = draw(0), draw(1)
    scores = [
        np.array([values[i[UNITS.prunable[i]]].mean() for i in UNITS.incoming]) for values in (first, found)
    ]  # fmt: skip
    by_layer = [spearmanr(scores[0][UNITS.layer == k], scores[1][UNITS.layer == k]).statistic for k in (0, 1)]
    # Ranks over n spread by (n^2 - 1) / 12 n^2 a unit: that is a layer's weight.
    spread = [n * (n**2 - 1) / n**2 for n in (12, 8)]
    likeness = compare_maps(first, found, UNITS, LIVE)
    assert likeness.rank == pytest.approx(np.average(by_layer, weights=spread))
    first_layer = UNITS.spread(UNITS.layer == 0, outputs=0.0) > 0
    lifted = np.where(first_layer, found + 100.0, found)
    assert compare_maps(np.where(first_layer, first + 100.0, first), lifted, UNITS, LIVE).rank == pytest.approx(
        likeness.rank
    )


def test_overlap_counts_the_best_quarter_of_each_layer() -> None:
    def ranked(order: list[int]) -> np.ndarray:
        return UNITS.spread(np.array(order, float), outputs=0.0)

    first = ranked([*range(12), *range(8)])  # best quarter: 9, 10, 11 and 6, 7
    other = ranked([*range(9), 0, 10, 11, 0, 1, 2, 3, 4, 9, 8, 7])  # best: 8, 10, 11 and 5, 6
    assert compare_maps(first, other, UNITS, LIVE).overlap == pytest.approx(3 / 5)


def test_a_map_of_zeros_is_like_nothing() -> None:
    likeness = compare_maps(np.zeros(UNITS.size), draw(0), UNITS, LIVE)
    assert (likeness.cosine, likeness.chance, likeness.rank) == (0, 0, 0)
