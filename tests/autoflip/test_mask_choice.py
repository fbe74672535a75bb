"""The hybrid mask: threshold, starvation, budgets, floors, hysteresis."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.flops import flops, parameter_flops, parameters
from autoflip_secure.autoflip.mask import MaskDecision, PruneSettings, choose_mask
from autoflip_secure.autoflip.unit_budget import (
    Budget,
    budget_ranking,
    budgets_of,
    check_reachable,
    cut_units,
    layer_normalised,
)
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import ConfigError, EncodingError
from autoflip_secure.models.spec import ModelSpec, dense_spec, unit_layers

TANH = dense_spec("cnn-tanh", (1, 28, 28), 10)
CNN6 = dense_spec("cnn6", (1, 12, 12), 4)
MLP = dense_spec("mlp", (13,), 2)
RESNET = dense_spec("resnet-small", (1, 8, 8), 3)
SPEC = st.sampled_from([TANH, CNN6, RESNET, MLP])

Scores = tuple[NDArray[np.float64], NDArray[np.float64]]


def drawn(spec: ModelSpec, seed: int) -> Scores:
    """Heavy-tailed scores whose scale differs between units, so that whole units can fall below a threshold."""
    units = UnitMap.of(spec)
    generator = np.random.default_rng(seed)
    of_units = generator.lognormal(0, 1.5, units.count)
    return generator.random(units.size) * units.spread(of_units, outputs=1.0), of_units


def choose(
    spec: ModelSpec, scores: Scores, prune: PruneSettings, current: NDArray[np.bool_] | None = None
) -> MaskDecision:
    units = UnitMap.of(spec)
    return choose_mask(spec, units, *scores, prune, np.ones(units.size, np.bool_) if current is None else current)


PRUNE = st.builds(
    PruneSettings,
    threshold=st.floats(0, 0.95),
    flops_kept=st.none() | st.floats(0.15, 1),
    params_kept=st.none() | st.floats(0.15, 1),
    layer_floor=st.sampled_from([0.0, 0.05, 0.1]),
    hysteresis=st.sampled_from([0.0, 0.1, 0.5]),
)


def check_invariants(spec: ModelSpec, prune: PruneSettings, decision: MaskDecision) -> None:
    units = UnitMap.of(spec)
    mask, dead = decision.mask, decision.dead_units
    gone = units.parameters_of(dead)
    assert mask.dtype == np.bool_
    assert dead.dtype == np.bool_
    assert not mask[gone].any(), "a dead unit goes whole"
    assert mask[~units.prunable & ~gone].all(), "biases and normalisation follow their unit"
    live_weights = units.group_sum(mask & units.prunable)
    assert (live_weights[np.append(~dead, np.ones(spec.outputs, np.bool_))] > 0).all(), "nothing living is starved"
    dense = dense_spec(spec.name, spec.input_shape, spec.outputs)
    for layer, full in enumerate(unit_layers(dense)):
        alive = int((~dead[units.layer == layer]).sum())
        assert alive >= max(1, np.ceil(prune.layer_floor * full.units - 1e-9))
    small = compact(spec, dead)
    if prune.flops_kept is not None:
        assert flops(small.spec) <= prune.flops_kept * flops(dense)
    if prune.params_kept is not None:
        assert parameters(small.spec) <= prune.params_kept * parameters(dense)


@settings(max_examples=60, deadline=None)
@given(SPEC, PRUNE, st.integers(0, 10**6))
def test_every_decision_keeps_the_rules(spec: ModelSpec, prune: PruneSettings, seed: int) -> None:
    scores = drawn(spec, seed)
    try:
        decision = choose(spec, scores, prune)
    except ConfigError as error:
        assert "cannot be kept" in str(error)  # noqa: PT017
        with pytest.raises(ConfigError):
            check_reachable(spec, prune)
        return
    check_invariants(spec, prune, decision)
    again = choose(spec, scores, prune)
    assert np.array_equal(again.mask, decision.mask)
    assert np.array_equal(again.dead_units, decision.dead_units)


@settings(max_examples=25, deadline=None)
@given(SPEC, PRUNE, st.integers(0, 10**6))
def test_repeated_pruning_after_compaction_keeps_the_rules(spec: ModelSpec, prune: PruneSettings, seed: int) -> None:
    """Floors, budgets and the quantile refer to the dense network: pruning again does not compound."""
    try:
        first = choose(spec, drawn(spec, seed), prune)
    except ConfigError:
        return
    small = compact(spec, first.dead_units)
    second = choose(small.spec, drawn(small.spec, seed + 1), prune, first.mask[small.kept])
    check_invariants(small.spec, prune, second)


def test_quantile_kills_exactly_its_share_of_the_weights() -> None:
    units = UnitMap.of(TANH)
    scores = np.random.default_rng(0).random(units.size), np.ones(units.count)
    weights = int(units.prunable.sum())
    decision = choose(TANH, scores, PruneSettings(threshold=0.3))
    assert not decision.dead_units.any()
    assert (~decision.mask).sum() == round(0.3 * weights)
    assert scores[0][~decision.mask].max() < scores[0][decision.mask & units.prunable].min()


def test_of_weights_level_with_the_threshold_the_masked_die_first_then_the_lowest_numbers() -> None:
    units = UnitMap.of(TANH)
    generator = np.random.default_rng(0)
    level = generator.integers(1, 3, units.size)
    low = units.prunable & (level == 1)
    current = ~(low & (generator.random(units.size) < 0.1))
    prune = PruneSettings(threshold=0.3, hysteresis=0.0)
    decision = choose(TANH, (level.astype(float), np.ones(units.count)), prune, current)
    dying = round(0.3 * int(units.prunable.sum()))
    first = np.concatenate([np.flatnonzero(~current), np.flatnonzero(low & current)])[:dying]
    np.testing.assert_array_equal(np.flatnonzero(~decision.mask), np.sort(first))


def test_absolute_kills_what_scores_below_and_only_that() -> None:
    units = UnitMap.of(TANH)
    scores = np.random.default_rng(0).random(units.size), np.ones(units.count)
    prune = PruneSettings(threshold=0.25, threshold_kind="absolute", hysteresis=0.0)
    decision = choose(TANH, scores, prune)
    np.testing.assert_array_equal(decision.mask, ~((scores[0] < 0.25) & units.prunable))


def test_threshold_zero_kills_nothing() -> None:
    assert choose(MLP, drawn(MLP, 0), PruneSettings(threshold=0.0)).mask.all()


def test_a_unit_dies_only_when_all_its_weights_do() -> None:
    """One filter has all weights lowest: it dies whole. Another keeps one weight: it lives, with its bias."""
    units = UnitMap.of(TANH)
    parameter_scores = np.full(units.size, 1.0) + np.random.default_rng(0).random(units.size)
    filter_weights = [units.incoming[u][units.prunable[units.incoming[u]]] for u in (3, 5)]
    parameter_scores[np.concatenate(filter_weights)] = 0.01
    parameter_scores[filter_weights[1][7]] = 2.0
    prune = PruneSettings(threshold=0.5, threshold_kind="absolute")
    decision = choose(TANH, (parameter_scores, np.ones(units.count) + np.arange(units.count)), prune)
    np.testing.assert_array_equal(np.flatnonzero(decision.dead_units), [3])
    assert not decision.mask[units.parameters_of(decision.dead_units)].any()
    assert decision.mask[units.incoming[5]].sum() == 2
    assert decision.mask.sum() == units.size - units.parameters_of(decision.dead_units).sum() - (64 - 1)


def test_starvation_spreads_to_units_that_read_or_feed_only_dead_ones() -> None:
    spec = ModelSpec("mlp", (4,), 2, (6, 5))
    units = UnitMap.of(spec)
    parameter_scores = np.ones(units.size)
    # Unit 0 has no input. Unit 7 reads only unit 0, unit 2 is read by nobody: both must follow.
    parameter_scores[units.incoming[0]] = 0.0
    parameter_scores[np.setdiff1d(units.incoming[7], units.outgoing[0])] = 0.0
    parameter_scores[units.outgoing[2]] = 0.0
    prune = PruneSettings(threshold=0.5, threshold_kind="absolute", layer_floor=0.0)
    unit_scores = 10.0 - np.arange(units.count)
    unit_scores[[0, 2, 7]] = 0.0
    decision = choose(spec, (parameter_scores, unit_scores), prune)
    np.testing.assert_array_equal(np.flatnonzero(decision.dead_units), [0, 2, 7])


def test_the_floor_keeps_the_best_units_and_their_best_weights() -> None:
    units = UnitMap.of(TANH)
    parameter_scores, unit_scores = drawn(TANH, 1)
    parameter_scores[units.owner < 16] *= 1e-9
    prune = PruneSettings(threshold=1e-6, threshold_kind="absolute", layer_floor=0.2)
    decision = choose(TANH, (parameter_scores, unit_scores), prune)
    alive = np.flatnonzero(~decision.dead_units[units.layer == 0])
    best = np.argsort(-unit_scores[:16], kind="stable")[:4]
    np.testing.assert_array_equal(alive, np.sort(best))
    for unit in best:
        incoming = units.incoming[unit][units.prunable[units.incoming[unit]]]
        kept = incoming[np.argsort(-parameter_scores[incoming], kind="stable")[:13]]
        np.testing.assert_array_equal(np.flatnonzero(decision.mask[incoming]), np.flatnonzero(np.isin(incoming, kept)))


def test_no_mask_cuts_the_output_off() -> None:
    units = UnitMap.of(MLP)
    parameter_scores, unit_scores = drawn(MLP, 2)
    parameter_scores[units.owner >= units.count] = 0.0
    decision = choose(MLP, (parameter_scores, unit_scores), PruneSettings(threshold=0.9))
    check_invariants(MLP, PruneSettings(threshold=0.9), decision)
    biases = np.flatnonzero(~units.prunable & (units.owner >= units.count))
    assert decision.mask[biases].all()


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.25, 0.12])
def test_a_flop_budget_is_met_within_one_unit(kept: float) -> None:
    """The measured cost is within the budget, and any dead unit that came back would exceed it."""
    for seed in range(5):
        scores = drawn(TANH, seed)
        decision = choose(TANH, scores, PruneSettings(threshold=0.0, flops_kept=kept))
        limit = kept * flops(TANH)
        assert flops(compact(TANH, decision.dead_units).spec) <= limit
        for unit in np.flatnonzero(decision.dead_units):
            revived = decision.dead_units.copy()
            revived[unit] = False
            assert flops(compact(TANH, revived).spec) > limit


def test_half_the_flops_with_threshold_too() -> None:
    units = UnitMap.of(TANH)
    scores = np.random.default_rng(0).random(units.size), np.random.default_rng(1).random(units.count)
    decision = choose(TANH, scores, PruneSettings(flops_kept=0.5))
    share = flops(compact(TANH, decision.dead_units).spec) / flops(TANH)
    largest_unit = 2 * (14 * 14 * 64 + 25 * 32 * 16) / flops(TANH)
    assert 0.5 - largest_unit < share <= 0.5
    # Weights of dead units count among the lowest 30 %, so the threshold finds nothing more to kill.
    np.testing.assert_array_equal(~decision.mask, units.parameters_of(decision.dead_units))


def test_weights_of_dead_units_count_towards_the_quantile() -> None:
    units = UnitMap.of(TANH)
    scores = np.random.default_rng(0).random(units.size), np.random.default_rng(1).random(units.count)
    decision = choose(TANH, scores, PruneSettings(threshold=0.7, flops_kept=0.5))
    dying = (~decision.mask & units.prunable).sum()
    assert dying == round(0.7 * units.prunable.sum())
    assert dying > (units.parameters_of(decision.dead_units) & units.prunable).sum()


def test_the_lowest_units_of_a_layer_die_first() -> None:
    units = UnitMap.of(TANH)
    scores = drawn(TANH, 4)
    decision = choose(TANH, scores, PruneSettings(threshold=0.0, flops_kept=0.3))
    for layer in range(3):
        of = units.layer == layer
        dead, alive = scores[1][of & decision.dead_units], scores[1][of & ~decision.dead_units]
        assert dead.size == 0 or dead.max() <= alive.min()


def test_layers_are_compared_by_normalised_scores() -> None:
    units = UnitMap.of(TANH)
    parameter_scores, unit_scores = drawn(TANH, 4)
    prune = PruneSettings(threshold=0.0, flops_kept=0.3)
    scaled = unit_scores * np.array([1e-6, 1.0, 1e6])[units.layer]
    plain = choose(TANH, (parameter_scores, unit_scores), prune)
    np.testing.assert_array_equal(choose(TANH, (parameter_scores, scaled), prune).dead_units, plain.dead_units)
    gone = units.layer == 0
    gone[1] = False
    np.testing.assert_allclose(layer_normalised(units, unit_scores, gone)[1], 1.0)
    assert np.isfinite(layer_normalised(units, np.zeros(units.count), gone)).all()


def test_the_ranking_divides_by_the_fourth_root_of_what_a_unit_costs() -> None:
    units = UnitMap.of(TANH)
    scores = np.random.default_rng(0).random(units.count)
    gone = np.arange(units.count) == 5
    ranking = budget_ranking(units, scores, gone, budgets_of(TANH, PruneSettings(flops_kept=0.5)))
    # Multiply-adds of a unit's incoming and outgoing weights; of conv1 one filter in 16 is gone.
    costs = (196 * 64 + 25 * 32 * 16, 25 * 15 * 16 + 32 * 16, 512 + 10)
    for unit in np.flatnonzero(~gone):
        layer = int(units.layer[unit])
        mean = scores[(units.layer == layer) & ~gone].mean()
        assert np.isclose(ranking[unit], scores[unit] / mean / (2 * costs[layer] / flops(TANH)) ** 0.25)


LSTM = ModelSpec("char-lstm", (2,), 5, (12, 9))
"""A unit reads itself: some of its parameters are incoming and outgoing."""


@pytest.mark.parametrize("spec", [MLP, LSTM], ids=["mlp", "char-lstm"])
def test_cut_units_against_recounting_from_scratch(spec: ModelSpec) -> None:
    units = UnitMap.of(spec)
    scores = np.random.default_rng(0).random(units.count)
    forced = scores > 0.9
    protected = np.zeros(units.count, np.bool_)
    protected[[int(np.flatnonzero(units.layer == layer)[0]) for layer in range(len(spec.widths))]] = True
    protected &= ~forced
    cost = parameter_flops(spec)
    budgets = [
        Budget("--prune-flops", cost, 0.4 * cost.sum(), cost.sum()),
        Budget("params_kept", np.ones(units.size), 0.45 * units.size, units.size),
    ]
    dead = cut_units(units, scores, forced, protected, budgets)
    assert dead[forced].all()
    assert not dead[protected].any()

    def met(flags: NDArray[np.bool_]) -> bool:
        alive = ~units.parameters_of(flags)
        return all(budget.cost[alive].sum() <= budget.most for budget in budgets)

    slow, killed = forced.copy(), []
    for unit in np.argsort(scores):
        if met(slow):
            break
        if not slow[unit] and not protected[unit]:
            slow[unit] = True
            killed.append(unit)
    for unit in reversed(killed):
        slow[unit] = False
        slow[unit] = not met(slow)
    np.testing.assert_array_equal(dead, slow)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]), st.sampled_from(["cnn-tanh", "cnn6", "char-lstm"]))
def test_layers_keep_multiples_of_what_they_are_rounded_to(seed: int, step: int, name: str) -> None:
    spec = dense_spec(name, (8,) if name == "char-lstm" else (1, 28, 28), 10)
    units = UnitMap.of(spec)
    scores = np.ones(units.size), np.random.default_rng(seed).random(units.count)
    prune = PruneSettings(threshold=0.0, flops_kept=0.5, round_to=step)
    left = ~choose(spec, scores, prune).dead_units
    channels = np.array(spec.widths) // units.layer_sizes
    widths = units.layer_sum(left.astype(float)).astype(int) * channels
    for size, width in zip(spec.widths, widths, strict=True):
        assert width == size or width % step == 0 or size < 2 * step
    assert 0.3 * flops(spec) < flops(replace(spec, widths=tuple(widths.tolist()))) <= 0.5 * flops(spec)
    for layer in range(len(widths)):
        of = units.layer == layer
        assert scores[1][of & left].min() >= scores[1][of & ~left].max(initial=0.0), "the best of each layer live"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 0.8), st.sampled_from([16, 24]))
def test_the_best_of_a_rounded_layer_live_whatever_fits_again(seed: int, kept: float, step: int) -> None:
    spec = ModelSpec("mlp", (30,), 10, (60, 32))
    units = UnitMap.of(spec)
    scores = np.random.default_rng(seed).random(units.count)
    protected = np.zeros(units.count, np.bool_)
    cost = parameter_flops(spec)
    budget = Budget("--prune-flops", cost, kept * cost.sum(), cost.sum())
    dead = cut_units(units, scores, protected, protected, [budget], step)
    for layer in range(2):
        of = units.layer == layer
        assert scores[of & ~dead].min(initial=1.0) >= scores[of & dead].max(initial=0.0)
    dense = dense_spec("mlp", (30,), 10).widths
    left = [int((~dead & (units.layer == layer)).sum()) for layer in range(2)]
    for width, at_first, wide in zip(left, spec.widths, dense, strict=True):
        assert width in (0, at_first) or width % step == 0 or wide < 2 * step


@pytest.mark.parametrize("name", ["cnn-tanh", "cnn6", "resnet-small"])
def test_rounding_holds_over_several_decisions(name: str) -> None:
    spec = dense = dense_spec(name, (1, 28, 28), 10)
    for kept in (0.8, 0.6, 0.45):
        units = UnitMap.of(spec)
        decision = choose(
            spec, (np.ones(units.size), drawn(spec, 5)[1]), PruneSettings(0.0, flops_kept=kept, round_to=8)
        )
        spec = compact(spec, decision.dead_units).spec
    assert spec.widths != dense.widths
    assert all(width % 8 == 0 for width, wide in zip(spec.widths, dense.widths, strict=True) if wide >= 16)


def test_units_of_several_channels_are_rounded_to_multiples_of_both() -> None:
    spec = dense_spec("cnn6", (1, 28, 28), 10)
    units = UnitMap.of(spec)
    left = ~choose(spec, drawn(spec, 6), PruneSettings(0.0, flops_kept=0.5, round_to=6)).dead_units
    widths = units.layer_sum(left.astype(float)) * (np.array(spec.widths) // units.layer_sizes)
    assert all(width % 12 == 0 or width == wide for width, wide in zip(widths[:-1], spec.widths, strict=False))


def test_equal_scores_keep_the_order_of_a_layers_groups() -> None:
    spec = ModelSpec("mlp", (30,), 10, (60, 32))
    units = UnitMap.of(spec)
    nobody = np.zeros(units.count, np.bool_)
    for value in (0.1, 0.7, 1 / 3):
        cost = np.ones(units.size)
        budget = Budget("params_kept", cost, 0.9 * units.size, float(units.size))
        dead = cut_units(units, np.full(units.count, value), nobody, units.layer == 1, [budget], 16)
        assert (~dead[units.layer == 0]).sum() == 48


def test_rounding_counts_units_that_died_before_and_leaves_protected_ones() -> None:
    units = UnitMap.of(TANH)
    scores = np.random.default_rng(3).random(units.count)
    forced = (units.layer == 1) & (scores < np.sort(scores[units.layer == 1])[5])
    protected = np.zeros(units.count, np.bool_)
    protected[np.flatnonzero(units.layer == 2)[:30]] = True
    dead = cut_units(units, scores, forced, protected, budgets_of(TANH, PruneSettings(flops_kept=0.5)), 8)
    assert dead[forced].all()
    assert not dead[protected].any()
    first, second, _ = np.bincount(units.layer[~dead])
    assert first in (8, 16)
    assert second in (8, 16, 24, 27), "27 were left: the first group that may die is of three"


def test_a_budget_that_rounding_forbids_is_refused_before_the_run() -> None:
    check_reachable(TANH, PruneSettings(threshold=0.0, flops_kept=0.25))
    with pytest.raises(ConfigError, match=r"--prune-flops: 0.25 cannot be kept, .* take 0.3"):
        check_reachable(TANH, PruneSettings(threshold=0.0, flops_kept=0.25, round_to=8))


def test_rounding_to_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--prune-round-to"):
        PruneSettings(round_to=0)


WIDE = dense_spec("mlp", (30,), 20)
"""So many weights a neuron that uniform scores starve none."""


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["quantile", "absolute"]))
def test_scores_that_move_within_the_band_change_nothing(seed: int, kind: str) -> None:
    units = UnitMap.of(WIDE)
    generator = np.random.default_rng(seed)
    prune = PruneSettings(threshold=0.4, threshold_kind=kind, hysteresis=0.1, layer_floor=0.0)
    scores = generator.random(units.size), np.ones(units.count)
    first = choose(WIDE, scores, prune)
    assert not first.dead_units.any()
    moved = scores[0] * generator.uniform(0.95, 1.05, units.size), scores[1]
    second = choose(WIDE, moved, prune, first.mask)
    if kind == "absolute":
        # At first only scores clearly below the threshold died; a masked one must reach t / .9, a living one t / 1.1.
        np.testing.assert_array_equal(first.mask, ~((scores[0] < 0.4 / 1.1) & units.prunable))
        crossed = (first.mask & (moved[0] < 0.4 / 1.1)) | (~first.mask & (moved[0] >= 0.4 / 0.9))
        np.testing.assert_array_equal(second.mask, np.where(crossed & units.prunable, ~first.mask, first.mask))
    else:
        np.testing.assert_array_equal(second.mask, first.mask)
        eager = PruneSettings(threshold=0.4, hysteresis=0.0, layer_floor=0.0)
        assert not np.array_equal(choose(WIDE, moved, eager, first.mask).mask, first.mask)


@settings(max_examples=30, deadline=None)
@given(SPEC, st.floats(0, 0.9), st.integers(0, 10**6))
def test_the_same_scores_again_change_nothing(spec: ModelSpec, threshold: float, seed: int) -> None:
    """Also where units starved, which moves the threshold."""
    scores, prune = drawn(spec, seed), PruneSettings(threshold=threshold)
    first = choose(spec, scores, prune)
    second = choose(spec, scores, prune, first.mask)
    np.testing.assert_array_equal(second.mask, first.mask)
    np.testing.assert_array_equal(second.dead_units, first.dead_units)


def test_a_masked_weight_returns_when_its_score_leaves_the_band() -> None:
    units = UnitMap.of(WIDE)
    parameter_scores = np.random.default_rng(0).random(units.size)
    prune, unit_scores = PruneSettings(threshold=0.3), np.ones(units.count)
    first = choose(WIDE, (parameter_scores, unit_scores), prune)
    masked = np.flatnonzero(~first.mask)[0]
    parameter_scores[masked] = 5.0
    second = choose(WIDE, (parameter_scores, unit_scores), prune, first.mask)
    assert second.mask[masked]
    changed = np.flatnonzero(second.mask != first.mask)
    lowest_alive = np.argmin(np.where(first.mask & units.prunable, parameter_scores, np.inf))
    assert set(changed.tolist()) == {int(masked), int(lowest_alive)}


def test_dead_units_stay_dead() -> None:
    units = UnitMap.of(TANH)
    first = choose(TANH, drawn(TANH, 0), PruneSettings(threshold=0.0, flops_kept=0.5))
    praised = np.where(first.dead_units, 1e6, 1.0)
    scores = units.spread(praised, outputs=1.0), praised
    second = choose(TANH, scores, PruneSettings(threshold=0.0, flops_kept=0.4), first.mask)
    assert second.dead_units[first.dead_units].all()
    assert second.dead_units.sum() > first.dead_units.sum()


def test_masking_and_compacting_first_come_to_the_same_mask() -> None:
    scores = drawn(TANH, 7)
    first = choose(TANH, scores, PruneSettings(threshold=0.6, flops_kept=0.5))
    small = compact(TANH, first.dead_units)
    prune = PruneSettings(threshold=0.8, flops_kept=0.3)
    late = choose(TANH, scores, prune, first.mask)
    early = choose(small.spec, (scores[0][small.kept], scores[1][small.kept_units]), prune, first.mask[small.kept])
    np.testing.assert_array_equal(late.dead_units[small.kept_units], early.dead_units)
    np.testing.assert_array_equal(late.mask[small.kept], early.mask)


def test_unreachable_budgets_are_refused_before_and_during_a_run() -> None:
    prune = PruneSettings(flops_kept=0.005)
    with pytest.raises(ConfigError, match=r"--prune-flops: 0.005 cannot be kept.*lower layer_floor"):
        check_reachable(TANH, prune)
    with pytest.raises(ConfigError, match="mask is unchanged"):
        choose(TANH, drawn(TANH, 0), prune)
    least = PruneSettings(flops_kept=flops(ModelSpec("cnn-tanh", (1, 28, 28), 10, (2, 4, 4))) / flops(TANH))
    check_reachable(TANH, least)
    small = compact(TANH, choose(TANH, drawn(TANH, 0), least).dead_units)
    assert small.spec.widths == (2, 4, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": -0.1},
        {"threshold": 1.0},
        {"threshold": float("nan")},
        {"threshold": float("inf"), "threshold_kind": "absolute"},
        {"threshold_kind": "relative"},
        {"flops_kept": 0.0},
        {"flops_kept": 1.1},
        {"params_kept": float("nan")},
        {"layer_floor": -0.1},
        {"hysteresis": 1.0},
    ],
)
def test_settings_are_validated(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        PruneSettings(**wrong)
    assert "\n" not in str(caught.value)


def test_bad_arrays_are_refused() -> None:
    units = UnitMap.of(MLP)
    good, unit_scores, current = np.ones(units.size), np.ones(units.count), np.ones(units.size, np.bool_)
    prune = PruneSettings()
    for parameters_wrong in (good[1:], -good, good * np.nan):
        with pytest.raises(EncodingError, match="mask is unchanged"):
            choose_mask(MLP, units, parameters_wrong, unit_scores, prune, current)
    with pytest.raises(EncodingError, match="not bool"):
        choose_mask(MLP, units, good, unit_scores, prune, good)
    with pytest.raises(ConfigError, match="unit map is that of"):
        choose_mask(dense_spec("mlp", (14,), 2), units, good, unit_scores, prune, current)
    current[units.owner < 64] = False
    with pytest.raises(ConfigError, match="no unit left"):
        choose_mask(MLP, units, good, unit_scores, prune, current)


def test_a_decision_takes_well_below_a_second() -> None:
    scores, prune = drawn(TANH, 0), PruneSettings(flops_kept=0.25)
    compact(TANH, choose(TANH, scores, prune).dead_units)
    started = time.perf_counter()
    compaction = compact(TANH, choose(TANH, scores, prune).dead_units)
    flops(compaction.spec)
    assert time.perf_counter() - started < 0.5
