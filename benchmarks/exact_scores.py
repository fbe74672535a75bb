"""Exact scores of a finished simulation's final model. FOR BENCHMARKS ONLY: outside every promise.

A run scores its model through noised sums where no public test data exist, and what it reports is what it may report.
This reads the silos' held-back records in clear, which only the machine of a simulation can, so that a table can show
the exact figures beside the noised ones. Never run it on records that are not public.

    python benchmarks/exact_scores.py RUN_DIR [RUN_DIR ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from autoflip_secure.config import ResolvedConfig, load_config_file
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.models.features import features_of
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.training.evaluation import evaluate

__all__ = ["exact_scores"]


def exact_scores(run_dir: Path) -> dict[str, float | int | None]:
    """Exact accuracy, auroc, c_index and loss on the pooled scoring records, and how many `records` they are.

    The records are the public test data, or all silos' holdouts put together. A score that the task does not have is
    None.

    Raises
    ------
    ConfigError
        The directory holds no finished run, or its silos hold nothing back.
    """
    folder = RunFolder(Path(run_dir))
    if not (folder.model.is_file() and folder.summary.is_file()):
        raise ConfigError(f"{run_dir}: not the directory of a finished run")
    config, task = ResolvedConfig.create(**load_config_file(folder.config)), load_task(folder)
    records = _scoring_records(folder, config.silos)
    model = ModelPayload.from_bytes(folder.model.read_bytes())
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights.astype(np.float32)))
    scores = evaluate(network, features_of(config.model, records.x), task.targets(records), task.kind)
    return {
        "accuracy": scores.accuracy,
        "auroc": scores.auroc,
        "c_index": scores.c_index,
        "loss": scores.loss,
        "records": len(records),
    }


def _scoring_records(folder: RunFolder, silos: int) -> Records:
    if folder.public_test.exists():
        return Records.load(folder.public_test)
    parts = [read_silo(silo_folder(folder.path, number) / "data").holdout for number in range(1, silos + 1)]
    held = [part for part in parts if part is not None]
    if not held:
        raise ConfigError(f"{folder.path}: no silo holds records back")
    return Records.concatenate(held)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(json.dumps({"run": path, **exact_scores(Path(path))}))
