"""Pooling the sums of a round's cohorts, and scaling a vector tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import EncodingError
from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.sums.channels import Aggregate

__all__ = ["channel_sum", "debiased_energy", "min_max", "pooled_mean"]

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

UNRANKED = 0.5


def channel_sum(aggregate: Aggregate, channel: str, length: int) -> Values:
    """One channel of one aggregate, checked.

    Raises
    ------
    EncodingError
        The channel is absent, has another length, or holds a value that is not finite.
    """
    if channel not in aggregate.channels:
        raise EncodingError(
            f"the sum of round {aggregate.round} has no channel {channel}; the guidance is left as it was"
        )
    values = aggregate.sum(channel)
    if values.shape != (length,):
        raise EncodingError(
            f"channel {channel} has shape {values.shape} instead of ({length},); "
            "scatter live coordinates to the full layout first"
        )
    if not np.isfinite(values).all():
        raise EncodingError(f"channel {channel}: a value is not finite; training diverged, lower the learning rate")
    return values


def pooled_mean(aggregates: Sequence[Aggregate], channel: str, length: int) -> tuple[Values, float]:
    """Mean over all silos of all cohorts, and the privacy-noise variance a coordinate of it carries.

    mean = sum_c S_c / sum_c m_c; variance = sum_c Var(S_c) / (sum_c m_c)^2, the cohorts' noise being independent.
    """
    if not aggregates:
        raise EncodingError("no sum was given; a round without a sum leaves guidance and scores as they were")
    silos = sum(aggregate.silos for aggregate in aggregates)
    total = np.sum([channel_sum(aggregate, channel, length) for aggregate in aggregates], axis=0)
    variance = sum((aggregate.mean_noise_std(channel) * aggregate.silos) ** 2 for aggregate in aggregates)
    return total / silos, variance / silos**2


def debiased_energy(aggregates: Sequence[Aggregate], length: int, live: Flags | None) -> Values:
    """Squared mean update minus the variance noise adds to it, shape (length,); unbiased, so it may be negative.

    Masked coordinates (not `live`) are not sent, carry no noise and have energy 0.
    """
    mean, variance = pooled_mean(aggregates, "update", length)
    energy = mean**2 - variance
    return energy if live is None else np.where(live, energy, 0.0)


def min_max(vector: NDArray[np.floating], layout: ParameterLayout, live: Flags | None = None) -> Values:
    """Scale each tensor's live coordinates to [0, 1], shape (layout.size,).

    A tensor without spread gets 0.5 throughout: it ranks nothing within itself, and either end of the range would
    condemn or spare the whole tensor on no evidence. Masked coordinates get 0.
    """
    scaled = np.zeros(layout.size)
    for _, where, _ in layout.slices():
        values = vector[where].astype(np.float64)
        chosen = np.ones(values.size, np.bool_) if live is None else live[where]
        if not chosen.any():
            continue
        low, high = values[chosen].min(), values[chosen].max()
        part = (values - low) / (high - low) if high > low else np.full(values.size, UNRANKED)
        scaled[where] = np.where(chosen, part, 0.0)
    return scaled
