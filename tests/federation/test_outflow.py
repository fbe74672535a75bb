"""What a review says would leave is what the coordinator asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoflip_secure.data.task import Task
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.initial_model import initial_model, is_close, start_hash
from autoflip_secure.federation.outflow import outflows, round_channels, run_channels
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.privacy.accounting import Mechanism

METHODS = ("none", "autoflip", "random", "magnitude", "snip", "prunefl", "feddst", "eflprune", "fedmask")
RUNS: dict[str, dict[str, Any]] = {
    **{f"{prune}, no DP": {"prune": prune} for prune in METHODS},
    "autoflip, cold start": {"prune": "autoflip", "warm_start": False},
    "autoflip, explored anew": {"prune": "autoflip", "explore_every": 3},
    "autoflip, filtered": {"prune": "autoflip", "cohort_filter": True, "silos": 16},
    "autoflip, half of the silos": {"prune": "autoflip", "participation": 0.5, "silos": 16},
    "autoflip, local noise": {"prune": "autoflip", "dp_epsilon": 8.0, "dp_trust": "local"},
    "autoflip, distributed noise": {"prune": "autoflip", "dp_epsilon": 8.0},
    "adaptive clip": {"dp_epsilon": 8.0, "adaptive_clip": 0.5},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_channels_and_start_are_those_of_the_coordinator(
    options: dict[str, Any], make_config, make_federation, cheap_plan, task: Task
) -> None:
    config = make_config(**{"silos": 8, "rounds": 12, **options})
    coordinator = Coordinator(make_federation(config), config, None, lambda _: None)  # type: ignore[arg-type]
    assert is_close(coordinator.state.model, initial_model(config, task))
    assert start_hash(coordinator.state.model) == start_hash(initial_model(config, task))
    schedule, described = Schedule(config), {}
    for each in outflows(config, task, {}):
        described[each.phase, tuple(channel.name for channel in each.channels)] = each
    for round in range(config.rounds):
        asked = {channel.name: channel for channel in coordinator._channels(round)}
        assert set(round_channels(config, schedule, round)) == set(asked), round
        assert set(asked) <= run_channels(config, schedule)
        plan = schedule.plan(round)
        said = described[plan.phase, round_channels(config, schedule, round)]
        for channel in said.channels:
            assert channel.numbers >= asked[channel.name].length
            assert channel.bits == asked[channel.name].bits
    trained = [each for each in outflows(config, task, {}) if each.phase in ("explore", "train")]
    assert sum(each.rounds or 0 for each in trained) == config.rounds


def test_an_unpruned_run_sends_exactly_what_is_said(make_config, make_federation, task: Task) -> None:
    config = make_config()
    coordinator = Coordinator(make_federation(config), config, None, lambda _: None)  # type: ignore[arg-type]
    (channel,) = coordinator._channels(0)
    (said,) = (each for each in outflows(config, task, {}) if each.phase == "train")
    assert [(c.name, c.numbers, c.bits) for c in said.channels] == [(channel.name, channel.length, channel.bits)]
    assert (said.cohorts, said.minimum, said.rounds) == ((4,), (4,), 4)


def test_counts_and_scores_are_said(make_config, task: Task) -> None:
    config = make_config(dp_epsilon=8.0, dp_trust="local")
    planned = {"train": [Mechanism(0.1, 1.0, 4)], "holdout": [Mechanism(1.0, 5.0, 3), Mechanism(1.0, 6.0, 2)]}
    phases = {each.phase: each for each in outflows(config, replace(task, nominal_records=None), planned)}
    assert set(phases) == {"census", "train", "evaluate"}
    assert (phases["census"].rounds, phases["evaluate"].rounds) == (1, 5)
    assert [c.numbers for c in phases["evaluate"].channels] == [2 * task.classes + 1]
    assert "evaluate" not in {each.phase for each in outflows(config, task, {"train": planned["train"]})}
    (scored,) = (each for each in outflows(make_config(), task, {}) if each.phase == "evaluate")
    assert scored.rounds is None, "without DP nothing bounds how often"
    schedule = Schedule(config)
    assert run_channels(config, schedule, counted=True, scored=True) == run_channels(config, schedule) | {
        "count",
        "metric",
    }


def test_the_start_follows_from_seed_and_method_but_not_from_the_number_of_records(make_config, task: Task) -> None:
    hashes = {
        start_hash(initial_model(make_config(prune=prune, seed=seed), task))
        for prune in ("none", "random", "feddst", "fedmask")
        for seed in (0, 1)
    }
    assert len(hashes) == 8
    counted = initial_model(make_config(), replace(task, nominal_records=None))
    assert start_hash(counted) == start_hash(initial_model(make_config(), task))


def test_last_bits_may_differ_between_machines_and_nothing_else(make_config, task: Task) -> None:
    model = initial_model(make_config(), task)
    assert is_close(replace(model, weights=model.weights + np.float32(9e-6), records=1), model)
    for weights in (model.weights + np.float32(2e-5), np.where(np.arange(model.weights.size) == 7, 1, model.weights)):
        assert not is_close(replace(model, weights=weights), model)
    assert not is_close(replace(model, votes=np.ones(model.weights.size, np.float32)), model)
    mask = model.mask.copy()
    mask[0] = False
    assert not is_close(replace(model, mask=mask), model)
