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
from autoflip_secure.autoflip.scores import EnergyAccumulator, KeepScores, guidance_scores, product_scores
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.spec import ModelSpec, unit_layers
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Aggregate

__all__ = ["PruningController"]

UNINFORMED = 0.5
"""Guidance before anything was observed: every parameter the same."""


class PruningController:
    """Guidance, accumulated energy and agreement of one run.

    Without DP the score is guidance x agreement; with it, weight x shared energy x (1 + agreement) / 2, with energy and
    agreement as far as noise leaves them: squares of deviations, which guidance is made of, are mostly noise then.
    """

    def __init__(self, config: ResolvedConfig, schedule: Schedule, spec: ModelSpec) -> None:
        self._config, self._schedule = config, schedule
        self._units = UnitMap.of(spec)
        self._guidance = Guidance.start(np.full(self._units.size, UNINFORMED), self._units)
        self._energy = EnergyAccumulator.empty(self._units.size)
        self.agreement: Agreement | None = None
        self._noised = config.trust != "none"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State for the checkpoint."""
        return {
            "guidance": self._guidance.values,
            "agreement": self._guidance.agreement_average,
            "agreement_variance": self._guidance.known_variance,
            "energy": self._energy.energy,
            "energy_variance": self._energy.variance,
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

    @property
    def units(self) -> int:
        """Units of the current network."""
        return self._units.count

    @property
    def agreement_average(self) -> float | None:
        """Averaged raw agreement of the whole model; None before it was measured."""
        return self._guidance.overall_average if self._guidance.rounds else None

    def observe(self, aggregates: Sequence[Aggregate], live: NDArray[np.bool_], silo_variance: float = 0.0) -> None:
        """Learn from one round's sums (full layout, masked coordinates 0).

        `silo_variance` is what noise adds to each live coordinate of every silo's own update (trust local).
        """
        self.agreement = None
        if "deviation" in aggregates[0].channels:
            self._guidance = Guidance.start(explored_guidance(aggregates, self._units.layout), self._units)
        if "update" not in aggregates[0].channels:
            return
        if "unit_energy" in aggregates[0].channels:
            self.agreement = moments(aggregates[0], self._units, live, silo_variance)
        elif len(aggregates) > 1:
            self.agreement = cross_cohort(aggregates, self._units, live)
        if silo_variance:
            aggregates = [replace(a, noise_std={"update": (a.silos * silo_variance) ** 0.5}) for a in aggregates]
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

    def draw(self, model: ModelPayload) -> ModelPayload:
        """A network of the FLOP target whose units were drawn from the run's seed before anything was learnt.

        The baseline that every score has to beat: it costs nothing, and all rounds train the small network.
        """
        generator = stream(self._config.seed, "random units")
        settings = PruneSettings(threshold=0.0, flops_kept=self._config.prune_flops)
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
        settings = PruneSettings(threshold=self._config.prune_threshold, flops_kept=target)
        return self._pruned(model, self._scores(model), settings)

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

    def _scores(self, model: ModelPayload) -> KeepScores:
        if not self._noised:
            return guidance_scores(self._guidance, self._units)
        # Half a vote, since a zero would condemn a unit on agreement alone, and only as far as it stands out of the
        # noise: what is measured of a single unit is mostly noise (benchmarks/results/agreement.md).
        agreement = (1 + self._guidance.believed_agreement(self._units)) / 2 if self._guidance.rounds else None
        return product_scores(model.weights, self._energy, self._units, agreement)

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
