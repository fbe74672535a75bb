"""Scores of predictions, in numpy: class probabilities of shape (n, classes), or log hazard ratios of shape (n, 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.models.losses import LARGEST_EXPONENT
from autoflip_secure.training.concordance import concordance

__all__ = ["DECISION", "Scores", "auroc", "check_predictions", "predicted_classes", "record_losses", "score"]

DECISION = 0.5
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Scores:
    """Scores computed from single records.

    Attributes
    ----------
    accuracy : float or None
        Share of records whose class is predicted; None for survival.
    loss : float
        Mean of `record_losses`, nats.
    auroc : float or None
        Area under the ROC curve of class 1; None for other than binary tasks, or where one class is absent.
    c_index : float or None
        Harrell's C-index; survival only, None where no pair can be compared.
    """

    accuracy: float | None
    loss: float
    auroc: float | None
    c_index: float | None = None


def predicted_classes(probabilities: NDArray[np.floating], kind: str) -> NDArray[np.int64]:
    """Most probable class, shape (n,); of two classes, class 1 from a probability of one half on."""
    if kind == "binary":
        return (probabilities[:, 1] >= DECISION).astype(np.int64)
    return np.asarray(probabilities.argmax(axis=1), np.int64)


def auroc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting one half.

    Mann and Whitney's U over midranks (Hanley and McNeil 1982). None where one class is absent.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midrank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(midrank[place][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def record_losses(predictions: NDArray[np.floating], targets: NDArray[np.generic], kind: str) -> NDArray[np.float64]:
    """Negative log-likelihood of each record, shape (n,): `models.losses` in float64, of predictions."""
    if kind == "survival":
        theta, expected, event = (column.astype(np.float64) for column in (predictions[:, 0], *targets.T))
        within = np.minimum(theta, LARGEST_EXPONENT)
        return np.asarray(expected * np.exp(within) * (1.0 + (theta - within)) - event * theta, np.float64)
    likelihood = predictions[np.arange(len(targets)), targets.astype(np.int64)].astype(np.float64)
    return np.asarray(-np.log(np.maximum(likelihood, SMALLEST_PROBABILITY)), np.float64)


def check_predictions(predictions: NDArray[np.floating], targets: NDArray[np.generic], kind: str) -> None:
    """Refuse shapes that do not belong together.

    Raises
    ------
    ConfigError
        `kind` is unknown.
    DataError
        Shapes that do not match, or a label beyond the classes.
    """
    if kind not in ("binary", "multiclass", "survival"):
        raise ConfigError(f"kind {kind!r} is not one of binary, multiclass, survival")
    columns = (2,) if kind == "survival" else ()
    if predictions.ndim != 2 or targets.shape != (len(predictions), *columns) or not len(targets):
        raise DataError(f"predictions of shape {predictions.shape} and targets of shape {targets.shape} do not match")
    fits = {"binary": predictions.shape[1] == 2, "survival": predictions.shape[1] == 1}
    if not fits.get(kind, predictions.shape[1] > 2):
        raise DataError(f"{predictions.shape[1]} predictions a record do not make a {kind} task")
    if kind != "survival" and not 0 <= targets.min() <= targets.max() < predictions.shape[1]:
        raise DataError(f"a label is not within the {predictions.shape[1]} classes of the model")


def score(predictions: NDArray[np.floating], targets: NDArray[np.generic], kind: str) -> Scores:
    """Scores of predictions.

    Parameters
    ----------
    predictions : float array, shape (n, outputs)
        See the module.
    targets : array
        As `data.task.Task.targets` gives them.

    Raises
    ------
    ConfigError, DataError
        As `check_predictions`.
    """
    check_predictions(predictions, targets, kind)
    loss = float(record_losses(predictions, targets, kind).mean())
    if kind == "survival":
        expected, event = targets.T
        return Scores(None, loss, None, concordance(predictions[:, 0], expected, event > 0))
    accuracy = float((predicted_classes(predictions, kind) == targets).mean())
    return Scores(accuracy, loss, auroc(predictions[:, 1], targets == 1) if kind == "binary" else None)
