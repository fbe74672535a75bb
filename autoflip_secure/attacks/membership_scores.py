"""LiRA and RMIA: how much likelier what a model says of a record is if it was trained on than if not.

Both compare a target with shadows, models that the adversary trained itself, so that it knows of each record which of
them had it.

Sources
-------
Carlini, Chien, Nasr, Song, Terzis and Tramer 2022, "Membership inference attacks from first principles"
(arXiv 2112.03570), section V: logit-scaled confidences, one Gaussian a record with it and one without, one variance for
all records where shadows are few. Zarifzadeh, Liu and Shokri 2024, "Low-cost high-power membership inference attacks"
(arXiv 2312.03262), section 2: pairwise likelihood ratios against public records.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["area", "leave_one_out", "lira", "rmia", "true_positives"]

Array = NDArray[np.float64]

LEAST = 1e-12


def lira(target: Array, shadows: Array, had: NDArray[np.bool_]) -> Array:
    """Log likelihood ratio that the target had each record.

    With a handful of shadows means of single records are little better than noise. A record's shift (mean with it less
    mean without) is therefore moved towards what records of the same level show, a line in the level, by as much as its
    own error asks for (empirical Bayes); with many shadows it is the record's own, and this is LiRA as published.
    A shift is never below zero: being trained on does not make a record look less known.

    Parameters
    ----------
    target : float array, shape (records,)
        What the target says of each, larger where it knows the record better: the logit of its true label.
    shadows : float array, shape (shadows, records)
        What each shadow says.
    had : bool array, shape (shadows, records)
        Which shadow had which record.
    """
    with_it, without = had.sum(0), (~had).sum(0)
    both = (with_it > 0) & (without > 0)
    mean_with = np.where(had, shadows, 0).sum(0) / np.maximum(with_it, 1)
    mean_without = np.where(had, 0, shadows).sum(0) / np.maximum(without, 1)
    residual = np.where(had, shadows - mean_with, shadows - mean_without)
    freedom = len(shadows) * had.shape[1] - int((with_it > 0).sum() + (without > 0).sum())
    variance = max(float((residual**2).sum()) / max(freedom, 1), LEAST)

    shift, error = mean_with - mean_without, variance / np.maximum(with_it, 1) + variance / np.maximum(without, 1)
    expected = _line(shadows.mean(0), shift, both)
    spread = max(float(((shift - expected)[both] ** 2 - error[both]).mean()), LEAST) if both.any() else LEAST
    own = np.where(both, spread / (spread + error), 0.0)
    shift = np.maximum(own * shift + (1 - own) * expected, 0.0)
    level = np.where(had, shadows - shift, shadows).mean(0)
    # N(level + shift, variance) against N(level, variance); the level's own error widens both.
    ratio: Array = shift * (target - level - shift / 2) / (variance * (1 + 1 / len(shadows)))
    return ratio


def _line(x: Array, y: Array, used: NDArray[np.bool_]) -> Array:
    """Least squares of y on x over the records used; flat where there are too few to tell a slope."""
    if used.sum() < 3 or np.ptp(x[used]) == 0:
        return np.full(x.size, y[used].mean() if used.any() else 0.0)
    slope, height = (float(value) for value in np.polyfit(x[used], y[used], 1))
    return slope * x + height


def rmia(target: Array, shadows: Array, had: NDArray[np.bool_], public: Array, shadows_public: Array) -> Array:
    """Share of the public records than which each record is relatively likelier under the target.

    Pr(x | target) / Pr(x) over Pr(z | target) / Pr(z) is above gamma = 1 for that share of z. Pr(x) is the mean of the
    shadows that had x and of those that had not, in equal parts; no shadow had z.

    Parameters
    ----------
    target, shadows, had
        As for `lira`; logits.
    public : float array, shape (public records,)
        What the target says of each public record.
    shadows_public : float array, shape (shadows, public records)
    """
    likely, likely_shadows = _probability(target), _probability(shadows)
    with_it, without = had.sum(0), (~had).sum(0)
    halves = np.where(had, likely_shadows, 0).sum(0) / np.maximum(with_it, 1)
    halves = (halves + np.where(had, 0, likely_shadows).sum(0) / np.maximum(without, 1)) / 2
    marginal = np.where((with_it > 0) & (without > 0), halves, likely_shadows.mean(0))
    ratio = likely / np.maximum(marginal, LEAST)
    ratio_public = np.sort(_probability(public) / np.maximum(_probability(shadows_public).mean(0), LEAST))
    outdone: Array = np.searchsorted(ratio_public, ratio) / ratio_public.size
    return outdone


def _probability(logit: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -logit))


def leave_one_out(score: Callable[..., Array], member: NDArray[np.bool_], *signals: Array) -> Array:
    """Each run as target, all others as its shadows.

    Parameters
    ----------
    score : callable
        `lira` with one signal, `rmia` with two.
    member : bool array, shape (runs, records)
    signals : float64 arrays, first dimension runs
        Of the records, and for `rmia` of the public ones.

    Returns
    -------
    float64 array, shape (runs, records)
    """
    found = []
    for run in range(len(member)):
        others = np.arange(len(member)) != run
        first, *more = ((signal[run], signal[others]) for signal in signals)
        found.append(score(*first, member[others], *(part for pair in more for part in pair)))
    return np.array(found)


def true_positives(scores: Array, member: NDArray[np.bool_], false_positives: float) -> float:
    """Largest share of members found by a threshold that takes at most this share of the others for members.

    Ties count as the threshold finds them: all of one score or none.
    """
    others = np.sort(scores[~member])[::-1]
    allowed = int(false_positives * others.size)
    return float((scores[member] > others[allowed]).mean())


def area(scores: Array, member: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a member scores above another record, ties as halves."""
    from scipy.stats import rankdata

    members, others = int(member.sum()), int((~member).sum())
    ranks = rankdata(scores).reshape(scores.shape)[member]
    return float((ranks.sum() - members * (members + 1) / 2) / (members * others))
