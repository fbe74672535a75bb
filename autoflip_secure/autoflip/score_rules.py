"""The score rules by name: AutoFLIP's, what it is compared with, and what each of them keeps by.

All are functions of the public model and of sums, so each can prune through the same secure sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.guidance import Guidance
from autoflip_secure.autoflip.scores import (
    EnergyAccumulator,
    KeepScores,
    guidance_scores,
    magnitude_scores,
    mean_scores,
    product_scores,
)
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError

__all__ = ["RULES", "Evidence", "keep_scores"]

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known when a mask is chosen.

    Attributes
    ----------
    weights : float array (size,)
        Weights that are judged: the model's, or those that a cold-started exploration led to.
    start : float array (size,)
        Weights that exploration started from.
    explored : float64 (size,)
        Mean update of the exploration, added up over its rounds; zeros where it was not summed.
    guidance : Guidance
    energy : EnergyAccumulator
        Of the mean update: what is left of the silos' updates once they have cancelled.
    own : EnergyAccumulator
        Mean over silos of their own updates' energy (`own_energy.own_energy`); empty under DP.
    """

    weights: NDArray[np.floating]
    start: NDArray[np.floating]
    explored: Values
    guidance: Guidance
    energy: EnergyAccumulator
    own: EnergyAccumulator


def keep_scores(rule: str, evidence: Evidence, units: UnitMap) -> KeepScores:
    """Scores by one of `RULES`.

    Raises
    ------
    EncodingError
        A weight is not finite.
    """
    if not np.isfinite(evidence.weights).all():
        raise EncodingError("a weight is not finite; training diverged, lower the learning rate")
    return RULES[rule](evidence, units)


def _guidance(evidence: Evidence, units: UnitMap) -> KeepScores:
    """G alone."""
    return mean_scores(evidence.guidance.values.astype(np.float64), units)


def _guidance_agreement(evidence: Evidence, units: UnitMap) -> KeepScores:
    """G times agreement: autoflip.md's mask."""
    return guidance_scores(evidence.guidance, units)


def _energy(evidence: Evidence, units: UnitMap) -> KeepScores:
    """Root of the shared energy: of what is left of the silos' updates once they have cancelled."""
    energy = _known(evidence.energy)
    by_unit = energy.by_group(units)
    noisy = bool(energy.variance.any())
    mean = (by_unit / units.group_sum(np.ones(units.size)))[units.owner]
    parameters = np.sqrt(mean if noisy else np.maximum(energy.energy, 0.0))
    return KeepScores(parameters, np.sqrt(by_unit[: units.count]))


def _product(evidence: Evidence, units: UnitMap) -> KeepScores:
    """Size times shared energy."""
    return product_scores(evidence.weights, _known(evidence.energy), units)


def _product_agreement(evidence: Evidence, units: UnitMap) -> KeepScores:
    """The same times (1 + agreement) / 2: half a vote, since a zero would condemn a unit on agreement alone, and only
    as far as it stands out of its known noise (benchmarks/results/agreement.md)."""
    guidance = evidence.guidance
    agreement = (1 + guidance.believed_agreement(units)) / 2 if guidance.rounds else None
    return product_scores(evidence.weights, _known(evidence.energy), units, agreement)


def _own_energy(evidence: Evidence, units: UnitMap) -> KeepScores:
    """Root of the silos' own energy: AutoFLIP's deviations, as lengths and not squares."""
    own = _known(evidence.own)
    return KeepScores(np.sqrt(own.energy), np.sqrt(own.by_group(units)[: units.count]))


def _prunefl(evidence: Evidence, units: UnitMap) -> KeepScores:
    """Root of the silos' own squared gradients, as exploration summed them: PruneFL's importance (Jiang et al. 2022,
    arXiv 1909.12326) over equal times of all parameters. Under DP, where squares would be noise, of the shared energy.

    PruneFL goes on to reconfigure the network as training goes on, masked weights included; here it decides as all
    methods of this module do.
    """
    return _own_energy(evidence, units) if evidence.own.rounds else _energy(evidence, units)


