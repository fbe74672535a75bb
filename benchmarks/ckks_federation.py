"""Silos and their coordinator in one process with a stop-watch on every message, for benchmarks/ckks.py.

CKKS sums and masked ones by the same code: the halves are the real ones, a silo's state is a SQLite file on disk, only
the network is replaced. Both sum the same words.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ckks_peaks import NoPeaks, Peaks
from secagg_federation import KeyedRandomness, Round, StageCost, colluders_of, open_identities, silo_values

from autoflip_secure.ckks.coordinator import CkksCoordinator
from autoflip_secure.ckks.silo import CkksSilo
from autoflip_secure.secagg import SecAggCoordinator, SecAggSilo, SiloRules
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.words import ContributionWords, FloatChannel, all_words

__all__ = ["CKKS", "MASKED", "Protocol", "TimedSums", "contribution"]


@dataclass(frozen=True)
class Protocol:
    """A way to protect sums.

    Attributes
    ----------
    stages : tuple of str
        Of a sum; the first carries the values.
    """

    silo: type[Any]
    coordinator: type[Any]
    stages: tuple[str, ...]


CKKS = Protocol(CkksSilo, CkksCoordinator, ("encrypt", "open"))
MASKED = Protocol(SecAggSilo, SecAggCoordinator, ("masked", "confirm", "unmask"))


def contribution(seed: int, silo: int, number: int, channel: ChannelSpec, silos: int) -> ContributionWords:
    """A silo's words of one sum, rounded when they are asked for; the same ones each time this is called."""
    rounded = FloatChannel(silo_values(seed, silo, channel.length), KeyedRandomness(seed, silo, number))
    return ContributionWords({channel.name: rounded}, (channel,), silos)


class TimedSums:
    """Silos 1..n and their coordinator; every call of `sum` takes a slot.

    Parameters
    ----------
    protocol : Protocol
    silos : int
    folder : Path
        For the silos' databases.
    slots : int
        Sums one key set-up serves.
    seed : int
        Of the values and of their rounding; keys, masks and noise come from the operating system.
    peaks : Peaks, optional
        Where to note how much memory each step takes.
    """

    def __init__(
        self, protocol: Protocol, silos: int, folder: Path, *, slots: int, seed: int, peaks: Peaks | None = None
    ) -> None:
        identity, identities, self._roster = open_identities(silos)
        rules = SiloRules(colluders_of(silos))
        self._protocol, self._seed, self._sums = protocol, seed, 0
        self._session = hashlib.sha256(f"session {seed} {silos}".encode()).digest()[:16]
        self._connections = {silo: open_silo_database(folder / f"{silo}.db") for silo in identities}
        self._silos = {
            silo: protocol.silo(self._connections[silo], key, silo, self._roster, rules, self._session)
            for silo, key in identities.items()
        }
        self._problems: list[str] = []
        self._coordinator = protocol.coordinator(
            identity, self._roster, self._session, slots=slots, first_epoch=1, on_epoch=lambda number: None,
            events=self._note,
        )  # fmt: skip
        self._peaks = NoPeaks() if peaks is None else peaks

    def close(self) -> None:
        """Close the databases."""
        for connection in self._connections.values():
            connection.close()

    def sum(self, channel: ChannelSpec) -> Round:
        """One sum of all silos, checked word by word against the plain one; the first makes keys too.

        Raises
        ------
        ArithmeticError
            The sum is not that of the silos' own words.
        RuntimeError
            A silo refused or was misread.
        """
        self._sums += 1
        done, number, peaks = Round(), self._sums, self._peaks
        sources = {silo: contribution(self._seed, silo, number, channel, len(self._silos)) for silo in self._silos}
        base, mark = peaks.now(), time.perf_counter()

        def exchange(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            nonlocal mark
            cost = done.stages[stage]
            cost.prepare = time.perf_counter() - mark
            for silo, request in requests.items():
                reply = self._answer(cost, stage, silo, request, sources[silo])
                peaks.reset()
                mark = time.perf_counter()
                yield silo, reply
                del reply
                cost.read += time.perf_counter() - mark
                peaks.note("coordinator", base)
            peaks.reset()
            mark = time.perf_counter()

        (opened,) = self._coordinator.sum(self._manifest(channel), exchange)
        done.opening, done.silos = time.perf_counter() - mark, opened.silos
        peaks.note("coordinator", base)
        self._check(opened, channel, number)
        return done

    def _manifest(self, channel: ChannelSpec) -> Manifest:
        cohort = self._roster.silos
        return Manifest(
            self._session, 0, 0, bytes(32), self._sums, 0, "train", (cohort,), (3,), self._coordinator.threshold,
            bytes(32), bytes(32), bytes(32), (channel,), PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
        )  # fmt: skip

    def _answer(self, cost: StageCost, stage: str, silo: int, request: bytes, source: ContributionWords) -> bytes:
        base = self._peaks.reset()
        cpu, began = time.process_time(), time.perf_counter()
        reply: bytes = self._silos[silo].answer(stage, request, lambda manifest: source)
        cost.seconds[silo], cost.cpu[silo] = time.perf_counter() - began, time.process_time() - cpu
        self._peaks.note(stage, base)
        cost.up[silo], cost.down[silo] = len(reply), len(request)
        return reply

    def _note(self, name: str, details: dict[str, object]) -> None:
        if name in ("silo_dropped", "silo_misbehaved", "silo_excluded", "dealing_rejected"):
            self._problems.append(f"{name} {details}")

    def _check(self, opened: CohortSum, channel: ChannelSpec, number: int) -> None:
        if self._problems:
            raise RuntimeError("; ".join(self._problems))
        if set(opened.silos) != set(self._silos):
            raise ArithmeticError(f"silos {opened.silos} are in the sum, not all")
        plain = np.zeros_like(opened.words)
        for silo in opened.silos:
            plain += all_words(contribution(self._seed, silo, number, channel, len(self._silos)))
        if not np.array_equal(plain, opened.words):
            raise ArithmeticError("the opened sum is not the sum of the silos' words")
