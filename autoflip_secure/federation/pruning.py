"""When and how the coordinator prunes: aggregates become guidance, and guidance becomes a smaller network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.agreement import Agreement, cross_cohort, moments, update_variance
from autoflip_secure.autoflip.compaction import Compaction, compact
from autoflip_secure.autoflip.exploration import explored_guidance
from autoflip_secure.autoflip.guidance import Guidance, Level
from autoflip_secure.autoflip.importance import ImportanceRecord
from autoflip_secure.autoflip.likeness import MapLikeness, compare_maps
from autoflip_secure.autoflip.mask import PruneSettings, choose_mask
from autoflip_secure.autoflip.own_energy import own_energy
from autoflip_secure.autoflip.pooling import pooled_mean
from autoflip_secure.autoflip.score_rules import Evidence, keep_scores
from autoflip_secure.autoflip.scores import EnergyAccumulator, KeepScores
from autoflip_secure.autoflip.start_scale import at_scale
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.spec import ModelSpec, dense_spec, layout_of, unit_layers
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Aggregate

__all__ = ["PruningController", "prune_settings"]


def prune_settings(config: ResolvedConfig, flops_kept: float) -> PruneSettings:
    """What the configuration asks of a mask that keeps this share of the FLOPs."""
    return PruneSettings(
        threshold=config.prune_threshold,
        threshold_kind=config.prune_threshold_kind,
        flops_kept=flops_kept,
        layer_floor=config.prune_floor,
        hysteresis=config.prune_hysteresis,
        round_to=config.prune_round_to,
    )


UNINFORMED = 0.5
"""Guidance before anything was observed: every parameter the same."""


class PruningController:
    """Guidance, accumulated energy and agreement of one run, and the mask by one of `score_rules.RULES`.

    AutoFLIP's usual rule without DP keeps units by the silos' own energy and single weights by size x shared energy;
    with DP, units by size x shared energy x (1 + agreement) / 2, with energy and agreement as far as noise
    leaves them: squares of single silos' updates, which own energy is made of, are mostly noise then.

    Attributes
    ----------
    agreement : Agreement or None
        Of the round last observed, if it measured any.
    likeness : MapLikeness or None
        Of the map that the round last observed explored and the first one; None where there is none.
    update_variance : float or None
        Of the round last observed (`agreement.update_variance`); None where no squares were summed beside updates.
    """

    def __init__(
        self, config: ResolvedConfig, schedule: Schedule, spec: ModelSpec, start: NDArray[np.floating]
    ) -> None:
        self._config, self._schedule = config, schedule
        self._units = UnitMap.of(spec)
        self._guidance = Guidance.start(np.full(self._units.size, UNINFORMED), self._units)
        self._energy = EnergyAccumulator.empty(self._units.size)
        self._own = EnergyAccumulator.empty(self._units.size)
        self._start = start
        self._decided = False
        self._explored = np.zeros(self._units.size)
        self._record = ImportanceRecord.start(self._guidance.values)
        self.agreement: Agreement | None = None
        self.likeness: MapLikeness | None = None
        self.update_variance: float | None = None
        self._rule: str = config.prune
        if config.prune == "autoflip":
            usual = "hybrid" if config.trust == "none" else "product-agreement"
            self._rule = usual if config.score == "usual" else config.score
        self._noised = config.trust != "none"
        usual_level: Level = "unit" if self._noised else "parameter"
        self._level: Level = usual_level if config.guidance_level == "usual" else config.guidance_level

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State for the checkpoint."""
        return {
            "guidance": self._guidance.values,
            "agreement": self._guidance.agreement_average,
            "agreement_variance": self._guidance.known_variance,
            "energy": self._energy.energy,
            "energy_variance": self._energy.variance,
            "own": self._own.energy,
            "start": self._start,
            "explored": self._explored,
            **self._record.arrays(),
        }

    def facts(self) -> dict[str, Any]:
        """Small state for the checkpoint."""
        guidance = self._guidance
        return {
            "overall_average": guidance.overall_average,
            "guidance_rounds": guidance.rounds,
            "energy_rounds": self._energy.rounds,
            "own_rounds": self._own.rounds,
            "decided": self._decided,
        }

    def restore(self, spec: ModelSpec, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Undo `arrays` and `facts`."""
        self._units = UnitMap.of(spec)
        self._guidance = Guidance(
            arrays["guidance"],
            arrays["agreement"],
            facts["overall_average"],
            facts["guidance_rounds"],
            arrays["agreement_variance"],
        )
        self._energy = EnergyAccumulator(arrays["energy"], arrays["energy_variance"], facts["energy_rounds"])
        self._own = EnergyAccumulator(arrays["own"], np.zeros_like(arrays["own"]), facts["own_rounds"])
        self._decided = facts["decided"]
        self._start, self._explored = arrays["start"], arrays["explored"]
        self._record = ImportanceRecord.restored(arrays)

    @property
    def units(self) -> int:
        """Units of the current network."""
        return self._units.count

    @property
    def weights(self) -> int:
        """Weights of the current network that a mask may take."""
        return int(self._units.prunable.sum())

    @property
    def agreement_average(self) -> float | None:
        """Averaged raw agreement of the whole model; None before it was measured."""
        return self._guidance.overall_average if self._guidance.rounds else None

    def observe(
        self, round: int, aggregates: Sequence[Aggregate], live: NDArray[np.bool_], silo_variance: float = 0.0
    ) -> None:
        """Learn from one round's sums (full layout, masked coordinates 0).

        `silo_variance` is what noise adds to each live coordinate of every silo's own update (trust local).
        """
        self.agreement = self.likeness = self.update_variance = None
        if "deviation" in aggregates[0].channels:
            self._explore(explored_guidance(aggregates, self._units.layout, live), live)
        if not self._noised and aggregates[0].channels.keys() & {"deviation", "unit_energy"}:
            self._own = self._own.add_exact(own_energy(aggregates, self._units, live))
        if self._schedule.is_exploration(round) and round >= self._config.explore_rounds:
            self._explored = np.zeros(self._units.size)  # from another model: what was explored before says nothing
        if "update" not in aggregates[0].channels:
            return
        if self._schedule.is_exploration(round):
            self._explored = self._explored + pooled_mean(aggregates, "update", self._units.size)[0]
        if "unit_energy" in aggregates[0].channels:
            self.agreement = moments(aggregates, self._units, live, silo_variance)
            self.update_variance = update_variance(aggregates, self._units, live)
        if silo_variance and not any(a.noise_std.get("update") for a in aggregates):
            aggregates = [replace(a, noise_std={"update": (a.silos * silo_variance) ** 0.5}) for a in aggregates]
        if self.agreement is None and len(aggregates) > 1:
            self.agreement = cross_cohort(aggregates, self._units, live)
        self._energy = self._energy.add(aggregates, live)
        if self.agreement is not None:
            self._guidance = self._guidance.update(
                aggregates,
                self.agreement,
                self._units,
                rate=self._config.eta,
                level=self._level,
                live=live,
            )

    def _explore(self, found: NDArray[np.float32], live: NDArray[np.bool_]) -> None:
        """Take a map as guidance. What agreement said so far stays."""
        if self._record.first_map.size:
            self.likeness = compare_maps(self._record.first_here, found, self._units, live)
            self._guidance = replace(self._guidance, values=found)
        else:
            self._record = self._record.explored(found)
            self._guidance = Guidance.start(found, self._units)

    def draw(self, model: ModelPayload) -> ModelPayload:
        """What training starts from: the model itself, unless it is pruned before anything is learnt (random units).

        Random units make a network of the FLOP target, drawn from the run's seed; single weights go with them where
        `--prune-threshold` says how many, at random too.

        The baseline that every score has to beat: it costs nothing, and all rounds train the small network.
        """
        if self._config.prune != "random":
            return model
        generator = stream(self._config.seed, "random units")
        settings = prune_settings(self._config, self._config.prune_flops)
        scores = KeepScores(generator.random(self._units.size), generator.random(self._units.count))
        return self._pruned(model, scores, settings, untrained=True)[0]

    def is_decision(self, round: int) -> bool:
        """Whether the mask is chosen anew after `round`."""
        return self._target_after(round) is not None

    def decide(self, round: int, model: ModelPayload) -> tuple[ModelPayload, NDArray[np.int64]]:
        """Choose the mask after `round` and remove dead units.

        A network that starts from its untrained weights is given back their scale (`autoflip.start_scale`). Not under
        DP, whose step sizes were chosen without.

        Returns
        -------
        The smaller model, and the old flat indices that survive (for optimiser state).
        """
        target = self._target_after(round)
        assert target is not None, "ask is_decision first"
        scores = self._scores(round, model)
        self._record = self._record.decided(self._guidance.values, scores.parameters)
        untrained = self._schedule.leaves_the_model(round) and not self._decided
        self._decided = True
        return self._pruned(model, scores, prune_settings(self._config, target), untrained=untrained)

    def _pruned(
        self, model: ModelPayload, scores: KeepScores, settings: PruneSettings, *, untrained: bool
    ) -> tuple[ModelPayload, NDArray[np.int64]]:
        units = self._units
        mask, compaction = self._smaller(model, scores, settings)
        weights = np.where(mask, model.weights[compaction.kept], np.float32(0))
        if untrained and self._config.trust == "none":
            weights = at_scale(model.weights, weights, units, self._units, compaction.kept)
        return replace(model, spec=compaction.spec, weights=weights, mask=mask), compaction.kept

    def _smaller(
        self, model: ModelPayload, scores: KeepScores, settings: PruneSettings
    ) -> tuple[NDArray[np.bool_], Compaction]:
        """Choose a mask by scores and remove the units that it leaves dead.

        What is remembered follows, so from here on `self` speaks of the compacted network; the model is as it was.

        Returns
        -------
        The mask in the compacted layout, shape (new size,), and what is left of the network.
        """
        decision = choose_mask(model.spec, self._units, scores.parameters, scores.units, settings, model.mask)
        compaction = compact(model.spec, decision.dead_units)
        self._shrink(compaction)
        return decision.mask[compaction.kept], compaction

    def _shrink(self, compaction: Compaction) -> None:
        """Take what is remembered over to the compacted network."""
        self._units = UnitMap.of(compaction.spec)
        self._guidance = self._guidance.compact(compaction)
        self._energy, self._own = self._energy.compact(compaction), self._own.compact(compaction)
        self._start, self._explored = self._start[compaction.kept], self._explored[compaction.kept]
        self._record = self._record.compact(compaction)

    def importance(self, model: ModelPayload) -> bytes | None:
        """What the dense network's parameters were worth, and which live in the end (`ImportanceRecord.to_bytes`).

        None for methods that neither map importance nor score weights.
        """
        if not self._record.holds_anything:
            return None
        spec = model.spec
        dense = layout_of(dense_spec(spec.name, spec.input_shape, spec.outputs))
        learnt = self._record.first_map.size or self._guidance.rounds
        return self._record.to_bytes(dense, self._guidance.values if learnt else None, model.mask)

    def layer_report(self, model: ModelPayload) -> list[dict[str, Any]]:
        """Agreement and live share of each unit layer, for metrics."""
        rows = []
        agreement = self._units.layer_mean(self._guidance.agreement) if self._guidance.rounds else None
        measured = self.agreement.per_layer if self.agreement is not None else None
        live = self._units.unit_sum(model.mask)
        for index, layer in enumerate(unit_layers(model.spec)):
            rows.append(
                {
                    "layer": layer.module,
                    "units": int(self._units.layer_sizes[index]),
                    "live": int(live[self._units.layer == index].sum()),
                    "agreement": None if agreement is None else round(float(agreement[index]), 4),
                    "agreement_raw": None if measured is None else round(float(measured[index]), 4),
                }
            )
        return rows

    def _scores(self, round: int, model: ModelPayload) -> KeepScores:
        # After a cold-started exploration the model is still the start: what exploration led to is judged.
        cold = self._schedule.leaves_the_model(round)
        weights = model.weights + self._explored if cold else model.weights
        evidence = Evidence(weights, self._start, self._explored, self._guidance, self._energy, self._own)
        return keep_scores(self._rule, evidence, self._units)

    def _target_after(self, round: int) -> float | None:
        """Share of the dense FLOPs to keep after `round`; None where no decision is due.

        The target is reached in `prune_steps` decisions of equal size over the first half of the training rounds;
        later decisions, at the rhythm of the agreement rounds, only move single parameters.
        """
        config, first = self._config, self._config.explore_rounds - 1
        final = config.prune_flops
        # A run too short for all decisions takes fewer, larger ones: the target is met in any case.
        steps = max(1, min(config.prune_steps, self._schedule.rounds - 1 - first))
        gap = max(1, (self._schedule.rounds - 1 - first) // (2 * steps))
        since = round - first
        if since < 0 or round >= self._schedule.rounds - 1:
            return None
        if since % gap == 0 and since // gap < steps:
            return 1.0 - (1.0 - final) * (since // gap + 1) / steps
        every = config.agreement_every
        if every and since > (steps - 1) * gap and since % every == 0 and round < 0.75 * self._schedule.rounds:
            return final
        return None
