"""FedDST, EFLPrune and FedMask: when they change the mask, what they keep, and what they ask silos for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoflip_secure.autoflip.flops import flops
from autoflip_secure.autoflip.sparse_training import erk_counts
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.errors import ConfigError, PolicyRefusal, ProtocolError
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.global_masks import pruning_controller
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.pruning import PruningController
from autoflip_secure.federation.run_state import RunState, load_checkpoint, save_checkpoint
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.server_step import ServerMoments
from autoflip_secure.federation.sums import scatter
from autoflip_secure.federation.terms import check_terms, gradient_channel, mask_channel, metric_channel, update_channel
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.seeds import stream, torch_stream
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.sums.encoding import unpack_sum
from autoflip_secure.sums.words import ContributionWords, all_words
from autoflip_secure.training.local import mean_gradient
from autoflip_secure.training.metric_form import MetricForm

Make = Callable[..., tuple[PruningController, Schedule, ModelPayload]]
METHODS = ("feddst", "eflprune", "fedmask")


@pytest.fixture
def make(make_config, model: ModelPayload) -> Make:
    """make(method, **options) -> controller, schedule, and the model that training starts from."""

    def begin(method: str, **options: Any) -> tuple[PruningController, Schedule, ModelPayload]:
        config = make_config(**{"prune": method, "silos": 8, "rounds": 12, "prune_flops": 0.4, **options})
        schedule = Schedule(config)
        start = stream(0, "start").normal(size=model.mask.size).astype(np.float32)
        controller = pruning_controller(config, schedule, model.spec, start)
        dense = replace(model, weights=start, mask=np.ones(start.size, np.bool_))
        return controller, schedule, controller.draw(dense)

    return begin


def play(
    controller: PruningController, schedule: Schedule, model: ModelPayload, rounds: range
) -> tuple[ModelPayload, list[ModelPayload]]:
    """Move live weights at random, sum what a round of the method sums, and decide."""
    models = []
    for round in rounds:
        draw = stream(9, "round", round)
        if model.votes is None:
            moved = model.weights + 0.1 * draw.normal(size=model.mask.size).astype(np.float32)
            model = replace(model, weights=np.where(model.mask, moved, np.float32(0)))
        channels = {"update": np.zeros(model.mask.size)}
        if schedule.is_readjustment(round):
            channels["gradient"] = np.where(model.mask, 0.0, 4 * draw.normal(size=model.mask.size))
        if model.votes is not None:
            channels = {"mask": draw.integers(0, 5, controller.weights).astype(np.float64)}
        controller.observe(round, [Aggregate(round, 0, 4, channels)], model.mask)
        if controller.is_decision(round):
            model, _ = controller.decide(round, model)
        models.append(model)
    return model, models


@pytest.mark.parametrize("method", METHODS)
def test_the_target_is_met_on_a_smaller_network(make: Make, model: ModelPayload, method: str) -> None:
    controller, schedule, start = make(method)
    final, models = play(controller, schedule, start, range(schedule.rounds))
    assert flops(final.spec) <= 0.4 * flops(model.spec) < flops(start.spec) or method == "eflprune"
    assert flops(start.spec) <= (0.4 if method == "eflprune" else 1.0) * flops(model.spec)
    for each in models:
        assert each.weights.shape == each.mask.shape == (UnitMap.of(each.spec).size,)
        assert not each.weights[~each.mask].any()
        assert controller.layer_report(final)
    assert final.votes is None


@pytest.mark.parametrize("method", METHODS)
def test_state_survives_a_checkpoint(make: Make, method: str, tmp_path: Path) -> None:
    controller, schedule, model = make(method)
    for round in range(schedule.rounds):
        model, _ = play(controller, schedule, model, range(round, round + 1))
        if round == 3:
            state = RunState(round, model, ServerMoments.zeros(1), controller.arrays(), {"pruning": controller.facts()})
            save_checkpoint(tmp_path / "c", state)
    state = load_checkpoint(tmp_path / "c")
    again, _, _ = make(method)
    again.restore(state.model.spec, state.pruning, state.facts["pruning"])
    resumed, _ = play(again, schedule, state.model, range(4, schedule.rounds))
    assert resumed.to_bytes() == model.to_bytes()


# FedDST


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        # The first half of 40 rounds; three steps to the target are 6 rounds apart, 10 at most.
        ({"rounds": 40}, (5, 11, 17)),
        ({"rounds": 40, "prune_steps": 1}, (9, 19)),
        ({"rounds": 200}, (9, 19, 29, 39, 49, 59, 69, 79, 89, 99)),
        ({"rounds": 40, "explore_every": 4}, (3, 7, 11, 15, 19)),
        ({"rounds": 2}, (0,)),
        ({"rounds": 3}, (0,)),
    ],
)
def test_rounds_of_readjustment(make: Make, options: dict[str, Any], rounds: tuple[int, ...]) -> None:
    controller, schedule, _ = make("feddst", **options)
    assert schedule.readjustments == rounds
    assert [r for r in range(schedule.rounds) if controller.is_decision(r)] == list(rounds)
    assert not any(schedule.is_exploration(r) for r in range(schedule.rounds))


def test_the_target_is_reached_in_steps(make: Make) -> None:
    controller, schedule, _ = make("feddst", rounds=100, prune_steps=4, prune_flops=0.2)
    targets = [controller._target_at(r) for r in schedule.readjustments]
    assert targets == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    short, schedule, _ = make("feddst", rounds=4, prune_steps=4, prune_flops=0.2)
    assert [short._target_at(r) for r in schedule.readjustments] == pytest.approx([0.6, 0.2])


def test_every_layer_is_sparse_from_the_start_to_the_end(make: Make) -> None:
    """As many weights live on the smaller network as at first, so that it is as large as other methods' networks."""
    controller, schedule, start = make("feddst", prune_threshold=0.7)
    final, models = play(controller, schedule, start, range(schedule.rounds))
    weights = int(UnitMap.of(start.spec).prunable.sum())
    for each in (start, models[schedule.readjustments[-1]], final):
        prunable = UnitMap.of(each.spec).prunable
        counts = erk_counts(UnitMap.of(each.spec), 0.3 * weights / prunable.sum())
        assert [int(each.mask[where].sum()) for where, _ in counts] == [count for _, count in counts]
        assert each.mask[prunable].sum() == pytest.approx(0.3 * weights, rel=0.01)
    assert UnitMap.of(final.spec).prunable.sum() < 0.5 * weights


