"""One silo: its folder, its durable state, and its answers to the coordinator's stages.

Everything a silo must remember is in its SQLite file before a reply leaves, so a Silo object may be made anew for every
message; keeping one only saves time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import numpy as np
from numpy.typing import NDArray

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import AutoflipSecureError, PolicyRefusal, ProtocolError
from autoflip_secure.federation.dropout import drops
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.terms import check_grid, check_terms
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.plan import DATASETS, accounting_delta
from autoflip_secure.secagg.identity import Identity
from autoflip_secure.secagg.roster import Roster
from autoflip_secure.secagg.rules import SiloRules
from autoflip_secure.secagg.silo import SecAggSilo
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.encoding import pack_contribution
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.plain import PlainSilo
from autoflip_secure.sums.secure_sum import SiloSecureSum

if TYPE_CHECKING:
    from autoflip_secure.federation.contribution import Contributor

__all__ = ["JOIN_STAGE", "JoinRequest", "Silo", "read_join_reply"]

JOIN_STAGE = "join"

_SESSIONS = "CREATE TABLE IF NOT EXISTS sessions (session BLOB PRIMARY KEY, request BLOB NOT NULL)"


class JoinRequest:
    """What the coordinator tells every silo before a run: the public configuration, task and planned privacy cost."""

    def __init__(self, session: bytes, config: ResolvedConfig, task: str, planned: dict[str, list[Mechanism]]) -> None:
        self.session, self.config, self.task, self.planned = session, config, task, planned

    def to_bytes(self) -> bytes:
        """One msgpack array."""
        planned = {
            dataset: [[m.sampling_rate, m.noise_multiplier, m.count] for m in mechanisms]
            for dataset, mechanisms in self.planned.items()
        }
        return bytes(msgpack.packb([self.session, self.config.model_dump_json(), self.task, planned]))

    @classmethod
    def from_bytes(cls, data: bytes) -> JoinRequest:
        """Read and validate.

        Raises
        ------
        ProtocolError
            Not a join request.
        """
        try:
            session, config, task, planned = msgpack.unpackb(data)
            mechanisms = {dataset: [Mechanism(*m) for m in rows] for dataset, rows in planned.items()}
            return cls(session, ResolvedConfig.create(**json.loads(config)), task, mechanisms)
        except (ValueError, TypeError, AttributeError) as error:
            raise ProtocolError(f"not a join request: {error}") from error


def read_join_reply(reply: bytes) -> int:
    """Silo id of a node.

    Raises
    ------
    ProtocolError
        Not a join reply.
    """
    try:
        silo = msgpack.unpackb(reply)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a join reply: {error}") from error
    if type(silo) is not int or silo < 1:
        raise ProtocolError("not a join reply: no silo id")
    return silo


class Silo:
    """Answers requests for the silo whose folder is given (made by federation.provisioning)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = open_silo_database(folder / "state.sqlite")
        self._database.execute(_SESSIONS)
        self._identity = Identity.load(folder / "identity.key")
        self._roster = Roster.from_bytes((folder / "roster.bin").read_bytes())
        self._policy = SiloPolicy.read(folder / "policy.toml")
        self.id = next(e.silo for e in self._roster.entries if e.public == self._identity.public)
        self._log = _file_logger(folder / "silo.log")
        self._session: _Session | None = None

    def answer(self, request: Request) -> Reply:
        """Answer one request. Never raises what this package foresees: a refusal is a reply, its text stays here."""
        try:
            if request.stage == JOIN_STAGE:
                return Reply("ok", self._join(JoinRequest.from_bytes(request.request)))
            session = self._open_session()
            if session.is_away(request):
                return Reply("dropped")
            contribute = session.contributing(request.attachment)
            return Reply("ok", session.secure_sum.answer(request.stage, request.request, contribute))
        except AutoflipSecureError as error:
            self._log.warning("%s refused: %s: %s", request.stage, type(error).__name__, error)
            return Reply("refused", error=type(error).__name__)
        except Exception:
            self._log.exception("%s failed", request.stage)
            return Reply("failed")

    def _join(self, request: JoinRequest) -> bytes:
        self._policy.check_run(request.config)
        ledger = self._open_ledger(request)
        for dataset, mechanisms in request.planned.items():
            ledger.expect(dataset, mechanisms)
        self._database.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?)", (request.session, request.to_bytes()))
        self._session = _Session(self, request, ledger)
        return bytes(msgpack.packb(self.id))

    def _open_session(self) -> _Session:
        if self._session is None:
            row = self._database.execute("SELECT request FROM sessions ORDER BY rowid DESC LIMIT 1").fetchone()
            if row is None:
                raise ProtocolError("no run was joined")
            request = JoinRequest.from_bytes(row[0])
            self._session = _Session(self, request, self._open_ledger(request))
        return self._session

    def _open_ledger(self, request: JoinRequest) -> Ledger:
        return Ledger(
            self._database,
            silo=str(self.id),
            session=request.session,
            budgets=dict.fromkeys(DATASETS, self._policy.budget),
            delta=accounting_delta(request.config.trust, request.config.dp_delta),
        )

    def secure_sum(self, config: ResolvedConfig) -> SiloSecureSum:
        """The silo half of the run's secure sum."""
        if config.aggregation == "none":
            return PlainSilo()
        rules = SiloRules(colluders=self._policy.colluders, minimum_fraction=self._policy.min_cohort)
        return SecAggSilo(self._database, self._identity, self.id, self._roster, rules)

    def close(self) -> None:
        """Close the database; what it holds is on disk already."""
        self._database.close()

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def policy(self) -> SiloPolicy:
        return self._policy


