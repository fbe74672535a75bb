"""When the coordinator prunes, what it does to model and optimiser, and that its state survives a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from autoflip_secure.autoflip.flops import flops
from autoflip_secure.autoflip.start_scale import at_scale
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.global_masks import pruning_controller
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.pruning import PruningController
from autoflip_secure.federation.run_state import RunState, load_checkpoint, save_checkpoint
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.server_step import ServerMoments
from autoflip_secure.models.spec import layout_of
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Aggregate

Make = Callable[..., tuple[PruningController, ResolvedConfig]]


def start_of(model: ModelPayload) -> np.ndarray:
    return stream(0, "start").normal(size=model.mask.size).astype(np.float32)


@pytest.fixture
def make(make_config, model: ModelPayload) -> Make:
    def controller(**options: Any) -> tuple[PruningController, ResolvedConfig]:
        config = make_config(**{"prune": "autoflip", "silos": 8, "rounds": 40, **options})
        return PruningController(config, Schedule(config), model.spec, start_of(model)), config

    return controller


@pytest.fixture
def dense(model: ModelPayload) -> ModelPayload:
    weights = stream(0, "dense").normal(size=model.mask.size).astype(np.float32)
    return replace(model, weights=weights, mask=np.ones(model.mask.size, np.bool_))


def aggregate(controller: PruningController, model: ModelPayload, round: int, cohort: int, *names: str) -> Aggregate:
    """Random sums of four silos in the model's layout, masked coordinates 0."""
    draw = stream(7, "sums", round, cohort)
    channels = {}
    for name in names:
        if name == "unit_energy":
            channels[name] = 40 * draw.random(controller.units)
        else:
            values = draw.normal(size=model.mask.size)
            channels[name] = np.where(model.mask, values**2 if name == "deviation" else values, 0.0)
    return Aggregate(round, cohort, 4, channels, {"update": 0.1 if names == ("update",) else 0.0})


def sums_of(controller: PruningController, config: ResolvedConfig, model: ModelPayload, round: int) -> list[Aggregate]:
    """What round `round` of this configuration brings."""
    plan = Schedule(config).plan(round)
    if config.trust == "distributed":
        return [aggregate(controller, model, round, c, "update") for c in range(len(plan.cohorts))]
    names = ("deviation",) if plan.phase == "explore" else ("update", "unit_energy")
    return [aggregate(controller, model, round, 0, *names)]


TRUSTS: dict[str, dict[str, Any]] = {
    "none": {},
    "local": {"dp_epsilon": 8.0, "dp_trust": "local"},
    "distributed": {"dp_epsilon": 8.0, "cohorts": 2, "explore_rounds": 4, "agreement_every": 5},
}


def play(
    controller: PruningController, config: ResolvedConfig, model: ModelPayload, rounds: range
) -> tuple[ModelPayload, list[int]]:
    """Observe and decide through `rounds`; the model and the rounds with a decision."""
    decided = []
    for round in rounds:
        controller.observe(round, sums_of(controller, config, model, round), model.mask)
        if controller.is_decision(round):
            model, _ = controller.decide(round, model)
            decided.append(round)
    return model, decided


@pytest.mark.parametrize("trust", TRUSTS)
def test_the_target_is_reached_and_the_model_stays_consistent(make: Make, dense: ModelPayload, trust: str) -> None:
    controller, config = make(**{**TRUSTS[trust], "prune_steps": 3, "agreement_every": 5, "prune_flops": 0.4})
    model, decided = play(controller, config, dense, range(config.rounds))
    assert flops(model.spec) <= 0.4 * flops(dense.spec)
    assert model.weights.size == model.mask.size == layout_of(model.spec).size
    assert not model.weights[~model.mask].any()
    assert 0 < model.mask.sum() <= 0.7 * dense.mask.size
    assert len(decided) >= 3
    assert controller.units == sum(model.spec.widths)