def _own_product(evidence: Evidence, units: UnitMap) -> KeepScores:
    """Size times own energy."""
    return product_scores(evidence.weights, _known(evidence.own), units)


def _hybrid(evidence: Evidence, units: UnitMap) -> KeepScores:
    """Units by own energy, single weights by size times shared energy.

    Agreement has opposite signs at the two levels (benchmarks/results/agreement_levels.md). A unit that silos pull
    different ways is one that tells their classes apart, and the network cannot do without it; a weight whose moves
    cancel in the sum has moved for nothing. Where exploration sums no updates (too few silos for two moments), weights
    go by size times own energy until the first round of training.
    """
    weights = np.abs(evidence.weights.astype(np.float64))
    left = evidence.energy if evidence.energy.rounds else _known(evidence.own)
    return KeepScores(weights * np.sqrt(np.maximum(left.energy, 0.0)), _own_energy(evidence, units).units)


def _hybrid_agreement(evidence: Evidence, units: UnitMap) -> KeepScores:
    """The same, units of a layer ranked by own energy times (1 + agreement) / 2, over layers as wide as without."""
    return _reranked(evidence, units, 1 + evidence.guidance.believed_agreement(units))


def _hybrid_disagreement(evidence: Evidence, units: UnitMap) -> KeepScores:
    """The same with (1 - agreement) / 2: for a unit that silos pull different ways, within its layer."""
    return _reranked(evidence, units, 1 - evidence.guidance.believed_agreement(units))


def _reranked(evidence: Evidence, units: UnitMap, votes: Values) -> KeepScores:
    """Each layer's scores of `hybrid`, dealt to its units anew in the order of score times vote, shape (units,).

    Scores of a layer stay the same, so no layer is chosen above another: agreement has its say on units alone.
    """
    scores = _hybrid(evidence, units)
    if not evidence.guidance.rounds:
        return scores
    dealt = np.empty(units.count)
    for layer in range(len(units.spec.widths)):
        of_layer = np.flatnonzero(units.layer == layer)
        order = np.argsort(scores.units[of_layer] * votes[of_layer], kind="stable")
        dealt[of_layer[order]] = np.sort(scores.units[of_layer])
    return KeepScores(scores.parameters, dealt)


def _magnitude(evidence: Evidence, units: UnitMap) -> KeepScores:
    """|w|; of a unit the norm of its weights."""
    return magnitude_scores(evidence.weights, units)


def _snip(evidence: Evidence, units: UnitMap) -> KeepScores:
    """|w_0 d|, d the mean step from the common start w_0 along its gradient: SNIP's connection sensitivity (Lee et al.
    2019, arXiv 1810.02340) of the federation; of a unit the sum over its weights."""
    scores = np.abs(evidence.start.astype(np.float64) * evidence.explored)
    return KeepScores(scores, units.unit_sum(np.where(units.prunable, scores, 0.0)))


def _known(energy: EnergyAccumulator) -> EnergyAccumulator:
    """Before any update was summed (a cold-started exploration sends none) all parameters count as equally moved: zeros
    would condemn every unit."""
    return energy if energy.rounds else replace(energy, energy=np.ones(energy.energy.size))


RULES: Mapping[str, Callable[[Evidence, UnitMap], KeepScores]] = MappingProxyType(
    {
        "guidance": _guidance,
        "guidance-agreement": _guidance_agreement,
        "energy": _energy,
        "product": _product,
        "product-agreement": _product_agreement,
        "own-energy": _own_energy,
        "own-product": _own_product,
        "hybrid": _hybrid,
        "hybrid-agreement": _hybrid_agreement,
        "hybrid-disagreement": _hybrid_disagreement,
        "magnitude": _magnitude,
        "snip": _snip,
        "prunefl": _prunefl,
    }
)
