"""What both sides compute from a manifest alone: noise of one silo, noise of the sum, public ranges of the channels."""

from __future__ import annotations

import math
from dataclasses import replace

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.policy_rules import Rule, refusal
from autoflip_secure.privacy.discrete_noise import MAX_STD, discretisation_delta, per_silo_std
from autoflip_secure.privacy.plan import GRID_SHARE
from autoflip_secure.privacy.removable_noise import NoiseLevels
from autoflip_secure.sums.channels import TAG_CHANNEL, ChannelSpec
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.training.metric_form import METRIC_SENSITIVITY

__all__ = [
    "COUNT_SENSITIVITY",
    "METRIC_SENSITIVITY",
    "UNNOISED_CHANNELS",
    "check_grid",
    "check_terms",
    "clip_bits_channel",
    "count_channel",
    "deviation_channel",
    "energy_channel",
    "gradient_channel",
    "honest_silos",
    "mask_channel",
    "metric_channel",
    "noise_levels",
    "noise_steps",
    "on_fine_grid",
    "update_channel",
]

ROUNDING_SHARE = 1e-9
"""Part of delta, each round, for stochastic rounding exceeding its sensitivity bound: far below what the privacy plan
sets aside for the grid in any run of fewer than a hundred thousand rounds."""

GRADIENT_RANGE = 4.0
"""Public range of a coordinate of a silo's gradient sum, in clipping norms, for small batches. A sum beyond it
saturates, which biases and never exposes."""

NOISE_DEVIATIONS = 8.0
"""Standard deviations of the sum's noise for which the range of all silos together has room at least: the field of the
sum is as wide as that range, so that noise does not wrap round in it."""

BATCH_SHARE = 0.25
"""Range over the records expected of a silo, in clipping norms, for larger batches: in the first rounds on skewed silos
single coordinates (biases of the outputs) reach a fifth of the batch."""

LEAST_FINENESS = 5.0
"""Grid steps a clipping norm keeps, over the root of the coordinates: rounding then adds a percent or so to the noise
(see `rounded_sensitivity`), however large the batch."""

MOST_NARROWING, LEAST_NARROWING = 0.5, 0.99
"""Bounds on the factor by which a range is narrowed at a time."""

COUNT_SENSITIVITY = 1.0
"""Distance by which one patient moves a count."""

UNNOISED_CHANNELS = frozenset({"gradient", "mask"})
"""Channels that are computed from the records beside what noise is planned for."""

COUNTED_CHANNELS = frozenset({"count", "metric"})
"""Channels of whole grid steps: their grid holds them exactly, so they are not rounded at all."""

CLIP_BIT = 0.5
"""What one patient adds to the clip bits, up to its sign: whether the gradient's norm is within the clip, minus 1/2."""

CLIP_BIT_NOISE = 0.05
"""Standard deviation of the noise on the sum of clip bits over the channel's limit, which is public: the batch expected
in the round, as Andrew et al. 2021 (arXiv 1905.03871) advise, or more where batches are small."""

LEAST_RATIO = 2.0
"""Noise multiplier of the clip bits over the round's, at least: the update's is then at most 16 % above the round's."""

CLIP_BIT_BITS = 22
"""As fine as the sampler of the noise allows."""

NOISED_BITS = 25
EXACT_BITS = 24
COUNT_BITS = 32
MASK_BITS = 2
"""The grid is -1, 0, 1."""
COUNT_STEPS = 2048
"""Grid steps of one counted patient: fine enough that discrete noise is as good as continuous."""
LARGEST_COUNT_NOISE = 1e5
"""Grid steps; where noise is larger than this the grid can be coarser."""

DEVIATION_RANGE = 1.0
ENERGY_RANGE = 64.0
MASKED_GRADIENT_RANGE = 1.0
"""Public range of a coordinate of a silo's mean gradient; the few beyond it saturate and stay among the largest."""


