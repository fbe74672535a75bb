"""A toy task, small resolved configurations, a federation on disk, and manifests to put to its silos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation import coordinator as coordinator_module
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.plan import SessionPlan
from autoflip_secure.federation.provisioning import RunFolder, provision
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.terms import update_channel
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy.plan import PrivacyPlan
from autoflip_secure.seeds import stream, torch_stream
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms

MakeConfig = Callable[..., ResolvedConfig]
MakeManifest = Callable[..., Manifest]
MakeFederation = Callable[..., RunFolder]

FEATURES, CLASSES = 6, 3
SMALL: dict[str, Any] = {
    "dataset": "digits",
    "silos": 4,
    "rounds": 4,
    "colluders": 0,
    "aggregation": "none",
    "prune": "none",
    "partition": "iid",
    "workers": 0,
    "device": "cpu",
}


@pytest.fixture(autouse=True, scope="session")
def _flower_identity() -> None:
    """Flower messages are stamped with the run and node of the process that makes them."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture(scope="session")
def task() -> Task:
    return Task("toy", "multiclass", (FEATURES,), CLASSES, ("a", "b", "c"), "mlp", 80)


@pytest.fixture(scope="session")
def make_config(task: Task) -> MakeConfig:
    """make_config(**options) -> resolved configuration of four silos, no DP, no pruning, unless said otherwise."""

    def make(**options: Any) -> ResolvedConfig:
        return resolve(RunConfig.create(**{**SMALL, **options}), task, natural_silos=None)

    return make


@pytest.fixture(scope="session")
def model(task: Task) -> ModelPayload:
    """The initial network, a quarter of its parameters masked."""
    spec = dense_spec("mlp", task.input_shape, task.classes)
    network = build(spec, torch_stream(0, "init"))
    weights = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
    mask = stream(0, "mask").random(weights.size) >= 0.25
    return ModelPayload(spec, np.where(mask, weights, 0).astype(np.float32), mask, 80)


@pytest.fixture(scope="session")
def records() -> Records:
    """Eighty separable records."""
    draw = stream(0, "records")
    y = draw.integers(0, CLASSES, 80)
    x = draw.normal(size=(80, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[y]
    return Records(x.astype(np.float32), y.astype(np.int64))


@pytest.fixture
def make_federation(tmp_path: Path, task: Task, records: Records) -> MakeFederation:
    """make_federation(config, public_test=True, name="run") -> a provisioned run folder with toy records."""

    def make(config: ResolvedConfig, *, public_test: bool = True, name: str = "run") -> RunFolder:
        folder = RunFolder(tmp_path / name)
        provision(folder, config, LoadedData(task, records, records if public_test else None, None))
        return folder

    return make


@pytest.fixture(scope="session")
def make_manifest() -> MakeManifest:
    """make_manifest(config, model, **changes) -> the manifest of a training round; privacy fields by `terms={...}`."""

    def make(config: ResolvedConfig, model: ModelPayload, **changes: Any) -> Manifest:
        private = config.trust != "none"
        terms = PrivacyTerms(
            trust=config.trust,
            dataset="train",
            sampling_rate=config.sampling_rate if private else 1.0,
            steps=config.local_steps if config.trust == "local" else 1,
            noise_multiplier=2.0 if private else 0.0,
            clip=config.clip if private else 0.0,
            colluders=config.colluders,
            delta=config.dp_delta,
        )
        plan = Schedule(config).plan(config.rounds - 1)
        manifest = Manifest(
            session=bytes(16),
            epoch=0,
            slot=1,
            epoch_hash=bytes(32),
            round=1,
            attempt=0,
            phase="train",
            cohorts=plan.cohorts,
            minimum=plan.minimum,
            threshold=3,
            model_hash=hashlib.sha256(model.to_bytes()).digest(),
            mask_hash=model.mask_hash(),
            config_hash=config.digest(),
            channels=(update_channel(config, int(model.mask.sum())),),
            privacy=replace(terms, **changes.pop("terms", {})),
        )
        return replace(manifest, **changes)

    return make


@pytest.fixture
def cheap_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that is given instead of solved for."""

    def given(config: ResolvedConfig, task: Any, *_: Any, **__: Any) -> SessionPlan:
        private = config.trust != "none"
        census = 20.0 if private and task.nominal_records is None else 0.0
        numbers = (40, 2.0, 0, 0.0, census) if private else (0, 0.0)
        epsilon = config.dp_epsilon if config.dp_epsilon is not None else float("inf")
        privacy = PrivacyPlan(
            config.trust, epsilon, config.dp_delta, config.colluders, config.clip, config.sampling_rate, *numbers,
            accountant="rdp",
        )  # fmt: skip
        return SessionPlan(config, privacy)

    monkeypatch.setattr(coordinator_module, "session_plan", given)
