"""What a list of noised releases costs: epsilon of a composition, and the noise multiplier that meets a target.

Every mechanism here is the Poisson-subsampled Gaussian under adding or removing one record, which covers full-batch
releases as sampling rate 1. Three independent accountants give upper bounds on epsilon:

- prv: Gopi, Lee and Wutschitz 2021 (arXiv 2106.02848), Opacus' implementation; the default.
- pld: privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022), dp-accounting, rounded pessimistically.
- rdp: Renyi DP (Mironov, Talwar and Zhang 2019), Opacus' implementation; loose by some ten percent but never fails.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError

__all__ = ["Accountant", "Mechanism", "check_delta", "deltas", "epsilon", "merged", "solve_noise_multiplier"]

Accountant = Literal["prv", "rdp", "pld"]

LEAST_DELTA = 1e-10
"""Below this the accountants' own floating-point error is no longer small beside delta."""
COARSE_EPSILON = 50.0
"""Above this no promise is left to be precise about, and the fine accountants' grids no longer fit in memory."""
PRV_RELATIVE_ERROR = 0.005
PRV_ERROR_RANGE = (2e-4, 0.01)
TOLERANCE = 1e-3
LEAST_EXPONENT, LARGEST_EXPONENT = -6, 24


@dataclass(frozen=True)
class Mechanism:
    """`count` uses of one Poisson-subsampled Gaussian.

    Attributes
    ----------
    sampling_rate : float
        Probability that a record takes part in a use, in (0, 1].
    noise_multiplier : float
        Standard deviation of the noise over the L2 sensitivity; 0 means no noise, hence no bound on epsilon.
    count : int
        Number of uses.
    """

    sampling_rate: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(f"sampling rate {self.sampling_rate} of a mechanism is not within (0, 1]")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ConfigError(f"noise multiplier {self.noise_multiplier} of a mechanism is negative or not finite")
        if self.count < 0:
            raise ConfigError(f"a mechanism cannot be used {self.count} times")


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms added up, unused ones dropped, in a canonical order."""
    uses: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        uses[mechanism.sampling_rate, mechanism.noise_multiplier] += mechanism.count
    return tuple(Mechanism(rate, noise, count) for (rate, noise), count in sorted(uses.items()) if count)


def check_delta(delta: float) -> None:
    """Raise ConfigError unless the accountants can work with this delta."""
    if not LEAST_DELTA <= delta < 1:
        raise ConfigError(f"--dp-delta {delta} is not within [{LEAST_DELTA}, 1); take less than 1 / records of a silo")


def epsilon(mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant = "prv") -> float:
    """Upper bound on epsilon of the composition at `delta`; infinite where a mechanism has no noise.

    Compositions that cost more than `COARSE_EPSILON` get the RDP bound from every accountant, and the PRV accountant
    hands over to PLD where its own discretisation does not hold.

    Raises
    ------
    ConfigError
        Unknown accountant, or a delta outside [1e-10, 1).
    """
    if accountant not in get_args(Accountant):
        raise ConfigError(f"unknown accountant {accountant!r}; there are {', '.join(get_args(Accountant))}")
    check_delta(delta)
    composition = merged(mechanisms)
    if not composition:
        return 0.0
    if any(mechanism.noise_multiplier == 0 for mechanism in composition):
        return math.inf
    return _epsilon(composition, delta, accountant)


def deltas(mechanisms: Sequence[Mechanism], epsilons: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper bounds on delta of the composition at each epsilon: its privacy profile, by the PLD accountant.

    With L the privacy loss of the worst pair of data sets, delta(epsilon) = E max(0, 1 - exp(epsilon - L)), the larger
    one of adding and of removing the record (Koskela et al. 2020; Doroshenko et al. 2022). L is composed once for all
    epsilons, discretised and rounded as `epsilon` with "pld" does it. Compositions with a use without noise, and those
    that cost more than `COARSE_EPSILON` at delta 1e-10 by RDP, get delta 1.

    Parameters
    ----------
    epsilons : sequence of float, length n
        In any order.

    Returns
    -------
    float64 array, shape (n,)
        Within [0, 1], and not larger at a larger epsilon.

    Raises
    ------
    ConfigError
        An epsilon is negative or no number.
    """
    asked = np.asarray(epsilons, np.float64)
    if not (asked >= 0).all():
        raise ConfigError(f"no delta belongs to an epsilon of {asked.min()}; it must not be negative")
    composition = merged(mechanisms)
    if not composition:
        return np.zeros(asked.shape)
    if any(mechanism.noise_multiplier == 0 for mechanism in composition):
        return np.ones(asked.shape)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if not _rdp(composition, LEAST_DELTA) <= COARSE_EPSILON:
            return np.ones(asked.shape)
        composed = _composed(composition)
        # One at a time: given all of them, dp-accounting walks its grid in Python, which takes far longer.
        return np.clip([composed.get_delta(float(each)) for each in asked], 0.0, 1.0)


@lru_cache(maxsize=4096)
def _epsilon(composition: tuple[Mechanism, ...], delta: float, accountant: Accountant) -> float:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rough = _rdp(composition, delta)
        if accountant == "rdp" or not rough <= COARSE_EPSILON:
            return rough
        if accountant == "prv":
            try:
                return _prv(composition, delta, rough)
            except (RuntimeError, ValueError):
                pass  # its discretisation refuses extreme settings; PLD's does not
        return _pld(composition, delta)


