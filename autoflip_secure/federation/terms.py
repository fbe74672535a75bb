"""What both sides compute from a manifest alone: noise of one silo, noise of the sum, public ranges of the channels."""

from __future__ import annotations

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import PolicyRefusal
from autoflip_secure.privacy.discrete_noise import discretisation_delta, per_silo_std
from autoflip_secure.privacy.plan import GRID_SHARE
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest

__all__ = [
    "COUNT_SENSITIVITY",
    "check_grid",
    "check_terms",
    "count_channel",
    "deviation_channel",
    "energy_channel",
    "honest_silos",
    "metric_channel",
    "noise_steps",
    "update_channel",
]

ROUNDING_SHARE = 1e-9
"""Part of delta, each round, for stochastic rounding exceeding its sensitivity bound: far below what the privacy plan
sets aside for the grid in any run of fewer than a hundred thousand rounds."""

GRADIENT_RANGE = 4.0
"""Public range of a coordinate of a silo's gradient sum, in clipping norms: far above what batches produce, and the
field of the sum has room for all silos at that range, so noise never wraps."""

COUNT_SENSITIVITY = 1.0
"""L2 distance by which one record moves a count or a vector of metric counts."""

COUNTED_CHANNELS = frozenset({"count", "metric"})
"""Channels of whole numbers: their grid holds them exactly, so they are not rounded at all."""

NOISED_BITS = 25
EXACT_BITS = 24
COUNT_BITS = 32
COUNT_STEPS = 2048
"""Grid steps of one counted record: fine enough that discrete noise is as good as continuous."""
LARGEST_COUNT_NOISE = 1e5
"""Grid steps; where noise is larger than this the grid can be coarser."""

DEVIATION_RANGE = 1.0
ENERGY_RANGE = 64.0


def update_channel(config: ResolvedConfig, live: int) -> ChannelSpec:
    """Channel of a round's update: a gradient sum (distributed) or a difference of parameters, shape (live,)."""
    limit = GRADIENT_RANGE * config.clip if config.trust == "distributed" else config.update_limit
    return ChannelSpec("update", live, config.bits, limit)


def deviation_channel(live: int) -> ChannelSpec:
    """Squared deviation from the common start. A fixed public range with a fine grid needs no earlier sum of ranges."""
    return ChannelSpec("deviation", live, EXACT_BITS, DEVIATION_RANGE)


def energy_channel(units: int) -> ChannelSpec:
    """Squared norm of each unit's update."""
    return ChannelSpec("unit_energy", units, EXACT_BITS, ENERGY_RANGE)


def _counting_channel(name: str, length: int, noise_multiplier: float) -> ChannelSpec:
    levels, steps = (1 << (COUNT_BITS - 1)) - 1, COUNT_STEPS
    while steps > 1 and noise_multiplier * steps > LARGEST_COUNT_NOISE:
        steps //= 2
    return ChannelSpec(name, length, COUNT_BITS, levels / steps)


def count_channel(noise_multiplier: float) -> ChannelSpec:
    """Number of training records of a silo, at least up to a million."""
    return _counting_channel("count", 1, noise_multiplier)


def metric_channel(length: int, noise_multiplier: float) -> ChannelSpec:
    """Counts of scored records, each at least up to a million."""
    return _counting_channel("metric", length, noise_multiplier)


def honest_silos(manifest: Manifest, cohort: int) -> int:
    """Fewest silos whose noise an adversary cannot subtract: survivors minus colluders, or one under local trust.

    Raises
    ------
    PolicyRefusal
        The manifest leaves no honest silo.
    """
    if manifest.privacy.trust == "local":
        return 1
    honest = manifest.minimum[cohort] - manifest.privacy.colluders
    if honest < 1:
        raise PolicyRefusal(
            f"cohort {cohort} may be opened with {manifest.minimum[cohort]} survivors of which "
            f"{manifest.privacy.colluders} may collude: nobody's noise is left"
        )
    return honest


def check_terms(manifest: Manifest) -> None:
    """Whether the ledger line this manifest leads to describes what a silo does when it answers.

    Raises
    ------
    PolicyRefusal
        Names the term that would undercount.
    """
    terms, phase = manifest.privacy, manifest.phase
    counting = phase in ("census", "evaluate")
    dataset = "holdout" if phase == "evaluate" else "train"
    if terms.dataset != dataset:
        raise PolicyRefusal(f"phase {phase} uses the {dataset} records, the manifest would charge {terms.dataset}")
    if counting and (terms.sampling_rate != 1.0 or terms.steps != 1):
        raise PolicyRefusal(f"phase {phase} uses every record once, the manifest would charge less")
    if counting and terms.trust != "none" and terms.clip < COUNT_SENSITIVITY:
        raise PolicyRefusal(
            f"one record changes a count by {COUNT_SENSITIVITY:g}, the manifest scales noise to {terms.clip}"
        )
    if terms.trust == "distributed" and terms.steps != 1:
        raise PolicyRefusal(f"distributed noise covers one gradient sum a round, the manifest asks for {terms.steps}")
    rounded = [channel for channel in manifest.channels if channel.name not in COUNTED_CHANNELS]
    if terms.trust != "none" and any(channel.bits > NOISED_BITS for channel in rounded):
        raise PolicyRefusal(f"noised channels have at most {NOISED_BITS} bits, for which rounding is accounted")
    if terms.steps < 1:
        raise PolicyRefusal("a round uses the records at least once")


def noise_steps(manifest: Manifest, channel: ChannelSpec, cohort: int) -> float | None:
    """Standard deviation, in grid steps, of the noise one silo adds to a coordinate; None where none is due.

    Local training is noised inside the silo, so only counts and metrics are noised here under local trust.
    """
    terms = manifest.privacy
    if terms.trust == "none" or (terms.trust == "local" and channel.name not in COUNTED_CHANNELS):
        return None
    return per_silo_std(
        terms.noise_multiplier,
        terms.clip / channel.step,
        channel.length,
        honest_silos(manifest, cohort),
        ROUNDING_SHARE * terms.delta,
    )


def check_grid(manifest: Manifest, releases: int, epsilon: float) -> float:
    """Part of delta that the grid costs over a session of `releases` sums like this manifest's; the largest channel's.

    Raises
    ------
    PolicyRefusal
        It is more than the share of delta that was kept for it: the grid is too coarse for the promise.
    """
    terms = manifest.privacy
    largest = 0.0
    for cohort in range(len(manifest.cohorts)):
        for channel in manifest.channels:
            std = noise_steps(manifest, channel, cohort)
            if std is not None:
                honest, failure = honest_silos(manifest, cohort), ROUNDING_SHARE * terms.delta
                gap = discretisation_delta(std, honest, channel.length, releases, epsilon, failure)
                largest = max(largest, gap)
    if largest > GRID_SHARE * terms.delta:
        raise PolicyRefusal(
            f"the grid of the noised sums costs {largest:.2g} of delta, above {GRID_SHARE:g} of {terms.delta:g}; "
            "use more --bits"
        )
    return largest
