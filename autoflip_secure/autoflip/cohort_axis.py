"""Fixed cohorts that stand apart along one direction, round after round: the trace of silos that train towards another
goal, read from the cohorts' sums alone.

Let bad silos update by f where honest ones update by h, and let k_c of a cohort's s silos be bad. Its mean is then
h + (k_c / s) (f - h), chance and what is peculiar to its silos' data, so that the cohorts' differences from their
average have *one* direction in common, with places along it that are spaced as k_c is. Chance and skewed data make
several directions of like strength. The Gram matrix of the differences tells the two apart by its two largest
eigenvalues; the first eigenvector is the cohorts' places. Means are compared at length 1: lengths are what the filter
judges by themselves, and a silo that sends more of what all send makes no axis.

Which end is clean no difference can say, but the average can while the model still learns: the silos' average is
h + q (f - h), q the part of bad silos, and clean cohorts agree with it more than spoilt ones as long as
<h - f, h> > q |f - h|^2. (Once an unfiltered model has settled between honest and bad silos the average is zero, and
says nothing.) So the ends are told by the first rounds, and by the majority of silos, not of cohorts; where these do
not tell them clearly nobody is judged.

A silo that knew how could make the others look spoilt: by a direction of its own, and more of what all send. Therefore
no more than half of the cohorts lose weight: the better half keeps its own whatever its places are, and the part of the
average that bad silos make up at most doubles. Where more cohorts than that are spoilt the price is that some stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["CohortAxis"]

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

APART, STILL_APART = 1.8, 1.5
"""Least ratio of the first eigenvalue to the second at which the axis starts, and goes on, to tell: above what honest
silos on Dirichlet(0.5) have in small federations, and below what a tenth of iid silos with flipped labels makes."""

SETTLING = 3
"""First rounds, which say which end is clean."""

JUDGED_FROM = 5
"""Rounds after which cohorts are judged."""

LEAST_SUPPORT = 0.03
"""By how much, in mean squared lengths of the cohorts' means, the clean end must agree better with the average."""

LEAST_COHORTS = 3
"""Fewest cohorts of like length in which a round is added: two have but one direction."""

ROUNDING = 1e-12
"""Trace a cohort of differences, at length 1, that is rounding and no difference."""


@dataclass(eq=False)
class CohortAxis:
    """What the rounds so far tell of m fixed cohorts. Made of public sums, so it may be kept in a checkpoint.

    Attributes
    ----------
    differences : float64 (m, m)
        Inner products of the cohorts' means, at length 1, less their average; each round's scaled to a trace of 1,
        summed.
    support : float64 (m,)
        Inner product of each mean with their average, less what cohorts have on average, in mean squared lengths;
        summed over the first `SETTLING` rounds.
    rounds : int
    told : bool
        Whether the axis told cohorts apart when it was last asked.
    """

    differences: Values
    support: Values
    rounds: int = 0
    told: bool = False

    @classmethod
    def of(cls, cohorts: int) -> Self:
        """Nothing known yet of so many cohorts."""
        return cls(np.zeros((cohorts, cohorts)), np.zeros(cohorts))

    def add(self, gram: Values, compared: Flags) -> None:
        """One more round: inner products of the cohorts' means, shape (m, m), and which of them are compared, (m,).

        The others, and those that did not move, count as the average. A round in which nothing differs is none.
        """
        lengths = np.sqrt(gram.diagonal())
        places = np.flatnonzero(compared & (lengths > 0.0))
        if len(places) < LEAST_COHORTS:
            return
        among = gram[np.ix_(places, places)]
        along = (among.mean(axis=1) - among.mean()) * len(places) / float(np.trace(among))
        among = among / np.outer(lengths[places], lengths[places])
        apart = among - among.mean(axis=0) - among.mean(axis=1)[:, None] + among.mean()
        trace = float(np.trace(apart))
        if not trace > ROUNDING * len(places):
            return
        self.differences[np.ix_(places, places)] += apart / trace
        if self.rounds < SETTLING:
            self.support[places] += along
        self.rounds += 1

    @property
    def ratio(self) -> float:
        """The first eigenvalue of the differences over the second, at least 1; 0 before any round."""
        if not self.rounds:
            return 0.0
        second, first = np.linalg.eigvalsh(self.differences)[-2:].tolist()
        return float(first / second) if second > 0.0 else float("inf")

    @property
    def is_apart(self) -> bool:
        """Whether one direction stands out, though it may not be known which of its ends is clean."""
        return self.rounds >= JUDGED_FROM and self.ratio >= (STILL_APART if self.told else APART)

    def weights(self) -> Values | None:
        """Weight of each cohort within [0, 1], shape (m,), or None where no direction, or neither end, stands out.

        1 at the clean end of the axis, 0 from half way to the other end on, linear between; and 1 for the better half.
        """
        places = np.linalg.eigh(self.differences)[1][:, -1]
        support = float(places @ self.support) / SETTLING
        self.told = self.is_apart and abs(support) >= LEAST_SUPPORT
        if not self.told:
            return None
        places = places * np.sign(support)
        behind = (places.max() - places) / (places.max() - places.min())
        weights = np.maximum(1.0 - 2.0 * behind, 0.0)
        weights[np.argsort(behind, kind="stable")[: -(-len(behind) // 2)]] = 1.0
        return weights

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        kept = {"differences": self.differences.tolist(), "support": self.support.tolist()}
        return {**kept, "rounds": self.rounds, "told": self.told}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(np.array(kept["differences"]), np.array(kept["support"]), kept["rounds"], kept["told"])