def _history(composition: Iterable[Mechanism]) -> list[tuple[float, float, int]]:
    return [(m.noise_multiplier, m.sampling_rate, m.count) for m in composition]


def _rdp(composition: tuple[Mechanism, ...], delta: float) -> float:
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = sum(
        mechanism.count * _renyi(mechanism.sampling_rate, mechanism.noise_multiplier) for mechanism in composition
    )
    value, _ = get_privacy_spent(orders=RDPAccountant.DEFAULT_ALPHAS, rdp=total, delta=delta)
    return math.inf if math.isnan(value) else max(float(value), 0.0)


@lru_cache(maxsize=4096)
def _renyi(sampling_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Renyi divergence of one use at each of Opacus' orders: those of several uses add up.

    Kept, since a run asks for the same mechanism with another count in every round.
    """
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = RDPAccountant.DEFAULT_ALPHAS
    curve = np.asarray(compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders))
    curve.setflags(write=False)
    return curve


def _prv(composition: tuple[Mechanism, ...], delta: float, rough: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = _history(composition)
    error = float(np.clip(PRV_RELATIVE_ERROR * rough, *PRV_ERROR_RANGE))
    value = float(accountant.get_epsilon(delta=delta, eps_error=error))
    if not math.isfinite(value):
        raise ValueError("the PRV accountant gave no finite bound")
    return value


def _pld(composition: tuple[Mechanism, ...], delta: float) -> float:
    return float(_composed(composition).get_epsilon(delta))


def _composed(composition: tuple[Mechanism, ...]) -> Any:
    """dp-accounting's PLDAccountant after the composition; pessimistic, on its own grid of 1e-4."""
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for mechanism in composition:
        gaussian = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
        event = dp_accounting.PoissonSampledDpEvent(mechanism.sampling_rate, gaussian)
        accountant.compose(event, mechanism.count)
    return accountant


def solve_noise_multiplier(
    uses: Sequence[tuple[float, int]],
    fixed: Sequence[Mechanism],
    epsilon: float,
    delta: float,
    accountant: Accountant = "prv",
) -> float:
    """Least noise multiplier, to a relative 1e-3 from above, with which `uses` and `fixed` together cost `epsilon`.

    Parameters
    ----------
    uses : sequence of (sampling rate, count)
        Releases that share the multiplier to be found.
    fixed : sequence of Mechanism
        Releases whose noise is already decided.
    epsilon, delta : float
        Target; the result's own epsilon is at most the target.

    Raises
    ------
    ConfigError
        The target is not positive, there is nothing to solve for, or no amount of noise meets it.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"--dp-epsilon {epsilon} is not a positive finite number")
    if not sum(count for _, count in uses):
        raise ConfigError("no release to solve a noise multiplier for; the plan has no steps")
    search = _Search(tuple(uses), tuple(fixed), epsilon, delta, accountant)
    floor = search.cost(None, accountant)
    if floor >= epsilon:
        raise ConfigError(
            f"--dp-epsilon {epsilon:g} is already spent by releases of fixed noise (epsilon {floor:.3g}); raise it"
        )
    return search.solve()


@dataclass(frozen=True)
class _Search:
    """Bracket by powers of two (RDP, cheap), then secant steps on the log-log curve from both sides."""

    uses: tuple[tuple[float, int], ...]
    fixed: tuple[Mechanism, ...]
    target: float
    delta: float
    accountant: Accountant

    def cost(self, multiplier: float | None, accountant: Accountant) -> float:
        solved = () if multiplier is None else tuple(Mechanism(rate, multiplier, count) for rate, count in self.uses)
        return epsilon(self.fixed + solved, self.delta, accountant)

    def excess(self, x: float) -> float:
        """log(cost / target) at multiplier exp(x); at most 0 where the target is met."""
        return math.log(max(self.cost(math.exp(x), self.accountant), 1e-300) / self.target)

    def enough(self, accountant: Accountant) -> float | None:
        """Least power of two that meets the target by `accountant`."""
        powers = (2.0**exponent for exponent in range(LEAST_EXPONENT, LARGEST_EXPONENT + 1))
        return next((power for power in powers if self.cost(power, accountant) <= self.target), None)

    def solve(self) -> float:
        least = self.enough("rdp")
        if least is None or self.excess(math.log(least)) > 0:
            least = self.enough(self.accountant)
        if least is None:
            raise ConfigError(
                f"--dp-epsilon {self.target:g} at --dp-delta {self.delta:g} cannot be met with any noise; raise it, or "
                "plan fewer steps"
            )
        high = math.log(least)
        while (low := high - math.log(2.0)) > LEAST_EXPONENT * math.log(2.0) and self.excess(low) <= 0:
            high = low
        if self.excess(low) <= 0:
            return math.exp(low)
        return math.exp(self.close_in(low, high))

    def close_in(self, low: float, high: float) -> float:
        below, above = self.excess(low), self.excess(high)
        step = 0
        while high - low > TOLERANCE:
            step += 1
            secant = low + (high - low) * below / (below - above) if math.isfinite(below) else (low + high) / 2
            middle = (low + high) / 2 if step % 3 == 0 else secant
            for x in (middle + 0.4 * TOLERANCE, middle - 0.4 * TOLERANCE):
                if not low < x < high:
                    continue
                value = self.excess(x)
                if value <= 0:
                    high, above = x, value
                else:
                    low, below = x, value
                    break
        return high