def update_channel(
    config: ResolvedConfig, live: int, clip: float | None = None, expected_batch: float = 0.0, noise: float = 0.0
) -> ChannelSpec:
    """Channel of a round's update: a gradient sum (distributed) or a difference of parameters, shape (live,).

    The range of a gradient sum goes with the round's `clip` (by default the configured one), so its noise is the same
    number of grid steps in every round, with the public number of records expected of one silo, and with the `noise`
    of the sum: its standard deviation a silo, in clipping norms.
    """
    if config.trust != "distributed":
        return ChannelSpec("update", live, config.bits, config.update_limit)
    finest = ChannelSpec("update", live, config.bits, 1.0).levels / (LEAST_FINENESS * math.sqrt(live))
    clips = max(GRADIENT_RANGE, min(BATCH_SHARE * expected_batch, finest), NOISE_DEVIATIONS * noise)
    return ChannelSpec("update", live, config.bits, clips * (clip or config.clip))


def clip_bits_channel(expected_batch: float, noise_multiplier: float) -> ChannelSpec:
    """Sum of the clip bits of a round whose multiplier is given, shape (1,)."""
    least = LEAST_RATIO * noise_multiplier * CLIP_BIT / CLIP_BIT_NOISE
    return ChannelSpec("clip_bits", 1, CLIP_BIT_BITS, max(expected_batch, least))


def deviation_channel(live: int) -> ChannelSpec:
    """Squared deviation from the common start. A fixed public range with a fine grid needs no earlier sum of ranges."""
    return ChannelSpec("deviation", live, EXACT_BITS, DEVIATION_RANGE)


def gradient_channel(config: ResolvedConfig, masked: int) -> ChannelSpec:
    """Mean gradient of the masked weights, from which a readjustment chooses those that grow, shape (masked,)."""
    return ChannelSpec("gradient", masked, config.bits, MASKED_GRADIENT_RANGE)


def mask_channel(weights: int) -> ChannelSpec:
    """Which weights a silo keeps, 1 or 0, exactly, shape (weights,): the sum counts the silos that keep each."""
    return ChannelSpec("mask", weights, MASK_BITS, 1.0)


def energy_channel(units: int) -> ChannelSpec:
    """Squared norm of each unit's update."""
    return ChannelSpec("unit_energy", units, EXACT_BITS, ENERGY_RANGE)


def _counting_channel(name: str, length: int, noise_multiplier: float) -> ChannelSpec:
    levels, steps = (1 << (COUNT_BITS - 1)) - 1, COUNT_STEPS
    while steps > 1 and noise_multiplier * steps > LARGEST_COUNT_NOISE:
        steps //= 2
    return ChannelSpec(name, length, COUNT_BITS, levels / steps)


def count_channel(noise_multiplier: float) -> ChannelSpec:
    """Number of training patients of a silo, at least up to a million."""
    return _counting_channel("count", 1, noise_multiplier)


def metric_channel(length: int, noise_multiplier: float) -> ChannelSpec:
    """Counts of scored patients and the entry of their losses, each at least up to a million."""
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
        raise refusal(
            Rule.TERMS,
            f"cohort {cohort} may be opened with {manifest.minimum[cohort]} survivors of which "
            f"{manifest.privacy.colluders} may collude: nobody's noise is left",
        )
    return honest


