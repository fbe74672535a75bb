"""Channels, contributions and aggregates: the only shapes in which numbers derived from a silo exist.

A silo builds one `Contribution` a round. The coordinator only ever holds `Aggregate`s, each the sum over one cohort.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import EncodingError

if TYPE_CHECKING:
    from autoflip_secure.sums.words import FloatChannel

__all__ = ["CHANNEL_NAMES", "TAG_CHANNEL", "Aggregate", "ChannelSpec", "Contribution"]

CHANNEL_NAMES = frozenset({"update", "gradient", "mask", "deviation", "unit_energy", "count", "metric", "clip_bits"})
TAG_CHANNEL = "tag"
"""What proves a sum (see `sum_tag`). It says nothing of records, so it is not among the channels that carry numbers."""

MAX_BITS = 32


@dataclass(frozen=True)
class ChannelSpec:
    """One named vector of a contribution and the public grid it is rounded to.

    Attributes
    ----------
    name : str
        One of `CHANNEL_NAMES`, or `TAG_CHANNEL`.
    length : int
        Number of coordinates.
    bits : int
        Bits a silo's value takes; the grid has 2^bits - 1 points, symmetric around zero.
    limit : float
        Public range: values are clipped to [-limit, limit].
    """

    name: str
    length: int
    bits: int
    limit: float

    def __post_init__(self) -> None:
        if self.name not in CHANNEL_NAMES and self.name != TAG_CHANNEL:
            raise EncodingError(f"unknown channel {self.name!r}; channels are {', '.join(sorted(CHANNEL_NAMES))}")
        if type(self.length) is not int or type(self.bits) is not int or isinstance(self.limit, bool):
            raise EncodingError(f"channel {self.name}: length and bits are whole numbers, limit a number")
        if self.length < 1:
            raise EncodingError(f"channel {self.name}: length {self.length} is not positive")
        if not 2 <= self.bits <= MAX_BITS:
            raise EncodingError(f"channel {self.name}: bits {self.bits} is not within 2..{MAX_BITS}")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise EncodingError(f"channel {self.name}: limit {self.limit} is not a positive finite number")

    @property
    def levels(self) -> int:
        """Largest integer a clipped value is rounded to, 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def step(self) -> float:
        """Width of the grid, in the channel's own unit."""
        return self.limit / self.levels


@dataclass(frozen=True, repr=False)
class Contribution:
    """What one silo adds to one sum, by channel. Never leaves the silo unprotected.

    `values[name]` is int64 of shape (length,), which with distributed noise already carries it, or a channel of real
    numbers that is rounded when its words are asked for.
    """

    values: Mapping[str, NDArray[np.int64] | FloatChannel]
    removable: bytes | None = None
    """Root of the chain that the removable part of the noise was drawn from (see `noise_chain`)."""

    def __repr__(self) -> str:
        return f"Contribution({sorted(self.values)})"


@dataclass(frozen=True)
class Aggregate:
    """The sum over one cohort: the only carrier of silo-derived numbers on the coordinator's side.

    Attributes
    ----------
    round : int
        Round the sum belongs to.
    cohort : int
        Index of the cohort within the round.
    silos : int
        How many silos were summed; at least `minimum`.
    channels : mapping of str to float64 array
        Decoded sums by channel, shape (length,) each.
    noise_std : mapping of str to float
        Standard deviation a coordinate of the channel carries from privacy noise inside the sum (0 where the silos'
        own trajectories were noised instead, or no DP is used). Public: it follows from the manifest and from which
        silos had their excess noise removed.
    noise_over_least : float or None
        Variance of that noise over the least that keeps the promise with so many survivors, the channel where it is
        largest; None where silos add no noise to be summed.
    minimum : int
        Fewest silos this carrier accepts; 3 except for the plain baseline, which says so in its report.
    outside : bool
        Whether it lies outside what honest silos can add up to (see `autoflip.sum_bounds`): nothing is learnt from it.
    """

    round: int
    cohort: int
    silos: int
    channels: Mapping[str, NDArray[np.float64]]
    noise_std: Mapping[str, float] = field(default_factory=dict)
    noise_over_least: float | None = None
    minimum: int = 3
    outside: bool = False

    def __post_init__(self) -> None:
        if self.silos < self.minimum:
            raise EncodingError(
                f"an aggregate of {self.silos} silos would show too much of one; the least is {self.minimum}"
            )

    def sum(self, channel: str) -> NDArray[np.float64]:
        """Sum over the cohort, shape (length,)."""
        return self.channels[channel]

    def mean(self, channel: str) -> NDArray[np.float64]:
        """Mean over the cohort, shape (length,)."""
        return self.channels[channel] / self.silos

    def mean_noise_std(self, channel: str) -> float:
        """Standard deviation of the privacy noise on a coordinate of `mean(channel)`."""
        return float(self.noise_std.get(channel, 0.0)) / self.silos
