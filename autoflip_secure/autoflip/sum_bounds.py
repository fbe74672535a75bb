"""What a cohort's opened sum can be if all its silos are honest, from public numbers alone.

A secure sum hides who sent what, so nobody can check one silo's vector without a proof that travels with it. The sum
can be checked: honest values lie within a channel's public range, so a sum over m silos lies within m times that range,
and where every silo's vector has an L2 norm of at most R, the sum's is at most m R. What lies outside was not sent by
honest silos. What lies within was possible without any lie, hence liars cannot move a model further in a round than all
silos of the sum together could honestly; where to, nothing here can tell.

Noise and stochastic rounding are random, so with them the bounds hold but for a probability of `FALSE_ALARM` a sum.
Without noise the range holds always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.encoding import field_width, spilled_words

__all__ = [
    "FALSE_ALARM",
    "Excess",
    "length_limit",
    "most_sampled",
    "out_of_fields",
    "out_of_range",
    "scaled_to",
    "sum_length",
]

FALSE_ALARM = 2.0**-43
"""Probability that honest silos exceed one bound that randomness has a part in. There are at most five a channel of a
sum (range, fields, length alone and together, patients sampled): below 2^-40 in all."""

NOT_NEGATIVE = frozenset({"mask", "deviation", "unit_energy", "count", "metric"})
"""Channels of squares, shares and counts."""

SQUARED = frozenset({"deviation", "unit_energy"})
"""Channels of squares of an update's coordinates, each in one entry: their sum is the update's squared norm at most."""

ROUNDING_BIAS = 2.0**-16
"""Grid steps by which the mean of a rounded value may be off (see `sums.encoding.Rounding`)."""

MARGIN = 1e-9
"""Relative, for the arithmetic of the bounds themselves."""


@dataclass(frozen=True)
class Excess:
    """The entry of a sum that lies furthest outside what honest silos can add up to.

    Attributes
    ----------
    channel : str
    value, low, high : float
        The entry, and between what it could lie. Of words (see `out_of_fields`): how many there are, and 0.
    entries : int
        How many of the channel lie outside.
    """

    channel: str
    value: float
    low: float
    high: float
    entries: int


def out_of_range(aggregate: Aggregate, channels: Sequence[ChannelSpec], cohort: int) -> Excess | None:
    """The first channel of a sum that leaves its silos' ranges added up; None where all lie within.

    A value that a silo encodes lies within [-L, L] grid steps, L = 2^(bits-1) - 1, of channels that are not negative
    within [0, L], so the sum over m silos lies within m times that, exactly. Noise of variance proxy s^2 (a discrete
    Gaussian's is its parameter's square: Canonne, Kamath and Steinke 2020, arXiv 2004.00010, theorem 1.2) exceeds
    s sqrt(2 ln(2 d / p)) in any of d coordinates with probability p at most. Where that reaches the end of the sum's
    field, at which it wraps round, there is nothing to check.

    Parameters
    ----------
    aggregate : Aggregate
        As decoded, shape (length,) by channel.
    cohort : int
        Silos the fields were sized for, those that are missing included.
    """
    for spec in channels:
        values, noise = aggregate.sum(spec.name), float(aggregate.noise_std.get(spec.name, 0.0))
        tail = noise * _deviations(spec)
        end = _range_end(spec, aggregate.silos) + tail
        if noise and end >= _field_end(spec, cohort):
            continue
        low = -(0.5 * spec.step + tail) if spec.name in NOT_NEGATIVE else -end
        beyond = np.maximum(values - end, low - values)
        worst = int(np.argmax(beyond))
        if not beyond[worst] <= 0.0:
            return Excess(spec.name, float(values[worst]), low, end, int(np.count_nonzero(~(beyond <= 0.0))))
    return None


def out_of_fields(
    words: NDArray[np.uint64], channels: Sequence[ChannelSpec], cohort: int, silos: int, noise: Mapping[str, float]
) -> Excess | None:
    """The first channel of a sum's words that has any whose fields ran over; None where all are sums of fields.

    Honest sums stay within their fields, as `out_of_range` says, hence carry nothing beyond. Where the silos of a
    cohort are a power of two, the fields are no wider than the range, and this alone tells words that mean nothing.

    Parameters
    ----------
    words : uint64 array
        As opened, before excess noise is removed.
    silos : int
        In the sum.
    noise : mapping of str to float
        Standard deviation of the noise that was drawn in each channel, over all silos; absent: none.
    """
    for name, spilled in spilled_words(words, channels, cohort).items():
        spec = next(spec for spec in channels if spec.name == name)
        drawn = noise.get(name, 0.0)
        if drawn and _range_end(spec, silos) + drawn * _deviations(spec) >= _field_end(spec, cohort):
            continue
        if spilled:
            return Excess(name, float(spilled), 0.0, 0.0, spilled)
    return None


def _deviations(spec: ChannelSpec) -> float:
    """Standard deviations of noise that none of a channel's coordinates exceeds, but for `FALSE_ALARM`."""
    return math.sqrt(2.0 * math.log(2.0 * spec.length / FALSE_ALARM))


