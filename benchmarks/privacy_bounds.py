"""What a federation is measured against: one institution with all records, and every silo on its own, both with DP-SGD.

pooled      all training records in one place, same steps, sampling rate, clip and budget, no reserve for retries
local only  each silo trains on its own records alone at the same budget; the mean score over silos, at the best of
            three learning rates (which flatters it); three times the work of pooled, so on small data sets only
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.provisioning import silo_records
from autoflip_secure.models.features import features_of
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy.accounting import solve_noise_multiplier
from autoflip_secure.privacy.local_sgd import dp_sgd
from autoflip_secure.seeds import torch_stream
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.training.evaluation import evaluate
from autoflip_secure.training.local import train_locally

__all__ = ["MEASURES", "references"]

MEASURES = {"heart": "auroc", "tcga-brca": "c_index"}
"""The score a data set is judged by, where it is not accuracy."""

LEARNING_RATES = (1.0, 0.3, 0.1)
SMALL = 10_000
"""Training records up to which every silo is also trained on its own."""


def references(options: dict[str, Any], seed: int, *, alone: bool = True) -> dict[str, float]:
    """`pooled` and, `alone` and on small data sets, `local only` scores of one seed, by `MEASURES`."""
    asked = RunConfig.create(**options, prune="none", seed=seed)
    data = load(asked.dataset, asked.data_dir, seed)
    config = resolve(asked, data.task, natural_silos=len(data.natural) if data.natural else None)
    silos = silo_records(config, data)
    test = data.public_test or Records.concatenate([holdout for _, _, holdout in silos if holdout is not None])
    parts = [_featured(config, train) for _, train, _ in silos]
    scored = _featured(config, test)
    pooled = _score(config, data, Records.concatenate(parts), scored, 1.0)
    if not alone or sum(map(len, parts)) > SMALL:
        return {"pooled": pooled}
    rates = {rate: [_score(config, data, part, scored, rate) for part in parts] for rate in LEARNING_RATES}
    return {"pooled": pooled, "local only": max(statistics.mean(scores) for scores in rates.values())}


def _featured(config: ResolvedConfig, records: Records) -> Records:
    return replace(records, x=features_of(config.model, records.x))


def _score(config: ResolvedConfig, data: LoadedData, train: Records, test: Records, rate: float) -> float:
    task = data.task
    network = build(dense_spec(config.model, task.input_shape, task.outputs), torch_stream(config.seed, "init"))
    x, y = torch.from_numpy(train.x), torch.from_numpy(np.asarray(task.targets(train)))
    if config.dp_epsilon is None:
        train_locally(
            network, x, y,
            steps=config.rounds * config.local_steps, batch_size=min(len(train), 8 * config.batch_size),
            learning_rate=config.learning_rate * rate, momentum=config.momentum, loss=task.loss,
            generator=torch_stream(config.seed, "batches", 0, 0),
        )  # fmt: skip
    else:
        multiplier = solve_noise_multiplier(
            [(config.sampling_rate, config.rounds)], (), config.dp_epsilon, config.dp_delta
        )
        dp_sgd(
            network, x, y,
            nominal_records=len(train), steps=config.rounds, sampling_rate=config.sampling_rate, clip=config.clip,
            noise_multiplier=multiplier, learning_rate=config.learning_rate * rate, momentum=config.momentum,
            live=None, sampling=SecretRandomness(), noise=SecretRandomness(), loss=task.loss,
        )  # fmt: skip
    scores = evaluate(network, test.x, task.targets(test), task.kind)
    return float(getattr(scores, MEASURES.get(config.dataset, "accuracy")))
