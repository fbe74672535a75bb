"""A clip that follows a quantile of the patients' gradient norms (Andrew et al. 2021, arXiv 1905.03871).

Each sampled patient adds to the sum of clip bits whether the gradient's norm is within the round's clip. The noised sum
tells the coordinator which share is, and the clip moves towards the quantile asked for. What that costs is in the
round's ledger line: update and bits are one release (see `terms`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoflip_secure.federation.terms import clip_bits_channel
from autoflip_secure.sums.channels import Aggregate, ChannelSpec

__all__ = ["AdaptiveClip"]

RATE = 0.2
"""Step of log clip for a share that is off by 1, as the paper advises."""

RANGE = 100.0
"""The clip stays within this factor of the configured one, so that noise alone never carries it away."""


@dataclass
class AdaptiveClip:
    """The clip of the round to come.

    Attributes
    ----------
    first : float
        The configured clip.
    quantile : float or None
        Share of the patients whose gradient is to be within the clip; None: the clip stays as it is.
    value : float
        The clip now. It follows from noised sums alone, so it is public and costs nothing more.
    """

    first: float
    quantile: float | None
    value: float

    def channels(self, expected_batch: float, noise_multiplier: float) -> list[ChannelSpec]:
        """What a round carries beside its update.

        Parameters
        ----------
        expected_batch : float
            Patients expected in the smallest cohort's sum.
        noise_multiplier : float
            Of the round.
        """
        return [] if self.quantile is None else [clip_bits_channel(expected_batch, noise_multiplier)]

    def follow(self, aggregates: Sequence[Aggregate], expected_batch: float) -> None:
        """Move by one round's sums: clip <- clip exp(-RATE (share within the clip - quantile)).

        Parameters
        ----------
        expected_batch : float
            Patients expected in the sums, which is public; the number that took part is not.
        """
        if self.quantile is None:
            return
        bits = sum(float(aggregate.sum("clip_bits")[0]) for aggregate in aggregates)
        share = min(max(bits / expected_batch + 0.5, 0.0), 1.0)
        moved = self.value * math.exp(-RATE * (share - self.quantile))
        self.value = min(max(moved, self.first / RANGE), self.first * RANGE)

    def in_first_units(self, aggregate: Aggregate) -> Aggregate:
        """The same update, with its noise, as if the clip had stayed the first: update * first / value.

        The model steps by it and pruning pools it over rounds, so every round weighs by what its clipped gradients
        agree on and carries the same noise. The paper lets the step grow with the clip instead. Measured on the
        embedded data that runs away at the rates in use: more noise in the weights makes gradients longer, which raises
        the clip and with it the noise.
        """
        factor = self.first / self.value
        if factor == 1.0:
            return aggregate
        return replace(
            aggregate,
            channels={**aggregate.channels, "update": aggregate.sum("update") * factor},
            noise_std={**aggregate.noise_std, "update": aggregate.noise_std.get("update", 0.0) * factor},
        )
