"""A whole federation in one process, for the tests of secure aggregation."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
from blake3 import blake3

from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.parties.agreement import Agreement, pair_sign
from autoflip_secure.parties.rules import Survivors, dropped_silos, share_threshold
from autoflip_secure.parties.signing import Signed, open_signed, sign_message
from autoflip_secure.secagg import Identity, Roster, RosterEntry, SecAggCoordinator, SecAggSilo, SiloRules
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch, OpenEpoch
from autoflip_secure.secagg.dealing import KEY, NONCE_BYTES, SEED
from autoflip_secure.secagg.desk import SecAggDesk
from autoflip_secure.secagg.keys import SlotSecret, pair_mask_key, self_mask_key
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.secagg.round_messages import (
    ConfirmReply,
    ConfirmRequest,
    MaskedReply,
    MaskedRequest,
    UnmaskReply,
    UnmaskRequest,
)
from autoflip_secure.secagg.shamir import combine
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.noise_chain import fresh_root
from autoflip_secure.sums.words import PackedWords, WordSource

SESSION = bytes(range(16))
UPDATE = ChannelSpec("update", 7, 16, 1.0)


def session_of(request: bytes) -> bytes:
    """Session in the head of a signed request; SESSION for bytes that are none."""
    try:
        session = msgpack.unpackb(Signed.from_bytes(request).payload)[2]
    except (AutoflipSecureError, ValueError, LookupError, TypeError):
        return SESSION
    return session if isinstance(session, bytes) and len(session) == len(SESSION) else SESSION


@dataclass
class Federation:
    """Silos 1..n with a random word vector each, and what the coordinator is told."""

    n: int
    slots: int = 4
    rules: SiloRules = field(default_factory=lambda: SiloRules(0))
    folder: Path | None = None
    channels: tuple[ChannelSpec, ...] = (UPDATE,)
    session: ClassVar[bytes] = SESSION

    def __post_init__(self) -> None:
        self.coordinator_identity = Identity.generate()
        self.identities = {silo: Identity.generate() for silo in range(1, self.n + 1)}
        entries = tuple(RosterEntry(silo, f"hospital {silo}", key.public) for silo, key in self.identities.items())
        self.roster = Roster(self.coordinator_identity.public, entries)
        self.connections: dict[int, sqlite3.Connection] = {}
        self.silos = {silo: self.start(silo) for silo in self.identities}
        self.random = np.random.default_rng(self.n)
        self.vectors: dict[int, np.ndarray] = {}
        self.roots: dict[int, bytes] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.epochs: list[int] = []
        self.failures: dict[tuple[str, int], Exception] = {}
        self.coordinator = self.new_coordinator(first_epoch=1)

    def start(self, silo: int, session: bytes = SESSION) -> SecAggSilo:
        """A new process of a silo that joined a run: nothing but its database is carried over."""
        if self.folder is not None:
            connection = open_silo_database(self.folder / f"{silo}.db")
        else:
            connection = self.connections.get(silo) or sqlite3.connect(":memory:", isolation_level=None)
        self.connections[silo] = connection
        return SecAggSilo(connection, self.identities[silo], silo, self.roster, self.rules, session)

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
    def desk(self) -> SecAggDesk:
        return SecAggDesk(self.coordinator_identity, self.roster, SESSION, lambda name, details: None)

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

    def contribute(self, silo: int) -> Callable[[Manifest], WordSource]:
        def words(manifest: Manifest) -> WordSource:
            size = word_count(manifest.channels, len(manifest.cohorts[manifest.cohort_of(silo)]))
            self.vectors[silo] = self.random.integers(0, 2**64, size, np.uint64)
            self.roots[silo] = fresh_root()
            return PackedWords(self.vectors[silo].copy(), self.roots[silo])

        return words

    def contribute_the_same(self) -> dict[int, np.ndarray]:
        """From now on silos contribute the same again and again, as the updates of a round nearly do; what that is."""
        words = {silo: self.random.integers(0, 2**64, 3, np.uint64) for silo in self.identities}

        def contribute(silo: int) -> Callable[[Manifest], WordSource]:
            def same(manifest: Manifest) -> WordSource:
                self.vectors[silo] = words[silo]
                return PackedWords(words[silo].copy())

            return same

        self.contribute = contribute  # type: ignore[method-assign]
        return words

    def answer(self, stage: str, silo: int, request: bytes) -> bytes:
        """A silo's answer, as the silo that joined the run of the request, whichever that is."""
        session = session_of(request)
        if session == SESSION:
            party = self.silos[silo]
        else:
            party = SecAggSilo(self.connections[silo], self.identities[silo], silo, self.roster, self.rules, session)
        return party.answer(stage, request, self.contribute(silo))

    def exchange(
        self,
        absent: Callable[[str, int], bool] = lambda stage, silo: False,
        tamper: Callable[[str, int, bytes], bytes] = lambda stage, silo, reply: reply,
        restart: bool = False,
    ) -> Callable[[str, Mapping[int, bytes]], Iterable[tuple[int, bytes]]]:
        """An exchange in process; `absent` silos do not get the request, refusals are kept in `failures`."""

        def run(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            for silo, request in requests.items():
                if absent(stage, silo):
                    continue
                if restart:
                    self.silos[silo] = self.start(silo)
                try:
                    reply = self.answer(stage, silo, request)
                except AutoflipSecureError as error:
                    self.failures[stage, silo] = error
                    continue
                yield silo, tamper(stage, silo, reply)

        return run

    @staticmethod
    def split_masked(reply: bytes) -> tuple[bytes, MaskedReply]:
        """Words and signature of a reply to stage masked; the latter's length is the same for ids below 128."""
        end = len(MaskedReply(1, bytes(64)).to_bytes())
        return reply[:-end], MaskedReply.from_bytes(reply[-end:])

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


@dataclass
class Spoils:
    """All that an attacker was told in one epoch, and every mask that this lets it remove.

    Attributes
    ----------
    vectors : mapping of (slot, silo) to the manifest it was masked under and the masked words
    shares : mapping of (slot, kind, owner) to mapping of responder to `nonce | share`
    stolen : mapping of (slot, silo) to the secrets of a silo that works with the attacker
    """

    epoch: KeyedEpoch
    vectors: dict[tuple[int, int], tuple[Manifest, np.ndarray]] = field(default_factory=dict)
    shares: dict[tuple[int, int, int], dict[int, bytes]] = field(default_factory=dict)
    stolen: dict[tuple[int, int], SlotSecret] = field(default_factory=dict)

    def take_answer(self, manifest: Manifest, survivors: Survivors, reply: bytes, public: bytes) -> UnmaskReply:
        """File the shares of a signed unmask reply."""
        message = open_signed(UnmaskReply, public, reply)
        dropped = dropped_silos(manifest, survivors, self.epoch.members)
        present = tuple(silo for silos in survivors for silo in silos)
        for kind, owners, shares in ((SEED, present, message.seed_shares), (KEY, dropped, message.key_shares)):
            held = [owner for owner in owners if message.silo in self.epoch.holders(owner)]
            for owner, share in zip(held, shares, strict=True):
                self.take_share(manifest.slot, kind, owner, message.silo, share)
        return message

    def take_share(self, slot: int, kind: int, owner: int, responder: int, share: bytes) -> None:
        self.shares.setdefault((slot, kind, owner), {})[responder] = share

    def secret(self, slot: int, kind: int, owner: int) -> bytes | None:
        """A secret as far as it was stolen or enough shares of it were revealed."""
        if (slot, owner) in self.stolen:
            secret = self.stolen[slot, owner]
            return secret.seed if kind == SEED else secret.mask_key
        shares = self.shares.get((slot, kind, owner), {})
        silos = tuple(sorted(shares))[: self.epoch.graph.threshold]
        if len(silos) < self.epoch.graph.threshold:
            return None
        return combine(silos, [shares[silo][NONCE_BYTES:] for silo in silos])

    def residue(self, slot: int, silo: int) -> np.ndarray:
        """A silo's masked words without the masks that the attacker can compute."""
        manifest, masked = self.vectors[slot, silo]
        digest, cohort = manifest.digest(), manifest.cohort_of(silo)
        seed = self.secret(slot, SEED, silo)
        keys = [] if seed is None else [self_mask_key(seed, digest, silo, slot)]
        signs = [-1] * len(keys)
        for peer in self.epoch.peers(silo) & set(manifest.cohorts[cohort]):
            shared = self._agreed(slot, silo, peer)
            if shared is not None:
                keys.append(pair_mask_key(shared, digest, silo, peer, slot, cohort))
                signs.append(-pair_sign(silo, peer))
        words = masked.copy()
        apply_masks(words, keys, signs)
        return words

    def _agreed(self, slot: int, one: int, other: int) -> bytes | None:
        for mine, theirs in ((one, other), (other, one)):
            private = self.secret(slot, KEY, mine)
            if private is not None:
                return Agreement(private).with_peer(self.epoch.advertisers[theirs].mask_key(slot))
        return None


class Dishonest:
    """A coordinator that signs whatever a test wants, over one honest key set-up."""

    def __init__(self, fed: Federation, *cohorts: tuple[int, ...], epoch: KeyedEpoch | None = None, **changes: Any):
        self.fed = fed
        self.epoch = epoch or fed.open_epoch(4)
        self.manifest = fed.bind(self.epoch, fed.manifest(*cohorts, **changes))
        self.head = (self.manifest.session, fed.roster.hash(), self.epoch.number)
        self.receipts: dict[int, tuple[int, bytes, bytes]] = {}
        self.words: dict[int, np.ndarray] = {}
        self.seeds: dict[int, bytes] = {}
        self.mask_keys: dict[int, bytes] = {}
        self.spoils = Spoils(self.epoch)

    def masked(self, silo: int, manifest: Manifest | None = None) -> MaskedReply:
        manifest = manifest or self.manifest
        request = MaskedRequest(*self.head, manifest.to_bytes(), self.epoch.delivery(silo))
        query = "SELECT seed, mask_key FROM secagg_secret WHERE slot = ?"
        secrets = self.fed.connections[silo].execute(query, (self.manifest.slot,)).fetchone()
        if secrets is not None:
            self.seeds[silo], self.mask_keys[silo] = secrets
        words, reply = self.fed.split_masked(self.fed.answer("masked", silo, self.fed.signed(request)))
        self.receipts[silo] = (silo, blake3(words).digest(), reply.signature)
        self.words[silo] = np.frombuffer(words, np.uint64)
        self.spoils.vectors[manifest.slot, silo] = manifest, self.words[silo]
        return reply

    def confirm_request(self, silo: int, survivors: Survivors, manifest: Manifest | None = None) -> bytes:
        data = (manifest or self.manifest).to_bytes()
        listed = sorted({s for silos in survivors for s in silos if 0 < s < 2**16 and self._is_holder(silo, s)})
        receipts = tuple(self.receipts.get(s, (s, bytes(32), bytes(64))) for s in listed)
        request = ConfirmRequest(*self.head, data, survivors, receipts, self.epoch.delivery(silo))
        return self.fed.signed(request)

    def _is_holder(self, silo: int, owner: int) -> bool:
        return owner not in self.epoch.dealers or silo in self.epoch.holders(owner)

    def confirm(self, silo: int, survivors: Survivors, manifest: Manifest | None = None) -> tuple[int, bytes]:
        reply = self.fed.answer("confirm", silo, self.confirm_request(silo, survivors, manifest))
        return silo, ConfirmReply.from_bytes(reply).signature

    def unmask_request(
        self, survivors: Survivors, confirmations: Iterable[tuple[int, bytes]], manifest: Manifest | None = None
    ) -> bytes:
        digest = (manifest or self.manifest).digest()
        request = UnmaskRequest(*self.head, self.manifest.slot, digest, survivors, tuple(confirmations))
        return self.fed.signed(request)

    def unmask(self, silo: int, survivors: Survivors, confirmations: Iterable[tuple[int, bytes]]) -> bytes:
        reply = self.fed.answer("unmask", silo, self.unmask_request(survivors, confirmations))
        self.spoils.take_answer(self.manifest, survivors, reply, self.fed.roster.public(silo))
        return reply

    def everyone(self) -> tuple[int, ...]:
        return tuple(self.fed.identities)

    def slot_is_closed(self, silo: int) -> bool:
        connection, slot = self.fed.connections[silo], (self.manifest.slot,)
        row = connection.execute("SELECT stage FROM secagg_slot WHERE slot = ?", slot).fetchone()
        shares = connection.execute("SELECT count(*) FROM secagg_share WHERE slot = ?", slot)
        return row == ("closed",) and shares.fetchone() == (0,)

    def assert_hidden(self, *silos: int) -> None:
        """Whatever masks the replies so far take off these silos' vectors, no word of them is bare."""
        for silo in silos:
            assert not (self.spoils.residue(self.manifest.slot, silo) == self.fed.vectors[silo]).any()


@pytest.fixture(scope="session")
def federation() -> type[Federation]:
    return Federation


@pytest.fixture(scope="session")
def dishonest() -> type[Dishonest]:
    return Dishonest


@pytest.fixture(scope="session")
def spoils() -> type[Spoils]:
    return Spoils
