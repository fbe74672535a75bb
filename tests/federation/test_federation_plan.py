"""The session's privacy plan: it pays for every planned and spare attempt, and what is reported stays within it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from autoflip_secure.federation import plan as plan_module
from autoflip_secure.federation.plan import CENSUS_NOISE, SessionPlan, describe, session_plan
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.spending import spent_after
from autoflip_secure.federation.sums import LEAST_RESERVE, reserve_attempts
from autoflip_secure.federation.terms import METRIC_SENSITIVITY
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.plan import CENSUS_USES, PrivacyPlan, accounting_delta, solve_plan

OPTIONS: dict[str, dict[str, Any]] = {
    "distributed": {"dp_epsilon": 4.0, "rounds": 12, "explore_rounds": 3, "prune": "autoflip", "silos": 6},
    "local": {"dp_epsilon": 4.0, "dp_trust": "local", "rounds": 12, "prune": "autoflip", "silos": 6,
              "local_steps": 3, "explore_steps": 7},
}  # fmt: skip


@pytest.fixture(scope="module")
def plans(make_config, task) -> dict[str, tuple[SessionPlan, Schedule]]:
    """A solved plan of each trust mode, with a census and evaluations."""
    from dataclasses import replace

    secret_total = replace(task, nominal_records=None)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        # The loosest accountant is also the fastest; what it is asked is the same.
        patch.setattr(plan_module, "solve_plan", partial(solve_plan, accountant="rdp"))
        for trust, options in OPTIONS.items():
            config = make_config(**options)
            schedule = Schedule(config)
            found[trust] = session_plan(config, secret_total, schedule, public_test=False), schedule
    return found


@pytest.fixture
def planned(make_config, task, monkeypatch: pytest.MonkeyPatch):
    """planned(public_test, **options) -> what would be solved for, without solving it."""

    def ask(public_test: bool = True, task=task, **options: Any) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        monkeypatch.setattr(plan_module, "solve_plan", lambda **values: asked.update(values))
        config = make_config(**options)
        session_plan(config, task, Schedule(config), public_test=public_test)
        return asked

    return ask


def spare_steps(plan: SessionPlan, schedule: Schedule) -> int:
    """Uses that the reserve pays for: training attempts, and under local trust an exploration beside them."""
    spare = reserve_attempts(plan.config, schedule.rounds) * plan.train_terms(False).steps
    return spare + (plan.train_terms(True).steps if plan.config.trust == "local" else 0)


def test_every_distributed_round_is_one_use_and_the_reserve_more(planned) -> None:
    asked = planned(dp_epsilon=3.0, rounds=50, reserve=0.1)
    assert asked["train_steps"] == 50 + 5 + LEAST_RESERVE
    asked = planned(dp_epsilon=3.0, rounds=50, reserve=0.1, prune="autoflip", explore_rounds=10, silos=6)
    assert asked["train_steps"] == 57


def test_local_rounds_are_as_many_uses_as_steps_and_one_exploration_is_spare(planned) -> None:
    local = {"dp_epsilon": 3.0, "dp_trust": "local", "rounds": 50, "reserve": 0.1, "silos": 6}
    assert planned(**local, local_steps=4, prune="none")["train_steps"] == 57 * 4
    explored = planned(**local, local_steps=4, explore_steps=9, prune="autoflip")
    assert explored["train_steps"] == (49 + 7) * 4 + 2 * 9


def test_evaluations_and_census_are_planned_only_where_they_happen(planned, task) -> None:
    from dataclasses import replace

    secret_total = replace(task, nominal_records=None)
    private = {"dp_epsilon": 3.0, "evaluations": 4}
    assert planned(True, **private)["evaluations"] == 0
    assert planned(False, **private)["evaluations"] == 4 + LEAST_RESERVE
    assert planned(**private)["census_noise_multiplier"] == 0
    assert planned(task=secret_total, **private)["census_noise_multiplier"] == CENSUS_NOISE
    assert planned(task=secret_total)["census_noise_multiplier"] == 0


def test_the_plan_is_that_of_the_configuration(planned) -> None:
    asked = planned(dp_epsilon=3.0, dp_delta=1e-6, clip=0.3, sampling_rate=0.2, colluders=1, silos=6)
    chosen = {name: asked[name] for name in ("trust", "epsilon", "delta", "clip", "sampling_rate", "colluders")}
    assert chosen == {
        "trust": "distributed", "epsilon": 3.0, "delta": 1e-6, "clip": 0.3, "sampling_rate": 0.2, "colluders": 1
    }  # fmt: skip


@pytest.mark.parametrize("trust", OPTIONS)
def test_planned_mechanisms_cover_rounds_reserve_census_and_evaluations(plans, trust: str) -> None:
    plan, schedule = plans[trust]
    planned = plan.mechanisms()
    uses = {(m.sampling_rate, m.noise_multiplier): m.count for m in planned["train"]}
    exploring, training = plan.train_terms(True), plan.train_terms(False)
    explored = sum(schedule.is_exploration(r) for r in range(schedule.rounds))
    needed = explored * exploring.steps + (schedule.rounds - explored) * training.steps
    assert uses[training.sampling_rate, training.noise_multiplier] == needed + spare_steps(plan, schedule)
    census = plan.census_terms()
    assert uses[census.sampling_rate, census.noise_multiplier] == CENSUS_USES
    scored = plan.evaluation_terms()
    (holdout,) = planned["holdout"]
    assert holdout == Mechanism(1.0, scored.noise_multiplier, plan.config.evaluations + LEAST_RESERVE)
    delta = accounting_delta(trust, plan.config.dp_delta)
    for mechanisms in planned.values():
        assert 3.9 < epsilon(mechanisms, delta, "rdp") <= 4.0


@pytest.mark.parametrize("trust", OPTIONS)
def test_terms_say_what_a_round_does(plans, trust: str) -> None:
    plan, _ = plans[trust]
    config = plan.config
    for exploring, steps in ((True, 7), (False, 3)):
        terms = plan.train_terms(exploring)
        assert terms.steps == (1 if trust == "distributed" else steps)
        assert (terms.trust, terms.dataset, terms.clip) == (trust, "train", config.clip)
        assert terms.sampling_rate == config.sampling_rate
        assert (terms.colluders, terms.delta) == (config.colluders, config.dp_delta)
    for terms, dataset, sensitivity in (
        (plan.census_terms(), "train", 1.0),
        (plan.evaluation_terms(), "holdout", METRIC_SENSITIVITY),
    ):
        assert (terms.dataset, terms.sampling_rate, terms.steps, terms.clip) == (dataset, 1.0, 1, sensitivity)
        assert terms.noise_multiplier > 0


def test_without_dp_terms_promise_nothing(make_config, task) -> None:
    config = make_config(prune="magnitude", local_steps=3, explore_steps=7)
    plan = session_plan(config, task, Schedule(config), public_test=False)
    assert plan.mechanisms() == {}
    assert [plan.train_terms(exploring).steps for exploring in (True, False)] == [7, 3]
    for terms in (plan.train_terms(True), plan.train_terms(False), plan.census_terms(), plan.evaluation_terms()):
        assert (terms.trust, terms.noise_multiplier, terms.sampling_rate) == ("none", 0.0, 1.0)
    assert spent_after(plan, Schedule(config), 3, 1) is None
    assert "No differential privacy" in describe(plan)["promise"]


@pytest.mark.parametrize("trust", OPTIONS)
def test_spending_grows_with_rounds_and_retries_and_ends_below_the_budget(plans, trust: str) -> None:
    plan, schedule = plans[trust]
    spare = spare_steps(plan, schedule)
    costs = [spent_after(plan, schedule, rounds, 0) for rounds in (0, 1, 4, schedule.rounds)]
    assert costs == sorted(set(costs))
    retried = [spent_after(plan, schedule, schedule.rounds, used) for used in (0, 1, spare)]
    assert retried == sorted(set(retried))
    assert 3.9 < retried[-1] <= 4.0
    census = Mechanism(1.0, CENSUS_NOISE, CENSUS_USES)
    assert costs[0] == epsilon([census], accounting_delta(trust, plan.config.dp_delta), "rdp")


def test_spending_counts_each_kind_of_round(make_config) -> None:
    """By hand, with a cheap accountant."""
    config = make_config(**OPTIONS["local"])
    privacy = PrivacyPlan("local", 4.0, 1e-5, 0, config.clip, config.sampling_rate, 100, 1.5, accountant="rdp")
    plan, schedule = SessionPlan(config, privacy), Schedule(config)

    def cost(steps: int) -> float:
        uses = [Mechanism(config.sampling_rate, 1.5, steps)]
        return epsilon(uses, accounting_delta("local", config.dp_delta), "rdp")

    assert spent_after(plan, schedule, 1, 0) == cost(7)
    assert spent_after(plan, schedule, 4, 0) == cost(7 + 3 * 3)
    assert spent_after(plan, schedule, 4, 10) == cost(7 + 3 * 3 + 10)
    assert spent_after(plan, schedule, 0, 0) == 0


def test_the_report_gets_every_multiplier(plans) -> None:
    plan, _ = plans["distributed"]
    said = describe(plan)
    assert said["planned_steps"] == 12 + reserve_attempts(plan.config, 12)
    assert said["census_noise_multiplier"] == CENSUS_NOISE
    assert said["noise_multiplier"] == plan.train_terms(False).noise_multiplier
    assert said["evaluation_noise_multiplier"] == plan.evaluation_terms().noise_multiplier
    assert "4" in said["promise"]
