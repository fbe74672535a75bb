"""`--aggregation none`: contributions in clear, for baselines only. The coordinator sees every silo's vector.

The words are those of the protected paths, so with DP off the same seed gives the same model bit for bit. With
distributed noise a second stage removes what the survivors do not need, as the protected paths do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import msgpack
import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.sums.block_totals import BlockTotals, add_words
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import LINK_BYTES, link_to_reveal
from autoflip_secure.sums.secure_sum import CohortSum, Contribute, Exchange
from autoflip_secure.sums.words import all_words

__all__ = ["PlainCoordinator", "PlainSilo"]

CLEAR, REVEAL = "clear", "reveal"

_CHAIN = """
CREATE TABLE IF NOT EXISTS plain_chain (
    only INTEGER PRIMARY KEY CHECK (only = 1), digest BLOB NOT NULL, root BLOB NOT NULL
) STRICT
"""


class PlainSilo:
    """Silo half: returns the packed words as they are, then the link of its noise chain.

    Parameters
    ----------
    connection : sqlite3.Connection
        In autocommit mode; keeps the chain of the last contribution, since each stage may find a new process.
    """

    stages = (CLEAR, REVEAL)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute(_CHAIN)

    def answer(self, stage: str, request: bytes, contribute: Contribute) -> bytes:
        if stage == CLEAR:
            return self._clear(Manifest.from_bytes(request), contribute)
        if stage == REVEAL:
            return self._reveal(*_read_reveal(request))
        raise ProtocolError(f"aggregation none has no stage {stage!r}")

    def forget_other_runs(self) -> None:
        """Nothing: the chain of the last contribution, of whatever run, gives way to the next one's."""

    def _clear(self, manifest: Manifest, contribute: Contribute) -> bytes:
        source = contribute(manifest)
        words = all_words(source).tobytes()
        if source.removable is not None:
            row = (manifest.digest(), source.removable)
            self._connection.execute("INSERT OR REPLACE INTO plain_chain VALUES (1, ?, ?)", row)
        return words

    def _reveal(self, manifest: Manifest, cohort: int, present: Sequence[int]) -> bytes:
        key = (manifest.digest(),)
        row = self._connection.execute("SELECT root FROM plain_chain WHERE digest = ?", key).fetchone()
        if row is None:
            raise ProtocolError("this silo has no noise to remove from such a sum")
        self._connection.execute("DELETE FROM plain_chain WHERE digest = ?", key)
        return link_to_reveal(row[0], len(manifest.cohorts[cohort]) - len(present), manifest.most_missing(cohort))


class PlainCoordinator:
    """Coordinator half: adds what arrives."""

    def __init__(self) -> None:
        self._slot = 0

    def sum(self, manifest: Manifest, exchange: Exchange) -> tuple[CohortSum, ...]:
        self._slot += 1
        manifest = manifest.with_slot(epoch=0, slot=self._slot, epoch_hash=bytes(32), attempt=manifest.attempt)
        request = manifest.to_bytes()
        sizes = [word_count(manifest.channels, len(cohort)) for cohort in manifest.cohorts]
        totals = BlockTotals(manifest, lambda cohort: np.zeros(sizes[cohort], np.uint64), add_words)
        for silo, reply in exchange(CLEAR, {silo: request for cohort in manifest.cohorts for silo in cohort}):
            add_words(totals.of(silo), _read_words(reply, sizes[manifest.cohort_of(silo)], silo))
            totals.has(silo)
        present = totals.survivors(CLEAR, "vector")
        links = _ask_links(manifest, present, exchange)
        return tuple(
            CohortSum(i, present[i], words, {silo: links[silo] for silo in present[i] if silo in links})
            for i, words in enumerate(totals.cohorts)
        )


def _ask_links(manifest: Manifest, present: Sequence[tuple[int, ...]], exchange: Exchange) -> Mapping[int, bytes]:
    """Links of the silos that have noise the sum does not need."""
    if manifest.privacy.trust != "distributed":
        return {}
    requests = {}
    for index, silos in enumerate(present):
        if len(manifest.cohorts[index]) - len(silos) < manifest.most_missing(index):
            requests.update(dict.fromkeys(silos, msgpack.packb([manifest.to_bytes(), index, list(silos)])))
    links = dict(exchange(REVEAL, requests)) if requests else {}
    for silo, link in links.items():
        if len(link) != LINK_BYTES:
            raise Abort(f"silo {silo} revealed {len(link)} bytes instead of {LINK_BYTES}", stage=REVEAL, blamed=(silo,))
    return links


def _read_reveal(request: bytes) -> tuple[Manifest, int, list[int]]:
    try:
        data, cohort, present = msgpack.unpackb(request)
        manifest = Manifest.from_bytes(data)
        silos, least = manifest.cohorts[cohort], manifest.minimum[cohort]
        if not set(present) <= set(silos) or present != list(manifest.whole(cohort, present)) or len(present) < least:
            raise ProtocolError("the silos listed are not enough of the cohort, ascending, in whole blocks")
    except (ValueError, TypeError, LookupError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a reveal request: {error}") from error
    return manifest, cohort, present


def _read_words(reply: bytes, size: int, silo: int) -> NDArray[np.uint64]:
    if len(reply) != 8 * size:
        raise Abort(f"silo {silo} sent {len(reply)} bytes instead of {8 * size}", stage=CLEAR, blamed=(silo,))
    return np.frombuffer(reply, np.uint64)
