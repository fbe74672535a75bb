"""Exploration: how far the silos' short trainings from the common start W_0 move each parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.pooling import min_max, pooled_mean
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.sums.channels import Aggregate

__all__ = ["deviation", "explored_guidance"]


def deviation(start: NDArray[np.floating], end: NDArray[np.floating]) -> NDArray[np.float64]:
    """A silo's contribution to the exploration: (W_k - W_0)^2 by parameter, shape (size,). Runs at the silo.

    Every silo must start from the same W_0, else the sum compares different things (autoflip.md, phase 1).
    """
    if start.shape != end.shape:
        raise EncodingError(f"a start of shape {start.shape} and an end of shape {end.shape} cannot be compared")
    return (end.astype(np.float64) - start.astype(np.float64)) ** 2


def explored_guidance(
    aggregates: Sequence[Aggregate], layout: ParameterLayout, live: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Initial guidance: the mean deviation over all silos of all cohorts, scaled to [0, 1] per tensor, shape (size,).

    Scaling per tensor makes layers comparable, whose deviations differ by orders of magnitude. Masked parameters (not
    `live`) were not explored and have guidance 0.
    """
    mean, _ = pooled_mean(aggregates, "deviation", layout.size)
    return min_max(mean, layout, live).astype(np.float32)
