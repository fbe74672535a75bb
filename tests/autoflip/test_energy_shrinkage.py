"""Shrunk energies: exact without noise, level in pure noise, closer to the truth in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.autoflip.scores import EnergyAccumulator, product_scores
from autoflip_secure.autoflip.shrinkage import shrunk_energy
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.sums.channels import Aggregate

LAYER = np.repeat([0, 1, 3], [12, 20, 1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 4))
def test_against_a_loop(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    energy, variance = generator.normal(0.5, 2.0, LAYER.size), scale * generator.random(LAYER.size)
    shrunk = shrunk_energy(energy, variance, LAYER)
    for index in range(LAYER.size):
        mine = [i for i in range(LAYER.size) if LAYER[i] == LAYER[index]]
        k, mean = len(mine), sum(energy[i] for i in mine) / len(mine)
        noise = sum(variance[i] for i in mine) / k
        spread = sum((energy[i] - mean) ** 2 for i in mine) / (k - 1) if k > 1 else 0.0
        real = max(0.0, 1 - noise / spread) if k > 1 else 0.0
        if noise == 0:
            assert shrunk[index] == max(energy[index], 0.0)
            continue
        centre = max(mean, (noise / k) ** 0.5)
        assert np.isclose(shrunk[index], max(centre + real * (energy[index] - mean), (real * noise) ** 0.5))
        assert shrunk[index] > 0


def test_in_pure_noise_no_unit_is_condemned() -> None:
    generator = np.random.default_rng(0)
    layer = np.zeros(32, np.int64)
    energy = generator.normal(0, 1.0, (400, 32))
    assert 0.4 < (np.maximum(energy, 0) == 0).mean() < 0.6
    shrunk = np.array([shrunk_energy(row, np.ones(32), layer) for row in energy])
    assert shrunk.min() > 0
    ratio = shrunk.max(axis=1) / shrunk.min(axis=1)
    assert np.median(ratio) < 1.5, "most layers of pure noise read as level"


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_shrunk_energies_are_nearer_to_the_truth_than_clipped_ones(noise: float) -> None:
    generator = np.random.default_rng(1)
    layer, errors = np.zeros(32, np.int64), []
    for _ in range(300):
        truth = generator.gamma(2.0, 0.5, 32)
        seen = truth + generator.normal(0, noise, 32)
        shrunk = shrunk_energy(seen, np.full(32, noise**2), layer)
        errors.append([((shrunk - truth) ** 2).mean(), ((np.maximum(seen, 0) - truth) ** 2).mean()])
    ours, clipped = np.mean(errors, axis=0)
    assert ours < (0.95 if noise < 1 else 0.7) * clipped


def test_the_accumulated_variance_is_that_of_the_accumulated_energy() -> None:
    units = UnitMap.of(ModelSpec("mlp", (5,), 2, (6, 4)))
    generator = np.random.default_rng(2)
    signal = units.spread(np.linspace(0, 3, units.count), outputs=1.0)
    live = generator.random(units.size) < 0.8
    signal[~live] = 0
    energies, variances = [], []
    for _ in range(3000):
        accumulator = EnergyAccumulator.empty(units.size)
        for index in range(2):
            sums = [np.where(live, 2 * signal + generator.normal(0, 2.0, units.size), 0.0) for _ in range(2)]
            cohorts = [Aggregate(index, c, 4, {"update": s}, {"update": 2.0}) for c, s in enumerate(sums)]
            accumulator = accumulator.add(cohorts, live)
        energies.append(units.group_sum(accumulator.energy))
        variances.append(units.group_sum(accumulator.variance))
    assert not accumulator.variance[~live].any()
    np.testing.assert_allclose(np.var(energies, axis=0), np.mean(variances, axis=0), rtol=0.15)


def test_under_much_noise_the_product_ranks_by_size() -> None:
    """Energies that are noise alone must not decide: the units of a layer are ranked by their weights."""
    units = UnitMap.of(ModelSpec("mlp", (100,), 2, (20, 8)))
    generator = np.random.default_rng(3)
    weights = generator.normal(size=units.size) * units.spread(np.linspace(1, 2, units.count), outputs=1.0)
    accumulator = EnergyAccumulator.empty(units.size)
    for index in range(10):
        noise = generator.normal(0, 10.0, units.size)
        accumulator = accumulator.add([Aggregate(index, 0, 5, {"update": noise}, {"update": 10.0})])
    scores = product_scores(weights, accumulator, units).units
    norms = np.sqrt(units.unit_sum(np.where(units.prunable, weights**2, 0.0)))
    for layer in range(2):
        of = units.layer == layer
        assert np.corrcoef(scores[of], norms[of])[0, 1] > 0.9


def test_output_neurons_do_not_pull_units() -> None:
    units = UnitMap.of(ModelSpec("mlp", (30,), 3, (12, 8)))
    generator = np.random.default_rng(4)
    energy, weights = generator.normal(1, 1, units.size), generator.normal(size=units.size)
    outputs = units.owner >= units.count
    scores = [
        product_scores(weights, EnergyAccumulator(np.where(outputs, e, energy), np.ones(units.size)), units)
        for e in (energy, 100.0)
    ]
    np.testing.assert_array_equal(scores[0].units, scores[1].units)
    assert scores[1].parameters[outputs].max() > scores[0].parameters[outputs].max()