def test_where_units_leave_fewer_weights_all_of_them_live(make: Make) -> None:
    controller, schedule, start = make("feddst", prune_threshold=0.4)
    final, _ = play(controller, schedule, start, range(schedule.rounds))
    weights = int(UnitMap.of(start.spec).prunable.sum())
    assert final.mask.all()
    assert UnitMap.of(final.spec).prunable.sum() < 0.6 * weights


def test_the_sparse_start_has_the_scale_of_the_dense_one(make: Make, model: ModelPayload) -> None:
    _, _, start = make("feddst", prune_threshold=0.7)
    units = UnitMap.of(start.spec)
    dense = stream(0, "start").normal(size=model.mask.size)
    lengths = [
        units.group_sum(np.where(units.prunable, w.astype(np.float64) ** 2, 0.0)) for w in (dense, start.weights)
    ]
    alive = lengths[1] > 0
    np.testing.assert_allclose(lengths[1][alive], lengths[0][alive], rtol=1e-5)
    assert alive.mean() > 0.9


def test_the_sum_of_gradients_chooses_what_grows(make: Make) -> None:
    controller, schedule, start = make("feddst", prune_flops=1.0)
    (round, *_) = schedule.readjustments
    where, count = erk_counts(UnitMap.of(start.spec), 0.7)[1]
    masked = where.start + np.flatnonzero(~start.mask[where])
    gradient = np.zeros(start.mask.size)
    gradient[masked[:5]] = [-3, 1, -2, 4, 5]
    sums = [Aggregate(round, 0, 4, {"update": np.zeros(gradient.size), "gradient": gradient})]
    controller.observe(round, sums, start.mask)
    after, kept = controller.decide(round, start)
    assert np.array_equal(kept, np.arange(start.mask.size))
    assert after.mask[masked[:5]].all()
    assert not after.weights[masked[:5]].any()
    assert after.mask[where].sum() == count
    died = np.flatnonzero(start.mask[where] & ~after.mask[where])
    stayed = np.flatnonzero(start.mask[where] & after.mask[where])
    assert np.abs(start.weights[where][died]).max() <= np.abs(start.weights[where][stayed]).min()


def test_gradients_come_back_to_the_masked_coordinates(model: ModelPayload) -> None:
    live = int(model.mask.sum())
    masked = model.mask.size - live
    sums = Aggregate(0, 0, 4, {"update": np.ones(live), "gradient": np.arange(1.0, masked + 1)})
    full = scatter(sums, model).channels
    np.testing.assert_array_equal(full["update"], model.mask)
    np.testing.assert_array_equal(full["gradient"][~model.mask], np.arange(1.0, masked + 1))
    assert not full["gradient"][model.mask].any()


# EFLPrune