@pytest.mark.parametrize(
    ("options", "decisions"),
    [
        # The first three reach the target within half of the rounds left; later ones follow the agreement rounds.
        ({"prune_steps": 3, "agreement_every": 0}, {0: 0.8, 6: 0.6, 12: 0.4}),
        ({"prune_steps": 1, "agreement_every": 0}, {0: 0.4}),
        ({"prune_steps": 1, "agreement_every": 7}, {0: 0.4, 7: 0.4, 14: 0.4, 21: 0.4, 28: 0.4}),
        ({"prune_steps": 3, "agreement_every": 8}, {0: 0.8, 6: 0.6, 12: 0.4, 16: 0.4, 24: 0.4}),
        ({"prune_steps": 2, "explore_rounds": 10, "dp_epsilon": 8.0, "agreement_every": 0}, {9: 0.7, 16: 0.4}),
    ],
)
def test_decision_rounds_and_their_targets(make: Make, options: dict[str, Any], decisions: dict[int, float]) -> None:
    controller, config = make(**options, prune_flops=0.4)
    found = {r: controller._target_after(r) for r in range(config.rounds) if controller.is_decision(r)}
    assert found == pytest.approx(decisions)


@pytest.mark.parametrize("rounds", [4, 5, 8, 20, 60])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_last_planned_decision_asks_for_the_whole_target(make: Make, rounds: int, steps: int) -> None:
    controller, config = make(rounds=rounds, prune_steps=steps, agreement_every=0)
    targets = [t for r in range(rounds) if (t := controller._target_after(r)) is not None]
    assert len(targets) == steps
    assert targets == sorted(targets, reverse=True)
    assert targets[-1] == config.prune_flops
    assert controller._target_after(rounds - 1) is None, "the final model was trained under its mask"


@pytest.mark.parametrize(("rounds", "steps"), [(2, None), (3, None), (10, 100)])
def test_the_target_is_reached_in_the_shortest_runs(make: Make, rounds: int, steps: int | None) -> None:
    controller, config = make(rounds=rounds, prune_steps=steps)
    targets = [t for r in range(rounds) if (t := controller._target_after(r)) is not None]
    assert targets[-1] == config.prune_flops


@pytest.mark.parametrize("trust", TRUSTS)
def test_compaction_takes_the_same_places_of_weights_and_optimiser(make: Make, dense: ModelPayload, trust: str) -> None:
    controller, config = make(**TRUSTS[trust])
    round = next(r for r in range(config.rounds) if controller.is_decision(r))
    for past in range(round + 1):
        controller.observe(past, sums_of(controller, config, dense, past), dense.mask)
    smaller, kept = controller.decide(round, dense)
    assert kept.size == smaller.mask.size < dense.mask.size
    expected = np.where(smaller.mask, dense.weights[kept], np.float32(0))
    if trust == "none":  # a cold start: untrained weights keep their scale
        expected = at_scale(dense.weights, expected, UnitMap.of(dense.spec), UnitMap.of(smaller.spec), kept)
        assert not np.array_equal(expected[smaller.mask], dense.weights[kept][smaller.mask])
    np.testing.assert_array_equal(smaller.weights, expected)
    assert smaller.records == dense.records


@pytest.mark.parametrize("trust", TRUSTS)
def test_state_survives_a_checkpoint_bit_for_bit(make: Make, dense: ModelPayload, trust: str, tmp_path: Path) -> None:
    """Stop after every stage of the run; the restored controller goes on to the same model."""
    controller, config = make(**TRUSTS[trust], rounds=24, prune_steps=2)
    model = dense
    middle = [1, 5, 13]
    for round in range(config.rounds):
        model, _ = play(controller, config, model, range(round, round + 1))
        if round in middle:
            state = RunState(round, model, ServerMoments.zeros(1), controller.arrays(), {"pruning": controller.facts()})
            save_checkpoint(tmp_path / str(round), state)
    for round in middle:
        state = load_checkpoint(tmp_path / str(round))
        again, _ = make(**TRUSTS[trust], rounds=24, prune_steps=2)
        again.restore(state.model.spec, state.pruning, state.facts["pruning"])
        resumed, _ = play(again, config, state.model, range(round + 1, config.rounds))
        assert resumed.to_bytes() == model.to_bytes()
        for name, array in controller.arrays().items():
            assert again.arrays()[name].tobytes() == array.tobytes(), name
        assert again.facts() == controller.facts()
        assert again.layer_report(resumed) == controller.layer_report(model)


def test_facts_are_json(make: Make, dense: ModelPayload) -> None:
    controller, config = make()
    play(controller, config, dense, range(3))
    assert json.loads(json.dumps(controller.facts())) == controller.facts()
    assert controller.facts()["guidance_rounds"] == 2
    assert controller.facts()["energy_rounds"] == 2