def _share_of_noise(manifest: Manifest, channel: ChannelSpec) -> tuple[float, float]:
    """Noise multiplier and L2 sensitivity of one channel.

    Update and clip bits are released together, from the same sample. In units of its own noise each moves by at most
    1 / multiplier, so both are one Gaussian mechanism of multiplier z with 1 / z^2 = 1 / z_update^2 + 1 / z_bits^2
    (Andrew et al. 2021, theorem 1), where z is what the manifest says and the ledger is charged. That holds on the grid
    too, since each channel's noise is scaled to its sensitivity after rounding.

    Raises
    ------
    PolicyRefusal
        The clip bits carry too little noise for any on the update to make up for it.
    """
    terms = manifest.privacy
    joint = terms.noise_multiplier
    limit = next((other.limit for other in manifest.channels if other.name == "clip_bits"), None)
    if limit is None:
        return joint, terms.clip
    bits = CLIP_BIT_NOISE * limit / CLIP_BIT
    if bits <= joint:
        raise refusal(
            Rule.TERMS, f"clip bits with a noise multiplier of {bits:.3g} leave nothing of the round's {joint:.3g}"
        )
    return (bits, CLIP_BIT) if channel.name == "clip_bits" else ((joint**-2 - bits**-2) ** -0.5, terms.clip)


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
        raise refusal(
            Rule.TERMS, f"phase {phase} uses the {dataset} records, the manifest would charge {terms.dataset}"
        )
    if counting and (terms.sampling_rate != 1.0 or terms.steps != 1):
        raise refusal(Rule.TERMS, f"phase {phase} uses every record once, the manifest would charge less")
    sensitivity = METRIC_SENSITIVITY if phase == "evaluate" else COUNT_SENSITIVITY
    if counting and terms.trust != "none" and terms.clip < sensitivity:
        what = "the scores" if phase == "evaluate" else "a count"
        raise refusal(
            Rule.TERMS,
            f"one patient changes {what} by {sensitivity:.4g}, the manifest scales noise to {terms.clip:.4g}",
        )
    if terms.trust == "distributed" and terms.steps != 1:
        raise refusal(
            Rule.TERMS, f"distributed noise covers one gradient sum a round, the manifest asks for {terms.steps}"
        )
    counted = [channel for channel in manifest.channels if channel.name in COUNTED_CHANNELS]
    if terms.trust != "none" and any(not (1 / channel.step).is_integer() for channel in counted):
        raise refusal(Rule.TERMS, "the grid of a count does not hold whole numbers, for which its noise is accounted")
    rounded = [channel for channel in manifest.channels if channel.name not in {*COUNTED_CHANNELS, TAG_CHANNEL}]
    if terms.trust != "none" and any(channel.bits > NOISED_BITS for channel in rounded):
        raise refusal(Rule.TERMS, f"noised channels have at most {NOISED_BITS} bits, for which rounding is accounted")
    if any(channel.name == "clip_bits" for channel in manifest.channels):
        apart = {channel.name for channel in manifest.channels} - {TAG_CHANNEL} != {"update", "clip_bits"}
        if apart or counting or terms.trust != "distributed":
            raise refusal(Rule.TERMS, "clip bits go with a gradient sum under distributed noise, and with nothing else")
    unnoised = sorted({channel.name for channel in manifest.channels} & UNNOISED_CHANNELS)
    if terms.trust != "none" and unnoised:
        raise refusal(Rule.TERMS, f"channels that no noise is planned for are never sent under DP: {unnoised}")
    if terms.steps < 1:
        raise refusal(Rule.TERMS, "a round uses the records at least once")


def noise_steps(manifest: Manifest, channel: ChannelSpec, cohort: int) -> float | None:
    """Standard deviation, in grid steps, of the noise one silo adds to a coordinate; None where none is due.

    Local training is noised inside the silo, so only counts and metrics are noised here under local trust.
    """
    levels = noise_levels(manifest, channel, cohort)
    return None if levels is None else levels.drawn**0.5


def noise_levels(manifest: Manifest, channel: ChannelSpec, cohort: int) -> NoiseLevels | None:
    """The parts of that noise, of which some are removed once the survivors are known; all of it with local trust,
    where each silo's noise has to do alone."""
    terms = manifest.privacy
    if channel.name == TAG_CHANNEL:
        return None  # it follows from the noised words before it, and from keys
    if terms.trust == "none" or (terms.trust == "local" and channel.name not in COUNTED_CHANNELS):
        return None
    least, failure = honest_silos(manifest, cohort), ROUNDING_SHARE * terms.delta
    spare = manifest.most_missing(cohort) if terms.trust == "distributed" else 0
    multiplier, sensitivity = _share_of_noise(manifest, channel)
    clip_steps, length = sensitivity / channel.step, channel.length
    honest = range(least + spare, least - 1, -1)
    return NoiseLevels.split([per_silo_std(multiplier, clip_steps, length, silos, failure) ** 2 for silos in honest])


