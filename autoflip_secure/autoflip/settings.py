"""What to prune, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from autoflip_secure.errors import ConfigError

__all__ = ["PruneSettings"]


@dataclass(frozen=True)
class PruneSettings:
    """Settings of the mask.

    Attributes
    ----------
    threshold : float
        Tp. `quantile`: fraction of the dense network's weights that die, within [0, 1). `absolute`: the score below
        which a weight dies, at least 0.
    threshold_kind : quantile or absolute
    flops_kept : float, optional
        Most measured FLOPs the compacted network may have, as a fraction of the dense network's, within (0, 1].
    params_kept : float, optional
        The same for its parameters.
    layer_floor : float
        Least fraction of each layer's dense units that lives (at least one), and least fraction of the remaining
        weights of each such unit and each output neuron (at least one), within [0, 1].
    hysteresis : float
        Half-width of the relative band around the threshold within which a weight keeps its state, within [0, 1).
    round_to : int
        For a budget units die in groups, so that a layer they die in keeps a multiple of so many channels or neurons: a
        processor's vectors hold 8 or 16 numbers, and half-empty ones take as long. Where a unit is several channels it
        is the least multiple of both. Layers of fewer than twice as many in the dense network are cut singly, and units
        that are starved of weights die beyond any multiple.
    """

    threshold: float = 0.3
    threshold_kind: Literal["quantile", "absolute"] = "quantile"
    flops_kept: float | None = None
    params_kept: float | None = None
    layer_floor: float = 0.1
    hysteresis: float = 0.1
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.threshold_kind not in ("quantile", "absolute"):
            raise ConfigError(f"threshold kind {self.threshold_kind!r} is unknown; use quantile or absolute")
        highest = 1.0 if self.threshold_kind == "quantile" else math.inf
        if not 0 <= self.threshold < highest:
            raise ConfigError(f"--prune-threshold: {self.threshold} is not within [0, {highest})")
        for option, kept in (("--prune-flops", self.flops_kept), ("params_kept", self.params_kept)):
            if kept is not None and not 0 < kept <= 1:
                raise ConfigError(f"{option}: the fraction kept must lie within (0, 1], got {kept}")
        if not 0 <= self.layer_floor <= 1:
            raise ConfigError(f"layer_floor: {self.layer_floor} is not within [0, 1]")
        if self.round_to < 1:
            raise ConfigError(f"--prune-round-to: {self.round_to} is not a positive number of channels")
        if not 0 <= self.hysteresis < 1:
            raise ConfigError(f"hysteresis: {self.hysteresis} is not within [0, 1)")
