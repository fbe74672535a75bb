"""White-box audit: a malicious coordinator takes every sum it can get from real silos, one of which holds canaries.

The adversary picks model, mask, and the data of all but one silo. Its network is an ordinary mlp compacted to one unit
a layer, with zeros in front: the gradient of a record x is then x itself in the first layer and exactly zero elsewhere.
Canary i is a multiple of the i-th unit vector, longer than the clip, so its clipped gradient is the clip at coordinate
i and nothing else: canaries do not interfere, and each sees all the noise its coordinate has.

Everything a silo does is the real thing: policy, durable ledger, Poisson sampling, per-record gradients, masking,
clipping, rounding, noise, packing, and revealing the noise that a sum does not need. The coordinator asks until the
silo's ledger refuses. Silos that the promise lets collude answer with zeros and the excess of the others' noise is
removed, so what is left is the least noise the promise allows for so many silos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import BudgetExhausted, CannotContinue, ConfigError
from autoflip_secure.federation.audit_log import AuditLog
from autoflip_secure.federation.audit_trail import CoordinatorTrail
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.plan import session_plan
from autoflip_secure.federation.provisioning import RunFolder, load_task, provision
from autoflip_secure.federation.run_state import RunState
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.server_step import ServerMoments
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.sums import SumRunner
from autoflip_secure.federation.terms import update_channel
from autoflip_secure.federation.wire import TRAINING_STAGES, Request
from autoflip_secure.models.spec import ModelSpec, layout_of
from autoflip_secure.privacy.audit_guesses import evidence
from autoflip_secure.privacy.audit_settings import AuditSettings
from autoflip_secure.secagg.coordinator import SecAggCoordinator
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.plain import PlainCoordinator
from autoflip_secure.sums.secure_sum import CoordinatorSecureSum

__all__ = ["CanaryFederation", "audit_config", "image_defaults"]

TARGET = 1
LONGER_THAN_THE_CLIP = 100.0
LOCAL_NOISE_OF_LIMIT = 0.05
"""Local updates are scaled so that their noise is this part of the channel's range: no clipping, no coarse grid."""
PATIENCE = 9
"""The adversary gives up after this many times the planned uses: a ledger that never refuses is broken already."""

Progress = Callable[[int, int], None]


def image_defaults(settings: AuditSettings) -> ResolvedConfig:
    """The configuration of a private run on the embedded images, with what the settings say instead."""
    images = Task("images", "multiclass", (1, 28, 28), 10, tuple("0123456789"), "cnn-tanh", 4000)
    return resolve(_run_config(settings, dataset="mnist5k"), images, natural_silos=None)


def audit_config(settings: AuditSettings, task: Task) -> ResolvedConfig:
    """The same with the canaries' own data and model, and no pruning: the adversary brings its own mask."""
    images = image_defaults(settings)
    config = _run_config(
        settings, dataset="canaries", model="mlp", partition="natural", rounds=images.rounds, clip=images.clip,
        sampling_rate=images.sampling_rate, local_steps=images.local_steps, update_limit=1.0,
    )  # fmt: skip
    return resolve(config, task, natural_silos=settings.silos)


def _run_config(settings: AuditSettings, **changes: object) -> RunConfig:
    options = {
        "silos": settings.silos, "rounds": settings.rounds, "sampling_rate": settings.sampling_rate,
        "colluders": settings.colluders, "aggregation": settings.aggregation, "dp_epsilon": settings.epsilon,
        "dp_delta": settings.delta, "dp_trust": settings.trust, "prune": "none", "device": "cpu", "workers": 0,
    }  # fmt: skip
    return RunConfig.create(**{**options, **changes})


