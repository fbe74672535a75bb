"""The hybrid mask: single weights die below a threshold, whole units when starved or over budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.settings import PruneSettings
from autoflip_secure.autoflip.unit_budget import budget_ranking, budgets_of, cut_units, floor_units
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import ConfigError, EncodingError
from autoflip_secure.models.spec import ModelSpec, dense_spec

__all__ = ["MaskDecision", "PruneSettings", "choose_mask"]

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class MaskDecision:
    """What lives.

    Attributes
    ----------
    mask : bool (size,)
        True where a parameter lives. Everything `compact` would remove for `dead_units` is False.
    dead_units : bool (units,)
    """

    mask: Flags
    dead_units: Flags


def choose_mask(
    spec: ModelSpec,
    units: UnitMap,
    parameter_scores: NDArray[np.floating],
    unit_scores: NDArray[np.floating],
    settings: PruneSettings,
    current_mask: Flags,
) -> MaskDecision:
    """Choose which parameters live, a function of public values and sums alone.

    1. Weights below the threshold die. `quantile`: of the dense network's weights the fraction Tp with the lowest
       scores; weights of dead units and ones that compaction removed count as lowest, so repeated pruning does not
       compound. `absolute`: those with a score below Tp.
    2. A unit none of whose incoming weights lives dies whole, and so does one that nothing reads; this may starve
       further units.
    3. For a budget the lowest units die, in one ranking of all layers (`unit_budget.budget_ranking`), until the
       compacted network meets it (`unit_budget.cut_units`), in groups with `round_to`. Steps 1 and 2 are then repeated
       with these units dead.

    Units that step 1 would starve without a budget die in any case. Of each layer the best units of the floor stay, and
    each of them and each output neuron keeps its best weights: no mask cuts the network in two. Biases and
    normalisation follow their unit, output biases always live. Dead units stay dead: with zeros on both sides no
    gradient could wake them.

    Hysteresis h: scores of living weights count (1 + h) times, those of masked ones (1 - h) times, so that with the
    threshold at t a living weight dies only below t / (1 + h) and a masked one returns only above t / (1 - h).
    Scores with a weight's size in them are 0 for masked weights, which are 0: by those masks only shrink. By guidance
    they return, and by FedDST's gradients (`sparse_training`).

    Parameters
    ----------
    parameter_scores : float array (size,)
    unit_scores : float array (units,)
        Finite, not negative; only order and ratios within a layer count.
    current_mask : bool (size,)
        The mask in force.

    Raises
    ------
    EncodingError
        Arrays of other lengths, or scores that are negative or not finite.
    ConfigError
        A budget is out of reach, or the map is another network's.
    """
    _check(spec, units, parameter_scores, unit_scores, current_mask)
    gone = units.unit_sum(current_mask) == 0
    protected = floor_units(units, unit_scores.astype(np.float64), gone, settings.layer_floor)
    for layer in np.flatnonzero(units.layer_sum(protected) == 0):
        raise ConfigError(f"layer {layer} of {spec.name} has no unit left in the current mask; nothing was changed")
    band = np.where(current_mask, 1 + settings.hysteresis, 1 - settings.hysteresis)
    keys = parameter_scores.astype(np.float64) * band
    decision = _settle(units, keys, gone, protected, settings, current_mask)
    budgets = budgets_of(spec, settings)
    if budgets:
        ranking = budget_ranking(units, unit_scores.astype(np.float64), gone, budgets)
        dead = cut_units(units, ranking, decision.dead_units, protected, budgets, settings.round_to)
        decision = _settle(units, keys, dead, protected, settings, current_mask)
    return decision


def _check(
    spec: ModelSpec, units: UnitMap, parameters: NDArray[np.floating], unit_scores: NDArray[np.floating], mask: Flags
) -> None:
    if units.spec != spec:
        raise ConfigError(f"the unit map is that of {units.spec}, the network is {spec}; nothing was changed")
    expected: tuple[tuple[NDArray[Any], int], ...] = (
        (parameters, units.size),
        (unit_scores, units.count),
        (mask, units.size),
    )
    for array, length in expected:
        if array.shape != (length,):
            raise EncodingError(
                f"an array of shape {array.shape} came where ({length},) belongs; the mask is unchanged"
            )
    if mask.dtype != np.bool_:
        raise EncodingError(f"the current mask is of type {mask.dtype}, not bool; the mask is unchanged")
    for scores in (parameters, unit_scores):
        if not np.isfinite(scores).all() or (scores < 0).any():
            raise EncodingError("keep-scores must be finite and not negative; the mask is unchanged")


def _settle(
    units: UnitMap, keys: Values, dead: Flags, protected: Flags, settings: PruneSettings, current: Flags
) -> MaskDecision:
    """Apply the threshold with `dead` units given and let units starve, until nothing changes.

    The threshold moves with every unit that dies, so that in the end the dead are its share again; otherwise the next
    decision, which counts the starved among the lowest, would wake weights whose scores have not changed.
    """
    # Neurons that must stay connected: the floor's units and every output.
    anchored = np.concatenate([protected, np.ones(units.spec.outputs, np.bool_)])
    while True:
        removed = units.parameters_of(dead)
        weights = units.prunable & ~removed & ~_below(units, keys, removed, settings, current)
        weights |= _best_weights(units, keys, anchored, units.prunable & ~removed, settings.layer_floor)
        unfed = units.unit_sum(weights) == 0
        unread = np.array([not weights[outgoing].any() for outgoing in units.outgoing])
        starved = (unfed | unread) & ~dead & ~protected
        if not starved.any():
            return MaskDecision(np.where(units.prunable, weights, ~removed), dead)
        dead = dead | starved


def _below(units: UnitMap, keys: Values, removed: Flags, settings: PruneSettings, current: Flags) -> Flags:
    """Weights that the threshold kills, shape (size,)."""
    below = np.zeros(units.size, np.bool_)
    weights = np.flatnonzero(units.prunable)
    if settings.threshold_kind == "absolute":
        below[weights] = removed[weights] | (keys[weights] < settings.threshold)
        return below
    spec = units.spec
    dense = int(UnitMap.of(dense_spec(spec.name, spec.input_shape, spec.outputs)).prunable.sum())
    dying = round(settings.threshold * dense) - (dense - weights.size)
    if dying <= 0:
        return below
    # Sorting ten million scores takes seconds; only those level with the last to die need an order.
    scores = np.where(removed, -1.0, keys)[weights]
    last = np.partition(scores, dying - 1)[dying - 1]
    level = np.flatnonzero(scores == last)
    level = level[np.argsort(current[weights[level]], kind="stable")]
    below[weights[scores < last]] = True
    below[weights[level[: dying - np.count_nonzero(scores < last)]]] = True
    return below


def _best_weights(units: UnitMap, keys: Values, anchored: Flags, eligible: Flags, fraction: float) -> Flags:
    """Of each anchored neuron the best ceil(fraction * n) of its n eligible incoming weights, at least one."""
    candidates = np.flatnonzero(eligible & anchored[units.owner])
    owner = units.owner[candidates]
    order = np.lexsort((candidates, -keys[candidates], owner))
    counts = np.bincount(owner, minlength=units.groups)
    place = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    least = np.maximum(1, np.ceil(np.round(fraction * counts, 9)))
    best = np.zeros(units.size, np.bool_)
    best[candidates[order[place < least[owner[order]]]]] = True
    return best
