"""Turns a resolved configuration into the session's privacy plan, and the plan into the terms of each manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.task import Task
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sums import LEAST_RESERVE, reserve_attempts
from autoflip_secure.federation.terms import COUNT_SENSITIVITY, METRIC_SENSITIVITY
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.privacy.plan import DATASETS, PrivacyPlan, solve_plan
from autoflip_secure.sums.manifest import PrivacyTerms

__all__ = ["SessionPlan", "round_steps", "session_plan"]

CENSUS_NOISE = 20.0
"""Noise multiplier of the one count of patients: costs a few hundredths of epsilon, and 20 patients of error a silo."""


@dataclass(frozen=True)
class SessionPlan:
    """The privacy plan together with what a manifest needs to say about each kind of round."""

    config: ResolvedConfig
    privacy: PrivacyPlan

    def mechanisms(self) -> dict[str, list[Mechanism]]:
        """Planned uses by data set; empty without DP."""
        if self.config.trust == "none":
            return {}
        return {dataset: list(self.privacy.mechanisms(dataset)) for dataset in DATASETS}

    def train_terms(self, exploring: bool) -> PrivacyTerms:
        """Terms of an exploration or training round."""
        config = self.config
        if config.trust == "none":
            return self._terms("train", 1.0, self._steps(exploring), 0.0, 0.0)
        steps = self._steps(exploring)
        return self._terms("train", config.sampling_rate, steps, self.privacy.noise_multiplier, config.clip)

    def census_terms(self) -> PrivacyTerms:
        """Terms of the count of records."""
        return self._terms("train", 1.0, 1, self.privacy.census_noise_multiplier, COUNT_SENSITIVITY)

    def evaluation_terms(self) -> PrivacyTerms:
        """Terms of scoring held-out records."""
        return self._terms("holdout", 1.0, 1, self.privacy.evaluation_noise_multiplier, METRIC_SENSITIVITY)

    def _steps(self, exploring: bool) -> int:
        return round_steps(self.config, exploring)

    def _terms(self, dataset: str, rate: float, steps: int, multiplier: float, clip: float) -> PrivacyTerms:
        config = self.config
        return PrivacyTerms(
            trust=config.trust,
            dataset=dataset,
            sampling_rate=rate,
            steps=steps,
            noise_multiplier=multiplier if config.trust != "none" else 0.0,
            clip=clip,
            colluders=config.colluders,
            delta=config.dp_delta,
        )


def round_steps(config: ResolvedConfig, exploring: bool) -> int:
    """Steps that silos take in an exploring round, or in one that trains."""
    if config.trust == "distributed":
        return 1
    return config.explore_steps if exploring else config.local_steps


def session_plan(config: ResolvedConfig, task: Task, schedule: Schedule, *, public_test: bool) -> SessionPlan:
    """Solve the noise of a whole session, once.

    Raises
    ------
    ConfigError
        No noise meets the budget.
    """
    evaluations = 0 if public_test else config.evaluations + LEAST_RESERVE
    census = 0.0 if task.nominal_records or config.trust == "none" else CENSUS_NOISE
    privacy = solve_plan(
        trust=config.trust,
        epsilon=config.dp_epsilon,
        delta=config.dp_delta,
        colluders=config.colluders,
        clip=config.clip,
        sampling_rate=config.sampling_rate,
        train_steps=_train_steps(config, schedule),
        evaluations=evaluations,
        census_noise_multiplier=census,
        unit=task.unit,
    )
    return SessionPlan(config, privacy)


def _train_steps(config: ResolvedConfig, schedule: Schedule) -> int:
    """Uses of the training records, reserve included: spare attempts, and under local trust one of exploration too."""
    spare = reserve_attempts(config, schedule.rounds)
    if config.trust != "local":
        return schedule.rounds + spare
    explored = sum(schedule.is_exploration(r) for r in range(schedule.rounds))
    trained = (schedule.rounds - explored + spare) * config.local_steps
    return trained + (explored + min(explored, 1)) * config.explore_steps


def describe(plan: SessionPlan) -> dict[str, Any]:
    """What the report says about privacy."""
    privacy = plan.privacy
    return {
        "promise": privacy.promise(),
        "unit": privacy.unit,
        "noise_multiplier": privacy.noise_multiplier,
        "evaluation_noise_multiplier": privacy.evaluation_noise_multiplier,
        "census_noise_multiplier": privacy.census_noise_multiplier,
        "planned_steps": privacy.train_steps,
    }
