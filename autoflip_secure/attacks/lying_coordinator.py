"""A coordinator that says what an attack wants, over real silos in this process that have an institution's policy.

What it holds is what a coordinator holds: its own signing key, the roster, the configuration that the silos joined, the
public task and test records, and every reply. It reads no file of a silo.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.settings import SETTINGS, epsilon_of
from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation.audit_log import AuditLog
from autoflip_secure.federation.audit_trail import CoordinatorTrail
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.initial_model import initial_model
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.plan import session_plan
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.provisioning import RunFolder, load_task, provision
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.sums import decode
from autoflip_secure.federation.terms import on_fine_grid, update_channel
from autoflip_secure.federation.wire import TRAINING_STAGES, Reply, Request
from autoflip_secure.parties.rules import share_threshold
from autoflip_secure.secagg.coordinator import SecAggCoordinator
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch, OpenEpoch
from autoflip_secure.secagg.desk import SecAggDesk
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.sums.encoding import unpack_sum
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.plain import PlainCoordinator
from autoflip_secure.sums.secure_sum import CohortSum, Exchange

__all__ = ["LyingCoordinator", "PlainVector", "institution_policy"]

SLOTS = 64


@dataclass(frozen=True)
class PlainVector:
    """One silo's own update as it arrived with `--aggregation none`, shape (live,)."""

    silo: int
    update: NDArray[np.float64]


def institution_policy(config: ResolvedConfig) -> SiloPolicy:
    """An institution's policy that accepts exactly this run: whoever asks for less than it meets a rule."""
    accepting = SiloPolicy.accepting(config).model_dump()
    own = {"simulated": False, "code": (code_digest().hex(),), "min_block": config.block}
    return SiloPolicy(**{**accepting, **own})


