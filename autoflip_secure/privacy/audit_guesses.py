"""How the adversary of an audit scores what it sees, and how many guesses it makes. Both follow from the plan alone."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.privacy.audit_bound import Guesses, epsilon_lower_bound, right_guesses

__all__ = ["declare_guesses", "evidence"]

FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
PARTS_OF_NOISE = (1.0, 0.5)
NEARLY_ALL = (0.45, True)
"""Not all: how many canaries are in is not known, only that it is half of them give or take a few."""
REHEARSALS = 5
MOST_REHEARSED = 20_000
LARGEST_EXPONENT = 700.0


def evidence(seen: NDArray[np.float64], sampling_rate: float, noise: float) -> NDArray[np.float64]:
    """Log likelihood ratio, in against out, of one release: the most telling score there is.

    A canary that is in shows as a normal of mean 1 with probability `sampling_rate` and of mean 0 otherwise, one that
    is out as mean 0, both of standard deviation `noise`: log(1 + rate (exp((2 x - 1) / (2 noise^2)) - 1)).

    Parameters
    ----------
    seen : float64 array, shape (canaries,)
        Each canary's coordinate of the release, in clipping norms.
    """
    exponent = np.minimum((2.0 * seen - 1.0) / (2.0 * noise**2), LARGEST_EXPONENT)
    if sampling_rate == 1.0:
        return np.asarray(exponent)
    return np.asarray(np.log1p(sampling_rate * np.expm1(exponent)))


def declare_guesses(canaries: int, mechanism: Mechanism, delta: float, confidence: float) -> tuple[Guesses, ...]:
    """Guesses to make about a mechanism, fixed before it runs: those that did best in rehearsals, and all.

    The rehearsals draw continuous Gaussians from a public seed, with the promised noise and with half of it, so they
    know nothing of the run. Guessing about nearly all is there for mechanisms that are far weaker than promised.
    """
    best = [_rehearsed(min(canaries, MOST_REHEARSED), mechanism, part, delta, confidence) for part in PARTS_OF_NOISE]
    return tuple(dict.fromkeys(_guesses(canaries, *choice) for choice in (*best, NEARLY_ALL)))


def _rehearsed(canaries: int, mechanism: Mechanism, part: float, delta: float, confidence: float) -> tuple[float, bool]:
    """Fraction of canaries to guess about at each end, and whether at both, that shows most on average."""
    draw = np.random.default_rng(canaries)
    rate, noise = mechanism.sampling_rate, mechanism.noise_multiplier
    share = 1.0 - (1.0 - confidence) / (len(PARTS_OF_NOISE) + 1)
    gains: defaultdict[tuple[float, bool], float] = defaultdict(float)
    for _ in range(REHEARSALS):
        included = draw.random(canaries) < 0.5
        scores = np.zeros(canaries)
        for _ in range(mechanism.count):
            sampled = included & (draw.random(canaries) < rate)
            scores += evidence(sampled + part * noise * draw.standard_normal(canaries), rate, noise)
        for choice in product(FRACTIONS, (True, False)):
            guesses = _guesses(canaries, *choice)
            right = right_guesses(scores, included, guesses)
            gains[choice] += epsilon_lower_bound(canaries, guesses.count, right, delta, share)
    return max(gains, key=lambda choice: gains[choice])


def _guesses(canaries: int, fraction: float, both: bool) -> Guesses:
    count = max(1, round(fraction * canaries))
    return Guesses(count, count if both else 0)
