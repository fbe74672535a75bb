"""Lower bound on epsilon from guesses about canaries in one training run (Steinke, Nasr and Jagielski 2023).

Source: "Privacy Auditing with One (1) Training Run", arXiv 2305.08846, Theorem 5.2. Each of m canaries is included with
probability 1/2, independently. An adversary that sees what an (epsilon, delta)-DP mechanism put out makes r guesses,
"in" or "out", about canaries of its choice. With W ~ Binomial(r, q), q = 1 / (1 + exp(-epsilon)), for every v

    P[at least v guesses are right] <= P[W >= v] + 2 m delta max_{1 <= i <= v} P[v - i <= W < v] / i.

The first term is randomised response, the most that delta = 0 allows; the second is what delta can add. The numbers of
"in" and of "out" guesses must not depend on the run; several such numbers may be tried if confidence is divided among
them (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError

__all__ = ["Guesses", "Verdict", "best_bound", "epsilon_lower_bound", "p_value", "right_guesses"]

LARGEST_EPSILON = 64.0
COARSE_STEP = 0.25
FINE_STEP = 1e-4


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Largest probability, under (epsilon, delta)-DP, of at least `right` right guesses out of `guesses`.

    Raises
    ------
    ConfigError
        Not 0 <= right <= guesses <= canaries, or epsilon or delta out of range.
    """
    from scipy.special import expit
    from scipy.stats import binom

    if not 0 <= right <= guesses <= canaries:
        raise ConfigError(f"{right} right of {guesses} guesses about {canaries} canaries cannot be")
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ConfigError(f"({epsilon}, {delta})-DP is no promise to test")
    if right == 0:
        return 1.0
    accuracy = expit(epsilon)
    chance = float(binom.sf(right - 1, guesses, accuracy))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))
    gain = float((below / np.arange(1, right + 1)).max())
    return min(1.0, chance + 2.0 * canaries * delta * gain)


def epsilon_lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """With at least this confidence the mechanism is not (epsilon, delta)-DP for any epsilon below the result.

    The result is the FIRST epsilon at which the p-value reaches 1 - confidence, found in coarse steps and then by
    bisection: nothing rests on the p-value being monotone far away. 0 where nothing was shown.

    Raises
    ------
    ConfigError
        The confidence is not within (0, 1), or see `p_value`.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"a confidence of {confidence} is not within (0, 1)")
    level = 1.0 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) < level

    if not refuted(0.0):
        return 0.0
    low = 0.0
    while refuted(low + COARSE_STEP):
        low += COARSE_STEP
        if low >= LARGEST_EPSILON:
            return low
    high = low + COARSE_STEP
    while high - low > FINE_STEP:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Guesses:
    """How many guesses an adversary makes, fixed before the run.

    Attributes
    ----------
    high : int
        "In", for the canaries of the highest scores.
    low : int
        "Out", for the canaries of the lowest scores.
    """

    high: int
    low: int

    @property
    def count(self) -> int:
        """All guesses; the adversary abstains on the other canaries."""
        return self.high + self.low


@dataclass(frozen=True)
class Verdict:
    """What the best of the declared guesses shows.

    Attributes
    ----------
    epsilon : float
        The lower bound.
    guesses : Guesses
    right : int
    """

    epsilon: float
    guesses: Guesses
    right: int


def right_guesses(scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: Guesses) -> int:
    """How many are right. Ties are broken by position, which says nothing about inclusion."""
    order = np.argsort(-scores, kind="stable")
    high = included[order[: guesses.high]]
    low = included[order[len(order) - guesses.low :]]
    return int(high.sum()) + int((~low).sum())


def best_bound(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    declared: tuple[Guesses, ...],
    delta: float,
    confidence: float = 0.95,
) -> Verdict:
    """The largest lower bound over all declared guesses, each at 1 - (1 - confidence) / number of them.

    Parameters
    ----------
    scores : float64 array, shape (canaries,)
        Higher where a canary rather was in.
    included : bool array, shape (canaries,)
        The truth.

    Raises
    ------
    ConfigError
        Scores and truth do not fit each other, nothing was declared, or see `epsilon_lower_bound`.
    """
    if scores.shape != included.shape or scores.ndim != 1 or not declared:
        raise ConfigError(f"scores {scores.shape}, canaries {included.shape} and {len(declared)} guesses do not fit")
    if not np.isfinite(scores).all():
        raise ConfigError("a canary's score is not finite")
    share = 1.0 - (1.0 - confidence) / len(declared)
    verdicts = []
    for guesses in declared:
        right = right_guesses(scores, included, guesses)
        bound = epsilon_lower_bound(len(scores), guesses.count, right, delta, share)
        verdicts.append(Verdict(bound, guesses, right))
    return max(verdicts, key=lambda verdict: (verdict.epsilon, verdict.right / verdict.guesses.count))
