"""Many small federations at once, in one process: what `agreement_levels.py` measures on.

All arms (masks) and all silos of a federation train together as one batched perceptron, so that a comparison of a dozen
scores takes seconds. Sums are exact and plain: a secure sum gives the same numbers, and what is asked here is which of
them to prune by. Masked units stand for removed ones (`tests/autoflip/test_compaction.py`: the outputs are equal).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from run_table import DATA
from torch import Tensor
from torch.nn import functional as F

from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.data.partition import partition
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import ModelSpec, build, dense_spec
from autoflip_secure.seeds import torch_stream

__all__ = ["SILOS", "SPEC", "Federation", "RoundSums", "test_records", "units"]

Values = NDArray[np.float64]

SILOS, CLASSES, SIDE = 10, 10, 14
LOCAL_STEPS, EXPLORE_STEPS, BATCH, RATE = 10, 20, 32, 0.3
SPEC: ModelSpec = dense_spec("mlp", (SIDE * SIDE,), CLASSES)


def units() -> UnitMap:
    """Units of the perceptron: 64 and 32."""
    return UnitMap.of(SPEC)


def _shrunk(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """28 x 28 images averaged to 14 x 14, as rows."""
    return F.avg_pool2d(torch.from_numpy(x), 2).flatten(1).numpy()


@cache
def _train() -> Records:
    records = load("mnist5k", None, 0).train
    assert records is not None
    return Records(_shrunk(records.x), records.y)


@cache
def test_records() -> tuple[Tensor, Tensor, str]:
    """MNIST's 10,000 public test digits where they lie beside the project, else mnist5k's 1,000; and which."""
    name = "mnist" if (DATA / "mnist").is_dir() else "mnist5k"
    test = load(name, DATA if name == "mnist" else None, 0).public_test
    assert test is not None
    return torch.from_numpy(_shrunk(test.x)), torch.from_numpy(test.y), f"{len(test):,} digits of {name}"


@dataclass(frozen=True, eq=False)
class RoundSums:
    """What the coordinator would hold after some rounds, by parameter, shape (size,).

    Attributes
    ----------
    moved : float64
        Mean update, added up over rounds.
    shared : float64
        Square of a round's mean update, added up over rounds.
    own : float64
        Mean over silos of the squares of their updates, added up over rounds.
    """

    moved: Values
    shared: Values
    own: Values


class Federation:
    """Ten silos with a partition of mnist5k."""

    def __init__(self, how: str, seed: int) -> None:
        parts = partition(_train(), how, SILOS, seed)
        self._data = [(torch.from_numpy(part.x), torch.from_numpy(part.y)) for part in parts]
        self._shapes = [(where, shape) for _, where, shape in units().layout.slices()]
        self._batches = torch_stream(seed, "levels")
        self.start: Tensor = flatten_parameters(build(SPEC, torch_stream(seed, "init")))

    def explore(self) -> RoundSums:
        """One exploration from the common start."""
        return self._summed(self._updates(self.start[None], torch.ones(1, self.start.numel()), EXPLORE_STEPS))

    def train_dense(self, rounds: int) -> tuple[Tensor, RoundSums]:
        """Rounds of averaging from the common start: the model, and all that was summed."""
        model, live = self.start[None].clone(), torch.ones(1, self.start.numel())
        total = [np.zeros(self.start.numel()) for _ in range(3)]
        for _ in range(rounds):
            sums = self._summed(self._updates(model, live, LOCAL_STEPS))
            total = [old + new for old, new in zip(total, (sums.moved, sums.shared, sums.own), strict=True)]
            model = model + torch.from_numpy(sums.moved).float()
        return model[0], RoundSums(*total)

    def train_pruned(self, start: Tensor, masks: NDArray[np.bool_], rounds: int, last: int) -> NDArray[np.float64]:
        """Accuracy of every arm before, 1 and 4 rounds after pruning, and the mean over the last rounds.

        Parameters
        ----------
        start : float tensor, shape (size,)
        masks : bool, shape (arms, size)
        rounds, last : int
            Rounds trained, and how many of them the mean is over.

        Returns
        -------
        float64 (4, arms)
        """
        live = torch.from_numpy(masks).float()
        models = start[None] * live
        early, late = [self._accuracies(models)], []
        for number in range(1, rounds + 1):
            models = models + self._updates(models, live, LOCAL_STEPS).mean(dim=1)
            if number in (1, 4):
                early.append(self._accuracies(models))
            if number > rounds - last:
                late.append(self._accuracies(models))
        return np.array([*early, np.mean(late, axis=0)])

    @staticmethod
    def _summed(updates: Tensor) -> RoundSums:
        silos = updates[0].double().numpy()
        mean = silos.mean(axis=0)
        return RoundSums(mean, mean**2, (silos**2).mean(axis=0))

    def _updates(self, models: Tensor, live: Tensor, steps: int) -> Tensor:
        """Every silo's update of every arm by plain SGD on batches that all arms share, (arms, silos, size)."""
        arms, size = models.shape
        weights = models.repeat_interleave(SILOS, dim=0)
        masks = live.repeat_interleave(SILOS, dim=0)
        for _ in range(steps):
            chosen = [torch.randint(len(x), (BATCH,), generator=self._batches) for x, _ in self._data]
            x = torch.stack([x[rows] for (x, _), rows in zip(self._data, chosen, strict=True)]).repeat(arms, 1, 1)
            y = torch.stack([y[rows] for (_, y), rows in zip(self._data, chosen, strict=True)]).repeat(arms, 1)
            parameters = [part.detach().requires_grad_() for part in self._unpack(weights)]
            outputs = self._forward(parameters, x).reshape(-1, CLASSES)
            loss = F.cross_entropy(outputs, y.reshape(-1), reduction="sum") / BATCH
            gradients = torch.autograd.grad(loss, parameters)
            flat = torch.cat([gradient.reshape(len(weights), -1) for gradient in gradients], dim=1)
            weights = weights - RATE * flat * masks
        return (weights - models.repeat_interleave(SILOS, dim=0)).reshape(arms, SILOS, size)

    def _unpack(self, flat: Tensor) -> list[Tensor]:
        return [flat[:, where].reshape(len(flat), *shape) for where, shape in self._shapes]

    @staticmethod
    def _forward(parameters: list[Tensor], x: Tensor) -> Tensor:
        """The networks of shape (networks, ...) on their own records (networks, records, features)."""
        for layer in range(0, len(parameters), 2):
            weight, bias = parameters[layer], parameters[layer + 1]
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            if layer + 2 < len(parameters):
                x = torch.tanh(x)
        return x

    @torch.no_grad()
    def _accuracies(self, models: Tensor) -> list[float]:
        x, y, _ = test_records()
        found = [self._forward(self._unpack(model[None]), x[None])[0].argmax(dim=1) for model in models]
        return [float((classes == y).float().mean()) for classes in found]