def test_agreement_is_measured_where_the_sums_allow_it(make: Make, dense: ModelPayload) -> None:
    controller, config = make(**TRUSTS["distributed"])
    assert controller.agreement_average is None
    two, one = sums_of(controller, config, dense, 0), sums_of(controller, config, dense, 6)
    assert (len(two), len(one)) == (2, 1)
    controller.observe(0, two, dense.mask)
    assert controller.agreement is not None
    first = controller.agreement_average
    controller.observe(6, one, dense.mask)
    assert controller.agreement is None
    assert controller.agreement_average == first
    plain, config = make()
    plain.observe(0, sums_of(plain, config, dense, 0), dense.mask)
    assert plain.agreement is None
    plain.observe(1, sums_of(plain, config, dense, 1), dense.mask)
    assert plain.agreement is not None


def test_noised_sums_move_guidance_by_unit_and_plain_ones_by_parameter(make: Make, dense: ModelPayload) -> None:
    """Under noise a single coordinate says nothing: parameters of a unit in one tensor move together."""
    for trust, rounds in (("distributed", 1), ("none", 2)):
        controller, config = make(**TRUSTS[trust])
        for round in range(rounds):
            controller.observe(round, sums_of(controller, config, dense, round), dense.mask)
        values, owner = controller.arrays()["guidance"], controller._units.owner
        (weights,) = [part for name, part, _ in layout_of(dense.spec).slices() if name == "fc1.weight"]
        spread = [np.ptp(values[weights][owner[weights] == unit]) for unit in range(64)]
        assert (max(spread) == 0) == (trust == "distributed")
        assert np.ptp(values[weights]) > 0


def test_the_silos_own_noise_is_taken_off_energy_and_agreement(make: Make, dense: ModelPayload) -> None:
    """Trust local: noise alone leaves no energy and no agreement, and the score is size times energy."""
    controller, _ = make(**TRUSTS["local"])
    blind, _ = make(**TRUSTS["local"])
    units, noise = controller._units, 3.0
    for round in range(1, 30):
        updates = stream(3, "own noise", round).normal(0, noise, (8, units.size))
        energy = np.sum([units.unit_sum(row**2) for row in updates], axis=0)
        sums = [Aggregate(round, 0, 8, {"update": updates.sum(axis=0), "unit_energy": energy})]
        controller.observe(round, sums, dense.mask, noise**2)
        blind.observe(round, sums, dense.mask)
    mean_noise = 29 * noise**2 / 8
    assert abs(controller.arrays()["energy"].mean()) < 0.05 * mean_noise
    assert abs(blind.arrays()["energy"].mean() - mean_noise) < 0.05 * mean_noise
    assert controller.arrays()["agreement_variance"].min() > 0
    assert not blind.arrays()["agreement_variance"].any()
    larger = replace(dense, weights=dense.weights * np.where(units.owner == 0, 10, 1).astype(np.float32))
    assert controller._scores(30, larger).units[0] > 3 * controller._scores(30, dense).units[0]


@pytest.mark.parametrize("warm", [False, True])
def test_a_cold_started_method_judges_what_exploration_led_to(make: Make, dense: ModelPayload, warm: bool) -> None:
    """Magnitude: the model itself where exploration moved it, else the start plus the explored update."""
    controller, config = make(prune="magnitude", warm_start=warm, prune_steps=1)
    update = stream(5, "explored").normal(size=dense.mask.size)
    controller.observe(0, [Aggregate(0, 0, 4, {"update": 4 * update})], dense.mask)
    assert config.warm_start == warm
    expected = np.abs(dense.weights + (0 if warm else update))
    np.testing.assert_allclose(controller._scores(0, dense).parameters, expected, rtol=1e-6)
    np.testing.assert_allclose(controller._scores(9, dense).parameters, np.abs(dense.weights), rtol=1e-6)


