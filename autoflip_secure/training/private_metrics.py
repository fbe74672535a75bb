"""Scores from a noised sum of counts: what a silo adds for its held-out patients, and how the sum is read.

One record adds exactly 1 to exactly one entry, so adding or removing a patient changes the vector by L2 norm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.training.scores import DECISION, check_probabilities, predicted_classes

__all__ = ["DEFAULT_BINS", "PrivateScores", "metric_counts", "metric_length", "metrics_from_counts"]

DEFAULT_BINS = 32
LEAST_RECORDS = 0.5  # a total below is no record
SIGNIFICANT = 3.0  # standard deviations of noise a total must exceed to be told from none


@dataclass(frozen=True)
class PrivateScores:
    """Scores read from a sum of counts; None where the counts do not tell.

    Attributes
    ----------
    accuracy : float or None
        Share of records whose class is predicted.
    auroc : float or None
        Area under the ROC curve of class 1, binary tasks only; ties within a bin count one half.
    balanced_accuracy : float or None
        Mean over the classes that have records of the share predicted.
    records : float
        Number of records, with the noise of the sum.
    """

    accuracy: float | None
    auroc: float | None
    balanced_accuracy: float | None
    records: float


def metric_length(classes: int, kind: str, bins: int = DEFAULT_BINS) -> int:
    """Entries of the vector of `metric_counts`.

    Raises
    ------
    ConfigError
        Unknown kind, or a number of bins that is not even (one half must be an edge between bins).
    """
    if kind not in ("binary", "multiclass") or (kind == "binary" and classes != 2):
        raise ConfigError(f"{classes} classes do not make a {kind!r} task; kinds are binary and multiclass")
    if bins < 2 or bins % 2:
        raise ConfigError(f"{bins} bins: not a positive even number; use {DEFAULT_BINS}")
    return 2 * bins if kind == "binary" else 2 * classes


def metric_counts(
    probabilities: NDArray[np.floating], y: NDArray[np.int64], kind: str, bins: int = DEFAULT_BINS
) -> NDArray[np.int64]:
    """Counts of one silo's held-out records.

    Parameters
    ----------
    probabilities : float array, shape (n, classes)
        A probability that is not a number counts as one half (binary) or as a wrong class, so that the vector's
        sensitivity stays 1 also for a diverged model.
    y : int64 array, shape (n,)

    Returns
    -------
    int64 array
        binary, shape (2 * bins,): histogram over [0, 1] of the probability of class 1, of the records of class 0
        and then of class 1. multiclass, shape (2 * classes,): for each true class, records predicted correctly and
        incorrectly.

    Raises
    ------
    ConfigError, DataError
        As `scores.check_probabilities` and `metric_length`.
    """
    check_probabilities(probabilities, y, kind)
    length = metric_length(probabilities.shape[1], kind, bins)
    if kind == "binary":
        scores = np.clip(np.nan_to_num(probabilities[:, 1].astype(np.float64), nan=DECISION), 0.0, 1.0)
        place = y * bins + np.minimum((scores * bins).astype(np.int64), bins - 1)
    else:
        finite = np.isfinite(probabilities).all(axis=1)
        place = 2 * y + ~(finite & (predicted_classes(probabilities, kind) == y))
    return np.bincount(place, minlength=length).astype(np.int64)


def metrics_from_counts(vector: NDArray[np.floating], kind: str, *, noise_std: float = 0.0) -> PrivateScores:
    """Read a sum of `metric_counts` over silos, with or without noise.

    Noisy entries are used as they are, also negative ones: sums and products of unbiased counts stay unbiased, while
    clipping entries at 0 would add records that are not there. Only the final shares are clipped to [0, 1].

    Parameters
    ----------
    vector : float64 array
        The sum; its length gives bins or classes.
    noise_std : float
        Standard deviation of the noise on an entry; a class whose total is within `SIGNIFICANT` deviations of zero
        counts as absent.

    Raises
    ------
    ConfigError
        Unknown kind.
    DataError
        A length that does not fit, or an entry that is not finite.
    """
    if kind not in ("binary", "multiclass"):
        raise ConfigError(f"kind {kind!r} is not one of binary, multiclass")
    counts = np.asarray(vector, np.float64)
    if counts.ndim != 1 or len(counts) < 4 or len(counts) % (4 if kind == "binary" else 2):
        raise DataError(f"counts of shape {counts.shape} do not come from a {kind} task")
    if not np.isfinite(counts).all():
        raise DataError("a count is not finite; the sum cannot be read")
    by_class = counts.reshape(2, -1) if kind == "binary" else counts.reshape(-1, 2)
    correct = _correct_binary(by_class) if kind == "binary" else by_class[:, 0]
    totals = by_class.sum(axis=1)
    present = totals > max(LEAST_RECORDS, SIGNIFICANT * noise_std * math.sqrt(by_class.shape[1]))
    records = float(counts.sum())
    known = records > max(LEAST_RECORDS, SIGNIFICANT * noise_std * math.sqrt(counts.size))
    return PrivateScores(
        accuracy=_share(correct.sum(), records) if known else None,
        auroc=_auroc_from_histograms(by_class) if kind == "binary" and present.all() else None,
        balanced_accuracy=_mean_share(correct[present], totals[present]),
        records=max(records, 0.0),
    )


def _correct_binary(histograms: NDArray[np.float64]) -> NDArray[np.float64]:
    half = histograms.shape[1] // 2
    return np.array([histograms[0, :half].sum(), histograms[1, half:].sum()])


def _auroc_from_histograms(histograms: NDArray[np.float64]) -> float:
    """Pairs in which the positive is in a higher bin, plus half of those in one bin, over all pairs."""
    negatives, positives = histograms
    below = np.cumsum(negatives) - negatives / 2
    return _share(float(positives @ below), float(negatives.sum() * positives.sum()))


def _share(part: float, whole: float) -> float:
    return float(min(max(part / whole, 0.0), 1.0))


def _mean_share(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> float | None:
    return float(np.clip(parts / wholes, 0.0, 1.0).mean()) if len(wholes) else None
