from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.accounting import epsilon
from autoflip_secure.privacy.discrete_noise import per_silo_std
from autoflip_secure.privacy.plan import CENSUS_USES, GRID_SHARE, PrivacyPlan, solve_plan

TERMS: dict[str, Any] = {
    "trust": "distributed", "epsilon": 8.0, "delta": 1e-5, "colluders": 3, "clip": 0.1, "sampling_rate": 0.1,
    "train_steps": 60, "evaluations": 6, "census_noise_multiplier": 20.0,
}  # fmt: skip
RDP = TERMS | {"accountant": "rdp", "sampling_rate": 1.0}


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return solve_plan(**TERMS)


def test_each_data_set_costs_the_whole_budget_and_no_more(plan: PrivacyPlan) -> None:
    for dataset in ("train", "holdout"):
        assert 7.9 < plan.cost(dataset) <= 8.0
        # Another accountant, from the list of mechanisms alone.
        assert epsilon(plan.mechanisms(dataset), plan.delta, "pld") == pytest.approx(8.0, rel=0.01)


def test_the_census_is_paid_from_the_training_budget(plan: PrivacyPlan) -> None:
    assert sum(m.count for m in plan.mechanisms("train")) == 60 + CENSUS_USES
    dearer = solve_plan(**RDP | {"census_noise_multiplier": 3.0})
    cheaper = solve_plan(**RDP)
    assert dearer.noise_multiplier > cheaper.noise_multiplier
    assert dearer.evaluation_noise_multiplier == cheaper.evaluation_noise_multiplier


def test_reserve_for_retries_costs_noise() -> None:
    assert solve_plan(**RDP | {"train_steps": 80}).noise_multiplier > solve_plan(**RDP).noise_multiplier


def test_part_of_delta_is_kept_for_the_grid_and_suffices(plan: PrivacyPlan) -> None:
    assert plan.accounting_delta == plan.delta * (1 - GRID_SHARE)
    assert replace(plan, trust="local").accounting_delta == plan.accounting_delta  # its metrics are grid sums too
    std = per_silo_std(plan.noise_multiplier, 8192, 26_000, 7, plan.rounding_failure)
    gap = plan.check_grid(std, 7, 26_000)
    assert 0 < gap <= GRID_SHARE * plan.delta
    assert gap + plan.accounting_delta <= plan.delta
    with pytest.raises(ConfigError, match="use more bits"):
        plan.check_grid(2.0, 7, 26_000)


def test_no_trust_means_no_promise_and_no_noise() -> None:
    plain = solve_plan(**TERMS | {"trust": "none", "epsilon": None, "census_noise_multiplier": 0.0})
    assert plain.noise_multiplier == plain.evaluation_noise_multiplier == 0
    assert math.isinf(plain.epsilon)
    assert math.isinf(plain.cost("train"))
    assert plain.budgets() == {"train": math.inf, "holdout": math.inf}
    assert plain.promise().startswith("No differential privacy")


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_the_promise_names_everything_that_matters(plan: PrivacyPlan, trust: str) -> None:
    words = replace(plan, trust=trust).promise()
    for part in ("(8, 1e-05)", trust, "PRV"):
        assert part in words
    assert "each patient's record at one silo" in words
    assert ("every other silo" in words) == (trust == "local")
    assert ("up to 3 colluding silo" in words) == (trust == "distributed")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 0.0}, "--dp-epsilon"),
        ({"epsilon": math.nan}, "--dp-epsilon"),
        ({"epsilon": math.inf}, "--dp-epsilon"),
        ({"epsilon": None}, "--dp-epsilon"),
        ({"delta": 0.0}, "--dp-delta"),
        ({"delta": 1.0}, "--dp-delta"),
        ({"trust": "central"}, "--dp-trust"),
        ({"trust": "none"}, "--dp-trust none"),
        ({"colluders": -1}, "--colluders"),
        ({"clip": 0.0}, "clip"),
        ({"sampling_rate": 1.5}, "sampling rate"),
        ({"train_steps": -1}, "training steps"),
        ({"accountant": "gdp"}, "accountant"),
        ({"census_noise_multiplier": 0.3}, "--dp-epsilon"),
    ],
)
def test_bad_options_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        solve_plan(**TERMS | change)


@pytest.mark.parametrize("field", ["noise_multiplier", "evaluation_noise_multiplier"])
def test_a_promise_without_noise_cannot_be_built(plan: PrivacyPlan, field: str) -> None:
    with pytest.raises(ConfigError, match="needs noise"):
        replace(plan, **{field: 0.0})


def test_unknown_data_set_is_refused(plan: PrivacyPlan) -> None:
    with pytest.raises(ConfigError, match="validation"):
        plan.mechanisms("validation")
