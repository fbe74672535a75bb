"""Epsilon as the public schedule implies it, round by round, for metrics and progress."""

from __future__ import annotations

from autoflip_secure.federation.plan import SessionPlan
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.plan import CENSUS_USES

__all__ = ["spent_after"]


def spent_after(plan: SessionPlan, schedule: Schedule, rounds: int, spare_steps: int) -> float | None:
    """Epsilon of a silo that took part in every attempt of `rounds` rounds, and in retries of `spare_steps` steps.

    Silos that were absent have spent less; each silo's ledger is the record that counts. None without DP.
    """
    if plan.config.trust == "none":
        return None
    explored = sum(schedule.is_exploration(r) for r in range(rounds))
    steps = explored * plan.train_terms(True).steps + (rounds - explored) * plan.train_terms(False).steps
    privacy = plan.privacy
    used = [Mechanism(privacy.sampling_rate, privacy.noise_multiplier, steps + spare_steps)]
    if privacy.census_noise_multiplier:
        used.append(Mechanism(1.0, privacy.census_noise_multiplier, CENSUS_USES))
    return epsilon(used, privacy.accounting_delta, privacy.accountant)