def check_grid(manifest: Manifest, releases: int, epsilon: float) -> float:
    """Part of delta that the grid costs over a session of `releases` sums like this manifest's.

    The largest over cohorts, each with all channels of the manifest, which are released together; of a channel the
    largest over the number of silos that may be missing from the sum.

    Raises
    ------
    PolicyRefusal
        It is more than the share of delta that was kept for it: the grid is too coarse for the promise.
    """
    terms = manifest.privacy
    largest = _grid_cost(manifest, releases, epsilon)
    if largest > GRID_SHARE * terms.delta:
        raise refusal(
            Rule.GRID,
            f"the grid of the noised sums costs {largest:.2g} of delta, above {GRID_SHARE:g} of {terms.delta:g}; "
            "use more --bits",
        )
    return largest


def on_fine_grid(manifest: Manifest, releases: int, epsilon: float) -> Manifest:
    """The same manifest; where the noise is too few steps of the gradient sum's grid for `check_grid`, one whose range
    is narrower and its grid finer: no more than is needed, and not below what `update_channel` gives any round.

    Little noise on large batches is what asks for it. More bits would not do, since the range grows with them as far as
    the batch goes (see `update_channel`).
    """
    terms, names = manifest.privacy, [channel.name for channel in manifest.channels]
    if "update" not in names or terms.trust != "distributed":
        return manifest
    parts = (1.0 / math.sqrt(len(silos) * honest_silos(manifest, c)) for c, silos in enumerate(manifest.cohorts))
    least = max(GRADIENT_RANGE, NOISE_DEVIATIONS * terms.noise_multiplier * max(parts)) * terms.clip
    share, place, narrower = GRID_SHARE * terms.delta, names.index("update"), manifest
    while (cost := _grid_cost(narrower, releases, epsilon)) > share:
        update = narrower.channels[place]
        if update.limit <= least:
            return manifest
        # The cost goes with the fourth power of the step.
        factor = min(max((share / cost) ** 0.25, MOST_NARROWING), LEAST_NARROWING)
        channels = list(narrower.channels)
        channels[place] = replace(update, limit=max(least, update.limit * factor))
        narrower = replace(narrower, channels=tuple(channels))
    return narrower


def _grid_cost(manifest: Manifest, releases: int, epsilon: float) -> float:
    return max(
        sum(_grid_delta(manifest, channel, cohort, releases, epsilon) for channel in manifest.channels)
        for cohort in range(len(manifest.cohorts))
    )


def _grid_delta(manifest: Manifest, channel: ChannelSpec, cohort: int, releases: int, epsilon: float) -> float:
    """The largest over the number of silos that may be missing from the sum."""
    levels = noise_levels(manifest, channel, cohort)
    if levels is None:
        return 0.0
    if max(levels.stds) > MAX_STD:
        # Found here, before anything is charged, and not by the sampler when the budget is spent.
        raise refusal(
            Rule.GRID,
            f"the noise of channel {channel.name} is {max(levels.stds):.3g} grid steps, above {MAX_STD:.0e}; "
            "use fewer --bits",
        )
    most_honest = honest_silos(manifest, cohort) + levels.most[-1]
    failure = ROUNDING_SHARE * manifest.privacy.delta
    largest = 0.0
    for missing in range(levels.most[-1] + 1):
        parts = levels.stds[: levels.level(missing) + 1]
        gap = discretisation_delta(parts, most_honest - missing, channel.length, releases, epsilon, failure)
        largest = max(largest, gap)
    return largest
