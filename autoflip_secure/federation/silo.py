"""One silo: its folder, its durable state, and its answers to the coordinator's stages.

Everything a silo must remember is in its SQLite file before a reply leaves, so a Silo object may be made anew for every
message; keeping one only saves time.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from dataclasses import replace
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from autoflip_secure.ckks.silo import CkksSilo
from autoflip_secure.errors import AutoflipSecureError, ConfigError, ProtocolError, StorageError
from autoflip_secure.federation.admission import Admission
from autoflip_secure.federation.approvals import ApprovalStore
from autoflip_secure.federation.audit_facts import ledger_facts, manifest_facts, reply_facts
from autoflip_secure.federation.audit_heads import check_heads
from autoflip_secure.federation.audit_log import AUDIT_FILE, AuditLog
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest, join_reply
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.policy_rules import public_name
from autoflip_secure.federation.session import ContributionFailed, Session
from autoflip_secure.federation.sum_proof import FOLLOW_STAGE, KEY_STAGE
from autoflip_secure.federation.wire import TRAINING_STAGES, Reply, Request
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import SiloRules
from autoflip_secure.parties.run_key import RunKeys
from autoflip_secure.privacy.ledger import Ledger
from autoflip_secure.privacy.plan import DATASETS, accounting_delta
from autoflip_secure.secagg.silo import SecAggSilo
from autoflip_secure.storage import OWNER_ONLY, open_silo_database
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.plain import PlainSilo
from autoflip_secure.sums.secure_sum import Contribute, SiloSecureSum
from autoflip_secure.sums.words import WordSource

__all__ = ["Silo"]

RECORD_STAGES = TRAINING_STAGES | {JOIN_STAGE}
"""Stages in which records are read, so that the time they take depends on how many there are."""

LONGEST_LOG = 10 << 20
"""Bytes of silo.log after which it becomes silo.log.1, in place of the one before."""

_SESSIONS = "CREATE TABLE IF NOT EXISTS sessions (session BLOB PRIMARY KEY, request BLOB NOT NULL)"


class Silo:
    """Answers requests for the silo whose folder is given (made by federation.provisioning)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = open_silo_database(folder / "state.sqlite")
        self._database.execute(_SESSIONS)
        self._identity = Identity.load(folder / "identity.key")
        self._roster = Roster.from_bytes((folder / "roster.bin").read_bytes())
        self._task = (folder / "task.json").read_text()
        self._code = code_digest()
        self._read_policy()
        self.id = _own_id(self._roster, self._identity, folder)
        self._log = _file_logger(folder / "silo.log")
        self._audit = AuditLog(folder / AUDIT_FILE, self._identity, f"silo {self.id}")
        self._session: Session | None = None

    def answer(self, request: Request) -> Reply:
        """Answer one request. Never raises: a refusal is a reply, and its text stays in this silo's own log.

        What goes wrong before the records are touched is named by its class; what goes wrong afterwards is not, since
        which error it was may tell about the records.

        A line of the audit log is on disk before the reply leaves. Where there can be none, nothing leaves but that.
        """
        facts: dict[str, Any] = {"asked": hashlib.sha256(request.request).digest()}
        try:
            self._audit.refresh()
            started = time.monotonic()
            reply = self._answer(request, facts)
            self._hold_back(request.stage, started)  # before the line of the audit log, which says when it was written
            kind = "join" if request.stage == JOIN_STAGE else "reply"
            # The silos of a simulation share a machine, and would wait for its disk in turn.
            head = self._audit.append(kind, sync=not self._policy.simulated, **reply_facts(request, reply), **facts)
        except StorageError as error:
            self._log.error("%s not answered: %s", request.stage, error)
            return Reply("refused", error=type(error).__name__)
        except Exception:
            self._log.exception("%s not answered", request.stage)
            return Reply("failed")
        return replace(reply, head=head.to_bytes())

    def _answer(self, request: Request, facts: dict[str, Any]) -> Reply:
        """The reply; what the audit log is to say about it, beside what it is, goes to `facts`."""
        try:
            if request.stage == JOIN_STAGE:
                reply = Reply("ok", self._join(request.request))
                facts |= self._joined_facts()
                return reply
            session = self._open_session()
            if session.is_away(request):
                return Reply("dropped")
            if request.stage in (KEY_STAGE, FOLLOW_STAGE):
                return Reply("ok", session.follow(request.stage, request.request))
            contribute = self._witnessing(request.heads, session.contributing(request.attachment), facts)
            return Reply("ok", session.secure_sum.answer(request.stage, request.request, contribute))
        except ContributionFailed:
            self._log.exception("%s failed", request.stage)
            return Reply("failed")
        except AutoflipSecureError as error:
            self._log.warning("%s refused: %s: %s", request.stage, type(error).__name__, error)
            return Reply("refused", error=public_name(error, joining=request.stage == JOIN_STAGE))
        except Exception:
            self._log.exception("%s failed", request.stage)
            return Reply("failed")

    def _hold_back(self, stage: str, started: float) -> None:
        """Wait, where the policy says so, until how long the records took cannot be told from when the reply leaves."""
        every = self._policy.reply_every
        if not every or stage not in RECORD_STAGES:
            return
        multiples = max(1, math.ceil((time.monotonic() - started) / every))
        if multiples > 1:
            self._log.warning(
                "%s took longer than reply_every = %g s of policy.toml: its reply leaves after %d times that, which "
                "the coordinator can tell; a larger reply_every hides it",
                *(stage, every, multiples),
            )
        time.sleep(max(0.0, started + multiples * every - time.monotonic()))

    def _joined_facts(self) -> dict[str, Any]:
        assert self._session is not None
        return {**self._session.facts(), "roster": self._roster.hash()}

    def _witnessing(self, heads: bytes, contribute: Contribute, facts: dict[str, Any]) -> Contribute:
        """Contribute only where the manifest names the audit heads shown with it, and this log will witness them."""

        def witness(manifest: Manifest) -> WordSource:
            facts.update(manifest_facts(manifest, self.id))
            facts["witnessed"] = check_heads(heads, manifest.heads_hash, self.id, self._roster, self._audit)
            try:
                return contribute(manifest)
            finally:
                facts.update(ledger_facts(self._database, manifest))

        return witness

    def _join(self, message: bytes) -> bytes:
        request = JoinRequest.open(message, self._roster.coordinator)
        self._read_policy()  # its officer may just have changed it for this run
        self._admission.offer(request)
        self._admission.check(request)
        ledger = self._open_ledger(request)
        for dataset, mechanisms in request.planned.items():
            ledger.expect(dataset, mechanisms)
        self._check_records()
        session = self._make_session(request, ledger)
        session.check_roster()
        self._database.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?)", (request.session, request.body()))
        self._admission.note_joined(request)
        self._session = session
        self._session.secure_sum.forget_other_runs()
        self._session.forget_oldest_runs()
        return join_reply(self.id)

    def _read_policy(self) -> None:
        policy = SiloPolicy.read(self._folder / "policy.toml")
        approvals = None if policy.simulated else ApprovalStore(self._database)
        self._policy = policy
        self._admission = Admission(self._folder, policy, self._task, self._roster, self._code, approvals)

    def _check_records(self) -> None:
        """Read the records once before a run, so that a damaged file stops it here, whatever the coordinator sends."""
        from autoflip_secure.data.silo_folder import read_silo
        from autoflip_secure.data.task import Task

        read_silo(self._folder / "data", Task.from_json(self._task))

    def _open_session(self) -> Session:
        if self._session is None:
            row = self._database.execute("SELECT request FROM sessions ORDER BY rowid DESC LIMIT 1").fetchone()
            if row is None:
                raise ProtocolError("no run was joined")
            request = JoinRequest.from_body(row[0])
            self._admission.check(request)  # the policy may have been tightened since
            self._session = self._make_session(request, self._open_ledger(request))
        self._session.check_approval()
        return self._session

    def _make_session(self, request: JoinRequest, ledger: Ledger) -> Session:
        secure_sum = self._secure_sum(request)
        keys = None
        if request.config.prove_models:
            who = (self._identity, self.id, self._roster)
            keys = RunKeys(self._database, *who, request.session, request.run_digest())
        return Session(self.id, request, self._admission, ledger, secure_sum, self._database, keys)

    def _open_ledger(self, request: JoinRequest) -> Ledger:
        from autoflip_secure.data.task import Task

        config = request.config
        return Ledger(
            self._database,
            silo=str(self.id),
            session=request.session,
            budgets=dict.fromkeys(DATASETS, self._policy.budget(config.trust)),
            delta=accounting_delta(config.trust, config.dp_delta),
            per_run=self._policy.budget_per_run(config.trust, config.dp_epsilon),
            per_year=self._policy.budget_per_year(config.trust),
            trust=config.trust,
            unit=Task.from_json(self._task).unit,
            colluders=config.colluders if config.trust == "distributed" else 0,
        )

    def _secure_sum(self, request: JoinRequest) -> SiloSecureSum:
        if request.config.aggregation == "none":
            return PlainSilo(self._database)
        # The run's promise may bear more colluders than the policy demands; its sums have to bear them too.
        colluders = max(self._policy.colluders, request.config.colluders)
        policy = self._policy
        rules = SiloRules(colluders=colluders, minimum=policy.min_silos, minimum_fraction=policy.min_cohort)
        half = CkksSilo if request.config.aggregation == "ckks" else SecAggSilo
        return half(self._database, self._identity, self.id, self._roster, rules, request.session)

    def close(self) -> None:
        """Close the database; what it holds is on disk already."""
        self._database.close()


def _own_id(roster: Roster, identity: Identity, folder: Path) -> int:
    for entry in roster.entries:
        if entry.public == identity.public:
            return entry.silo
    raise ConfigError(f"the identity key in {folder} is not in its roster; enrol this silo or restore its key")


class _OwnersLog(RotatingFileHandler):
    """A log file of mode 0600, since tracebacks may quote records; a full one makes place for a new one."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, OWNER_ONLY)
        return os.fdopen(descriptor, "a", encoding="utf-8")


def _file_logger(path: Path) -> logging.Logger:
    logger = logging.getLogger(f"autoflip_secure.silo.{path}")
    if not logger.handlers:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, OWNER_ONLY))
        handler = _OwnersLog(path, maxBytes=LONGEST_LOG, backupCount=1, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    return logger
