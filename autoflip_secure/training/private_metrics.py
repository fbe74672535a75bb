"""Scores from a noised sum: what a silo adds for its held-out patients, and how the sum is read.

A patient adds at most 1 to the counts, in one entry or shared among several records', and at most `LOSS_WEIGHT` to the
entry of the loss. Adding or removing a patient changes the vector by an L2 norm of at most `METRIC_SENSITIVITY`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.training.concordance import concordance_from_cells, survival_cells, survival_shape
from autoflip_secure.training.metric_form import LOSS_WEIGHT, PROBABILITY_BINS, PROBABILITY_EDGES, MetricForm
from autoflip_secure.training.scores import DECISION, check_predictions, predicted_classes, record_losses

__all__ = ["PrivateScores", "metric_vector", "scores_from_vector"]

LEAST_RECORDS = 0.5  # a total below is no record
SIGNIFICANT = 3.0  # standard deviations of noise a total must exceed to be told from none


@dataclass(frozen=True)
class PrivateScores:
    """Scores read from a sum; None where it does not tell.

    Attributes
    ----------
    accuracy : float or None
        Share of patients whose class is predicted.
    auroc : float or None
        Area under the ROC curve of class 1, binary tasks only; ties within a bin count one half.
    balanced_accuracy : float or None
        Mean over the classes that have patients of the share predicted.
    c_index : float or None
        Harrell's C-index between intervals of follow-up, survival only; ties within a bin of risk count one half.
    loss : float or None
        Mean loss, each record's clipped to `MetricForm.losses`, nats.
    records : float
        Number of patients, with the noise of the sum.
    """

    accuracy: float | None
    auroc: float | None
    balanced_accuracy: float | None
    c_index: float | None
    loss: float | None
    records: float


def metric_vector(
    predictions: NDArray[np.floating],
    targets: NDArray[np.generic],
    form: MetricForm,
    step: float,
    patient: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """One silo's part of the sum.

    Parameters
    ----------
    predictions : float array, shape (n, outputs)
        See `scores`. One that is not a number counts as undecided, as a wrong class or as the baseline's hazard, with
        the largest loss, so that the sensitivity holds also for a diverged model.
    targets : array
        As `data.task.Task.targets` gives them.
    step : float
        Grid of the channel. Each patient's part is whole steps, so the sum needs no rounding.
    patient : int64 array, shape (n,), optional
        Whose each record is: the patient's records share the 1 of the counts, and the loss is their mean.

    Returns
    -------
    float64 array, shape (form.length,)
        Multiples of `step`.

    Raises
    ------
    ConfigError, DataError
        As `scores.check_predictions`, a step that is not positive, or not one patient for each record.
    """
    check_predictions(predictions, targets, form.kind)
    if not (math.isfinite(step) and step > 0):
        raise ConfigError(f"a grid of step {step} holds no counts")
    whose = np.arange(len(predictions)) if patient is None else np.unique(patient, return_inverse=True)[1]
    if whose.shape != (len(predictions),):
        raise DataError(f"{len(predictions)} records have {len(whose)} patients")
    counts = _count_steps(_cells(predictions, targets, form), whose, math.floor(1.0 / step), form.cells)
    loss = LOSS_WEIGHT * _mean_losses(predictions, targets, whose, form)
    loss_steps = np.minimum(np.rint(loss / step), math.floor(LOSS_WEIGHT / step))
    return np.append(counts, loss_steps.sum()) * step


def _count_steps(cells: NDArray[np.int64], whose: NDArray[np.int64], one: int, length: int) -> NDArray[np.int64]:
    """Each patient's `one` shared among the cells of the records, rounded down, so that it is never exceeded."""
    records = np.bincount(whose)
    shares, times = np.unique(whose * length + cells, return_counts=True)
    counts = np.zeros(length, np.int64)
    np.add.at(counts, shares % length, times * one // records[shares // length])
    return counts


def _mean_losses(
    predictions: NDArray[np.floating], targets: NDArray[np.generic], whose: NDArray[np.int64], form: MetricForm
) -> NDArray[np.float64]:
    """Each patient's mean loss as a share of the range it is clipped to, shape (patients,)."""
    low, high = form.losses
    with np.errstate(over="ignore", invalid="ignore"):
        losses = np.nan_to_num(record_losses(predictions, targets, form.kind), nan=high, posinf=high, neginf=low)
    shares = (np.clip(losses, low, high) - low) / (high - low)
    return np.bincount(whose, weights=shares) / np.bincount(whose)


def _cells(predictions: NDArray[np.floating], targets: NDArray[np.generic], form: MetricForm) -> NDArray[np.int64]:
    """The entry that each record is counted in, shape (n,)."""
    if form.kind == "survival":
        expected, event = targets.T
        return survival_cells(predictions[:, 0], expected, event > 0, form.cuts)
    y = targets.astype(np.int64)
    if form.kind == "binary":
        scores = np.nan_to_num(predictions[:, 1].astype(np.float64), nan=DECISION)
        return np.asarray(y * PROBABILITY_BINS + np.searchsorted(PROBABILITY_EDGES, scores, side="right"), np.int64)
    finite = np.isfinite(predictions).all(axis=1)
    return np.asarray(2 * y + ~(finite & (predicted_classes(predictions, form.kind) == y)), np.int64)


def scores_from_vector(vector: NDArray[np.floating], form: MetricForm, *, noise_std: float = 0.0) -> PrivateScores:
    """Read a sum of `metric_vector` over silos, with or without noise.

    Noisy entries are used as they are, also negative ones: sums and products of unbiased counts stay unbiased, while
    clipping entries at 0 would add patients that are not there. Only the final figures are clipped to their range.

    Parameters
    ----------
    vector : float64 array, shape (form.length,)
        The sum.
    noise_std : float
        Standard deviation of the noise on an entry. A total within `SIGNIFICANT` deviations of zero counts as none:
        there are then no scores, of a class without patients no AUROC, and without events no C-index.

    Raises
    ------
    DataError
        Another length, or an entry that is not finite.
    """
    entries = np.asarray(vector, np.float64)
    if entries.shape != (form.length,):
        raise DataError(f"a sum of shape {entries.shape} does not come from a {form.kind} task: {form.length} entries")
    if not np.isfinite(entries).all():
        raise DataError("an entry is not finite; the sum cannot be read")
    counts = entries[:-1]
    records = float(counts.sum())
    known = _is_significant(counts, noise_std)
    low, high = form.losses
    loss = low + (high - low) * _share(float(entries[-1]) / LOSS_WEIGHT, records) if known else None
    if form.kind == "survival":
        c_index = _c_index(counts, form.cuts, noise_std) if known else None
        return PrivateScores(None, None, None, c_index, loss, max(records, 0.0))
    by_class = counts.reshape(2, -1) if form.kind == "binary" else counts.reshape(-1, 2)
    correct = _correct_binary(by_class) if form.kind == "binary" else by_class[:, 0]
    present = np.array([_is_significant(entries_of_class, noise_std) for entries_of_class in by_class])
    return PrivateScores(
        accuracy=_share(float(correct.sum()), records) if known else None,
        auroc=_auroc_from_histograms(by_class) if form.kind == "binary" and present.all() else None,
        balanced_accuracy=_mean_share(correct[present], by_class.sum(axis=1)[present]),
        c_index=None,
        loss=loss,
        records=max(records, 0.0),
    )


def _is_significant(counts: NDArray[np.float64], noise_std: float) -> bool:
    return bool(counts.sum() > max(LEAST_RECORDS, SIGNIFICANT * noise_std * math.sqrt(counts.size)))


def _c_index(counts: NDArray[np.float64], cuts: tuple[float, ...], noise_std: float) -> float | None:
    events = counts.reshape(survival_shape(cuts))[:, :-1, 1]
    index, pairs = concordance_from_cells(counts, cuts)
    if not _is_significant(events, noise_std) or pairs <= 0:
        return None
    return min(max(index, 0.0), 1.0)


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
