"""A pruned start has the scale of the dense one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.start_scale import at_scale
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import ModelSpec, build


def test_every_unit_and_output_keeps_the_length_of_its_weights(
    spec: ModelSpec, some_dead: Callable[[UnitMap, int, float], NDArray[np.bool_]]
) -> None:
    units = UnitMap.of(spec)
    before = flatten_parameters(build(spec, torch.Generator().manual_seed(1))).numpy()
    dead = some_dead(units, 3, 0.4)
    compaction = compact(spec, dead)
    left = UnitMap.of(compaction.spec)
    mask = ~left.prunable | (np.random.default_rng(2).random(left.size) < 0.5)
    after = np.where(mask, before[compaction.kept], np.float32(0))
    found = at_scale(before, after, units, left, compaction.kept)
    assert (found[~mask] == 0).all()
    np.testing.assert_array_equal(found[~left.prunable], after[~left.prunable])

    def lengths(of: UnitMap, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return of.group_sum(np.where(of.prunable, weights.astype(np.float64) ** 2, 0.0))

    survivors = np.concatenate([compaction.kept_units, units.count + np.arange(spec.outputs)])
    fed = lengths(left, after) > 0
    assert fed.mean() > 0.5
    np.testing.assert_allclose(lengths(left, found)[fed], lengths(units, before)[survivors][fed], rtol=1e-5)


def test_nothing_removed_changes_nothing(tanh_spec: ModelSpec) -> None:
    units = UnitMap.of(tanh_spec)
    weights = flatten_parameters(build(tanh_spec, torch.Generator().manual_seed(1))).numpy()
    found = at_scale(weights, weights, units, units, np.arange(units.size))
    np.testing.assert_allclose(found, weights, rtol=1e-6)
