"""When and how the coordinator prunes: aggregates become guidance, and guidance becomes a smaller network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.agreement import Agreement, cross_cohort, moments
from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.exploration import explored_guidance
from autoflip_secure.autoflip.guidance import Guidance
from autoflip_secure.autoflip.mask import PruneSettings, choose_mask
from autoflip_secure.autoflip.pooling import pooled_mean
from autoflip_secure.autoflip.score_rules import Evidence, keep_scores
from autoflip_secure.autoflip.scores import EnergyAccumulator, KeepScores
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.spec import ModelSpec, unit_layers
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
    )


UNINFORMED = 0.5
"""Guidance before anything was observed: every parameter the same."""


class PruningController:
    """Guidance, accumulated energy and agreement of one run, and the mask by one of `score_rules.RULES`.

    AutoFLIP's usual rule without DP is guidance x agreement; with it, weight x shared energy x (1 + agreement) / 2,
    with energy and agreement as far as noise leaves them: squares of deviations, which guidance is made of, are mostly
    noise then.

    Attributes
    ----------
    agreement : Agreement or None
        Of the round last observed, if it measured any.
    likeness : float or None
        Cosine between the map that the round last observed explored and the first one; None where there is none.
    """

    def __init__(
        self, config: ResolvedConfig, schedule: Schedule, spec: ModelSpec, start: NDArray[np.floating]
    ) -> None:
        self._config, self._schedule = config, schedule
        self._units = UnitMap.of(spec)
        self._guidance = Guidance.start(np.full(self._units.size, UNINFORMED), self._units)
        self._energy = EnergyAccumulator.empty(self._units.size)
        self._start = start
        self._explored, self._first_map = np.zeros(self._units.size), np.zeros(0, np.float32)
        self.agreement: Agreement | None = None
        self.likeness: float | None = None
        self._rule: str = config.prune
        if config.prune == "autoflip":
            usual = "guidance-agreement" if config.trust == "none" else "product-agreement"
            self._rule = usual if config.score == "usual" else config.score
        self._noised = config.trust != "none"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State for the checkpoint."""
        return {
            "guidance": self._guidance.values,
            "agreement": self._guidance.agreement_average,
            "agreement_variance": self._guidance.known_variance,
            "energy": self._energy.energy,
            "energy_variance": self._energy.variance,
            "start": self._start,
            "explored": self._explored,
            "first_map": self._first_map,
        }

    def facts(self) -> dict[str, Any]:
        """Small state for the checkpoint."""
        guidance = self._guidance
        return {
            "overall_average": guidance.overall_average,
            "guidance_rounds": guidance.rounds,
            "energy_rounds": self._energy.rounds,
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
        self._start, self._explored, self._first_map = (arrays[n] for n in ("start", "explored", "first_map"))

    @property
    def units(self) -> int:
        """Units of the current network."""
        return self._units.count

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
        self.agreement = self.likeness = None
        if "deviation" in aggregates[0].channels:
            self._explore(explored_guidance(aggregates, self._units.layout, live))
        if "update" not in aggregates[0].channels:
            return
        if self._schedule.is_exploration(round):
            self._explored = self._explored + pooled_mean(aggregates, "update", self._units.size)[0]
        if "unit_energy" in aggregates[0].channels:
            self.agreement = moments(aggregates[0], self._units, live, silo_variance)
        if silo_variance:
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
                level="unit" if self._noised else "parameter",
                live=live,
            )

    def _explore(self, found: NDArray[np.float32]) -> None:
        """Take a map as guidance. What agreement said so far stays."""
        if self._first_map.size:
            norms = float(np.linalg.norm(found) * np.linalg.norm(self._first_map))
            self.likeness = float(found @ self._first_map) / norms if norms else 0.0
            self._guidance = replace(self._guidance, values=found)
        else:
            self._first_map = found
            self._guidance = Guidance.start(found, self._units)

    def draw(self, model: ModelPayload) -> ModelPayload:
        """A network of the FLOP target whose units were drawn from the run's seed before anything was learnt.

        The baseline that every score has to beat: it costs nothing, and all rounds train the small network.
        """
        generator = stream(self._config.seed, "random units")
        settings = replace(prune_settings(self._config, self._config.prune_flops), threshold=0.0)
        scores = KeepScores(generator.random(self._units.size), generator.random(self._units.count))
        return self._pruned(model, scores, settings)[0]

    def is_decision(self, round: int) -> bool:
        """Whether the mask is chosen anew after `round`."""
        return self._target_after(round) is not None

    def decide(self, round: int, model: ModelPayload) -> tuple[ModelPayload, NDArray[np.int64]]:
        """Choose the mask after `round` and remove dead units.

        Returns
        -------
        The smaller model, and the old flat indices that survive (for optimiser state).
        """
        target = self._target_after(round)
        assert target is not None, "ask is_decision first"
        return self._pruned(model, self._scores(round, model), prune_settings(self._config, target))

    def _pruned(
        self, model: ModelPayload, scores: KeepScores, settings: PruneSettings
    ) -> tuple[ModelPayload, NDArray[np.int64]]:
        decision = choose_mask(model.spec, self._units, scores.parameters, scores.units, settings, model.mask)
        compaction = compact(model.spec, decision.dead_units)
        mask = decision.mask[compaction.kept]
        weights = np.where(mask, model.weights[compaction.kept], np.float32(0))
        self._units = UnitMap.of(compaction.spec)
        self._guidance = self._guidance.compact(compaction)
        self._energy = self._energy.compact(compaction)
        self._start, self._explored = self._start[compaction.kept], self._explored[compaction.kept]
        self._first_map = self._first_map[compaction.kept] if self._first_map.size else self._first_map
        return replace(model, spec=compaction.spec, weights=weights, mask=mask), compaction.kept

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
        evidence = Evidence(weights, self._start, self._explored, self._guidance, self._energy)
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