@dataclass(frozen=True)
class Attack:
    """The adversary's side of one release: the model it sends and how it reads canaries from the sum."""

    model: ModelPayload
    scale: float

    @classmethod
    def on(cls, canaries: int, config: ResolvedConfig, records: int) -> Attack:
        """Attack on a silo whose canaries have that many coordinates."""
        spec = ModelSpec("mlp", (canaries,), 2, (1, 1))
        layout = layout_of(spec)
        weights, mask = np.zeros(layout.size, np.float32), np.zeros(layout.size, np.bool_)
        own = {"fc1.weight": [0.0], "fc2.weight": [1.0], "fc3.weight": [1.0, -1.0]}
        for name, part, _ in layout.slices():
            if name in own:
                weights[part], mask[part] = own[name], True
        scale = 1.0 / config.clip
        if config.trust == "local":
            expected = config.sampling_rate * max(1, records // config.silos)
            scale *= expected / config.learning_rate
        return cls(ModelPayload(spec, weights, mask, records), scale)


class CanaryFederation:
    """Real silos on disk, the first of which holds the canaries that are in.

    Parameters
    ----------
    path : Path
        An empty folder.
    included : bool array, shape (canaries,)
        Which canaries the target silo holds; secret from everything but the silo.
    """

    def __init__(self, path: Path, settings: AuditSettings, included: NDArray[np.bool_]) -> None:
        self._canaries = included.size
        records = max(settings.silos, included.size)
        task = Task("canaries", "binary", (included.size,), 2, ("in", "other"), "mlp", records)
        config = audit_config(settings, task)
        self.plan = session_plan(config, task, Schedule(config), public_test=True)
        self.config = config = self._with_visible_updates(config, records)
        self._attack = Attack.on(included.size, config, records)
        self._folder = RunFolder(path)
        provision(self._folder, config, self._records(task, included))
        self._silos = {silo: Silo(silo_folder(path, silo)) for silo in range(1, config.silos + 1)}
        self.terms = self.plan.train_terms(False)
        self._round = Schedule(config).plan(0)
        self.present = config.silos - settings.absent
        self.honest = 1 if config.trust == "local" else self.present - config.colluders
        if self.present < self._round.minimum[0]:
            raise ConfigError(
                f"--absent {settings.absent}: a sum needs {self._round.minimum[0]} of {config.silos} silos"
            )
        if config.aggregation == "secagg" and self.honest < config.silos:
            raise ConfigError("an audit through secagg has every silo honest and present: no colluders, none absent")
        self._sums = self._join()

    def _with_visible_updates(self, config: ResolvedConfig, records: int) -> ResolvedConfig:
        if config.trust != "local":
            return config
        noise = self.plan.privacy.noise_multiplier * config.clip
        expected = config.sampling_rate * max(1, records // config.silos)
        rate = LOCAL_NOISE_OF_LIMIT * config.update_limit * expected / noise
        return ResolvedConfig.create(**{**config.model_dump(), "learning_rate": rate})

    def _records(self, task: Task, included: NDArray[np.bool_]) -> LoadedData:
        """The canaries that are in, all of the same label; the other silos hold one record without a gradient."""
        length = np.float32(LONGER_THAN_THE_CLIP * self.config.clip)
        inside = np.flatnonzero(included)
        x = np.zeros((max(1, inside.size), included.size), np.float32)
        x[np.arange(inside.size), inside] = length
        target = Records(x, np.zeros(len(x), np.int64))
        nothing = Records(np.zeros((1, included.size), np.float32), np.zeros(1, np.int64))
        others = (NamedRecords(f"silo {silo}", nothing) for silo in range(2, self.config.silos + 1))
        return LoadedData(task, None, nothing, (NamedRecords("target", target), *others))

    def _join(self) -> SumRunner:
        """Every silo joins; the coordinator's own part for the sums that follow."""
        session, config = self._folder.session(), self.config
        request = JoinRequest(session, config, load_task(self._folder).to_json(), self.plan.mechanisms())
        coordinator, roster = self._folder.coordinator_identity(), self._folder.roster()
        message = request.sign(coordinator)
        # Silos contribute only where their audit logs are witnessed: the adversary keeps one to have heads to show.
        trail = CoordinatorTrail(AuditLog(self._folder.audit_log, coordinator, "coordinator"), roster)
        trail.joining(request, message)
        replies = {}
        for number, silo in self._silos.items():
            reply = replies[number] = silo.answer(Request(JOIN_STAGE, 0, 0, message))
            if reply.status != "ok":
                raise CannotContinue(f"a silo refused to join the audited run: {reply.error}; see its silo.log")
        trail.joined(replies)
        exchange = cast("StageExchange", _Exchange(self._silos, self.honest, self.present, trail))
        secure_sum: CoordinatorSecureSum = PlainCoordinator()
        if config.aggregation == "secagg":
            secure_sum = SecAggCoordinator(
                coordinator, roster, session, slots=config.epoch_slots,
                first_epoch=1, on_epoch=self._folder.announce_epoch, events=lambda name, fields: None,
                colluders=config.colluders,
            )  # fmt: skip
        return SumRunner(
            config, session, request.digest(), secure_sum, exchange, None, lambda *_, **__: None, None,
            self.plan.privacy, trail=trail, roster=roster,
        )  # fmt: skip

    @property
    def planned(self) -> int:
        """Releases the plan pays for."""
        return self.plan.privacy.train_steps // self.terms.steps

    def releases(self) -> Iterator[NDArray[np.float64]]:
        """Each release's canary coordinates in clipping norms, shape (canaries,), until the ledger refuses.

        Raises
        ------
        CannotContinue
            The silo fails for another reason than its budget.
        """
        model = self._attack.model
        state = RunState(0, model, ServerMoments.zeros(model.mask.size), facts={})
        channels = [update_channel(self.config, int(model.mask.sum()))]
        for number in range(PATIENCE * self.planned):
            state.round = number
            try:
                (aggregate,) = self._sums.run(state, "train", self._round, channels, self.terms)
            except BudgetExhausted:
                return
            yield aggregate.sum("update")[: self._canaries] * self._attack.scale

    def scores(self, progress: Progress) -> tuple[NDArray[np.float64], int]:
        """Evidence of each canary over all releases, shape (canaries,), and the number of releases."""
        total, count = np.zeros(self._canaries), 0
        for seen in self.releases():
            total += evidence(seen, self.terms.sampling_rate, self.terms.noise_multiplier)
            count += 1
            progress(count, self.planned)
        return total, count

    def close(self) -> None:
        """Close the silos' databases."""
        for silo in self._silos.values():
            silo.close()


class _Exchange:
    """The adversary's way to the silos: honest ones answer, colluding ones send zeros, absent ones nothing."""

    def __init__(self, silos: Mapping[int, Silo], honest: int, present: int, trail: CoordinatorTrail) -> None:
        self._silos, self._honest, self._present, self._trail = silos, honest, present, trail
        self.refusals: Counter[str] = Counter()

    def begin(self, round: int, attempt: int, attachment: bytes) -> None:
        self._round, self._attempt, self._attachment = round, attempt, attachment
        self.refusals.clear()

    def __call__(self, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        trains = stage in TRAINING_STAGES
        attachment = self._attachment if trains else b""
        for silo, request in requests.items():
            if silo <= self._honest:
                heads = self._trail.shown_to(silo) if trains else b""
                asked = Request(stage, self._round, self._attempt, request, attachment, heads)
                reply = self._silos[silo].answer(asked)
                self._trail.take(silo, reply)
                if reply.status == "ok":
                    yield silo, reply.reply
                elif silo == TARGET and reply.status != "refused":
                    raise CannotContinue("the audited silo could not compute its contribution; nothing was audited")
                elif silo == TARGET and reply.error == BudgetExhausted.__name__:
                    raise BudgetExhausted("the audited silo's ledger refuses")  # sums without it show nothing of it
                else:
                    self.refusals[reply.error] += 1
            elif silo <= self._present and stage == "clear":
                yield silo, _zeros(Manifest.from_bytes(request))


def _zeros(manifest: Manifest) -> bytes:
    return bytes(8 * word_count(manifest.channels, len(manifest.cohorts[0])))