def test_snip_judges_the_start_by_the_explored_update_whatever_came_later(make: Make, dense: ModelPayload) -> None:
    controller, _ = make(prune="snip")
    update, later = stream(5, "explored").normal(size=(2, dense.mask.size))
    controller.observe(0, [Aggregate(0, 0, 4, {"update": 4 * update})], dense.mask)
    controller.observe(1, [Aggregate(1, 0, 4, {"update": 4 * later})], dense.mask)
    expected = np.abs(start_of(dense) * update)
    np.testing.assert_allclose(controller._scores(1, dense).parameters, expected, rtol=1e-5)


def test_a_new_map_replaces_guidance_and_is_compared_with_the_first(make: Make, dense: ModelPayload) -> None:
    controller, _ = make(explore_every=10)
    first, other = stream(1, "maps").random((2, dense.mask.size))
    controller.observe(0, [Aggregate(0, 0, 4, {"deviation": first})], dense.mask)
    assert controller.likeness is None
    guidance = controller.arrays()["guidance"]
    controller.observe(10, [Aggregate(10, 0, 4, {"deviation": first})], dense.mask)
    assert controller.likeness is not None
    assert (controller.likeness.cosine, controller.likeness.rank) == pytest.approx((1.0, 1.0))
    controller.observe(20, [Aggregate(20, 0, 4, {"deviation": other})], dense.mask)
    assert controller.likeness is not None
    assert 0.5 < controller.likeness.cosine < 0.95
    assert abs(controller.likeness.cosine - controller.likeness.chance) < 0.05, "the maps have nothing in common"
    assert abs(controller.likeness.rank) < 0.5
    assert not np.array_equal(controller.arrays()["guidance"], guidance)
    controller.observe(21, sums_of(controller, _, dense, 21), dense.mask)
    assert controller.likeness is None


def test_only_the_first_decision_of_a_cold_start_scales_weights(make: Make, dense: ModelPayload) -> None:
    first, config = make(explore_every=2)
    first.observe(0, sums_of(first, config, dense, 0), dense.mask)
    scaled, _ = first.decide(0, dense)
    twin = PruningController(config, Schedule(config), scaled.spec, scaled.weights)
    twin.restore(scaled.spec, first.arrays(), first.facts())
    assert twin.facts()["decided"]
    again = next(r for r in range(1, config.rounds) if twin.is_decision(r) and twin._schedule.leaves_the_model(r))
    twin.observe(again, sums_of(twin, config, scaled, again), scaled.mask)
    later, kept = twin.decide(again, scaled)
    np.testing.assert_array_equal(later.weights[later.mask], scaled.weights[kept][later.mask])


def test_a_map_is_compared_with_the_first_one_s_part_of_a_smaller_network(make: Make, dense: ModelPayload) -> None:
    controller, _ = make(explore_every=10, prune_steps=1, prune_flops=0.4)
    first = stream(1, "map").random(dense.mask.size)
    controller.observe(0, [Aggregate(0, 0, 4, {"deviation": first})], dense.mask)
    smaller, kept = controller.decide(0, dense)
    again = np.where(smaller.mask, first[kept], 0.0)
    controller.observe(10, [Aggregate(10, 0, 4, {"deviation": again})], smaller.mask)
    assert controller.likeness is not None
    # Both are scaled tensor by tensor, each by its own range.
    assert controller.likeness.cosine > 0.99
    assert controller.likeness.cosine > controller.likeness.chance + 0.05


@pytest.mark.parametrize("trust", TRUSTS)
def test_importance_is_written_for_the_dense_network_and_names_who_lives(
    make: Make, dense: ModelPayload, trust: str
) -> None:
    controller, config = make(**TRUSTS[trust], prune_steps=2)
    model, _ = play(controller, config, dense, range(config.rounds))
    written = controller.importance(model)
    assert written is not None
    found = load(written)
    assert all(values.size == dense.mask.size for values in found.values())
    assert found["mask"].sum() == model.mask.sum()
    assert ("first_map" in found) == (trust != "distributed"), "no deviations are summed there"
    # All dense parameters but those that live keep what was last known of them.
    assert found["first_score"].max() == found["last_score"].max() == 1
    assert found["guidance"].min() >= 0
    values = np.sort(found["guidance"][found["mask"] > 0])
    np.testing.assert_array_equal(values, np.sort(controller.arrays()["guidance"][model.mask].astype(np.float16)))


