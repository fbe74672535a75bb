"""Pruning without an exploration: methods whose mask the coordinator draws or chooses anew as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.pooling import pooled_mean
from autoflip_secure.autoflip.scores import magnitude_scores, mean_scores
from autoflip_secure.autoflip.sparse_training import cosine_fraction, random_mask, readjusted_mask
from autoflip_secure.autoflip.start_scale import at_scale
from autoflip_secure.autoflip.subnetwork import WholeNetwork, positions
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.model_payload import HALF, ModelPayload
from autoflip_secure.federation.pruning import PruningController, prune_settings
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.training.mask_training import FIXED_GAIN

__all__ = ["MaskVotes", "SparseTraining", "SubnetworkReuse", "pruning_controller"]


class SparseTraining(PruningController):
    """FedDST with a mask chosen from sums (`autoflip.sparse_training`), on a network that gets physically smaller.

    FedDST prunes single weights only. So that it can be compared at equal measured FLOPs, whole units die too, the
    smallest first, over the first `--prune-steps` readjustments. As many weights live as of every other method: the
    share 1 - `--prune-threshold` of the dense network's, or all that units have left.
    """

    def __init__(
        self, config: ResolvedConfig, schedule: Schedule, spec: ModelSpec, start: NDArray[np.floating]
    ) -> None:
        super().__init__(config, schedule, spec, start)
        self._weights = (1.0 - config.prune_threshold) * self.weights
        self._gradient = np.zeros(self._units.size)

    def draw(self, model: ModelPayload) -> ModelPayload:
        """The random sparse start, at the scale of the dense one like every network that is pruned untrained."""
        mask = random_mask(self._units, self._density, stream(self._config.seed, "sparse start"))
        sparse = np.where(mask, model.weights, np.float32(0))
        weights = at_scale(model.weights, sparse, self._units, self._units, np.arange(mask.size))
        return replace(model, weights=weights, mask=mask)

    @property
    def _density(self) -> float:
        """Share of the current network's weights that live."""
        return min(1.0, self._weights / self.weights)

    def observe(
        self, round: int, aggregates: Sequence[Aggregate], live: NDArray[np.bool_], silo_variance: float = 0.0
    ) -> None:
        """Keep the masked weights' mean gradient; it is used up before the next checkpoint."""
        if "gradient" in aggregates[0].channels:
            self._gradient = pooled_mean(aggregates, "gradient", self._units.size)[0]

    def is_decision(self, round: int) -> bool:
        """Whether the mask is readjusted after `round`."""
        return self._schedule.is_readjustment(round)

    def decide(self, round: int, model: ModelPayload) -> tuple[ModelPayload, NDArray[np.int64]]:
        """Remove units for the FLOP target, then readjust single weights; see the base class."""
        settings = replace(prune_settings(self._config, self._target_at(round)), threshold=0.0)
        _, compaction = self._smaller(model, magnitude_scores(model.weights, self._units), settings)
        kept = compaction.kept
        weights = model.weights[kept]
        fraction = cosine_fraction(round, self._schedule.readjustment_end)
        mask = readjusted_mask(self._units, model.mask[kept], weights, self._gradient[kept], self._density, fraction)
        self._gradient = np.zeros(self._units.size)
        # Regrown weights were masked, so they are 0 already.
        return replace(model, spec=compaction.spec, weights=np.where(mask, weights, np.float32(0)), mask=mask), kept

    def restore(self, spec: ModelSpec, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """See the base class."""
        super().restore(spec, arrays, facts)
        self._gradient = np.zeros(self._units.size)

    def _target_at(self, round: int) -> float:
        """Share of the dense FLOPs after the readjustment of `round`."""
        rounds = self._schedule.readjustments
        steps = min(self._config.prune_steps, len(rounds))
        return 1.0 - (1.0 - self._config.prune_flops) * min(1.0, (rounds.index(round) + 1) / steps)


class SubnetworkReuse(PruningController):
    """EFLPrune (`autoflip.subnetwork`): each round the coordinator sends a part of the network that only it holds.

    The model of the run, which is scored and written, is the part that was trained last. It meets the FLOP target.
    """

    def __init__(
        self, config: ResolvedConfig, schedule: Schedule, spec: ModelSpec, start: NDArray[np.floating]
    ) -> None:
        super().__init__(config, schedule, spec, start)
        self._whole = WholeNetwork(spec, start.astype(np.float32))
        self._kept = np.arange(self._units.size)
        self._settings = replace(prune_settings(config, config.prune_flops), threshold=0.0)

    def draw(self, model: ModelPayload) -> ModelPayload:
        """The first subnetwork: the largest units of the initial network."""
        return self._selected(model)

    def observe(
        self, round: int, aggregates: Sequence[Aggregate], live: NDArray[np.bool_], silo_variance: float = 0.0
    ) -> None:
        """Sizes of weights are all that counts, so sums beyond the update tell nothing."""

    def is_decision(self, round: int) -> bool:
        """After every round but the last, whose subnetwork is the result."""
        return round < self._schedule.rounds - 1

    def decide(self, round: int, model: ModelPayload) -> tuple[ModelPayload, NDArray[np.int64]]:
        """Put what was trained back into the whole network and select anew; -1 marks parameters that come in."""
        earlier = self._kept
        self._whole = self._whole.rebuilt(earlier, model.weights)
        return self._selected(model), positions(self._kept, earlier)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State for the checkpoint."""
        return {**super().arrays(), "whole": self._whole.weights, "kept": self._kept}

    def restore(self, spec: ModelSpec, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """See the base class."""
        super().restore(spec, arrays, facts)
        self._whole, self._kept = replace(self._whole, weights=arrays["whole"]), arrays["kept"]

    def _selected(self, model: ModelPayload) -> ModelPayload:
        compaction = self._whole.select(self._settings)
        self._kept, self._units = compaction.kept, UnitMap.of(compaction.spec)
        weights = self._whole.weights[self._kept]
        return replace(model, spec=compaction.spec, weights=weights, mask=np.ones(weights.size, np.bool_))


class MaskVotes(PruningController):
    """FedMask (`training.mask_training`) in the form that sums allow: silos vote by binary masks over fixed parameters.

    The parameters are those of the initial network, its weights at a scale of their own
    (`training.mask_training.FIXED_GAIN`), or with `--warm-start` those that one round of averaging leads to.
    A round sums the silos' masks; the share of silos that keep a weight is what the next round starts from, and in the
    end weights with half of the votes live. Whole units with the fewest votes die for the FLOP target on the way.

    In the paper each device keeps a mask of its own: only where devices' masks overlap do they take the average, so the
    server sees each one's, and in the end each device trains the weights that its mask left. Here nothing of a silo
    outlives a round, and there is one mask and no training of weights after it. So the run's accuracy is the global
    network's and does not compare with the personalised ones of the paper: silos with few classes each keep what tells
    those apart, and the majority of such masks need not tell anything apart.
    """

    def draw(self, model: ModelPayload) -> ModelPayload:
        """All parameters live, by the votes of everybody; untrained weights are made large enough for half of them."""
        gain = np.float32(1.0 if self._config.warm_start else FIXED_GAIN)
        weights = np.where(self._units.prunable, gain * model.weights, model.weights)
        return replace(model, weights=weights, votes=np.ones(self._units.size, np.float32))

    def observe(
        self, round: int, aggregates: Sequence[Aggregate], live: NDArray[np.bool_], silo_variance: float = 0.0
    ) -> None:
        """Count the votes; they are used up before the next checkpoint."""
        if "mask" in aggregates[0].channels:
            self._votes = np.ones(self._units.size)
            self._votes[self._units.prunable] = pooled_mean(aggregates, "mask", self.weights)[0]

    def is_decision(self, round: int) -> bool:
        """After every round in which silos voted."""
        return not self._schedule.is_exploration(round)

    def decide(self, round: int, model: ModelPayload) -> tuple[ModelPayload, NDArray[np.int64]]:
        """Take up the votes, remove units where that is due, and after the last round fix the mask."""
        last = round == self._schedule.rounds - 1
        target = self._config.prune_flops if last else self._target_after(round)
        settings = replace(
            prune_settings(self._config, 1.0 if target is None else target),
            threshold=HALF if last else 0.0,
            threshold_kind="absolute",
            hysteresis=0.0,
        )
        chosen, compaction = self._smaller(model, mean_scores(self._votes, self._units), settings)
        kept = compaction.kept
        votes = None if last else self._votes[kept].astype(np.float32)
        mask = chosen if last else model.mask[kept]
        weights = np.where(mask, model.weights[kept], np.float32(0))
        return replace(model, spec=compaction.spec, weights=weights, mask=mask, votes=votes), kept


CONTROLLERS = {"feddst": SparseTraining, "eflprune": SubnetworkReuse, "fedmask": MaskVotes}


def pruning_controller(
    config: ResolvedConfig, schedule: Schedule, spec: ModelSpec, start: NDArray[np.floating]
) -> PruningController:
    """The controller of the run's method."""
    return CONTROLLERS.get(config.prune, PruningController)(config, schedule, spec, start)
