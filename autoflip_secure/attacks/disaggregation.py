"""Sums whose silos are known are linear equations for the silos' own parts: solved by regularised least squares.

Lam et al. 2021 ("Gradient Disaggregation: Breaking Privacy in Federated Learning by Reconstructing the User Participant
Matrix", arXiv 2106.06089) first reconstruct who took part; here the coordinator knows it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_counts", "common_part", "cosine", "likely_classes", "mean_parts", "presence"]

Matrix = NDArray[np.float64]

RIDGE = 1e-3
"""Weight of what silos differ by, in mean diagonals of the normal equations. It keeps apart what no sum tells apart: a
set of silos that were always together get equal parts."""


def presence(present: list[tuple[int, ...]], silos: int) -> Matrix:
    """Which silos 1..`silos` are in which sum: 0 or 1, shape (sums, silos)."""
    return np.array([np.isin(np.arange(1, silos + 1), each) for each in present], dtype=np.float64)


def mean_parts(present: Matrix, sums: Matrix, ridge: float = RIDGE) -> Matrix:
    """Each silo's average part: min over X of |present X - sums|^2 and the ridge on what silos differ by.

    Parameters
    ----------
    present : float64 array, shape (sums, silos)
    sums : float64 array, shape (sums, coordinates)

    Returns
    -------
    float64 array, shape (silos, coordinates)
    """
    return np.asarray(np.linalg.solve(_ridged(present.T @ present, present.shape[1], ridge), present.T @ sums))


def common_part(present: Matrix, sums: Matrix) -> Matrix:
    """What a silo sends on average, whichever it is, shape (coordinates,): all that sums of a fixed cohort tell."""
    sizes = present.sum(axis=1)
    return np.asarray(sizes @ sums / (sizes @ sizes))


def class_counts(present: Matrix, signatures: list[Matrix], sums: list[Matrix], ridge: float = RIDGE) -> Matrix:
    """How much each silo trained on each class, in records of a signature, by least squares over all sums together.

    With z the silos that are in a sum and G what a record of each class sends at its model, the sum is (z kron G)^T a +
    noise for the silos' counts a. Models may differ from sum to sum, and so may the coordinates.

    Parameters
    ----------
    present : float64 array, shape (sums, silos)
    signatures : list of float64 array, shape (classes, coordinates of the sum)
    sums : list of float64 array, shape (coordinates,)

    Returns
    -------
    float64 array, shape (silos, classes)
    """
    silos, classes = present.shape[1], len(signatures[0])
    normal, right = np.zeros((silos * classes,) * 2), np.zeros(silos * classes)
    for row, signature, vector in zip(present, signatures, sums, strict=True):
        normal += np.kron(np.outer(row, row), signature @ signature.T)
        right += np.kron(row, signature @ vector)
    return np.asarray(np.linalg.solve(_ridged(normal, silos, ridge), right).reshape(silos, classes))


def likely_classes(counts: Matrix, held: int) -> list[frozenset[int]]:
    """The `held` classes with the largest counts, by silo."""
    return [frozenset(int(c) for c in np.argsort(-row, kind="stable")[:held]) for row in counts]


def cosine(a: Matrix, b: Matrix) -> float:
    """Of two vectors; 0 where one is 0."""
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), float(np.finfo(np.float64).tiny)))


def _ridged(normal: Matrix, silos: int, ridge: float) -> Matrix:
    """Normal equations with a ridge on differences between silos, and a faint one on what they share."""
    scale = float(np.trace(normal)) / len(normal)
    apart = np.kron(np.eye(silos) - 1.0 / silos, np.eye(len(normal) // silos))
    return np.asarray(normal + scale * (ridge * apart + 1e-9 * np.eye(len(normal))))
