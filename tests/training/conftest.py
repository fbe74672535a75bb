"""Small networks and separable records."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

MakeNetwork = Callable[[], nn.Module]


@pytest.fixture
def make_network() -> MakeNetwork:
    """Fresh, equal networks of 6 features and 3 classes."""

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    return make


@pytest.fixture
def clusters() -> tuple[Tensor, Tensor]:
    """150 records of three separable classes: x of shape (150, 6), y of shape (150,)."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(150) % 3
    centres = 2 * torch.randn(3, 6, generator=generator)
    return centres[y] + 0.5 * torch.randn(150, 6, generator=generator), y
