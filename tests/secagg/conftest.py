"""A whole federation in one process, for the tests of secure aggregation."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.secagg import Identity, Roster, RosterEntry, SecAggCoordinator, SecAggSilo, SiloRules
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch, OpenEpoch
from autoflip_secure.secagg.desk import Desk
from autoflip_secure.secagg.rules import share_threshold
from autoflip_secure.secagg.signing import sign_message
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms

SESSION = bytes(range(16))
UPDATE = ChannelSpec("update", 7, 16, 1.0)


@dataclass
class Federation:
    """Silos 1..n with a random word vector each, and what the coordinator is told."""

    n: int
    slots: int = 4
    rules: SiloRules = field(default_factory=lambda: SiloRules(0))
    folder: Path | None = None
    channels: tuple[ChannelSpec, ...] = (UPDATE,)

    def __post_init__(self) -> None:
        self.coordinator_identity = Identity.generate()
        self.identities = {silo: Identity.generate() for silo in range(1, self.n + 1)}
        entries = tuple(RosterEntry(silo, f"hospital {silo}", key.public) for silo, key in self.identities.items())
        self.roster = Roster(self.coordinator_identity.public, entries)
        self.connections: dict[int, sqlite3.Connection] = {}
        self.silos = {silo: self.start(silo) for silo in self.identities}
        self.random = np.random.default_rng(self.n)
        self.vectors: dict[int, np.ndarray] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.epochs: list[int] = []
        self.failures: dict[tuple[str, int], Exception] = {}
        self.coordinator = self.new_coordinator(first_epoch=1)

    def start(self, silo: int) -> SecAggSilo:
        """A new process of a silo: nothing but its database is carried over."""
        if self.folder is not None:
            connection = open_silo_database(self.folder / f"{silo}.db")
        else:
            connection = self.connections.get(silo) or sqlite3.connect(":memory:", isolation_level=None)
        self.connections[silo] = connection
        return SecAggSilo(connection, self.identities[silo], silo, self.roster, self.rules)

    def new_coordinator(self, first_epoch: int) -> SecAggCoordinator:
        return SecAggCoordinator(
            self.coordinator_identity,
            self.roster,
            SESSION,
            slots=self.slots,
            first_epoch=first_epoch,
            on_epoch=self.epochs.append,
            events=lambda name, details: self.events.append((name, details)),
        )

    @property
    def desk(self) -> Desk:
        return Desk(self.coordinator_identity, self.roster, SESSION, lambda name, details: None)

    def manifest(self, *cohorts: tuple[int, ...], minimum: int = 3, **changes: Any) -> Manifest:
        cohorts = cohorts or (tuple(self.identities),)
        values: dict[str, Any] = {
            "session": SESSION, "epoch": 0, "slot": 0, "epoch_hash": bytes(32), "round": 5, "attempt": 0,
            "phase": "train", "cohorts": cohorts, "minimum": (minimum,) * len(cohorts),
            "threshold": share_threshold(self.n), "model_hash": bytes(32), "mask_hash": bytes(32),
            "config_hash": bytes(32), "channels": self.channels,
            "privacy": PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
        }  # fmt: skip
        return Manifest(**{**values, **changes})

    def contribute(self, silo: int) -> Callable[[Manifest], np.ndarray]:
        def words(manifest: Manifest) -> np.ndarray:
            size = word_count(manifest.channels, len(manifest.cohorts[manifest.cohort_of(silo)]))
            self.vectors[silo] = self.random.integers(0, 2**64, size, np.uint64)
            return self.vectors[silo].copy()

        return words

    def answer(self, stage: str, silo: int, request: bytes) -> bytes:
        return self.silos[silo].answer(stage, request, self.contribute(silo))

    def exchange(
        self,
        absent: Callable[[str, int], bool] = lambda stage, silo: False,
        tamper: Callable[[str, int, bytes], bytes] = lambda stage, silo, reply: reply,
        restart: bool = False,
    ) -> Callable[[str, Mapping[int, bytes]], Mapping[int, bytes]]:
        """An exchange in process; `absent` silos do not get the request, refusals are kept in `failures`."""

        def run(stage: str, requests: Mapping[int, bytes]) -> Mapping[int, bytes]:
            replies = {}
            for silo, request in requests.items():
                if absent(stage, silo):
                    continue
                if restart:
                    self.silos[silo] = self.start(silo)
                try:
                    replies[silo] = tamper(stage, silo, self.answer(stage, silo, request))
                except AutoflipSecureError as error:
                    self.failures[stage, silo] = error
            return replies

        return run

    def plain_sum(self, silos: tuple[int, ...]) -> np.ndarray:
        return sum((self.vectors[silo] for silo in silos), np.zeros_like(self.vectors[silos[0]]))

    def open_epoch(self, slots: int) -> KeyedEpoch:
        """Keys for `slots` attempts, set up with every silo present."""
        number = 1000 + len(self.epochs)
        self.epochs.append(number)
        return OpenEpoch(self.desk, number, slots).advertise(self.exchange()).share(self.exchange())

    def bind(self, epoch: KeyedEpoch, manifest: Manifest) -> Manifest:
        """The manifest in the epoch's next slot."""
        slot = epoch.take_slot()
        return manifest.with_slot(epoch=epoch.number, slot=slot, epoch_hash=epoch.epoch_hash, attempt=0)

    def signed(self, message: Any) -> bytes:
        """A request as a malicious coordinator would sign it."""
        return sign_message(self.coordinator_identity, message)

    def assert_exact(self, sums: Any, *expected: tuple[int, ...]) -> None:
        assert tuple(item.silos for item in sums) == expected
        for item in sums:
            np.testing.assert_array_equal(item.words, self.plain_sum(item.silos))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [details for name, details in self.events if name == event]


@pytest.fixture
def federation() -> type[Federation]:
    return Federation
