"""A whole federation in one process, for the tests of CKKS sums."""

from __future__ import annotations

import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from autoflip_secure.ckks.coordinator import CkksCoordinator
from autoflip_secure.ckks.messages import (
    Ciphertext,
    EncryptReply,
    EncryptRequest,
    KeyRequest,
    Opening,
    OpenReply,
    OpenRequest,
    Part,
)
from autoflip_secure.ckks.packing import from_bytes, polynomials_of, to_bytes
from autoflip_secure.ckks.parameters import DEGREE, CkksParameters, parameters_for
from autoflip_secure.ckks.reference import UniformPolynomials, reference_key
from autoflip_secure.ckks.ring import ring
from autoflip_secure.ckks.silo import CkksSilo
from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.parties.rules import SiloRules, Survivors, share_threshold
from autoflip_secure.parties.signing import Signed, sign_message, sign_statement
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.noise_chain import fresh_root
from autoflip_secure.sums.words import ContributionWords, PackedWords, WordSource, all_words

SESSION = bytes(range(16))
UPDATE = ChannelSpec("update", 7, 16, 1.0)
KINDS: dict[str, type[Head]] = {"keys": KeyRequest, "encrypt": EncryptRequest, "open": OpenRequest}

Exchange = Callable[[str, Mapping[int, bytes]], Iterable[tuple[int, bytes]]]


def pieces(secret: bytes) -> list[bytes]:
    """Pieces of 32 bytes from all over a secret, one a kilobyte."""
    return [secret[start : start + 32] for start in range(0, len(secret), 1 << 10)]


