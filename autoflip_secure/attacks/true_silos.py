"""What guesses about silos are scored by, from the silos' own folders. No attack reads it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.attacks.recorded_view import Asked, SingleVector
from autoflip_secure.autoflip.masking import scatter_live
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.models.features import features_of
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, build
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum

__all__ = ["expected_updates", "found_classes", "label_sets", "own_updates"]

ROUNDS_COMPARED = 6
"""Rounds whose noiseless gradient sums are averaged: each takes the gradients of all records."""


def label_sets(run: Path) -> list[frozenset[int]]:
    """Classes that each silo holds, by the silos in their order."""
    return [frozenset(int(name) for name in np.unique(records.y)) for records in _records(run)]


def found_classes(guessed: list[frozenset[int]], held: list[frozenset[int]]) -> int:
    """How many classes were guessed of the silos that hold them."""
    return sum(len(guess & truth) for guess, truth in zip(guessed, held, strict=True))


def own_updates(vectors: list[SingleVector], silos: int, spec: ModelSpec) -> NDArray[np.float64]:
    """Each silo's average update while the model had this architecture, shape (silos, parameters).

    From a run with `--aggregation none`: without DP the same seed trains the same through the secure sum, bit for bit.
    """
    fitting = [v for v in vectors if v.asked.model.spec == spec and "update" in v.channels]
    by_silo = {
        silo: np.mean([scatter_live(v.channels["update"], v.asked.model.mask) for v in own], axis=0)
        for silo, own in groupby(sorted(fitting, key=lambda v: v.silo), key=lambda v: v.silo)
    }
    return np.stack([by_silo[silo] for silo in range(1, silos + 1)])


def expected_updates(run: Path, asked: list[Asked], spec: ModelSpec) -> NDArray[np.float64]:
    """What each silo's gradient sums are on average, but for noise and sampling, shape (silos, parameters)."""
    task, records = load_task(RunFolder(run)), _records(run)
    rounds = list({id(each.model): each for each in asked if each.model.spec == spec}.values())
    rounds = rounds[:: max(1, len(rounds) // ROUNDS_COMPARED)]
    network, totals = build(spec), np.zeros((len(records), rounds[0].model.mask.size))
    with ClippedGradientSum(network, task.loss) as gradients:
        for each in rounds:
            load_flat_parameters(network, torch.from_numpy(each.model.weights))
            terms, live = each.manifest.privacy, torch.from_numpy(each.model.mask)
            for row, own in zip(totals, records, strict=True):
                x = torch.from_numpy(features_of(spec.name, own.x))
                y = torch.from_numpy(task.targets(own))
                row -= terms.sampling_rate * gradients(x, y, terms.clip, live) / len(rounds)
    return totals


def _records(run: Path) -> list[Records]:
    silos = RunFolder(run).roster().silos
    return [read_silo(silo_folder(run, silo) / "data").train for silo in silos]