class LyingCoordinator:
    """One run whose silos have joined, and every message to them.

    Parameters
    ----------
    folder : Path
        Where the federation is made; must not exist.
    data : LoadedData
        What is dealt to the silos; of it the coordinator uses the public test records only.
    setting : str
        One of `settings.SETTINGS`.
    options : mapping
        Of `RunConfig`, such as {"model": "mlp", "silos": 5}: what the officers approved.

    Raises
    ------
    RuntimeError
        A silo did not join the honest run.
    """

    def __init__(self, folder: Path, data: LoadedData, setting: str, options: Mapping[str, Any]) -> None:
        protection: dict[str, Any] = {"dp_epsilon": epsilon_of(setting)}
        if "none" in SETTINGS[setting]:
            protection["aggregation"] = "none"
        run = RunConfig.create(**{**protection, "device": "cpu", **options})
        natural = None if data.natural is None else len(data.natural)
        self.config = resolve(run, data.task, natural_silos=natural)
        self.folder = RunFolder(folder)
        provision(self.folder, self.config, data)
        self.roster, self.identity = self.folder.roster(), self.folder.coordinator_identity()
        self.session, self.task = self.folder.session(), load_task(self.folder)
        self.schedule = Schedule(self.config)
        self.plan = session_plan(self.config, self.task, self.schedule, public_test=True)
        self.trail = CoordinatorTrail(AuditLog(self.folder.audit_log, self.identity, "coordinator"), self.roster)
        policy = institution_policy(self.config).to_toml()
        for number in self.roster.silos:
            (silo_folder(self.folder.path, number) / "policy.toml").write_text(policy)
        self.silos = {number: Silo(silo_folder(self.folder.path, number)) for number in self.roster.silos}
        self.joined = JoinRequest(self.session, self.config, self.task.to_json(), self.plan.mechanisms())
        for number, reply in self.join(self.joined).items():
            if reply.status != "ok":
                raise RuntimeError(f"silo {number} did not join the honest run: {reply.error}")
        self.vectors: list[PlainVector] = []
        self._epochs = 0
        self._sums: PlainCoordinator | SecAggCoordinator | None = None

    def close(self) -> None:
        """Close the silos' databases."""
        for silo in self.silos.values():
            silo.close()

    # What it asks

    def join(self, request: JoinRequest, silos: Iterable[int] | None = None) -> dict[int, Reply]:
        """Ask all silos, or `silos`, to join a run; their replies."""
        message = request.sign(self.identity)
        self.trail.joining(request, message)
        asked = self.silos if silos is None else silos
        replies = {number: self.silos[number].answer(Request(JOIN_STAGE, 0, 0, message)) for number in asked}
        self.trail.joined(replies)
        return replies

    def ask(
        self, silo: int, stage: str, request: bytes, model: bytes = b"", *, round: int = 1, attempt: int = 0
    ) -> Reply:
        """One stage of one silo. The model travels with the stages that train, as do the heads of all audit logs."""
        trains = stage in TRAINING_STAGES
        heads = self.trail.shown_to(silo) if trains else b""
        reply = self.silos[silo].answer(Request(stage, round, attempt, request, model if trains else b"", heads))
        with suppress(ProtocolError):
            self.trail.take(silo, reply)
        return reply

    def exchange(
        self, models: Callable[[int], bytes], *, round: int, attempt: int = 0
    ) -> Callable[[str, Mapping[int, bytes]], Iterator[tuple[int, bytes]]]:
        """The exchange of an attempt, in which each silo is sent models(silo)."""

        def run(stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
            for silo, request in requests.items():
                reply = self.ask(silo, stage, request, models(silo), round=round, attempt=attempt)
                if reply.status == "ok":
                    yield silo, reply.reply

        return run

    def sum(self, model: ModelPayload, round: int, *, attempt: int = 0) -> Aggregate:
        """What the joined run's sum of a round comes to over a model of the coordinator's choice.

        With `--aggregation none`, `vectors` holds the single silos' own afterwards.

        Raises
        ------
        Abort
            Too few silos answered.
        """
        content = model.to_bytes()
        manifest = self.manifest(model, round, attempt=attempt)
        exchange = self.exchange(lambda silo: content, round=round, attempt=attempt)
        if self.config.aggregation == "none":
            exchange = self._keeping_vectors(exchange, manifest)
        return decode(manifest, self.cohort_sum(manifest, exchange))

    def cohort_sum(self, manifest: Manifest, exchange: Exchange) -> CohortSum:
        """The sum of an honest attempt's first cohort, as it is opened; silos that the exchange leaves out are missing.

        Raises
        ------
        Abort
            Too few silos answered.
        """
        if self._sums is None:
            self._sums = self._honest_sums()
        return self._sums.sum(manifest, exchange)[0]

    def open_epoch(self, slots: int) -> KeyedEpoch:
        """An honest key set-up with all silos, for `slots` attempts of which the coordinator says what it wants."""
        exchange = self.exchange(lambda silo: b"", round=0)
        return self.begin_epoch(slots).advertise(exchange).share(exchange)

    def begin_epoch(self, slots: int) -> OpenEpoch:
        """A new epoch's number; silos give up the keys of the last one, so later sums make new ones."""
        self._epochs, self._sums = self._epochs + 1, None
        desk = SecAggDesk(self.identity, self.roster, self.session, lambda name, details: None, self.config.colluders)
        return OpenEpoch(desk, self._epochs, slots)

    # What it says

    def first_model(self) -> ModelPayload:
        """Round 0's model, as configuration and task give it."""
        return initial_model(self.config, self.task)

    def manifest(self, model: ModelPayload, round: int, **changes: Any) -> Manifest:
        """What an honest coordinator would say of a training round with this model, but for the changes."""
        config, plan = self.config, self.schedule.plan(round)
        manifest = Manifest(
            session=self.session,
            epoch=0,
            slot=0,
            epoch_hash=bytes(32),
            round=round,
            attempt=0,
            phase=plan.phase,
            cohorts=plan.cohorts,
            minimum=plan.minimum,
            threshold=share_threshold(len(self.roster.silos)),
            model_hash=hashlib.sha256(model.to_bytes()).digest(),
            mask_hash=model.mask_hash(),
            config_hash=self.joined.digest(),
            channels=(self._update_channel(int(model.mask.sum()), plan.minimum),),
            privacy=self.plan.train_terms(self.schedule.is_exploration(round)),
            heads_hash=self.trail.freeze(),
            blocks=plan.blocks,
        )
        if config.trust != "none":
            manifest = on_fine_grid(manifest, self.plan.privacy.releases, self.plan.privacy.epsilon)
        return replace(manifest, **changes)

    def _update_channel(self, live: int, minimum: tuple[int, ...]) -> Any:
        config = self.config
        if config.trust != "distributed":
            return update_channel(config, live)
        expected = config.sampling_rate * (self.task.nominal_records or 0) / config.silos
        honest = min(minimum) - config.colluders
        noise = self.plan.privacy.noise_multiplier / math.sqrt(config.silos * honest)
        return update_channel(config, live, config.clip, expected, noise)

    def _honest_sums(self) -> PlainCoordinator | SecAggCoordinator:
        if self.config.aggregation == "none":
            return PlainCoordinator()
        return SecAggCoordinator(
            self.identity,
            self.roster,
            self.session,
            slots=SLOTS,
            first_epoch=self._epochs + 1,
            on_epoch=self._note_epoch,
            events=lambda name, details: None,
            colluders=self.config.colluders,
        )

    def _note_epoch(self, number: int) -> None:
        self._epochs = number

    def _keeping_vectors(self, exchange: Any, manifest: Manifest) -> Any:
        self.vectors = []

        def run(stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
            for silo, reply in exchange(stage, requests):
                cohort = manifest.cohorts[manifest.cohort_of(silo)]
                words = np.frombuffer(reply, np.uint64)
                channels = unpack_sum(words, manifest.channels, len(cohort))
                self.vectors.append(PlainVector(silo, channels["update"]))
                yield silo, reply

        return run
