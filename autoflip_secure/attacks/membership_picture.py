"""ROC curves of membership inference, both axes logarithmic: how many are found while few are mistaken counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from autoflip_secure.attacks.membership import Found

__all__ = ["draw", "roc"]

LEAST_RATE = 1e-3


def roc(scores: NDArray[np.float64], member: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(false-positive rates, true-positive rates) at every threshold, from the strictest on."""
    values, places = np.unique(-scores.ravel(), return_inverse=True)
    found = np.bincount(places[member.ravel()], minlength=values.size)
    wrong = np.bincount(places[~member.ravel()], minlength=values.size)
    return np.cumsum(wrong) / wrong.sum(), np.cumsum(found) / found.sum()


def draw(path: Path, panels: Mapping[str, Mapping[str, Found]]) -> None:
    """Write one picture with a panel for each group of records, a curve for each setting."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), sharey=True, layout="constrained")
    for axis, (title, curves) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for label, found in curves.items():
            axis.step(*roc(found.scores, found.member), where="post", label=label)
        axis.plot([LEAST_RATE, 1], [LEAST_RATE, 1], color="grey", linestyle=":", label="chance")
        axis.set(xscale="log", yscale="log", xlim=(LEAST_RATE, 1), ylim=(LEAST_RATE, 1.1), title=title)
        axis.set_xlabel("false positives")
    np.atleast_1d(axes)[0].set_ylabel("true positives")
    np.atleast_1d(axes)[0].legend(fontsize="small", loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
