"""Scores of class probabilities, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError, DataError

__all__ = ["DECISION", "Scores", "auroc", "check_probabilities", "predicted_classes", "score"]

DECISION = 0.5
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Scores:
    """Scores on public records.

    Attributes
    ----------
    accuracy : float
        Share of records whose class is predicted.
    loss : float
        Mean cross-entropy, nats.
    auroc : float or None
        Area under the ROC curve of class 1; None for more than two classes, or where one class is absent.
    """

    accuracy: float
    loss: float
    auroc: float | None


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


def check_probabilities(probabilities: NDArray[np.floating], y: NDArray[np.int64], kind: str) -> None:
    """Refuse shapes that do not belong together.

    Raises
    ------
    ConfigError
        `kind` is unknown.
    DataError
        Shapes that do not match, or a label beyond the classes.
    """
    if kind not in ("binary", "multiclass"):
        raise ConfigError(f"kind {kind!r} is not one of binary, multiclass")
    if probabilities.ndim != 2 or y.shape != (len(probabilities),) or not len(y):
        raise DataError(f"probabilities of shape {probabilities.shape} and labels of shape {y.shape} do not match")
    if (kind == "binary") != (probabilities.shape[1] == 2):
        raise DataError(f"{probabilities.shape[1]} probabilities a record do not make a {kind} task")
    if y.min() < 0 or y.max() >= probabilities.shape[1]:
        raise DataError(f"a label is not within the {probabilities.shape[1]} classes of the model")


def score(probabilities: NDArray[np.floating], y: NDArray[np.int64], kind: str) -> Scores:
    """Scores of predictions on public records.

    Raises
    ------
    ConfigError, DataError
        As `check_probabilities`.
    """
    check_probabilities(probabilities, y, kind)
    likelihood = probabilities[np.arange(len(y)), y].astype(np.float64)
    return Scores(
        accuracy=float((predicted_classes(probabilities, kind) == y).mean()),
        loss=float(-np.log(np.maximum(likelihood, SMALLEST_PROBABILITY)).mean()),
        auroc=auroc(probabilities[:, 1], y == 1) if kind == "binary" else None,
    )