def test_trained_weights_go_back_and_the_rest_is_reused(make: Make) -> None:
    controller, _, start = make("eflprune", rounds=5)
    whole, kept = controller.arrays()["whole"].copy(), controller.arrays()["kept"]
    np.testing.assert_array_equal(start.weights, whole[kept])
    assert start.mask.all()
    small = replace(start, weights=start.weights / 100)
    after, places = controller.decide(0, small)
    expected = whole.copy()
    expected[kept] = small.weights
    np.testing.assert_array_equal(controller.arrays()["whole"], expected)
    came = places < 0
    assert came.any(), "units that were not sent are larger now"
    np.testing.assert_array_equal(after.weights[~came], small.weights[places[~came]])
    np.testing.assert_array_equal(after.weights, expected[controller.arrays()["kept"]])
    assert [controller.is_decision(r) for r in range(5)] == [True] * 4 + [False]


def test_moments_of_parameters_that_come_in_are_zero() -> None:
    moments = ServerMoments(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]), 7)
    moved = moments.compact(np.array([2, -1, 0]), np.array([True, True, False]))
    assert moved.velocity.tolist() == [3.0, 0.0, 0.0]
    assert moved.square.tolist() == [6.0, 0.0, 0.0]
    assert moved.steps == 7


# FedMask


def test_half_of_the_votes_decide_in_the_end(make: Make) -> None:
    controller, _, start = make("fedmask", rounds=2, prune_flops=1.0, prune_floor=0.0)
    units = UnitMap.of(start.spec)
    assert (start.network == start.weights).all()
    votes = stream(0, "votes").integers(0, 5, controller.weights).astype(np.float64)
    shares = np.ones(units.size)
    shares[units.prunable] = votes / 4
    for round in range(2):
        controller.observe(round, [Aggregate(round, 0, 4, {"mask": votes})], start.mask)
        model, _ = controller.decide(round, start)
        np.testing.assert_array_equal(model.network, np.where(shares >= 0.5, start.weights, 0))
    assert model.votes is None
    np.testing.assert_array_equal(model.mask, shares >= 0.5)


def test_units_with_the_fewest_votes_die(make: Make) -> None:
    controller, _, start = make("fedmask", rounds=2, prune_flops=0.9, prune_floor=0.0)
    units = UnitMap.of(start.spec)
    liked = units.spread(np.arange(units.count) != 70, outputs=1.0)
    votes = np.where(liked, 4.0, 1.0)[units.prunable]
    controller.observe(0, [Aggregate(0, 0, 4, {"mask": votes})], start.mask)
    _, kept = controller.decide(0, start)
    assert not np.isin(units.incoming[70], kept).any()


def test_votes_travel_with_the_model(model: ModelPayload) -> None:
    votes = stream(0, "votes").random(model.mask.size).astype(np.float32)
    read = ModelPayload.from_bytes(replace(model, votes=votes).to_bytes())
    assert read.votes is not None
    np.testing.assert_array_equal(read.votes, votes)
    assert ModelPayload.from_bytes(model.to_bytes()).votes is None
    for wrong in (votes[1:], votes + 1, votes - 1, votes * np.nan):
        with pytest.raises(ProtocolError, match="votes"):
            ModelPayload.from_bytes(replace(model, votes=wrong).to_bytes())


def test_a_warm_start_explores_once(make: Make) -> None:
    _, cold, _ = make("fedmask", warm_start=False)
    controller, warm, _ = make("fedmask", warm_start=True)
    assert [cold.plan(r).phase for r in range(3)] == ["train"] * 3
    assert [warm.plan(r).phase for r in range(3)] == ["explore", "train", "train"]
    assert not warm.leaves_the_model(0)
    assert not controller.is_decision(0)


def test_half_of_the_untrained_weights_carry_a_signal_on_at_its_strength(make_config, model: ModelPayload) -> None:
    units = UnitMap.of(model.spec)
    initial = flatten_parameters(build(model.spec, torch_stream(0, "init"))).numpy()
    drawn = {}
    for warm in (False, True):
        config = make_config(prune="fedmask", silos=8, rounds=12, prune_flops=0.4, warm_start=warm)
        controller = pruning_controller(config, Schedule(config), model.spec, initial)
        drawn[warm] = controller.draw(replace(model, weights=initial, mask=np.ones(initial.size, np.bool_))).weights
    np.testing.assert_array_equal(drawn[True], initial)  # what a round of averaging trains is left as it is
    np.testing.assert_array_equal(drawn[False][~units.prunable], initial[~units.prunable])
    live = ~units.prunable | (stream(0, "half").random(units.size) < 0.5)
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(np.where(live, drawn[False], np.float32(0))))
    for layer in (each for each in network.modules() if isinstance(each, torch.nn.Linear)):
        signal = torch.randn(2000, layer.in_features, generator=torch_stream(0, "signal"))
        assert (layer(signal) - layer.bias).std().item() == pytest.approx(1.0, rel=0.25)


