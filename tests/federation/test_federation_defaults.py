"""Defaults: every option is set for every kind of data and trust, what was given stays, contradictions are named."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.schedule import Schedule

TASKS = {
    "table": Task("t", "binary", (30,), 2, ("no", "yes"), "mlp", 500),
    "image": Task("i", "multiclass", (1, 28, 28), 10, tuple("0123456789"), "cnn-tanh", None),
}
TRUSTS: dict[str, dict[str, Any]] = {
    "none": {},
    "local": {"dp_epsilon": 3.0, "dp_trust": "local"},
    "distributed": {"dp_epsilon": 3.0},
}
DEPENDENT = sorted(set(ResolvedConfig.__annotations__))


@pytest.mark.parametrize("silos", [None, 5, 10, 100])
@pytest.mark.parametrize("prune", ["autoflip", "none"])
@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("kind", TASKS)
def test_every_option_is_set_and_makes_a_schedule(kind: str, trust: str, prune: str, silos: int | None) -> None:
    given = RunConfig.create(**TRUSTS[trust], prune=prune, silos=silos)
    config = resolve(given, TASKS[kind], natural_silos=None)
    assert [name for name in DEPENDENT if getattr(config, name) is None] == []
    assert (config.trust, config.model, config.silos) == (trust, TASKS[kind].default_model, silos or 10)
    for name in given.model_fields_set - {"silos"}:
        assert getattr(config, name) == getattr(given, name)
    Schedule(config)


@pytest.mark.parametrize(("silos", "trust"), [(4, "none"), (4, "local"), (3, "none"), (3, "local"), (3, "distributed")])
def test_the_smallest_federations_work_by_default(silos: int, trust: str) -> None:
    Schedule(resolve(RunConfig.create(**TRUSTS[trust]), TASKS["table"], natural_silos=silos))


def test_four_silos_make_one_cohort() -> None:
    config = resolve(RunConfig.create(silos=4, dp_epsilon=3), TASKS["table"], natural_silos=None)
    assert Schedule(config).plan(0).cohorts == ((1, 2, 3, 4),)


@pytest.mark.parametrize("trust", TRUSTS)
def test_what_was_given_wins_over_every_default(trust: str) -> None:
    given = {
        "model": "cnn6", "silos": 12, "partition": "iid", "rounds": 30, "local_steps": 1, "batch_size": 9,
        "learning_rate": 0.125, "momentum": 0.0, "colluders": 0, "clip": 0.75, "sampling_rate": 0.35, "evaluations": 3,
        "prune_threshold": 0.0, "prune_flops": 0.9, "explore_rounds": 1, "explore_steps": 3, "cohorts": 3,
        "agreement_every": 0, "prune_steps": 5, "warm_start": True,
    }  # fmt: skip
    assert set(given) == set(DEPENDENT), "an option is missing here"
    if trust == "distributed":
        del given["explore_steps"]  # refused: an exploring silo takes one step there
    config = resolve(RunConfig.create(**given, **TRUSTS[trust]), TASKS["image"], natural_silos=None)
    assert {name: getattr(config, name) for name in given} == given


def test_resolving_twice_changes_nothing() -> None:
    for trust in TRUSTS.values():
        once = resolve(RunConfig.create(**trust), TASKS["image"], natural_silos=None)
        assert resolve(once, TASKS["image"], natural_silos=None) == once


def test_natural_silos_are_taken_as_they_are() -> None:
    config = resolve(RunConfig(), TASKS["table"], natural_silos=5)
    assert (config.partition, config.silos) == ("natural", 5)
    assert resolve(RunConfig(silos=5), TASKS["table"], natural_silos=5) == config
    assert resolve(RunConfig(silos=4), TASKS["table"], natural_silos=5).silos == 4
    assert resolve(RunConfig(), TASKS["table"], natural_silos=539).silos == 539
    other = resolve(RunConfig(partition="iid", silos=7), TASKS["table"], natural_silos=5)
    assert (other.partition, other.silos) == ("iid", 7)


def test_trust_decides_exploration() -> None:
    for kind in TASKS:
        for trust, options in TRUSTS.items():
            config = resolve(RunConfig.create(**options), TASKS[kind], natural_silos=None)
            distributed = trust == "distributed"
            assert config.warm_start == (trust != "none")
            assert config.cohorts == 1
            assert (config.explore_rounds > 1) == distributed
            if distributed:
                assert config.local_steps == 1


@pytest.mark.parametrize(("rounds", "explored"), [(1, 1), (8, 2), (40, 10), (80, 20), (400, 20)])
def test_exploration_takes_a_quarter_of_a_short_run(rounds: int, explored: int) -> None:
    config = resolve(RunConfig.create(dp_epsilon=3, rounds=rounds), TASKS["image"], natural_silos=None)
    assert config.explore_rounds == explored


@pytest.mark.parametrize(
    ("options", "natural", "named"),
    [
        ({"dp_epsilon": 3, "local_steps": 2}, None, "--local-steps 2"),
        ({"dp_epsilon": 3, "warm_start": False}, None, "--no-warm-start"),
        ({"explore_rounds": 2}, None, "--explore-rounds 2"),
        ({"explore_rounds": 2, "dp_epsilon": 3, "dp_trust": "local"}, None, "--explore-rounds 2"),
        ({"dp_epsilon": 3, "optimizer": "adam"}, None, "--optimizer adam"),
        ({"dp_epsilon": 3, "dp_trust": "local", "prox_mu": 0.1}, None, "--prox-mu"),
        ({"dp_epsilon": 3, "explore_every": 5}, None, "--explore-every 5"),
        ({"dp_epsilon": 3, "local_epochs": 2}, None, "--local-epochs 2"),
        ({"local_steps": 3, "local_epochs": 2}, None, "--local-epochs 2"),
        ({"prune": "snip", "score": "energy"}, None, "--score energy"),
        ({"partition": "natural"}, None, "--partition natural"),
        ({"silos": 6}, 5, "--silos 6"),
        ({"dataset": "femnist"}, 3550, "--dataset femnist"),
        ({"dataset": "digits"}, 2, "--dataset digits"),
    ],
)
def test_contradictions_name_the_flag(options: dict[str, Any], natural: int | None, named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}:?"):
        resolve(RunConfig.create(**options), TASKS["table"], natural_silos=natural)


def test_epochs_are_of_a_silo_s_nominal_share() -> None:
    task = replace(TASKS["image"], nominal_records=4000)
    config = resolve(RunConfig.create(local_epochs=5, silos=20, batch_size=32), task, natural_silos=None)
    assert (config.local_steps, config.local_epochs) == (math.ceil(5 * 200 / 32), None)
    with pytest.raises(ConfigError, match=r"^--local-epochs 5: the number of records"):
        resolve(RunConfig.create(local_epochs=5), replace(task, nominal_records=None), natural_silos=None)


def test_low_budgets_get_fewer_rounds_and_smaller_steps() -> None:
    configs = [resolve(RunConfig.create(dp_epsilon=e), TASKS["image"], natural_silos=None) for e in (8, 2, 1, 0.5)]
    rounds = [config.rounds for config in configs]
    rates = [config.learning_rate for config in configs]
    assert rounds[0] == rounds[1] > rounds[2] > rounds[3]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("records", "factor"), [(None, 1.0), (500, 1.0), (16_000, 4**0.7), (10**6, 16**0.7)])
def test_more_public_records_take_larger_steps(records: int | None, factor: float) -> None:
    few, many = (replace(TASKS["image"], nominal_records=n) for n in (4000, records))
    private = RunConfig.create(dp_epsilon=3)
    rates = [resolve(private, task, natural_silos=None).learning_rate for task in (few, many)]
    assert rates[1] == pytest.approx(factor * rates[0])
    plain = [resolve(RunConfig.create(), task, natural_silos=None).learning_rate for task in (few, many)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("epsilon", [None, 100, 8, 1])
@pytest.mark.parametrize("silos", [6, 10, 30])
def test_a_sum_is_of_everybody_unless_cohorts_are_asked_for(epsilon: float | None, silos: int) -> None:
    config = resolve(RunConfig.create(dp_epsilon=epsilon, silos=silos), TASKS["image"], natural_silos=None)
    schedule = Schedule(config)
    assert {schedule.plan(round).cohorts for round in range(schedule.rounds)} == {(tuple(range(1, silos + 1)),)}


def test_the_text_network_is_for_texts() -> None:
    with pytest.raises(ConfigError, match="--model char-lstm: it reads text and t is none"):
        resolve(RunConfig.create(model="char-lstm"), TASKS["table"], natural_silos=None)
    text = Task("plays", "multiclass", (80,), 5, tuple("abcde"), "char-lstm", 1000)
    assert resolve(RunConfig.create(model="char-lstm"), text, natural_silos=None).model == "char-lstm"
    assert resolve(RunConfig.create(model="mlp"), text, natural_silos=None).model == "mlp"
