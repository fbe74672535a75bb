"""Cohort filter: which cohorts' mean updates disagree with the rest, from the cohorts' sums alone.

Two marks of a spoilt cohort. Its mean is *longer* than the quiet cohorts' (noise, scaling, and labels that the model
has learnt to contradict all pull harder than honest silos do), or it *points away* from the centre of the others.
Centres and spreads are order statistics (Huber and Ronchetti 2009, Robust Statistics, ch. 5), so a few cohorts cannot
set them. Length is compared with a lower quartile and not with the median: bad silos spread over cohorts, and the
spoilt ones may be the majority, while making a cohort's sum shorter takes knowledge of what the other silos send.

A long mean keeps the inverse square of its length as weight, as an estimate weighs by its variance: most silos of a
spoilt cohort are honest, and to leave their records out altogether costs more than a little noise does. A mean that
points away has no such excuse and loses its weight.

Fixed cohorts tell more over the rounds: where they stand apart along one direction (`CohortAxis`), what lies towards
its bad end loses its weight, and directions within the round are not asked: clean cohorts may be the odd ones then. Not
under DP: noise differs from cohort to cohort as their sizes do, and would be an axis of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.cohort_axis import CohortAxis
from autoflip_secure.errors import EncodingError
from autoflip_secure.sums.channels import Aggregate

__all__ = ["Verdict", "filtered", "geometric_median", "judge"]

Values = NDArray[np.float64]

MAD_TO_STD = 1.4826
"""Standard deviation of normal numbers over their median absolute deviation."""

LEAST_COSINE_SPREAD = 0.1
LEAST_NORM_SPREAD = 0.1
"""Spreads below which differences are not held against a cohort: of cosines, and of logarithms of norms."""

DOUBT, CERTAINTY = 3.0, 5.0
"""z up to which a cohort keeps its weight, and from which direction leaves it none; linear between."""

ALIKE = 0.5
"""Least weight by length of a cohort that `CohortAxis` compares with the others."""

NOISE_DEVIATIONS = 3.0

SMALLEST = 1e-150
"""A length whose inverse, summed over cohorts, is still a double."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """One round's judgement of m cohorts; all arrays float64 (m,).

    Attributes
    ----------
    cosines : of each mean with the geometric median of the others, their lengths limited.
    norms : of the means, less what privacy noise adds to them.
    z : the larger of the two robust scores, 0 where a cohort is like the rest or better.
    weights : within [0, 1], never all 0.
    along_axis : whether directions were judged by the axis that the rounds so far show.
    """

    cosines: Values
    norms: Values
    z: Values
    weights: Values
    along_axis: bool = False


def geometric_median(gram: Values, steps: int = 30) -> Values:
    """Weights of k points, adding up to 1, whose mean by them is the point of least summed distance to all, shape (k,).

    Weiszfeld's iteration from the plain mean, which never leaves the points' hull: `gram` (k, k), their inner products,
    is all it takes. So it tells distances apart down to 1e-8 of the points' lengths.
    """
    squares = gram.diagonal()
    least = max(1e-9 * float(np.sqrt(squares.max())), SMALLEST)
    weights = np.full(len(gram), 1.0 / len(gram))
    for _ in range(steps):
        along = gram @ weights
        distances = np.sqrt(np.maximum(squares - 2.0 * along + weights @ along, 0.0))
        weights = 1.0 / np.maximum(distances, least)
        weights /= weights.sum()
    return weights


def judge(
    means: Values, noise: Values | None = None, axis: CohortAxis | None = None, *, learns: bool = True
) -> Verdict:
    """Weigh cohorts by how their mean updates compare.

    The means are as long as the network is large. They are read once, for the inner products of all pairs; lengths,
    distances and cosines are made of these.

    Parameters
    ----------
    means : float64 (m, size), m >= 4
    noise : float64 (m,), optional
        Standard deviation of the privacy noise on a coordinate of each mean; default none. Its known part is taken off
        the norms, and norms that noise alone could make are no sign of anything.
    axis : CohortAxis, optional
        Of fixed cohorts, what earlier rounds told.
    learns : bool
        Whether this round is added to the axis: its means are updates.

    Raises
    ------
    EncodingError
        Fewer than four cohorts, or a value that is not finite.
    """
    if means.ndim != 2 or len(means) < 4:
        raise EncodingError(f"the cohort filter compares four cohorts or more, got means of shape {means.shape}")
    if not np.isfinite(means).all():
        raise EncodingError("a cohort's sum is not finite; training diverged, lower the learning rate")
    size = means.shape[1]
    variance = np.zeros(len(means)) if noise is None else noise**2
    # What noise alone may leave of a squared norm once its mean, size v, is taken off: v sqrt(2 size) is one deviation.
    floor = NOISE_DEVIATIONS * variance * np.sqrt(2.0 * size)
    gram = means @ means.T
    norms = np.sqrt(np.maximum(gram.diagonal() - size * variance, floor))
    quiet = _quiet(norms)
    if quiet == 0.0:
        # Most cohorts moved nothing, which no direction can be compared with; one that moved is the exception.
        weights = (norms == 0.0).astype(np.float64)
        z = np.where(norms > 0, CERTAINTY, 0.0)
        return Verdict(np.zeros(len(means)), norms, z, weights)
    limits = quiet / np.maximum(norms, quiet)
    cosines = _cosines(limits[:, None] * gram * limits)
    away = _cosine_scores(cosines)
    excess, spread = _norm_excess(norms, quiet)
    by_length = np.exp(-2.0 * np.maximum(excess - DOUBT * spread, 0.0))
    by_axis = None if axis is None or variance.any() else _along(axis, gram, by_length, learns)
    if by_axis is None:
        by_direction = np.clip((CERTAINTY - away) / (CERTAINTY - DOUBT), 0.0, 1.0)
    else:
        by_direction, away = by_axis, CERTAINTY * (1.0 - by_axis)
    weights = by_length * by_direction
    if weights.max() == 0.0:  # quiet cohorts point away, and the others are too long for a double to hold their weight
        weights[norms == norms.min()] = 1.0
    return Verdict(cosines, norms, np.maximum(away, excess / spread), weights, by_axis is not None)


def _along(axis: CohortAxis, gram: Values, by_length: Values, learns: bool) -> Values | None:
    """Weights by the axis of fixed cohorts, once this round is added: 1 where its ends are not told, None without one.

    Once it tells, rounds in which a cohort is far longer than others are not added: one that is left out pulls ever
    harder, and what is known of it holds.
    """
    compared = by_length >= ALIKE
    if learns and (compared.all() or not axis.told):
        axis.add(gram, compared)
    found = axis.weights()
    return np.ones(len(gram)) if found is None and axis.is_apart else found


def _quiet(norms: Values) -> float:
    """Lower quartile of the norms, the second smallest of up to seven."""
    return float(np.sort(norms)[max(1, len(norms) // 4)])


def _norm_excess(norms: Values, quiet: float) -> tuple[Values, float]:
    """How far each logarithm of a norm lies above the quiet one (0 below), and the spread of the quieter half."""
    logs = np.log(np.maximum(norms, np.finfo(np.float64).tiny)) - np.log(quiet)
    quieter = np.sort(logs)[: len(logs) // 2 + 1]
    spread = max(MAD_TO_STD * float(np.median(np.abs(quieter))), LEAST_NORM_SPREAD)
    return np.maximum(logs, 0.0), spread


def _cosine_scores(cosines: Values) -> Values:
    """How far each cosine lies below the median one, in spreads; 0 above."""
    middle = float(np.median(cosines))
    spread = max(MAD_TO_STD * float(np.median(np.abs(cosines - middle))), LEAST_COSINE_SPREAD)
    return np.maximum(middle - cosines, 0.0) / spread


def _cosines(gram: Values) -> Values:
    """Cosine of each point with the geometric median of the others, by the inner products of all; 0 where either is 0.

    Where the others cancel, their centre is nothing but rounding, which need not leave a cosine within its range.
    """
    found = np.zeros(len(gram))
    for index in range(len(gram)):
        others = np.delete(np.arange(len(gram)), index)
        among = gram[np.ix_(others, others)]
        weights = geometric_median(among)
        lengths = np.sqrt(gram[index, index]) * np.sqrt(max(float(weights @ among @ weights), 0.0))
        found[index] = float(gram[index, others] @ weights) / lengths if lengths > 0 else 0.0
    return np.clip(found, -1.0, 1.0)


def filtered(aggregates: Sequence[Aggregate], verdict: Verdict) -> list[Aggregate]:
    """The sums that are left, so scaled that their pooled mean is the weighted mean of the cohorts' means.

    Cohorts of weight 0 are left out. The others' sums and noise are multiplied by w_c sum(m) / sum(w m), over the
    cohorts that are left, of m_c silos each. What pools sums over silos then sees the filter's mean, and what compares
    cohorts the same cohorts, so agreement reads lower while some are weighed down.
    """
    left = [index for index in range(len(aggregates)) if verdict.weights[index] > 0]
    silos = np.array([aggregates[index].silos for index in left], np.float64)
    weights = verdict.weights[left]
    scale = float(silos.sum() / (weights @ silos))
    kept = []
    for index, weight in zip(left, weights, strict=True):
        kept.append(_multiplied(aggregates[index], scale * float(weight)))
    return kept


def _multiplied(aggregate: Aggregate, factor: float) -> Aggregate:
    return replace(
        aggregate,
        channels={name: factor * values for name, values in aggregate.channels.items()},
        noise_std={name: factor * std for name, std in aggregate.noise_std.items()},
    )
