"""The one seam for how sums are protected: a silo half and a coordinator half, implemented by plain, secagg and ckks.

Federation moves opaque bytes between the halves; it never looks inside. A stage is one request and one reply per silo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.words import WordSource

__all__ = ["CohortSum", "Contribute", "CoordinatorSecureSum", "Exchange", "SiloSecureSum"]

Contribute = Callable[[Manifest], WordSource]
"""Given a manifest the silo half has verified, checks policy, trains, and returns the packed words to be summed.

Where they carry removable noise, the source names the root of its chain, and the silo half reveals the one link that
suits the sum's survivors once they are known."""

Exchange = Callable[[str, Mapping[int, bytes]], Iterable[tuple[int, bytes]]]
"""exchange(stage, requests by silo id) -> (silo id, reply) one after another, as replies arrive.

A silo that dropped or refused is absent. The caller uses a reply up before it takes the next one, so that one reply
need be in memory at a time.
"""


@dataclass(frozen=True)
class CohortSum:
    """Sum in Z_2^64 over the silos of one cohort that took part.

    Attributes
    ----------
    links : mapping of int to bytes
        By silo the link of its noise chain that it revealed, 32 bytes: with d silos of the cohort missing, link d + 1
        (see `noise_chain`). Silos that revealed none keep all their noise in the sum.
    """

    cohort: int
    silos: tuple[int, ...]
    words: NDArray[np.uint64]
    links: Mapping[int, bytes] = field(default_factory=dict, repr=False)


class SiloSecureSum(Protocol):
    """A silo's half."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages this half answers."""
        ...

    def answer(self, stage: str, request: bytes, contribute: Contribute) -> bytes:
        """Answer one request; `contribute` is called in the one stage that carries the silo's numbers.

        Raises
        ------
        Refusal
            A rule would be broken; durable state says so and the slot is spent.
        ProtocolError
            The request is malformed.
        """
        ...

    def forget_other_runs(self) -> None:
        """Delete what was kept for former runs; called when a run is joined."""
        ...


class CoordinatorSecureSum(Protocol):
    """The coordinator's half."""

    def sum(self, manifest: Manifest, exchange: Exchange) -> tuple[CohortSum, ...]:
        """Run one attempt for `manifest`, whose epoch, slot and epoch_hash this half fills in.

        Sets up keys first where none are left. Returns one sum a cohort, in order.

        Raises
        ------
        Abort
            No sum; the next call uses a fresh slot.
        """
        ...
