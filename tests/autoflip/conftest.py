"""Shared pieces: small and real specs, aggregates from plain updates, random dead units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.models.spec import ModelSpec, dense_spec
from autoflip_secure.sums.channels import Aggregate

SPECS = {
    "cnn-tanh": dense_spec("cnn-tanh", (1, 28, 28), 10),
    "cnn-tanh-small": ModelSpec("cnn-tanh", (2, 8, 9), 3, (5, 6, 7)),
    "cnn6": ModelSpec("cnn6", (3, 12, 8), 4, (8, 16, 12, 24, 9)),
    "femnist-cnn": ModelSpec("femnist-cnn", (1, 9, 8), 3, (4, 6, 11)),
    "resnet-small": ModelSpec("resnet-small", (3, 9, 8), 3, (12, 8, 16, 20, 24, 8)),
    "char-lstm": ModelSpec("char-lstm", (5,), 6, (7, 9)),
    "scatter": ModelSpec("scatter", (1, 9, 8), 3, (10,)),
    "mlp": dense_spec("mlp", (13,), 2),
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return SPECS[request.param]


@pytest.fixture
def specs() -> dict[str, ModelSpec]:
    return SPECS


@pytest.fixture
def tanh_spec() -> ModelSpec:
    return SPECS["cnn-tanh"]


@pytest.fixture
def mlp_units() -> UnitMap:
    return UnitMap.of(SPECS["mlp"])


@pytest.fixture
def make_aggregate() -> Callable[..., Aggregate]:
    """Aggregate of the silos' rows: sums of update, deviation and, with a unit map, unit_energy."""

    def make(
        updates: NDArray[np.float64] | Sequence[NDArray[np.float64]],
        units: UnitMap | None = None,
        noise_std: float = 0.0,
        cohort: int = 0,
    ) -> Aggregate:
        rows = np.asarray(updates)
        channels = {"update": rows.sum(axis=0), "deviation": (rows**2).sum(axis=0)}
        if units is not None:
            channels["unit_energy"] = np.sum([units.unit_sum(row**2) for row in rows], axis=0)
        noise = {"update": noise_std} if noise_std else {}
        return Aggregate(0, cohort, len(rows), channels, noise, minimum=1)

    return make


@pytest.fixture
def some_dead() -> Callable[[UnitMap, int, float], NDArray[np.bool_]]:
    """Random dead units that leave every layer at least one."""

    def draw(units: UnitMap, seed: int, share: float) -> NDArray[np.bool_]:
        generator = np.random.default_rng(seed)
        dead = generator.random(units.count) < share
        for layer in range(len(units.spec.widths)):
            dead[generator.choice(np.flatnonzero(units.layer == layer))] = False
        return dead

    return draw
