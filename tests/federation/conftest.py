"""A toy task, small resolved configurations, a federation on disk, and manifests to put to its silos."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
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
from autoflip_secure.federation.approvals import ApprovalStore, Pins
from autoflip_secure.federation.audit_heads import HeadList
from autoflip_secure.federation.audit_log import Head
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.initial_model import initial_model
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.plan import SessionPlan
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.provisioning import RunFolder, provision
from autoflip_secure.federation.run_review import pins_of
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.terms import update_channel
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.privacy.plan import PrivacyPlan
from autoflip_secure.seeds import stream, torch_stream
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import CHANNEL_NAMES
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


SESSION = bytes(16)
PLANNED = {"train": [Mechanism(0.2, 2.0, 5)]}

OPEN: dict[str, Any] = {
    "approval": "standing",
    "code": (code_digest().hex(),),
    "models": ("mlp",),
    "channels": tuple(sorted(CHANNEL_NAMES)),
    "aggregations": ("secagg", "ckks", "none"),
    "trusts": ("none", "local", "distributed"),
    "min_cohort": 0.5,
    "proved_models": False,
    "min_block": 1,
    "reply_every": 0.0,
}
"""A policy that the toy runs are within."""

EACH: dict[str, Any] = {**OPEN, "approval": "each", "code": (), "models": ()}
"""The same, where an officer has to approve."""


class Institution:
    """Silo 1 of a federation on disk. `refusal` is the last line of its log."""

    def __init__(self, folder: RunFolder, config: ResolvedConfig, make_manifest: Callable[..., Manifest]) -> None:
        self.folder, self.config, self._make_manifest = folder, config, make_manifest
        self.home = silo_folder(folder.path, 1)
        self.task = folder.task.read_text()
        self.planned = {} if config.trust == "none" else PLANNED
        self.model = initial_model(config, Task.from_json(self.task))
        self.request = self.asked()
        self.silo = Silo(self.home)

    def policy(self, **settings: Any) -> None:
        """Write policy.toml; a running silo reads it when it is asked to join."""
        (self.home / "policy.toml").write_text(SiloPolicy(**settings).to_toml())

    def asked(self, session: bytes = SESSION, **changes: Any) -> JoinRequest:
        """A join request."""
        values = {"config": self.config, "task": self.task, "planned": self.planned}
        return JoinRequest(session, **{**values, **changes})

    def join(self, request: JoinRequest | None = None) -> Reply:
        """Ask to join; the request is that of later manifests."""
        self.request = self.request if request is None else request
        return self._answer(Request(JOIN_STAGE, 0, 0, self.request.sign(self.folder.coordinator_identity())))

    def contribute(
        self, model: ModelPayload | None = None, terms: dict[str, Any] | None = None, **changes: Any
    ) -> Reply:
        """Ask for the contribution to a training round with these changes."""
        model = model or self.model
        self.silo._audit.refresh()
        silo_head = self.silo._audit.head
        heads = HeadList(
            Head.signed(1, bytes(32), self.folder.coordinator_identity()), {} if silo_head is None else {1: silo_head}
        )
        named = {"config_hash": self.request.digest(), "heads_hash": heads.hash(), "session": self.request.session}
        manifest = self._make_manifest(self.config, model, terms=terms or {}, **{**named, **changes})
        content, shown = manifest.to_bytes(), heads.shown().get(1, b"")
        return self._answer(Request("clear", manifest.round, manifest.attempt, content, model.to_bytes(), shown))

    def wrong_model(self) -> ModelPayload:
        """Of the run's network, but made up."""
        return replace(self.model, weights=self.model.weights + 0.01)

    def store(self) -> ApprovalStore:
        """As another process opens it."""
        return ApprovalStore(open_silo_database(self.home / "state.sqlite"))

    def approve(self, request: JoinRequest | None = None, **pins: Any) -> None:
        """As `silo approve` does, with other pins where some are given."""
        request = request or self.request
        honest = pins_of(self.silo._admission, request)
        self.store().approve(request.digest(), Pins(**{**vars(honest), **pins}), "officer")

    def restart(self) -> None:
        """A new process."""
        self.silo.close()
        self.silo = Silo(self.home)

    @property
    def refusal(self) -> str:
        path = self.home / "silo.log"
        return path.read_text().splitlines()[-1] if path.exists() else ""

    def lines(self) -> int:
        """Lines of the ledger."""
        with sqlite3.connect(self.home / "state.sqlite") as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'privacy_ledger'").fetchone():
                return 0
            return int(database.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone()[0])

    def _answer(self, request: Request) -> Reply:
        return replace(self.silo.answer(request), head=b"")


@pytest.fixture
def institution(make_config, make_federation, make_manifest) -> Iterator[Callable[..., Institution]]:
    """institution(each=False, policy=None, **options) -> silo 1, not joined yet, of a run with these options.

    Its policy lets the run in, but for the settings given; with `each` an officer has to approve it.
    """
    made: list[Institution] = []

    def make(*, each: bool = False, policy: dict[str, Any] | None = None, **options: Any) -> Institution:
        config = make_config(**options)
        name = f"institution-{len(made)}"
        made.append(Institution(make_federation(config, name=name), config, make_manifest))
        made[-1].policy(**{**(EACH if each else OPEN), **(policy or {})})
        return made[-1]

    yield make
    for each in made:
        each.silo.close()
