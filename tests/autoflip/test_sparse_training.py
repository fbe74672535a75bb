"""FedDST's rule on small networks, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.autoflip.sparse_training import cosine_fraction, erk_counts, random_mask, readjusted_mask
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.seeds import stream

UNITS = UnitMap.of(ModelSpec("mlp", (5,), 2, (6, 4)))
TINY = UnitMap.of(ModelSpec("mlp", (2,), 2, (2, 2)))
"""Three weight tensors of 2 x 2, at 0, 6 and 12, each followed by two biases."""


@pytest.mark.parametrize(
    ("density", "counts"),
    [
        # 30, 24 and 8 weights; in + out is 11, 10 and 6. 31 weights: 31 / 27 = 1.148 times that: 12.6, 11.5, 6.9.
        (0.5, [13, 11, 7]),
        # 49.6 weights: the last tensor would need 11 of 8 and is full; 41.6 / 21 = 1.98 times 11 and 10 are left.
        (0.8, [22, 20, 8]),
        (1.0, [30, 24, 8]),
        (1e-6, [1, 1, 1]),
    ],
)
def test_layers_share_the_density_by_their_sides(density: float, counts: list[int]) -> None:
    found = erk_counts(UNITS, density)
    assert [count for _, count in found] == counts
    assert [where.stop - where.start for where, _ in found] == [30, 24, 8]
    assert all(UNITS.prunable[where].all() for where, _ in found)


def test_kernels_count_with_their_sides() -> None:
    units = UnitMap.of(ModelSpec("cnn-tanh", (1, 28, 28), 10, (16, 32, 32)))
    shapes = [shape for _, where, shape in units.layout.slices() if units.prunable[where].all()]
    counts = [count for _, count in erk_counts(units, 0.05)]
    raw = np.array([sum(shape) for shape in shapes], float)
    np.testing.assert_allclose(counts / raw, (counts / raw)[0], rtol=0.05)


@given(density=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_a_random_start_has_each_layers_count_and_all_biases(density: float, seed: int) -> None:
    mask = random_mask(UNITS, density, stream(seed, "start"))
    assert mask[~UNITS.prunable].all()
    assert [int(mask[where].sum()) for where, _ in erk_counts(UNITS, density)] == [
        count for _, count in erk_counts(UNITS, density)
    ]


def test_random_starts_follow_the_seed() -> None:
    first, again, other = (random_mask(UNITS, 0.5, stream(seed, "start")) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_fraction_follows_a_cosine_to_zero() -> None:
    assert cosine_fraction(0, 20) == 0.5
    assert cosine_fraction(10, 20) == pytest.approx(0.25)
    assert cosine_fraction(5, 20) == pytest.approx(0.25 * (1 + 0.5**0.5))
    assert cosine_fraction(20, 20) == cosine_fraction(30, 20) == 0.0


def test_the_smallest_die_and_the_steepest_masked_ones_grow() -> None:
    mask = np.ones(TINY.size, np.bool_)
    weights, gradient = np.zeros(TINY.size), np.zeros(TINY.size)
    # Half of the budget of two stays. A live weight's gradient, however large, counts for nothing.
    mask[0:4] = [True, True, False, False]
    weights[0:4], gradient[0:4] = [0.3, -0.9, 0, 0], [9, 9, 0.1, -0.2]
    # Nothing is masked: nothing can grow, so that two of four stay.
    weights[6:10] = [1, -4, 2, 0.5]
    # One lives and stays; one of two equally steep ones grows, the first.
    mask[12:16] = [False, False, False, True]
    weights[12:16], gradient[12:16] = [0, 0, 0, 0.1], [0.5, -0.7, 0.7, 0]
    fresh = readjusted_mask(TINY, mask, weights, gradient, 0.5, 0.5)
    assert fresh[0:4].tolist() == [False, True, False, True]
    assert fresh[6:10].tolist() == [False, True, True, False]
    assert fresh[12:16].tolist() == [False, True, False, True]
    assert fresh[~TINY.prunable].all()


def test_without_a_fraction_the_mask_stays() -> None:
    draw = stream(0, "still")
    mask = random_mask(UNITS, 0.5, draw)
    weights = np.where(mask, draw.normal(size=UNITS.size), 0)
    assert np.array_equal(readjusted_mask(UNITS, mask, weights, draw.normal(size=UNITS.size), 0.5, 0.0), mask)


@given(seed=st.integers(0, 1000), fraction=st.floats(0, 1), before=st.floats(0.1, 1), density=st.floats(0.1, 0.9))
def test_every_layer_meets_its_budget(seed: int, fraction: float, before: float, density: float) -> None:
    draw = stream(seed, "budget")
    mask = draw.random(UNITS.size) < before
    mask[~UNITS.prunable] = True
    weights, gradient = draw.normal(size=(2, UNITS.size))
    fresh = readjusted_mask(UNITS, mask, np.where(mask, weights, 0), gradient, density, fraction)
    for where, count in erk_counts(UNITS, density):
        assert fresh[where].sum() == count


def test_what_does_not_fit_or_diverged_is_refused() -> None:
    mask, zeros = np.ones(UNITS.size, np.bool_), np.zeros(UNITS.size)
    with pytest.raises(EncodingError, match="does not fit"):
        readjusted_mask(UNITS, mask, zeros[1:], zeros, 0.5, 0.5)
    with pytest.raises(EncodingError, match="not finite"):
        readjusted_mask(UNITS, mask, zeros, zeros + np.nan, 0.5, 0.5)
