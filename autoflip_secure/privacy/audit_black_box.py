"""Black-box audit: a whole federated run on the embedded images, and an adversary that sees only the final model.

Canaries are records with a wrong label at one silo; their score is how well the final model knows the wrong label. The
bound is weak by nature: noise that hides a record from somebody who sees every sum hides far more of it from here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.engines import run_federation
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.provisioning import RunFolder, provision
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.privacy.audit_bound import Guesses, best_bound
from autoflip_secure.privacy.audit_settings import AuditReport, AuditSettings

__all__ = ["black_box"]

DATASET = "mnist5k"
FRACTIONS = (0.02, 0.1, 0.5)
"""Guesses tried, of each kind, as parts of the canaries: declared, since no rehearsal tells what training keeps."""
SAW = "the final model only"


def black_box(
    settings: AuditSettings, included: NDArray[np.bool_], started: float, progress: Callable[[int, int], None]
) -> AuditReport:
    """Run once and guess from the losses of the final model.

    Raises
    ------
    ConfigError
        More canaries than half of the training records.
    """
    data = load(DATASET, None, 0)
    assert data.train is not None
    if settings.count > len(data.train) // 2:
        raise ConfigError(f"--canaries {settings.count}: the {len(data.train)} records of {DATASET} give at most half")
    order = np.random.default_rng().permutation(len(data.train))
    canaries = _mislabelled(data.train.take(order[: settings.count]), data.task.classes)
    config = _config(settings, data)
    with tempfile.TemporaryDirectory(prefix="autoflip-audit-") as path:
        folder = RunFolder(Path(path) / "run")
        rest = np.array_split(order[settings.count :], settings.silos - 1)
        others = (NamedRecords(f"silo {i}", data.train.take(part)) for i, part in enumerate(rest, start=2))
        target = NamedRecords("target", canaries.take(included if included.any() else np.arange(1)))
        provision(folder, config, LoadedData(data.task, None, data.public_test, (target, *others)))
        outcome = run_federation(folder, config, lambda line: progress(line["round"] + 1, config.rounds))
        scores = -_losses(ModelPayload.from_bytes(folder.model.read_bytes()), canaries)
    assert outcome.coordinator is not None
    privacy = outcome.coordinator.plan.privacy
    counts = [max(1, int(fraction * settings.count)) for fraction in FRACTIONS]
    declared = tuple(Guesses(count, count) for count in counts)
    verdict = best_bound(scores, included, declared, settings.delta, settings.confidence)
    return AuditReport(
        settings, config.rounds, privacy.train_steps, config.sampling_rate, privacy.noise_multiplier,
        settings.silos - config.colluders if settings.trust == "distributed" else 1,
        verdict.epsilon, verdict.guesses.count, verdict.right, SAW, time.perf_counter() - started,
    )  # fmt: skip


def _mislabelled(records: Records, classes: int) -> Records:
    """The same images, each with one of the labels that are wrong for it."""
    shift = np.random.default_rng().integers(1, classes, len(records))
    return Records(records.x, (records.y + shift) % classes)


def _config(settings: AuditSettings, data: LoadedData) -> ResolvedConfig:
    config = RunConfig.create(
        dataset=DATASET, partition="natural", silos=settings.silos, rounds=settings.rounds,
        sampling_rate=settings.sampling_rate, colluders=settings.colluders, aggregation=settings.aggregation,
        dp_epsilon=settings.epsilon, dp_delta=settings.delta, dp_trust=settings.trust, device="cpu",
    )  # fmt: skip
    return resolve(config, data.task, natural_silos=settings.silos)


def _losses(model: ModelPayload, records: Records) -> NDArray[np.float64]:
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    with torch.no_grad():
        logits = network(torch.from_numpy(records.x)).double()
        return F.cross_entropy(logits, torch.from_numpy(records.y), reduction="none").numpy()
