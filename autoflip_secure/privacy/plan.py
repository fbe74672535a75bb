"""The plan of a session: what it promises, what it will release, with how much noise. Solved once, before round 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.accounting import Accountant, Mechanism, check_delta, epsilon, solve_noise_multiplier
from autoflip_secure.privacy.discrete_noise import discretisation_delta

__all__ = ["DATASETS", "GRID_SHARE", "UNITS", "PrivacyPlan", "accounting_delta", "solve_plan"]

TRUST_MODES = ("none", "local", "distributed")
DATASETS = ("train", "holdout")
CENSUS_USES = 3
"""One release of record counts, and two for attempts that are aborted or interrupted."""
GRID_SHARE = 1e-3
"""Part of delta kept for the gap between discrete and continuous noise; the accountant gets the rest."""

ADVERSARIES = {
    "local": "It holds even if the coordinator and every other silo work together.",
    "distributed": (
        "It holds against the coordinator together with up to {colluders} colluding silo(s), as long as the others "
        "that the secure sum counts as honest add their noise; it does not hold against more colluding silos."
    ),
}
UNITS = {
    "record": ("each patient's record", "that record is", ", or several records at one,"),
    "patient": ("each patient, with all of the patient's records,", "they are", ""),
}
"""Unit of the promise, in words: what is protected, what is added or removed, and what else is not covered."""


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything about privacy that is fixed before the first round. Make one with `solve_plan`.

    The holdout set holds other patients than the training set, so each has the whole budget to itself and together they
    cost the larger of the two (parallel composition).

    Attributes
    ----------
    trust : str
        none, local or distributed.
    epsilon, delta : float
        The promise for the whole session; epsilon is infinite with trust none.
    colluders : int
        Silos that may work with the coordinator (distributed).
    clip : float
        L2 bound on one record's gradient.
    sampling_rate : float
        Poisson sampling rate of training records.
    train_steps : int
        Noised uses of the training records: exploration and rounds with their reserve for retries, times the local
        steps of a round in local mode.
    noise_multiplier : float
        Of those uses.
    evaluations : int
        Noised uses of the holdout records, reserve included, all records each time.
    evaluation_noise_multiplier : float
        Of those uses.
    census_noise_multiplier : float
        Of the release of record counts from the training budget (`CENSUS_USES`); 0 where there is no census.
    accountant : str
        prv, rdp or pld.
    unit : str
        What sampling rate, clip and noise are about: a record, or a patient with all records at the silo.
    """

    trust: str
    epsilon: float
    delta: float
    colluders: int
    clip: float
    sampling_rate: float
    train_steps: int
    noise_multiplier: float
    evaluations: int = 0
    evaluation_noise_multiplier: float = 0.0
    census_noise_multiplier: float = 0.0
    accountant: Accountant = "prv"
    unit: str = "record"

    def __post_init__(self) -> None:
        _check_terms(self)
        noises = (self.noise_multiplier, self.evaluation_noise_multiplier, self.census_noise_multiplier)
        if not all(math.isfinite(noise) and noise >= 0 for noise in noises):
            raise ConfigError(f"noise multipliers {noises} hold a negative or non-finite number")
        if self.trust == "none":
            if any(noises) or not math.isinf(self.epsilon):
                raise ConfigError("--dp-trust none promises nothing; leave out --dp-epsilon and all noise")
            return
        if self.train_steps and not self.noise_multiplier:
            raise ConfigError(f"--dp-trust {self.trust} needs noise on the training steps, the multiplier is 0")
        if self.evaluations and not self.evaluation_noise_multiplier:
            raise ConfigError(f"--dp-trust {self.trust} needs noise on the evaluations, the multiplier is 0")

    @property
    def accounting_delta(self) -> float:
        """Delta the accountant and the ledger work at; the rest of `delta` pays for the grid of distributed noise."""
        return accounting_delta(self.trust, self.delta)

    @property
    def rounding_failure(self) -> float:
        """Failure probability of one sum's rounding bound, for `per_silo_std`: half the grid's share over all sums."""
        return GRID_SHARE * self.delta / (2.0 * max(1, self.releases))

    @property
    def releases(self) -> int:
        """Noised releases of the whole session, over both data sets."""
        return self.train_steps + self.evaluations + (CENSUS_USES if self.census_noise_multiplier else 0)

    def mechanisms(self, dataset: str) -> tuple[Mechanism, ...]:
        """What the session will do to the training (`train`) or the `holdout` records."""
        planned: tuple[Mechanism, ...]
        if dataset == "train":
            steps = Mechanism(self.sampling_rate, self.noise_multiplier, self.train_steps)
            census = Mechanism(1.0, self.census_noise_multiplier, CENSUS_USES if self.census_noise_multiplier else 0)
            planned = (steps, census)
        elif dataset == "holdout":
            planned = (Mechanism(1.0, self.evaluation_noise_multiplier, self.evaluations),)
        else:
            raise ConfigError(f"unknown record set {dataset!r}; there are {', '.join(DATASETS)}")
        return tuple(mechanism for mechanism in planned if mechanism.count)

    def cost(self, dataset: str) -> float:
        """Epsilon of the whole planned use of one data set, at `accounting_delta`."""
        return epsilon(self.mechanisms(dataset), self.accounting_delta, self.accountant)

    def budgets(self) -> Mapping[str, float]:
        """Epsilon of each data set, as the ledger takes it."""
        return dict.fromkeys(DATASETS, self.epsilon)

    def check_grid(self, per_silo_std: float, honest: int, length: int) -> float:
        """Delta lost to the grid over the session's distributed sums of `length` coordinates; at most its share.

        Raises
        ------
        ConfigError
            The grid is too coarse for the promise.
        """
        gap = discretisation_delta(per_silo_std, honest, length, self.releases, self.epsilon, self.rounding_failure)
        if gap > GRID_SHARE * self.delta:
            raise ConfigError(
                f"the grid of the noised sums costs {gap:.2g} of delta, above {GRID_SHARE:g} of --dp-delta "
                f"{self.delta:g}; use more bits a value"
            )
        return gap

    def promise(self) -> str:
        """The promise in plain words."""
        if self.trust == "none":
            return "No differential privacy: what sums show about single patients is not bounded (no --dp-epsilon)."
        who = ADVERSARIES[self.trust].format(colluders=self.colluders)
        what, added, less = UNITS[self.unit]
        return (
            f"({self.epsilon:g}, {self.delta:g})-differential privacy for {what} at one silo: "
            f"everything the session shows changes by at most this much when {added} added or removed: "
            f"exploration, rounds, metrics and final model together. Trust mode: {self.trust}. {who} "
            f"Accountant: {self.accountant.upper()}. "
            f"A patient with records at several silos{less} is covered by less."
        )


