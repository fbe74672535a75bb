"""A federation in one process with a stop-watch on every message, for benchmarks/secagg.py.

The halves are the real ones, a silo's state is a SQLite file on disk; only the network is replaced.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from autoflip_secure.parties.rules import most_colluders
from autoflip_secure.secagg import Identity, Roster, RosterEntry, SecAggCoordinator, SecAggSilo, SiloRules
from autoflip_secure.secagg.graph import MAX_COMPLETE
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import unpack_sum
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.words import ContributionWords, FloatChannel, all_words

__all__ = ["Federation", "Round", "colluders_of", "open_identities", "silo_values", "update_channel"]

SPARSE_COLLUDERS, SPARSE_DROPOUT = 100, 0.1
LIMIT = 1.0
TINY = 64
CLEAR = memoryview(bytes(1 << 18))
# Vectors of a row are kept between repetitions up to this many bytes, and made anew above it.
KEPT_BYTES = 1 << 31
CHECKED_COORDINATES = 10**7


class KeyedRandomness:
    """Dither from a key of the benchmark's own, at the price of `SecretRandomness`, so that words can be made twice."""

    def __init__(self, *names: int) -> None:
        key = hashlib.sha256(repr(names).encode()).digest()
        self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def fill(self, out: NDArray[np.uint64]) -> None:
        """Overwrite `out` with the next words of the stream."""
        for start in range(0, out.size, len(CLEAR) // 8):
            part = out[start : start + len(CLEAR) // 8]
            self._keystream.update_into(CLEAR[: part.nbytes], part.data.cast("B"))

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words."""
        drawn = np.empty(count, np.uint64)
        self.fill(drawn)
        return drawn


@dataclass
class StageCost:
    """Cost of one stage of one round; dicts are by silo.

    Attributes
    ----------
    seconds, cpu : dict of int to float
        A silo's answer, by the wall clock (with what SQLite waits for the disk) and in CPU time, s.
    up, down : dict of int to int
        Reply and request, bytes.
    prepare, read : float
        The coordinator: from the end of the stage before to the first request; all replies, s.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)
    down: dict[int, int] = field(default_factory=dict)
    prepare: float = 0.0
    read: float = 0.0


@dataclass
class Round:
    """Cost of one sum.

    Attributes
    ----------
    stages : dict of str to StageCost
    opening : float
        The coordinator after the last reply: secrets from shares, and masks off the sum, s.
    silos : tuple of int
        Who is in the sum.
    """

    stages: dict[str, StageCost] = field(default_factory=lambda: defaultdict(StageCost))
    opening: float = 0.0
    silos: tuple[int, ...] = ()

    @property
    def coordinator(self) -> float:
        """All the coordinator did from the first masked reply to the open sum, s."""
        masked, confirm, unmask = (self.stages[stage] for stage in ("masked", "confirm", "unmask"))
        return masked.read + confirm.prepare + confirm.read + unmask.prepare + unmask.read + self.opening


def silo_values(seed: int, silo: int, length: int) -> NDArray[np.float32]:
    """A silo's vector, uniform on [-1, 1), shape (length,); test data, not secrets."""
    values = np.random.default_rng([seed, silo]).random(length, np.float32)
    values *= 2
    values -= 1
    return values


def colluders_of(silos: int) -> int:
    """Colluders the silos' own rules allow for: the most with a complete graph, 100 with a sparse one."""
    if silos > MAX_COMPLETE:
        return SPARSE_COLLUDERS
    # A sum over t silos has to be larger than c + 2, which at n = 3 leaves none.
    return 0 if silos == 3 else min(most_colluders(silos), 2 * silos // 3 + 1 - 3)


def update_channel(length: int, bits: int) -> ChannelSpec:
    """The one channel of a row."""
    return ChannelSpec("update", length, bits, LIMIT)


def open_identities(silos: int) -> tuple[Identity, dict[int, Identity], Roster]:
    """Fresh identities of the coordinator and of silos 1..n, and their roster."""
    coordinator = Identity.generate()
    identities = {silo: Identity.generate() for silo in range(1, silos + 1)}
    entries = tuple(RosterEntry(silo, f"silo {silo}", key.public) for silo, key in identities.items())
    return coordinator, identities, Roster(coordinator.public, entries)


class Federation:
    """Silos 1..n and their coordinator; every call of `sum` takes a slot.

    Parameters
    ----------
    silos : int
    folder : Path
        For the silos' databases.
    slots : int
        Rounds one key set-up serves.
    seed : int
        Of the vectors and of their rounding; keys and masks come from the operating system.
    """

    def __init__(self, silos: int, folder: Path, *, slots: int, seed: int) -> None:
        identity, identities, self.roster = open_identities(silos)
        rules = SiloRules(colluders_of(silos))
        self.connections = {silo: open_silo_database(folder / f"{silo}.db") for silo in identities}
        self.session = hashlib.sha256(f"session {seed} {silos}".encode()).digest()[:16]
        self.silos = {
            silo: SecAggSilo(self.connections[silo], key, silo, self.roster, rules, self.session)
            for silo, key in identities.items()
        }
        self.coordinator = SecAggCoordinator(
            identity, self.roster, self.session, slots=slots, first_epoch=1, on_epoch=lambda number: None,
            events=self._note, colluders=SPARSE_COLLUDERS if silos > MAX_COMPLETE else 0, dropout=SPARSE_DROPOUT,
        )  # fmt: skip
        self.problems: list[str] = []
        self.seed, self.rounds = seed, 0
        self._kept: dict[tuple[int, int], NDArray[np.float32]] = {}

    def close(self) -> None:
        """Close the databases."""
        for connection in self.connections.values():
            connection.close()

    def set_up(self, channel: ChannelSpec | None = None) -> tuple[Round, Round]:
        """Make keys, with two sums (tiny ones unless told): the first carries the delivery, the second does not."""
        channel = channel or update_channel(TINY, 16)
        return self.sum(channel), self.sum(channel)

    def sum(self, channel: ChannelSpec, dropped: tuple[int, ...] = ()) -> Round:
        """One sum; `dropped` silos are gone from stage masked on. Checked word by word against the plain sum.

        Raises
        ------
        ArithmeticError
            The sum is not that of the silos' own words.
        RuntimeError
            A silo refused or was misread.
        """
        self.rounds += 1
        done, number, mark = Round(), self.rounds, time.perf_counter()

        def exchange(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            nonlocal mark
            cost = done.stages[stage]
            cost.prepare = time.perf_counter() - mark
            for silo, request in requests.items():
                if silo in dropped and stage in ("masked", "confirm", "unmask"):
                    continue
                reply = self._answer(cost, stage, silo, request, channel, number)
                mark = time.perf_counter()
                yield silo, reply
                del reply
                cost.read += time.perf_counter() - mark
            mark = time.perf_counter()

        (opened,) = self.coordinator.sum(self.manifest(channel), exchange)
        done.opening, done.silos = time.perf_counter() - mark, opened.silos
        self._check(opened, channel, number, dropped)
        return done

    def manifest(self, channel: ChannelSpec) -> Manifest:
        """What the coordinator asks for; it fills in epoch and slot itself."""
        cohort = self.roster.silos
        return Manifest(
            self.session, 0, 0, bytes(32), self.rounds, 0, "train", (cohort,), (3,), self.coordinator.threshold,
            bytes(32), bytes(32), bytes(32), (channel,), PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
        )  # fmt: skip

    def values(self, silo: int, length: int) -> NDArray[np.float32]:
        """The silo's vector of that length."""
        key = (silo, length)
        if key in self._kept:
            return self._kept[key]
        made = silo_values(self.seed, silo, length)
        if 4 * length * len(self.silos) <= KEPT_BYTES:
            if any(other != length for _, other in self._kept):
                self._kept.clear()
            self._kept[key] = made
        return made

    def source(self, silo: int, channel: ChannelSpec, number: int) -> ContributionWords:
        """The silo's words of a round; the same ones each time it is called."""
        rounded = FloatChannel(self.values(silo, channel.length), KeyedRandomness(self.seed, silo, number))
        return ContributionWords({channel.name: rounded}, (channel,), len(self.silos))

    def _answer(
        self, cost: StageCost, stage: str, silo: int, request: bytes, channel: ChannelSpec, number: int
    ) -> bytes:
        prepared = self.source(silo, channel, number) if stage == "masked" else None

        def contribute(manifest: Manifest) -> ContributionWords:
            assert prepared is not None
            return prepared

        cpu, began = time.process_time(), time.perf_counter()
        reply = self.silos[silo].answer(stage, request, contribute)
        cost.seconds[silo], cost.cpu[silo] = time.perf_counter() - began, time.process_time() - cpu
        cost.up[silo], cost.down[silo] = len(reply), len(request)
        return reply

    def _note(self, name: str, details: dict[str, object]) -> None:
        if name in ("silo_misbehaved", "silo_excluded", "dealing_rejected"):
            self.problems.append(f"{name} {details}")

    def _check(self, opened: CohortSum, channel: ChannelSpec, number: int, dropped: tuple[int, ...]) -> None:
        if self.problems:
            raise RuntimeError("; ".join(self.problems))
        if set(opened.silos) != set(self.silos) - set(dropped):
            raise ArithmeticError(f"silos {opened.silos} are in the sum, {dropped} were to be left out")
        plain, floats = np.zeros_like(opened.words), np.zeros(channel.length if self._decoded(channel) else 0)
        for silo in opened.silos:
            plain += all_words(self.source(silo, channel, number))
            if floats.size:
                floats += self.values(silo, channel.length)
        if not np.array_equal(plain, opened.words):
            raise ArithmeticError("the opened sum is not the sum of the silos' words")
        if floats.size:
            decoded = unpack_sum(opened.words, (channel,), len(self.silos))[channel.name]
            if np.abs(decoded - floats).max() > len(opened.silos) * channel.step:
                raise ArithmeticError("the decoded sum is further from the plain one than rounding explains")

    @staticmethod
    def _decoded(channel: ChannelSpec) -> bool:
        return channel.length <= CHECKED_COORDINATES