# What a silo sends


def decoded(contribution: Any, channel: Any) -> np.ndarray:
    words = all_words(ContributionWords({channel.name: contribution.values[channel.name]}, [channel], 4))
    return unpack_sum(words, [channel], 4)[channel.name]


def test_a_silo_sends_the_gradient_of_masked_weights_where_training_led(
    make_config, make_manifest, task, model: ModelPayload, records
) -> None:
    config = make_config(prune="feddst", bits=20, update_limit=4.0)
    silo = Contributor(config, task, SiloData(records, None), 1, "cpu")
    live = int(model.mask.sum())
    channels = (update_channel(config, live), gradient_channel(config, model.mask.size - live))
    sent = silo.contribute(make_manifest(config, model, channels=channels), model)
    network = build(model.spec)
    weights = model.weights.copy()
    weights[model.mask] += decoded(sent, channels[0]).astype(np.float32)
    load_flat_parameters(network, torch.from_numpy(weights))
    expected = mean_gradient(network, torch.from_numpy(records.x), torch.from_numpy(records.y)).numpy()[~model.mask]
    np.testing.assert_allclose(decoded(sent, channels[1]), expected, atol=1e-4)
    assert np.abs(expected).max() > 1e-2


def test_a_silo_votes_by_ones_and_zeros(make_config, make_manifest, task, model: ModelPayload, records) -> None:
    config = make_config(prune="fedmask")
    silo = Contributor(config, task, SiloData(records, None), 1, "cpu")
    prunable = UnitMap.of(model.spec).prunable
    channel = mask_channel(int(prunable.sum()))
    manifest = make_manifest(config, model, channels=(channel,), terms={"steps": 20})
    whole = replace(model, mask=np.ones_like(model.mask), votes=np.ones(model.mask.size, np.float32))
    votes = decoded(silo.contribute(manifest, whole), channel)
    assert set(votes.tolist()) == {0.0, 1.0}
    with pytest.raises(ProtocolError, match="voted"):
        silo.contribute(manifest, model)


def test_a_network_of_votes_is_scored_without_the_weights_that_lost(
    make_config, make_manifest, task, model: ModelPayload, records
) -> None:
    config = make_config(prune="fedmask")
    silo = Contributor(config, task, SiloData(records, records), 1, "cpu")
    channel = metric_channel(MetricForm(task.kind, task.classes, task.expected_cuts).length, 0.0)
    manifest = make_manifest(config, model, phase="evaluate", channels=(channel,))
    votes = np.where(np.arange(model.mask.size) % 3 > 0, 0.5, 0.4).astype(np.float32)
    voted = replace(model, votes=votes)
    without = replace(model, weights=np.where(votes >= 0.5, model.weights, np.float32(0)))
    scores = [decoded(silo.contribute(manifest, each), channel) for each in (voted, without, model)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("name", ["gradient", "mask"])
@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_neither_ever_leaves_under_dp(
    make_config, make_manifest, task, model: ModelPayload, records, name: str, trust: str
) -> None:
    config: ResolvedConfig = make_config(dp_epsilon=8.0, dp_trust=trust)
    channel = {"gradient": gradient_channel(config, 5), "mask": mask_channel(5)}[name]
    manifest = make_manifest(config, model, channels=(update_channel(config, int(model.mask.sum())), channel))
    with pytest.raises(PolicyRefusal, match=name):
        check_terms(manifest)
    with pytest.raises(ProtocolError):
        Contributor(config, task, SiloData(records, None), 1, "cpu").contribute(manifest, model)


# What is refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prune": "feddst", "dp_epsilon": 8.0}, "--prune feddst"),
        ({"prune": "fedmask", "dp_epsilon": 8.0, "dp_trust": "local"}, "--prune fedmask"),
        ({"prune": "feddst", "prune_threshold": 0.0}, "--prune-threshold 0"),
        ({"prune": "feddst", "prune_threshold_kind": "absolute"}, "--prune-threshold-kind"),
        ({"prune": "fedmask", "prox_mu": 0.1}, "--prox-mu"),
        ({"prune": "fedmask", "server_optimizer": "adam"}, "--server-optimizer"),
        ({"prune": "fedmask", "explore_every": 3}, "--explore-every 3"),
        ({"prune": "feddst", "rounds": 1}, "--rounds 1"),
        ({"prune": "feddst", "explore_every": 3}, "--explore-every 3"),
        ({"prune": "fedmask", "rounds": 1}, "--rounds 1"),
        ({"prune": "fedmask", "rounds": 2, "warm_start": True}, "--rounds 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make_config, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Schedule(make_config(**options))