class _Session:
    """A joined run: what is public about it, and the parts that answer."""

    def __init__(self, silo: Silo, request: JoinRequest, ledger: Ledger) -> None:
        self._silo, self._request, self._ledger = silo, request, ledger
        self._config = request.config
        self.secure_sum = silo.secure_sum(request.config)
        self._releases = sum(m.count for mechanisms in request.planned.values() for m in mechanisms)
        self._contributor: Contributor | None = None

    def is_away(self, request: Request) -> bool:
        """Simulated dropout."""
        config = self._config
        return drops(
            config.aggregation,
            config.dropout,
            config.seed,
            silo=self._silo.id,
            round=request.round,
            attempt=request.attempt,
            stage=request.stage,
        )

    def contributing(self, attachment: bytes) -> Callable[[Manifest], NDArray[np.uint64]]:
        """The callback that trains: policy, then ledger, then data, in this order."""

        def contribute(manifest: Manifest) -> NDArray[np.uint64]:
            self._check(manifest, attachment)
            from autoflip_secure.federation.model_payload import ModelPayload

            model = ModelPayload.from_bytes(attachment)
            if model.mask_hash() != manifest.mask_hash:
                raise PolicyRefusal("the mask sent is not the one the manifest names")
            if manifest.privacy.trust != "none":
                check_grid(manifest, self._releases, self._silo.policy.epsilon)
            self._ledger.charge(LedgerLine.of(manifest))
            contribution = self._open_contributor().contribute(manifest, model)
            cohort = manifest.cohorts[manifest.cohort_of(self._silo.id)]
            return pack_contribution(contribution, manifest.channels, len(cohort))

        return contribute

    def _check(self, manifest: Manifest, attachment: bytes) -> None:
        self._silo.policy.check_manifest(manifest)
        check_terms(manifest)
        if manifest.session != self._request.session:
            raise PolicyRefusal("the manifest belongs to a session this silo did not join")
        if manifest.config_hash != self._config.digest():
            raise PolicyRefusal("the manifest's configuration is not the one this silo joined")
        if manifest.privacy.trust != self._config.trust:
            raise PolicyRefusal("the manifest's trust mode is not the one this silo joined")
        if manifest.model_hash != hashlib.sha256(attachment).digest():
            raise PolicyRefusal("the model sent is not the one the manifest names")

    def _open_contributor(self) -> Contributor:
        if self._contributor is None:
            # Imported here: torch takes seconds to load and the key stages do without it.
            from autoflip_secure.data.silo_folder import read_silo
            from autoflip_secure.data.task import Task
            from autoflip_secure.federation.contribution import Contributor
            from autoflip_secure.training.device import pick_device

            task = Task.from_json(self._request.task)
            data = read_silo(self._silo.folder / "data", task)
            device = str(pick_device(self._config.device))
            self._contributor = Contributor(self._config, task, data, self._silo.id, device)
        return self._contributor


def _file_logger(path: Path) -> logging.Logger:
    logger = logging.getLogger(f"autoflip_secure.silo.{path}")
    if not logger.handlers:
        handler = logging.FileHandler(path, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    return logger
