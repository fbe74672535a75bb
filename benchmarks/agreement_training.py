"""Final accuracy of the distributed pipeline under different scores and numbers of cohorts, in one process."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from agreement_simulation import (
    aggregates_of,
    cohort_noise,
    configuration,
    data,
    groupings,
    sample,
    spec,
    start_weights,
)
from numpy.typing import NDArray

from autoflip_secure.autoflip.flops import flops
from autoflip_secure.autoflip.masking import scatter_live
from autoflip_secure.autoflip.scores import EnergyAccumulator, KeepScores, product_scores
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.pruning import PruningController
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.seeds import stream
from autoflip_secure.training.evaluation import predict

Values = NDArray[np.float64]
PARTITION, SILOS, RECORDS = "dirichlet:0.1", 10, 4000

ARMS: dict[str, tuple[int, str]] = {
    "1 cohort, shrunk energy": (1, "shrunk"),
    "2 cohorts, shrunk energy": (2, "shrunk"),
    "2 cohorts, clipped energy x half agreement": (2, "clipped agreement"),
}
"""Cohorts while agreement is measured (exploration and every 20th round), and the score."""


class Scored(PruningController):
    """The run's controller with another score."""

    kind = "shrunk"

    def _scores(self, round: int, model: ModelPayload) -> KeepScores:
        energy, none = self._energy, np.zeros(self._energy.energy.size)
        if "clipped" in self.kind:
            energy = EnergyAccumulator(energy.energy, none, energy.rounds)
        if self.kind == "size":
            energy = EnergyAccumulator(none + 1.0, none, energy.rounds)
        agreement = (1 + self._guidance.agreement) / 2 if "agreement" in self.kind else None
        return product_scores(model.weights, energy, self._units, agreement)


class Federation:
    """State of one run: model, momentum, controller."""

    def __init__(self, epsilon: float, seed: int, cohorts: int, kept: float) -> None:
        (self.grouping,) = groupings(epsilon, seed, (PARTITION,), (SILOS,), (cohorts,))
        config = configuration(
            dp_epsilon=epsilon, silos=SILOS, partition=PARTITION, cohorts=cohorts, seed=seed, prune_flops=kept
        )
        self.config, self.seed = config, seed
        weights = start_weights(seed).astype(np.float32)
        self.model = ModelPayload(spec(), weights, np.ones(weights.size, np.bool_), RECORDS)
        self.velocity = np.zeros(weights.size)
        self.controller = Scored(config, Schedule(config), spec(), weights)
        self._gradients: tuple[Any, ClippedGradientSum] | None = None

    def branch(self, kind: str) -> Federation:
        """A copy that goes on with another score."""
        gradients, self._gradients = self._gradients, None
        twin = copy.deepcopy(self)
        self._gradients = gradients
        twin.controller.kind = kind
        return twin

    def round(self, number: int) -> None:
        """One round as the coordinator runs it."""
        config, model = self.config, self.model
        apart = config.cohorts > 1 and (number < config.explore_rounds or number % config.agreement_every == 0)
        chosen = sample(self.seed, number, config.sampling_rate)
        cohort = self.grouping.cohort[self.grouping.silo[chosen]] if apart else np.zeros(chosen.size, np.int64)
        sizes = self.grouping.sizes if apart else [SILOS]
        live = int(model.mask.sum())
        stds = [cohort_noise(config, n, live) for n in sizes]
        draw = stream(self.seed, "training noise", number, str(config.dp_epsilon), len(sizes))
        sums = []
        for index, std in enumerate(stds):
            noised = self._sum(chosen[cohort == index])[model.mask] + std * draw.standard_normal(live)
            sums.append(scatter_live(noised, model.mask))
        self._step(np.sum(sums, axis=0))
        self.controller.observe(number, aggregates_of(np.stack(sums), sizes, stds, number), model.mask)
        if self.controller.is_decision(number):
            self.model, kept = self.controller.decide(number, self.model)
            self.velocity = np.where(self.model.mask, self.velocity[kept], 0.0)

    def _step(self, total: Values) -> None:
        config, mask = self.config, self.model.mask
        step = config.learning_rate * total / (config.sampling_rate * RECORDS)
        self.velocity = np.where(mask, config.momentum * self.velocity + step, 0.0)
        weights = np.where(mask, self.model.weights + self.velocity, 0.0).astype(np.float32)
        self.model = ModelPayload(self.model.spec, weights, mask, RECORDS)

    def _sum(self, chosen: NDArray[np.int64]) -> Values:
        records = data().train
        assert records is not None
        if self._gradients is None or self._gradients[0][0] != self.model.spec:
            network = build(self.model.spec)
            self._gradients = ((self.model.spec, network), ClippedGradientSum(network))
        (_, network), gradients = self._gradients
        load_flat_parameters(network, torch.from_numpy(self.model.weights))
        x, y = torch.from_numpy(records.x[chosen]), torch.from_numpy(records.y[chosen])
        return -gradients(x, y, self.config.clip, torch.from_numpy(self.model.mask))

    def result(self) -> dict[str, float]:
        """Accuracy on the public test part, and what is left of the network."""
        test = data().public_test
        assert test is not None
        network = build(self.model.spec)
        load_flat_parameters(network, torch.from_numpy(self.model.weights))
        right = predict(network, torch.from_numpy(test.x)).argmax(axis=1) == test.y
        return {
            "accuracy": round(float(np.mean(right)), 4),
            "flops": round(flops(self.model.spec) / flops(spec()), 4),
            "parameters": int(self.model.mask.sum()),
        }


def train(epsilon: float, seed: int, kept: float, rounds: int | None = None) -> list[dict[str, Any]]:
    """Every arm of one seed; arms with the same number of cohorts share their exploration."""
    rows = []
    for cohorts in sorted({cohorts for cohorts, _ in ARMS.values()}):
        trunk = Federation(epsilon, seed, cohorts, kept)
        last = trunk.config.explore_rounds - 1
        for number in range(last):
            trunk.round(number)
        for name, (mine, kind) in ARMS.items():
            if mine != cohorts:
                continue
            arm = trunk.branch(kind)
            for number in range(last, rounds or arm.config.rounds):
                arm.round(number)
            rows.append(
                {"part": "training", "epsilon": epsilon, "seed": seed, "arm": name, "cohorts": cohorts, "kept": kept}
                | arm.result()
            )
    return rows
