"""With noise off, distributed training IS pooled DP-SGD: the same trajectory, up to the grid of the secure sum.

The distributed side is the real thing from end to end: silos on disk, secure aggregation, the coordinator's step. Only
the noise is replaced by zeros, and the records that Poisson sampling drew are written down. The pooled side is Opacus'
optimiser on the union of those records, in float64, one model, no silos.

Bound. Let n be the silos, s the grid's step, a = learning rate / expected batch, mu the momentum, e_t the difference of
the two gradient sums of round t. A silo rounds each coordinate by less than s, and the sum is exact, hence

    |e_t| <= n s + |G(w_t) - G(w'_t)|,

G being the pooled clipped sum at the distributed weights w and the pooled weights w'. The step is linear, so

    |w_k - w'_k| <= sum_{t <= k} a |e_t| (1 - mu^(k - t + 1)) / (1 - mu)  <=  k a / (1 - mu) max_t |e_t|  + k ulp,

in every coordinate; ulp is what storing weights in float32 costs. That is k n / (1 - mu) grid steps where G does not
feed the difference back, and the feedback is measured. float32 gradients of the silos add a relative 2^-20 of the clip
a record at most. All this holds while no coordinate of a silo's sum leaves the public range of its channel, which is
4 clips: beyond it the silo's sum is cut, which is private but no longer pooled DP-SGD.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch.nn import functional as F

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation import client_app
from autoflip_secure.federation import contribution as contribution_module
from autoflip_secure.federation.client_app import ClientAppFactory
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.local_grid import LocalGrid
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.model_step import ModelStep
from autoflip_secure.federation.provisioning import RunFolder, provision
from autoflip_secure.federation.terms import update_channel
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.privacy.discrete_noise import DiscreteGaussian

FEATURES, CLASSES, ROUNDS = 6, 3, 5
OPTIONS: dict[str, Any] = {
    "dataset": "digits", "model": "mlp", "partition": "natural", "prune": "none", "aggregation": "secagg",
    "colluders": 0, "rounds": ROUNDS, "dp_epsilon": 8.0, "clip": 0.5, "sampling_rate": 0.5, "learning_rate": 0.5,
    "momentum": 0.9, "workers": 0, "device": "cpu",
}  # fmt: skip
FLOAT32_GRADIENTS = 2.0**-20
FLOAT32_WEIGHTS = 2.0**-23


@pytest.fixture(autouse=True)
def _close_silos() -> Iterator[None]:
    client_app.close_silos()
    yield
    client_app.close_silos()


def uneven(silos: int) -> tuple[NamedRecords, ...]:
    """Silo k holds k + 1 records, mostly of class k mod 3: few enough that no sum leaves the channel's range."""
    draw = np.random.default_rng(silos)
    parts = []
    for silo in range(1, silos + 1):
        y = np.where(draw.random(silo + 1) < 0.8, silo % CLASSES, draw.integers(0, CLASSES, silo + 1))
        x = draw.normal(size=(len(y), FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[y]
        parts.append(NamedRecords(f"silo {silo}", Records(x.astype(np.float32), y.astype(np.int64))))
    return tuple(parts)


class Distributed:
    """A federation that writes down, a round each, its weights before and after and the records that were sampled."""

    def __init__(self, path: Path, silos: int, monkeypatch: pytest.MonkeyPatch, *, masked: bool) -> None:
        self.parts = uneven(silos)
        total = sum(len(part.records) for part in self.parts)
        task = Task("toy", "multiclass", (FEATURES,), CLASSES, ("a", "b", "c"), "mlp", total)
        self.config = resolve(RunConfig.create(**OPTIONS, silos=silos), task, natural_silos=silos)
        self.weights: list[np.ndarray] = []
        self.sums: list[np.ndarray] = []
        self.batches: list[list[np.ndarray]] = []
        self._record(monkeypatch)
        folder = RunFolder(path / "run")
        provision(folder, self.config, LoadedData(task, None, self.parts[0].records, self.parts))
        with LocalGrid(ClientAppFactory(folder.path), silos, 0) as grid:
            coordinator = Coordinator(folder, self.config, grid, lambda line: None)
            if masked:
                coordinator.state.model = _masked(coordinator.state.model)
            self.start = coordinator.state.model
            coordinator.run()
        self.records = total

    def _record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sample, step = contribution_module.poisson_rows, ModelStep.step

        def sampled(*arguments: Any) -> np.ndarray:
            chosen = sample(*arguments)
            self.batches[-1].append(chosen)
            return chosen

        def stepped(steps: ModelStep, number: int, aggregates: Any) -> None:
            self.sums.append(sum(aggregate.sum("update") for aggregate in aggregates))
            step(steps, number, aggregates)
            self.weights.append(steps.state.model.weights.astype(np.float64))
            self.batches.append([])

        self.batches.append([])
        monkeypatch.setattr(contribution_module, "poisson_rows", sampled)
        monkeypatch.setattr(ModelStep, "step", stepped)

    def batch(self, round: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The union of what the silos sampled; they are asked, and so answer, in their order."""
        chosen = self.batches[round]
        assert len(chosen) == len(self.parts)
        picked = [part.records.take(rows) for part, rows in zip(self.parts, chosen, strict=True) if len(rows)]
        union = Records.concatenate(picked)
        return torch.from_numpy(union.x).double(), torch.from_numpy(union.y)


def _masked(model: ModelPayload) -> ModelPayload:
    mask = np.random.default_rng(0).random(model.mask.size) < 0.6
    return replace(model, mask=mask, weights=np.where(mask, model.weights, np.float32(0)))


class Pooled:
    """Opacus' DP-SGD on one machine that holds all records; noise 0."""

    def __init__(self, config: ResolvedConfig, start: ModelPayload, records: int) -> None:
        network = build(start.spec).double()
        load_flat_parameters(network, torch.from_numpy(start.weights.astype(np.float64)))
        self.module = GradSampleModule(network, loss_reduction="sum")
        self.live = torch.from_numpy(start.mask)
        self.optimizer = DPOptimizer(
            torch.optim.SGD(self.module.parameters(), lr=config.learning_rate, momentum=config.momentum),
            noise_multiplier=0.0, max_grad_norm=config.clip,
            expected_batch_size=config.sampling_rate * records, loss_reduction="mean",
        )  # fmt: skip

    def _gradients(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.module(x), y, reduction="sum").backward()
        start = 0
        for p in self.module.parameters():
            piece = self.live[start : start + p.numel()].view_as(p)
            p.grad_sample = p.grad_sample * piece
            start += p.numel()

    def step(self, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        self._gradients(x, y)
        self.optimizer.step()
        return self.weights

    @property
    def weights(self) -> np.ndarray:
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters()]).numpy()

    def sum_at(self, weights: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        """The clipped gradient sum at any weights."""
        kept = self.weights.copy()
        load_flat_parameters(self.module._module, torch.from_numpy(weights))
        self._gradients(x, y)
        self.optimizer.clip_and_accumulate()
        found = torch.cat([p.summed_grad.reshape(-1) for p in self.module.parameters()]).numpy().copy()
        self.optimizer.zero_grad()
        load_flat_parameters(self.module._module, torch.from_numpy(kept))
        return found


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize(("silos", "masked"), [(3, False), (4, True), (6, False)])
def test_without_noise_distributed_training_follows_pooled_dp_sgd(
    silos: int, masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiscreteGaussian, "sample", lambda self, count, randomness: np.zeros(count, np.int64))
    run = Distributed(tmp_path, silos, monkeypatch, masked=masked)
    config, mask = run.config, run.start.mask
    pooled = Pooled(config, run.start, run.records)
    grid = update_channel(config, int(mask.sum())).step
    scale, momentum = config.learning_rate / (config.sampling_rate * run.records), config.momentum
    before = run.start.weights.astype(np.float64)
    errors: list[float] = []
    for round in range(ROUNDS):
        x, y = run.batch(round)
        own = pooled.sum_at(before, x, y)
        rounding = silos * grid + len(y) * config.clip * FLOAT32_GRADIENTS
        # The secure sum is the pooled clipped sum at the very same weights, each silo off by less than a grid step.
        assert np.abs(run.sums[round] + own).max() < rounding
        errors.append(rounding + np.abs(own - pooled.sum_at(pooled.weights, x, y)).max())
        after = pooled.step(x, y)
        held = sum(e * (1 - momentum ** (round - t + 1)) / (1 - momentum) for t, e in enumerate(errors))
        stored = (round + 1) * FLOAT32_WEIGHTS * np.abs(after).max()
        difference = np.abs(run.weights[round] - after).max()
        assert difference <= scale * held + stored
        # Without feedback: at most k n / (1 - momentum) grid steps, here with room for a tenth of feedback.
        most = (round + 1) * silos / (1 - momentum) * grid
        assert difference <= 1.1 * scale * most + stored
        before = run.weights[round]
    moved = np.abs(run.weights[-1] - run.start.weights).max()
    assert moved > 100 * scale * silos * grid * ROUNDS / (1 - momentum), "the trajectory is far longer than the bound"
    assert not run.weights[-1][~mask].any()
    assert any(len(y) < run.records for _, y in (run.batch(r) for r in range(ROUNDS))), "records were sampled"