@pytest.mark.parametrize("prune", ["none", "random", "feddst", "eflprune", "fedmask"])
def test_methods_without_scores_write_no_importance(make_config, dense: ModelPayload, prune: str) -> None:
    config = make_config(prune=prune, silos=8, rounds=40)
    controller = pruning_controller(config, Schedule(config), dense.spec, start_of(dense))
    assert controller.importance(controller.draw(dense)) is None


def test_update_variance_is_known_where_squares_are_summed_beside_updates(make: Make, dense: ModelPayload) -> None:
    controller, config = make()
    controller.observe(0, sums_of(controller, config, dense, 0), dense.mask)
    assert controller.update_variance is None
    controller.observe(1, sums_of(controller, config, dense, 1), dense.mask)
    assert controller.update_variance is not None
    assert controller.update_variance >= 0
    noised, config = make(**TRUSTS["distributed"])
    noised.observe(0, sums_of(noised, config, dense, 0), dense.mask)
    assert noised.update_variance is None


def test_agreement_is_that_of_all_cohorts_that_send_squares(make: Make, dense: ModelPayload) -> None:
    """--cohorts without distributed noise: squares come along, and no cohort speaks for the others."""
    controller, config = make(cohorts=2, agreement_every=1, colluders=0, silos=8)
    assert len(Schedule(config).plan(1).cohorts) == 2
    update = stream(4, "update").normal(size=dense.mask.size)
    energy = controller._units.unit_sum(update**2)
    sums = [Aggregate(1, c, 4, {"update": s * 4 * update, "unit_energy": 4 * energy}) for c, s in enumerate((1, -1))]
    controller.observe(1, sums, dense.mask)
    assert controller.agreement is not None
    np.testing.assert_allclose(controller.agreement.rho, -1 / 7)


@pytest.mark.parametrize("level", ["unit", "parameter"])
def test_the_level_of_guidance_may_be_chosen(make: Make, dense: ModelPayload, level: str) -> None:
    controller, _ = make(guidance_level=level, eta=1.0, score="guidance")
    update = stream(4, "update").normal(size=dense.mask.size)
    energy = controller._units.unit_sum(update**2)
    same = Aggregate(1, 0, 4, {"update": 4 * update, "unit_energy": 4 * energy})
    controller.observe(1, [same], dense.mask)
    guidance, incoming = controller.arrays()["guidance"], controller._units.incoming[0][:6]
    assert (np.ptp(guidance[incoming]) == 0) == (level == "unit")


def test_layers_are_reported_with_units_live_and_agreement(make: Make, dense: ModelPayload) -> None:
    controller, config = make()
    assert [row["agreement"] for row in controller.layer_report(dense)] == [None, None]
    model, _ = play(controller, config, dense, range(20))
    rows = controller.layer_report(model)
    assert [row["layer"] for row in rows] == ["fc1", "fc2"]
    assert [row["units"] for row in rows] == list(model.spec.widths)
    assert all(0 <= row["agreement"] <= 1 for row in rows)
    # Live parameters of a layer: its weights and biases, read from the flat layout by name.
    for row in rows:
        where = [part for name, part, _ in layout_of(model.spec).slices() if name.startswith(row["layer"] + ".")]
        assert row["live"] == sum(int(model.mask[part].sum()) for part in where)


def test_guidance_may_stay_as_explored(make: Make, dense: ModelPayload) -> None:
    controller, config = make(eta=0.0, score="guidance")
    play(controller, config, dense, range(3))


def test_random_units_meet_the_flop_target_and_follow_the_seed(make: Make, dense: ModelPayload) -> None:
    def drawn(seed: int) -> ModelPayload:
        controller, _ = make(prune="random", seed=seed)
        return controller.draw(dense)

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert flops(first.spec) <= 0.5 * flops(dense.spec)
    assert first.mask.all(), "whole units go, single parameters stay"
    assert np.array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, other.weights)
    assert not np.isin(first.weights, dense.weights).all(), "untrained weights are given their scale back"
    noised, _ = make(prune="random", seed=0, dp_epsilon=8.0)
    private = noised.draw(dense)
    sparse, _ = make(prune="random", seed=0, prune_threshold=0.8)
    assert 0.15 < sparse.draw(dense).mask.sum() / dense.mask.size < 0.3
    assert np.isin(private.weights, dense.weights).all()
    np.testing.assert_array_equal(np.sign(private.weights), np.sign(first.weights))
