"""Fixed cohorts that stand apart along one direction, round after round: the trace of silos that train towards another
goal, read from the cohorts' sums alone.

Let bad silos update by f where honest ones update by h, and let k_c of a cohort's s silos be bad. Its mean is then
h + (k_c / s) (f - h) and chance, so that the m cohorts, less their average, lie along *one* direction, at places that
are spaced as k_c is; chance spreads them over all m - 1 directions alike. The Gram matrix of the differences tells the
two apart: its largest eigenvalue has 1 / (m - 1) of the trace by chance, and most of it where silos flip labels, in the
first round already. The eigenvector is the cohorts' places.

Which end is clean no difference can say, but the average can while the model still learns: the silos' average is
h + q (f - h), q the part of bad silos, and clean cohorts agree with it more than spoilt ones as long as
<h - f, h> > q |f - h|^2. (Once an unfiltered model has settled between honest and bad silos the average is zero, and
says nothing.) So the ends are told by the first rounds, and by the majority of silos, not of cohorts.

A silo that knew how could pull its cohort to the clean end and so set all others aside. Therefore no more than half of
the cohorts lose weight: the better half keeps its own whatever its places are, and such a silo's part of the average at
most doubles. Where more cohorts than that are spoilt the price is that some of them stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["CohortAxis"]

Values = NDArray[np.float64]

APART = 1.5
"""Least part of the trace on the first direction, in parts that chance gives it: honest iid cohorts have 1.04 to 1.2,
cohorts of Dirichlet(0.5) silos mostly below 1.6, flipped labels of a tenth of the silos 1.9 to 3."""

SETTLING = 3
"""Rounds that say which end is clean; before their end no cohort is judged."""

LEAST_SUPPORT = 0.02
"""By how much, in mean squared lengths of the cohorts' means, the clean end must agree better with the average."""


@dataclass(eq=False)
class CohortAxis:
    """What the rounds so far tell of m fixed cohorts. Sums of public numbers, so it may be kept in a checkpoint.

    Attributes
    ----------
    differences : float64 (m, m)
        Inner products of the cohorts' means less their average, each round's scaled to a trace of 1, summed.
    support : float64 (m,)
        Inner product of each mean with their average, less what cohorts have on average, in mean squared lengths;
        summed over the first `SETTLING` rounds.
    rounds : int
    """

    differences: Values
    support: Values
    rounds: int = 0

    @classmethod
    def of(cls, cohorts: int) -> Self:
        """Nothing known yet of so many cohorts."""
        return cls(np.zeros((cohorts, cohorts)), np.zeros(cohorts))

    def add(self, gram: Values) -> None:
        """One more round: inner products of the cohorts' means, shape (m, m). A round in which nothing differs is none.

        Privacy noise, alike in all directions, adds to every eigenvalue, so it can hide an axis but makes none.
        """
        centred = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
        trace = float(np.trace(centred))
        if not trace > 0.0:
            return
        self.differences += centred / trace
        if self.rounds < SETTLING:
            self.support += (gram.mean(axis=1) - gram.mean()) * len(gram) / float(np.trace(gram))
        self.rounds += 1

    @property
    def share(self) -> float:
        """Part of the differences that lies along the first direction, 0 before any; 1 / (m - 1) by chance."""
        return float(np.linalg.eigvalsh(self.differences)[-1]) / self.rounds if self.rounds else 0.0

    def weights(self) -> Values | None:
        """Weight of each cohort within [0, 1], shape (m,), or None where no direction, or neither end, stands out.

        1 at the clean end of the axis, 0 from half way to the other end on, linear between; and 1 for the better half.
        """
        if self.rounds < SETTLING or self.share * (len(self.support) - 1) < APART:
            return None
        places = np.linalg.eigh(self.differences)[1][:, -1]
        support = float(places @ self.support) / SETTLING
        if abs(support) < LEAST_SUPPORT:
            return None
        places = places * np.sign(support)
        behind = (places.max() - places) / (places.max() - places.min())
        weights = np.maximum(1.0 - 2.0 * behind, 0.0)
        weights[np.argsort(behind, kind="stable")[: -(-len(behind) // 2)]] = 1.0
        return weights

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"differences": self.differences.tolist(), "support": self.support.tolist(), "rounds": self.rounds}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(np.array(kept["differences"]), np.array(kept["support"]), kept["rounds"])
