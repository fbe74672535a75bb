"""Options without effect: each is refused by its name where somebody chose it, and none that has an effect is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from autoflip_secure.config import ResolvedConfig, RunConfig, flag_of
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.global_masks import pruning_controller
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.option_checks import NEUTRAL, USES, check_options, given_options
from autoflip_secure.federation.plan import session_plan
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Aggregate

METHODS = get_args(RunConfig.model_fields["prune"].annotation)
GIVEN: dict[str, Any] = {
    "score": "guidance-agreement",
    "eta": 1.0,
    "guidance_level": "unit",
    "warm_start": True,
    "explore_rounds": 2,
    "explore_steps": 3,
    "explore_participation": 0.5,
    "explore_every": 3,
    "prune_threshold": 0.8,
    "prune_threshold_kind": "absolute",
    "prune_hysteresis": 0.6,
    "prune_flops": 0.3,
    "prune_floor": 0.6,
    "prune_round_to": 5,
    "prune_steps": 2,
    "agreement_every": 4,
    "cohorts": 3,
}
"""A value of each option that is not what it has when it is left out."""


def refusal(**options: Any) -> str | None:
    try:
        check_options(RunConfig.create(**options))
    except ConfigError as error:
        return str(error)
    return None


def test_the_table_of_values_is_whole() -> None:
    assert set(GIVEN) == {name for use in USES for name in use.options}


# Which options go with which methods

EXPLORING = {"warm_start", "explore_rounds", "explore_steps", "explore_participation", "explore_every"}
SCORING = {"prune_threshold", "prune_threshold_kind", "prune_hysteresis", "agreement_every", "prune_steps"}
BUDGET = {"prune_flops", "prune_floor", "prune_round_to"}
USED: dict[str, set[str]] = {
    "autoflip": {*GIVEN} - {"eta", "guidance_level"},
    "magnitude": EXPLORING | SCORING | BUDGET,
    "snip": EXPLORING | SCORING | BUDGET,
    "prunefl": EXPLORING | SCORING | BUDGET,
    "random": {"prune_threshold", "prune_threshold_kind"} | BUDGET,
    "feddst": {"explore_every", "prune_threshold", "prune_steps"} | BUDGET,
    "eflprune": BUDGET,
    "fedmask": {"warm_start", "prune_steps"} | BUDGET,
    "none": set(),
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("prune", METHODS)
def test_an_option_is_refused_where_the_method_ignores_it(prune: str, name: str) -> None:
    said = refusal(prune=prune, **{name: GIVEN[name]})
    assert (said is None) == (name in USED[prune])
    if said is not None:
        assert said.startswith(f"{flag_of(name)}{'' if name == 'warm_start' else f' {GIVEN[name]}'}: ")
        assert "\n" not in said
        assert prune in said or "usual" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prune": "random", "warm_start": True}, "--warm-start: --prune random explores nothing"),
        ({"prune_flops": 1.0, "prune_round_to": 8}, "--prune-round-to 8: --prune-flops 1 removes no channels"),
        ({"prune": "none", "guidance_level": "parameter"}, "--guidance-level parameter: --prune none has no guidance"),
        ({"eta": 0.5, "score": "hybrid"}, "--eta 0.5: moves guidance, by which --score hybrid keeps nothing"),
        ({"eta": 0.5, "dp_epsilon": 8.0}, "--eta 0.5: moves guidance, by which --score usual keeps nothing"),
        ({"prune": "fedmask", "explore_steps": 4}, "--explore-steps 4: --prune fedmask explores with --warm-start"),
        ({"dp_epsilon": 8.0, "explore_steps": 4}, "--explore-steps 4: distributed noise covers one gradient sum"),
        (
            {"prune": "fedmask", "optimizer": "adam"},
            "--optimizer adam: --prune fedmask sums masks, not updates of weights; give --optimizer sgd",
        ),
        (
            {"prune": "fedmask", "cohort_filter": True},
            "--cohort-filter: --prune fedmask sums masks, not updates of weights; give --no-cohort-filter",
        ),
        ({"prune": "fedmask", "bad_silos": "noise:0.2"}, "--bad-silos noise:0.2: --prune fedmask sums masks"),
        (
            {"dp_epsilon": 8.0, "prox_mu": 0.1},
            "--prox-mu 0.1: with --dp-epsilon silos take plain DP-SGD steps; give --prox-mu 0.0",
        ),
    ],
)
def test_what_is_refused_with_other_options(options: dict[str, Any], said: str) -> None:
    assert (refusal(**options) or "").startswith(said)


@pytest.mark.parametrize(
    "options",
    [
        {"score": "guidance", "eta": 0.5},
        {"score": "guidance-agreement", "guidance_level": "unit"},
        {"prune": "fedmask", "warm_start": True, "explore_steps": 4, "explore_participation": 0.5},
        {"prune": "none", "guidance_level": "usual", "eta": 0.1, "explore_every": 0, "prune_steps": None},
        {"prune": "none", "cohort_filter": True, "cohorts": 4},
        {"prune": "none", "participation": 0.5, "cohorts": 2},
        {"prune": "magnitude", "explore_participation": 0.5, "cohorts": 2},
        {"prune": "random", "prune_threshold_kind": "absolute", "prune_hysteresis": 0.5},
        {"dp_epsilon": 8.0, "dp_trust": "local", "explore_steps": 4},
        {"prune_flops": 1.0, "prune_round_to": 1},
    ],
)
def test_what_has_an_effect_or_says_the_default_is_let_through(options: dict[str, Any]) -> None:
    assert refusal(**options) is None


def test_a_resolved_configuration_chose_nothing(make_config) -> None:
    config = make_config(prune="random")
    assert config.model_fields_set > set(GIVEN)
    assert given_options(config) == frozenset()
    assert given_options(RunConfig.create(prune="random", eta=0.1)) == {"prune"}


# Whether what is refused really has no effect


@pytest.fixture
def usual(make_config) -> Callable[[str, str], ResolvedConfig]:
    """A short run of a method in which weights die beside units and are judged more than once, and in which the option
    in question matters if it ever does."""
    # Masked weights are 0, so by most scores a share of them stays the same one: only a fixed threshold is crossed.
    fixed = {"prune_threshold_kind": "absolute"}
    where = {"prune_hysteresis": fixed, "agreement_every": fixed, "prune_floor": {"prune_flops": 0.43}}

    def make(prune: str, name: str) -> ResolvedConfig:
        options = make_config(prune=prune, silos=12, rounds=16).model_dump()
        options |= {"prune_threshold": 0.7, "agreement_every": 5} | (where.get(name, {}) if name in USED[prune] else {})
        return ResolvedConfig.create(**options)

    return make


def with_given(config: ResolvedConfig, name: str) -> ResolvedConfig:
    return ResolvedConfig.create(**{**config.model_dump(), name: GIVEN[name]})


def played(config: ResolvedConfig, task: Any, model: ModelPayload) -> list[Any]:
    """Everything that pruning decides in a run over random sums: plans, steps, and models after each round."""
    schedule = Schedule(config)
    terms = session_plan(config, task, schedule, public_test=True)
    start = stream(0, "start").normal(size=model.mask.size).astype(np.float32)
    controller = pruning_controller(config, schedule, model.spec, start)
    model = controller.draw(replace(model, weights=start, mask=np.ones(start.size, np.bool_)))
    seen: list[Any] = [model.to_bytes()]
    for round in range(config.rounds):
        plan, draw = schedule.plan(round), stream(5, "sums", round)
        live = model.mask
        if model.votes is None:
            moved = model.weights + 0.2 * draw.normal(size=live.size).astype(np.float32)
            model = replace(model, weights=np.where(live, moved, np.float32(0)))
        if model.votes is not None and not schedule.is_exploration(round):
            channels = {"mask": draw.integers(0, 5, controller.weights).astype(np.float64)}
        else:
            update = draw.normal(size=live.size)
            channels = {"update": np.where(live, update, 0.0), "gradient": np.where(live, 0.0, draw.normal(size=1))}
            if config.prune == "autoflip":
                name = "deviation" if plan.phase == "explore" else "unit_energy"
                values = np.where(live, update**2, 0.0) if name == "deviation" else 40 * draw.random(controller.units)
                channels[name] = values
        if schedule.prunes:
            controller.observe(round, [Aggregate(round, 0, 4, channels)], live)
            if controller.is_decision(round):
                model, _ = controller.decide(round, model)
        seen.append((plan, terms.train_terms(schedule.is_exploration(round)), model.to_bytes()))
    return seen


# Without distributed noise there is one round of exploration: no other number is resolved.
VARIED = GIVEN.keys() - {"explore_rounds"}
IGNORED = [(prune, name) for prune in METHODS for name in sorted(VARIED - USED[prune])]
HEEDED = [(prune, name) for prune in METHODS for name in sorted(VARIED & USED[prune])]


@pytest.mark.parametrize(("prune", "name"), IGNORED)
def test_what_is_refused_changes_nothing(prune: str, name: str, usual, task, model: ModelPayload) -> None:
    config = usual(prune, name)
    assert played(with_given(config, name), task, model) == played(config, task, model)


@pytest.mark.parametrize(("prune", "name"), HEEDED)
def test_what_is_let_through_changes_something(prune: str, name: str, usual, task, model: ModelPayload) -> None:
    config = usual(prune, name)
    assert played(with_given(config, name), task, model) != played(config, task, model)


@pytest.mark.parametrize("prune", sorted(set(METHODS) - {"none"}))
def test_without_a_budget_nothing_is_rounded(prune: str, make_config, task, model: ModelPayload) -> None:
    config = make_config(prune=prune, silos=12, rounds=16, prune_flops=1.0, prune_threshold=None)
    assert refusal(prune=prune, prune_flops=1.0, prune_round_to=5) is not None
    assert played(with_given(config, "prune_round_to"), task, model) == played(config, task, model)


UNUSED = [({"prune": prune}, name) for prune in METHODS for name in sorted(NEUTRAL.keys() - USED[prune])]
UNDER_NOISE = [
    ({"prune": prune, "dp_epsilon": 8.0}, name)
    for prune in ("none", "random", "eflprune")
    for name in sorted(NEUTRAL.keys() - USED[prune])
]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        *UNUSED,
        *UNDER_NOISE,
        ({"dp_epsilon": 8.0}, "explore_steps"),
        ({"dp_epsilon": 8.0, "prune": "magnitude"}, "explore_steps"),
    ],
)
def test_saying_that_there_is_nothing_of_it_is_as_good_as_silence(
    options: dict[str, Any], name: str, make_config, task, model: ModelPayload
) -> None:
    silent = make_config(silos=12, rounds=16, **{"prune": "autoflip", **options})
    said = make_config(silos=12, rounds=16, **{"prune": "autoflip", **options, name: NEUTRAL[name]})
    assert played(said, task, model) == played(silent, task, model)


def test_neutral_values_are_no_defaults() -> None:
    """Those are let through without."""
    assert [name for name, value in NEUTRAL.items() if RunConfig.model_fields[name].default == value] == []


def test_all_of_it_at_once_is_let_through() -> None:
    assert refusal(prune="none", **NEUTRAL) is None
