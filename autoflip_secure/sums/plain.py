"""`--aggregation none`: contributions in clear, for baselines only. The coordinator sees every silo's vector.

The words are those of the protected paths, so with DP off the same seed gives the same model bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum, Contribute, Exchange
from autoflip_secure.sums.words import all_words

__all__ = ["PlainCoordinator", "PlainSilo"]

STAGE = "clear"


class PlainSilo:
    """Silo half: returns the packed words as they are."""

    stages = (STAGE,)

    def answer(self, stage: str, request: bytes, contribute: Contribute) -> bytes:
        if stage != STAGE:
            raise ProtocolError(f"aggregation none has no stage {stage!r}")
        return all_words(contribute(Manifest.from_bytes(request))).tobytes()


class PlainCoordinator:
    """Coordinator half: adds what arrives."""

    def __init__(self) -> None:
        self._slot = 0

    def sum(self, manifest: Manifest, exchange: Exchange) -> tuple[CohortSum, ...]:
        self._slot += 1
        manifest = manifest.with_slot(epoch=0, slot=self._slot, epoch_hash=bytes(32), attempt=manifest.attempt)
        request = manifest.to_bytes()
        sums = [np.zeros(word_count(manifest.channels, len(cohort)), np.uint64) for cohort in manifest.cohorts]
        present: list[set[int]] = [set() for _ in sums]
        for silo, reply in exchange(STAGE, {silo: request for cohort in manifest.cohorts for silo in cohort}):
            index = manifest.cohort_of(silo)
            sums[index] += _read_words(reply, sums[index].size, silo)
            present[index].add(silo)
        for index, cohort in enumerate(manifest.cohorts):
            if len(present[index]) < manifest.minimum[index]:
                raise Abort(
                    f"{len(present[index])} of {len(cohort)} silos answered, {manifest.minimum[index]} are needed",
                    stage=STAGE,
                )
        return tuple(CohortSum(i, tuple(sorted(present[i])), words) for i, words in enumerate(sums))


def _read_words(reply: bytes, size: int, silo: int) -> NDArray[np.uint64]:
    if len(reply) != 8 * size:
        raise Abort(f"silo {silo} sent {len(reply)} bytes instead of {8 * size}", stage=STAGE, blamed=(silo,))
    return np.frombuffer(reply, np.uint64)
