"""A federation of real silos in this process whose run proves its models, and that can be stopped after any round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation import client_app
from autoflip_secure.federation.audit_heads import HeadList
from autoflip_secure.federation.audit_log import Head
from autoflip_secure.federation.client_app import ClientAppFactory, close_silos, silo_folder
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.federation.followed_model import FollowedModel
from autoflip_secure.federation.local_grid import FIRST_NODE_ID, LocalGrid
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.provisioning import RunFolder, provision
from autoflip_secure.federation.run_state import RunState
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.sum_proof import FOLLOW_STAGE, Position
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.sums.channels import CHANNEL_NAMES
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.plain import PlainSilo

__all__ = ["PROVED", "AskedSilo", "ProvedRun", "Stopped", "secret_total"]

PROVED: dict[str, Any] = {"aggregation": "secagg", "prove_models": True, "silos": 4}


class Stopped(Exception):
    """The coordinator's process ended."""


class _PartlyConnected(LocalGrid):
    """Some silos are not connected."""

    away: frozenset[int] = frozenset()

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node - FIRST_NODE_ID + 1 not in self.away]


class _Watched(Coordinator):
    after: Callable[[Coordinator], None] = staticmethod(lambda coordinator: None)

    def _round(self) -> None:
        super()._round()
        self.after(self)


class ProvedRun:
    """A provisioned run folder, and what goes on in it.

    Attributes
    ----------
    away : frozenset of int
        Silos that are not connected now.
    """

    def __init__(
        self, path: Path, config: ResolvedConfig, task: Task, records: Records, *, scored: bool = True
    ) -> None:
        self.folder, self.config = RunFolder(path), config
        provision(self.folder, config, LoadedData(task, records, records if scored else None, None))
        self.away: frozenset[int] = frozenset()

    def home(self, silo: int) -> Path:
        return silo_folder(self.folder.path, silo)

    def be_institutions(self) -> None:
        """Give each silo an institution's policy that is within the run; it asks for proved models by default."""
        policy = SiloPolicy(
            approval="standing",
            code=(code_digest().hex(),),
            models=("mlp",),
            channels=tuple(sorted(CHANNEL_NAMES)),
            trusts=("none", "local", "distributed"),
            min_block=1,
            reply_every=0.0,
        )
        for silo in self.silos():
            (self.home(silo) / "policy.toml").write_text(policy.to_toml())

    def go_on(
        self,
        after: Callable[[Coordinator], None] = lambda coordinator: None,
        watch: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> RunState:
        """Run or resume: `after` is called between rounds, `watch` within one, between its sum and its checkpoint."""

        def between(coordinator: Coordinator) -> None:
            after(coordinator)
            grid.away = self.away

        with _PartlyConnected(ClientAppFactory(self.folder.path), self.config.silos, 0) as grid:
            grid.away = self.away
            coordinator = _Watched(self.folder, self.config, grid, watch)
            coordinator.after = between  # type: ignore[method-assign]
            try:
                return coordinator.run()
            finally:
                close_silos()

    def silo(self, silo: int) -> Silo:
        """As it answers in this process."""
        return client_app._open(self.home(silo))

    def followed(self, silo: int) -> FollowedModel:
        """Its own account of the model."""
        return self.silo(silo)._open_session().followed

    def silos(self) -> range:
        return range(1, self.config.silos + 1)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in read_json_lines(self.folder.events) if line["event"] == name]

    def lines(self) -> list[int]:
        """Lines of each silo's ledger."""
        return [len(read_ledger(self.home(silo) / "state.sqlite").entries) for silo in self.silos()]

    def log(self, silo: int) -> str:
        return (self.home(silo) / "silo.log").read_text()

    def proof(self, number: int) -> bytes:
        """An opened sum as silos are shown it."""
        return (self.folder.proofs / f"{number:06d}.msgpack").read_bytes()

    def positions(self) -> list[int]:
        """Sums that each silo has taken, read anew from its disk."""
        try:
            return [self.followed(silo).taken for silo in self.silos()]
        finally:
            close_silos()


class AskedSilo:
    """Silo 1 of a run that was joined, asked by whoever has the coordinator's key: no sum is made of what it answers.

    Parameters
    ----------
    home : Path
        Its folder, or a copy.
    """

    def __init__(self, run: ProvedRun, home: Path) -> None:
        self.run, self.home = run, home
        self.silo = Silo(home)
        self._lines = count(1000)  # of the coordinator's audit log, more than it has
        self.session = self.silo._open_session()
        # One stage instead of three: the checks before a contribution are the same.
        self.session.secure_sum = PlainSilo(self.silo._database)

    def follow(self, request: bytes, stage: str = FOLLOW_STAGE) -> Reply:
        return replace(self.silo.answer(Request(stage, 0, 0, request)), head=b"")

    @property
    def position(self) -> int:
        return Position.read(self.follow(b"").reply).taken

    def contribute(self, manifest: Manifest, model: ModelPayload) -> Reply:
        """Ask for a contribution; of audit logs the silo is shown its own and the coordinator's."""
        self.silo._audit.refresh()
        own = self.silo._audit.head
        assert own is not None
        later = Head.signed(next(self._lines), bytes(32), self.run.folder.coordinator_identity())
        heads = HeadList(later, {1: own})
        content = replace(manifest, heads_hash=heads.hash()).to_bytes()
        request = Request("clear", manifest.round, manifest.attempt, content, model.to_bytes(), heads.shown()[1])
        return replace(self.silo.answer(request), head=b"")

    @property
    def lines(self) -> int:
        """Lines of its ledger."""
        return len(read_ledger(self.home / "state.sqlite").entries)

    @property
    def log(self) -> str:
        return (self.home / "silo.log").read_text()


def secret_total(task: Task) -> Task:
    """The same task where nobody knows how many records there are, so that a census counts them."""
    return replace(task, nominal_records=None)