@dataclass
class Federation:
    """Silos 1..n with random values each, and what the coordinator is told.

    Attributes
    ----------
    vectors : by silo the packed words of its last contribution
    roots : by silo the root of that contribution's noise chain
    requests, replies : all of them, by (stage, silo), in order; as they travel, so tampered with where they were
    failures : by (stage, silo) the last error of a silo
    """

    n: int
    folder: Path
    slots: int = 4
    rules: SiloRules = field(default_factory=lambda: SiloRules(0))
    channels: tuple[ChannelSpec, ...] = (UPDATE,)
    session: bytes = SESSION

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
        self.failures: dict[tuple[str, int], AutoflipSecureError] = {}
        self.requests: dict[tuple[str, int], list[bytes]] = defaultdict(list)
        self.replies: dict[tuple[str, int], list[bytes]] = defaultdict(list)
        self.coordinator = self.new_coordinator(first_epoch=1)

    @property
    def everyone(self) -> tuple[int, ...]:
        return tuple(self.identities)

    def database(self, silo: int) -> Path:
        return self.folder / f"{silo}.db"

    def start(self, silo: int, session: bytes | None = None) -> CkksSilo:
        """A new process of a silo that joined a run: nothing but its database is carried over."""
        self.connections[silo] = open_silo_database(self.database(silo))
        return self.on(self.connections[silo], silo, session)

    def on(self, connection: sqlite3.Connection, silo: int, session: bytes | None = None) -> CkksSilo:
        """A silo on a connection."""
        return CkksSilo(connection, self.identities[silo], silo, self.roster, self.rules, session or self.session)

    def new_coordinator(self, first_epoch: int, **changes: Any) -> CkksCoordinator:
        options: dict[str, Any] = {
            "slots": self.slots,
            "first_epoch": first_epoch,
            "on_epoch": self.epochs.append,
            "events": lambda name, details: self.events.append((name, details)),
        }
        return CkksCoordinator(self.coordinator_identity, self.roster, self.session, **{**options, **changes})

    def manifest(self, *cohorts: tuple[int, ...], minimum: int = 3, **changes: Any) -> Manifest:
        """Of one cohort with all silos, unless cohorts are given; the coordinator fills in epoch, slot and hash."""
        cohorts = cohorts or (self.everyone,)
        values: dict[str, Any] = {
            "session": self.session, "epoch": 0, "slot": 0, "epoch_hash": bytes(32), "round": 5, "attempt": 0,
            "phase": "train", "cohorts": cohorts, "minimum": (minimum,) * len(cohorts),
            "threshold": share_threshold(self.n), "model_hash": bytes(32), "mask_hash": bytes(32),
            "config_hash": bytes(32), "channels": self.channels,
            "privacy": PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
        }  # fmt: skip
        return Manifest(**{**values, **changes})

    def draw(self, spec: ChannelSpec) -> np.ndarray:
        """Values of one silo in one channel: integers of its grid."""
        return self.random.integers(-spec.levels, spec.levels, spec.length, endpoint=True)

    def contribute(self, silo: int) -> Callable[[Manifest], WordSource]:
        """What a silo adds when it is asked; a test may put another function in its place."""

        def words(manifest: Manifest) -> WordSource:
            silos = len(manifest.cohorts[manifest.cohort_of(silo)])
            values = {spec.name: self.draw(spec) for spec in manifest.channels}
            self.vectors[silo] = all_words(ContributionWords(values, manifest.channels, silos))
            self.roots[silo] = fresh_root()
            return PackedWords(self.vectors[silo].copy(), self.roots[silo])

        return words

    def answer(self, stage: str, silo: int, request: bytes) -> bytes:
        """A silo's answer."""
        return self.silos[silo].answer(stage, request, self.contribute(silo))

    def exchange(
        self,
        drop: Mapping[str, Collection[int]] | None = None,
        lose: Mapping[str, Collection[int]] | None = None,
        tamper: Callable[[str, int, bytes], bytes] = lambda stage, silo, reply: reply,
        tamper_request: Callable[[str, int, bytes], bytes] = lambda stage, silo, request: request,
        restart: bool = False,
    ) -> Exchange:
        """An exchange in process; refusals are kept in `failures`.

        Parameters
        ----------
        drop : mapping of stage to silos
            These do not get the request.
        lose : mapping of stage to silos
            These answer, and the reply is lost on its way.
        tamper, tamper_request : callable
            What arrives instead of a reply or a request.
        restart : bool
            Every request is answered by a new process.
        """
        drop, lose = drop or {}, lose or {}

        def run(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            for silo, request in requests.items():
                if silo in drop.get(stage, ()):
                    continue
                if restart:
                    self.silos[silo] = self.start(silo)
                request = tamper_request(stage, silo, request)
                self.requests[stage, silo].append(request)
                try:
                    reply = self.answer(stage, silo, request)
                except AutoflipSecureError as error:
                    self.failures[stage, silo] = error
                    continue
                if silo in lose.get(stage, ()):
                    continue
                reply = tamper(stage, silo, reply)
                self.replies[stage, silo].append(reply)
                yield silo, reply

        return run

    def caught_at(self, stage: str, manifest: Manifest | None = None, **options: Any) -> dict[int, bytes]:
        """Run an attempt up to a stage, all silos answering; the requests of that stage, which nobody got."""
        caught: dict[int, bytes] = {}

        class ReachedError(Exception):
            pass

        def exchange(now: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            if now == stage:
                caught.update(requests)
                raise ReachedError
            return self.exchange(**options)(now, requests)

        with pytest.raises(ReachedError):
            self.coordinator.sum(manifest or self.manifest(), exchange)
        return caught

    def parameters(self, manifest: Manifest, cohort: int = 0) -> CkksParameters:
        return parameters_for(manifest.channels, len(manifest.cohorts[cohort]))

    def reference(self, manifest: Manifest, cohort: int = 0) -> np.ndarray:
        """The public polynomials of a sum, shape (polynomials, N)."""
        lattice = ring(self.parameters(manifest, cohort).modulus_bits)
        count = polynomials_of(manifest.channels, len(manifest.cohorts[cohort]))
        return UniformPolynomials(lattice, reference_key(manifest.digest(), cohort, lattice.bits)).next(count)

    @staticmethod
    def read_request(stage: str, request: bytes) -> Any:
        """The message inside a signed request."""
        return KINDS[stage].from_bytes(Signed.from_bytes(request).payload)

    def split(self, stage: str, reply: bytes, manifest: Manifest, cohort: int = 0) -> tuple[np.ndarray, Any]:
        """Coefficients, shape (polynomials, N), and the message behind them, of a reply to encrypt or open."""
        width = self.parameters(manifest, cohort).coefficient_bytes
        size = polynomials_of(manifest.channels, len(manifest.cohorts[cohort])) * DEGREE * width
        message = {"encrypt": EncryptReply, "open": OpenReply}[stage].from_bytes(reply[size:])
        return from_bytes(reply[:size], width).reshape(-1, DEGREE), message

    def join(self, silo: int, coefficients: np.ndarray, manifest: Manifest, opening: Opening | None = None) -> bytes:
        """A reply to encrypt, or to open where an opening is given, with any coefficients, signed as it should be."""
        cohort = manifest.cohort_of(silo)
        data = to_bytes(coefficients, self.parameters(manifest, cohort).coefficient_bytes)
        hashed, identity = blake3(data).digest(), self.identities[silo]
        if opening is None:
            end = EncryptReply(silo, sign_statement(identity, Ciphertext(manifest.digest(), hashed)))
            return data + end.to_bytes()
        return data + OpenReply(silo, b"", sign_statement(identity, Part(opening.hash(), hashed, b""))).to_bytes()

    def signed(self, message: Any) -> bytes:
        """A request as a malicious coordinator would sign it."""
        return sign_message(self.coordinator_identity, message)

    def head(self, epoch: int) -> tuple[bytes, bytes, int]:
        """First fields of all signed messages."""
        return self.session, self.roster.hash(), epoch

    def plain_sum(self, silos: tuple[int, ...]) -> np.ndarray:
        return sum((self.vectors[silo] for silo in silos), np.zeros_like(self.vectors[silos[0]]))

    def assert_exact(self, sums: Any, *expected: tuple[int, ...]) -> None:
        assert tuple(item.silos for item in sums) == expected
        for item in sums:
            np.testing.assert_array_equal(item.words, self.plain_sum(item.silos))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [details for name, details in self.events if name == event]

    def stage_of(self, silo: int, slot: int = 0) -> str | None:
        """What a silo's database says about a slot of its current epoch."""
        row = self.connections[silo].execute("SELECT stage FROM ckks_slot WHERE slot = ?", (slot,)).fetchone()
        return None if row is None else row[0]

    def secrets(self, silo: int, slot: int | None = None) -> list[bytes]:
        """Private keys that a silo's database holds, of one slot or of all: X25519, then lattice keys."""
        where, values = ("", ()) if slot is None else (" WHERE slot = ?", (slot,))
        query = f"SELECT agreement, lattice FROM ckks_secret{where} ORDER BY session, epoch, slot"
        rows = self.connections[silo].execute(query, values).fetchall()
        return [agreement for agreement, _ in rows] + [lattice for _, lattice in rows if lattice is not None]

    def chains(self, silo: int) -> list[bytes]:
        """Roots of noise chains that a silo's database holds."""
        rows = self.connections[silo].execute("SELECT root FROM ckks_secret WHERE root IS NOT NULL").fetchall()
        return [root for (root,) in rows]

    def on_disk(self, silo: int, secrets: Iterable[bytes]) -> list[bytes]:
        """Those of some secrets of which a piece lies in a silo's database or its write-ahead log.

        Pieces all over it, since SQLite breaks long values up into pages.
        """
        content = b"".join(path.read_bytes() for path in self.folder.glob(f"{silo}.db*"))
        return [secret for secret in secrets if any(piece in content for piece in pieces(secret))]


class Dishonest:
    """A coordinator that signs whatever a test wants, over one honest key set-up."""

    def __init__(self, fed: Federation, *cohorts: tuple[int, ...], **changes: Any) -> None:
        self.fed = fed
        requests = fed.caught_at("encrypt", fed.manifest(*cohorts, **changes))
        self.first = fed.read_request("encrypt", next(iter(requests.values())))
        self.manifest = Manifest.from_bytes(self.first.manifest)
        self.epoch = self.manifest.epoch
        self.head = fed.head(self.epoch)
        self.replies: dict[tuple[str, int], bytes] = {}

    def encrypt_request(self, manifest: Manifest | None = None, advertisements: Any = None) -> bytes:
        shown = self.first.advertisements if advertisements is None else tuple(advertisements)
        return self.fed.signed(EncryptRequest(*self.head, (manifest or self.manifest).to_bytes(), shown))

    def encrypt(self, silo: int, manifest: Manifest | None = None, advertisements: Any = None) -> bytes:
        """A silo's ciphertexts."""
        reply = self.fed.answer("encrypt", silo, self.encrypt_request(manifest, advertisements))
        self.replies["encrypt", silo] = reply
        return reply

    def open_request(self, survivors: Survivors, manifest: Manifest | None = None, **changes: Any) -> bytes:
        manifest = manifest or self.manifest
        values = {"slot": manifest.slot, "digest": manifest.digest(), "survivors": survivors, **changes}
        return self.fed.signed(OpenRequest(*self.head, **values))

    def open(self, silo: int, survivors: Survivors, manifest: Manifest | None = None, **changes: Any) -> bytes:
        """A silo's part of an opening."""
        reply = self.fed.answer("open", silo, self.open_request(survivors, manifest, **changes))
        self.replies["open", silo] = reply
        return reply


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Callable[..., Federation]]:
    """federation(n, slots=, rules=, channels=): every call makes another one, in a folder of its own."""
    folders: list[Path] = []

    def make(n: int, **options: Any) -> Federation:
        folders.append(tmp_path_factory.mktemp("federation"))
        return Federation(n, folders[-1], **options)

    yield make
    # A megabyte a federation, which pytest would keep for its last three runs.
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def dishonest() -> type[Dishonest]:
    return Dishonest