def accounting_delta(trust: str, delta: float) -> float:
    """Delta at which accountant and ledgers work: sums noised on the grid keep `GRID_SHARE` of it for the grid."""
    return delta if trust == "none" else delta * (1.0 - GRID_SHARE)


def _check_terms(plan: PrivacyPlan) -> None:
    if plan.trust not in TRUST_MODES:
        raise ConfigError(f"--dp-trust {plan.trust!r} is unknown; take {', '.join(TRUST_MODES)}")
    if plan.unit not in UNITS:
        raise ConfigError(f"unknown unit of privacy {plan.unit!r}; there are {', '.join(UNITS)}")
    if plan.accountant not in get_args(Accountant):
        raise ConfigError(f"unknown accountant {plan.accountant!r}; there are {', '.join(get_args(Accountant))}")
    if not plan.epsilon > 0 or (plan.trust != "none" and math.isinf(plan.epsilon)):
        raise ConfigError(f"--dp-epsilon {plan.epsilon} is not a positive finite number")
    check_delta(plan.delta)
    if plan.colluders < 0:
        raise ConfigError(f"--colluders {plan.colluders} is negative")
    if not (math.isfinite(plan.clip) and plan.clip > 0):
        raise ConfigError(f"the clip of a record's gradient, {plan.clip}, is not positive and finite")
    if not 0 < plan.sampling_rate <= 1:
        raise ConfigError(f"the sampling rate {plan.sampling_rate} is not within (0, 1]")
    if plan.train_steps < 0 or plan.evaluations < 0:
        raise ConfigError(f"{plan.train_steps} training steps and {plan.evaluations} evaluations cannot be planned")


def solve_plan(
    *,
    trust: str,
    epsilon: float | None,
    delta: float,
    colluders: int,
    clip: float,
    sampling_rate: float,
    train_steps: int,
    evaluations: int = 0,
    census_noise_multiplier: float = 0.0,
    accountant: Accountant = "prv",
    unit: str = "record",
) -> PrivacyPlan:
    """Solve all noise multipliers of a session so that each data set costs at most `epsilon`.

    Parameters are those of `PrivacyPlan`; `epsilon` is None with trust none, where `census_noise_multiplier` must be 0.

    Raises
    ------
    ConfigError
        An option is out of its range, or no noise meets the target.
    """
    if (epsilon is None) != (trust == "none"):
        raise ConfigError(f"--dp-trust {trust} and --dp-epsilon {epsilon} contradict each other; DP needs both")
    target = math.inf if epsilon is None else epsilon
    sketch = PrivacyPlan(
        trust, target, delta, colluders, clip, sampling_rate, 0, 0.0,
        census_noise_multiplier=census_noise_multiplier, accountant=accountant, unit=unit,
    )  # fmt: skip
    train = holdout = 0.0
    if trust != "none":
        limit = sketch.accounting_delta
        if train_steps > 0:
            fixed = sketch.mechanisms("train")
            train = solve_noise_multiplier([(sampling_rate, train_steps)], fixed, target, limit, accountant)
        if evaluations > 0:
            holdout = solve_noise_multiplier([(1.0, evaluations)], (), target, limit, accountant)
    return PrivacyPlan(
        trust, target, delta, colluders, clip, sampling_rate, train_steps, train, evaluations, holdout,
        census_noise_multiplier, accountant, unit,
    )  # fmt: skip