def _range_end(spec: ChannelSpec, silos: int) -> float:
    """Largest entry that so many silos can add up to without noise, half a grid step on top for the arithmetic."""
    return (silos * spec.levels + 0.5) * spec.step


def _field_end(spec: ChannelSpec, cohort: int) -> float:
    """Where a field of the sum wraps round."""
    return math.ldexp(spec.step, field_width(spec.bits, cohort) - 1)


def most_sampled(patients: int, sampling_rate: float) -> float:
    """Patients in a Poisson sample of so many, but for a probability of `FALSE_ALARM` (Bernstein's inequality)."""
    mean, tail = patients * sampling_rate, -math.log(FALSE_ALARM)
    more = tail / 3.0 + math.sqrt((tail / 3.0) ** 2 + 2.0 * mean * (1.0 - sampling_rate) * tail)
    return min(float(patients), mean + more)


def length_limit(honest: float, silos: int, spec: ChannelSpec, noise_std: float = 0.0) -> float:
    """Largest length of a sum whose silos' real vectors add up to a length of `honest` at most (see `sum_length`).

    With x the real sum and z what rounding and noise add, each coordinate of z is independent, of mean 0 (but for
    `ROUNDING_BIAS`, added to x) and sub-Gaussian with variance proxy v = s^2 + m / 4 step^2: a rounded value is one of
    two neighbours, so Hoeffding's lemma gives 1/4 for each of m silos. Then (Hsu, Kakade and Zhang 2012, arXiv
    1110.2842, theorem 2.1 with Sigma = I)

        P[|x + z|^2 > v (d + 2 sqrt(d t) + 2 t) + |x|^2 (1 + 2 sqrt(t / d))] <= exp(-t),

    and with x = 0 the same bounds |z|, to which |x| adds at most its own length. The smaller of the two is taken: the
    first where noise is long, the second where there is little but rounding.

    Channels of squares are measured by their sum, which rounding moves by less than a step an entry and silo.

    Parameters
    ----------
    honest : float
        L2 norm, of channels of squares the sum of the entries.
    silos : int
        In the sum, m.
    noise_std : float
        Of a coordinate of the sum, s.
    """
    if spec.name in SQUARED:
        return (honest + silos * spec.length * spec.step) * (1.0 + MARGIN)
    size, tail = spec.length, -math.log(FALSE_ALARM)
    real = honest + silos * ROUNDING_BIAS * spec.step * math.sqrt(size)
    variance = noise_std**2 + silos / 4.0 * spec.step**2
    random = variance * (size + 2.0 * math.sqrt(size * tail) + 2.0 * tail)
    together = math.sqrt(random + real**2 * (1.0 + 2.0 * math.sqrt(tail / size)))
    return min(together, real + math.sqrt(random)) * (1.0 + MARGIN)


def sum_length(aggregates: Sequence[Aggregate], channel: str) -> float:
    """L2 norm of the sum over all aggregates; of channels of squares the sum of the entries."""
    total = np.sum([aggregate.sum(channel) for aggregate in aggregates], axis=0)
    return float(np.sum(total) if channel in SQUARED else np.linalg.norm(total))


def scaled_to(aggregate: Aggregate, channel: str, factor: float) -> Aggregate:
    """The same sums with one channel, and the noise in it, multiplied by a factor."""
    channels = {**aggregate.channels, channel: aggregate.sum(channel) * factor}
    noise_std = {**aggregate.noise_std, channel: aggregate.noise_std.get(channel, 0.0) * factor}
    return replace(aggregate, channels=channels, noise_std=noise_std)
