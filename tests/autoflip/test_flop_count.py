"""Measured FLOPs against hand counts, and the per-parameter shares against measured compacted networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.flops import flops, parameter_flops, parameters
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.models.spec import ModelSpec, dense_spec


def test_tanh_network_on_mnist_by_hand() -> None:
    """conv1 14x14 positions of 16 filters of 64 weights, conv2 5x5 of 32 of 256, then two matrix products."""
    multiply_adds = 14 * 14 * 16 * 64 + 5 * 5 * 32 * 16 * 16 + 512 * 32 + 32 * 10
    assert multiply_adds == 422_208
    spec = dense_spec("cnn-tanh", (1, 28, 28), 10)
    assert flops(spec) == 2 * multiply_adds
    assert parameters(spec) == 26_010


def test_other_networks_by_hand() -> None:
    assert flops(dense_spec("mlp", (13,), 2)) == 2 * (13 * 64 + 64 * 32 + 32 * 2)
    convolutions = 32 * 32 * 9 * (3 * 32 + 32 * 32) + 16 * 16 * 9 * (32 * 64 + 64 * 64)
    assert flops(dense_spec("cnn6", (3, 32, 32), 10)) == 2 * (convolutions + 1024 * 128 + 128 * 10)


def test_recurrent_and_residual_networks_by_hand() -> None:
    step = 4 * 256 * (8 + 256) + 4 * 256 * (256 + 256)
    assert flops(dense_spec("char-lstm", (6,), 80)) == 2 * (6 * step + 256 * 80)
    stages = 32 * 32 * 9 * 16 * (3 + 16 + 16) + 16 * 16 * (9 * 32 * (16 + 32) + 16 * 32) + 64 * (9 * 64 * 96 + 32 * 64)
    assert flops(dense_spec("resnet-small", (3, 32, 32), 10)) == 2 * (stages + 4 * 64 * 10)


@pytest.mark.parametrize("seed", range(4))
def test_shares_of_the_kept_add_up_to_the_compacted_cost(
    spec: ModelSpec, seed: int, some_dead: Callable[[UnitMap, int, float], NDArray[np.bool_]]
) -> None:
    compaction = compact(spec, some_dead(UnitMap.of(spec), seed, 0.2 * (seed + 1)))
    assert parameter_flops(spec)[compaction.kept].sum() == flops(compaction.spec)
    assert parameters(compaction.spec) == compaction.kept.size
