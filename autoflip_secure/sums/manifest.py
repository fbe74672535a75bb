"""The manifest: the public statement of what one attempt at a secure sum computes.

Its bytes are canonical (one msgpack array, fixed order), so one hash names it; the secagg path derives the mask keys
from that hash, hence silos that were shown different manifests produce masks that do not cancel.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from autoflip_secure.errors import EncodingError, ProtocolError
from autoflip_secure.sums.channels import ChannelSpec

__all__ = ["HASH_BYTES", "Blocks", "Manifest", "PrivacyTerms", "in_whole_blocks"]

VERSION = 3
HASH_BYTES = 32
SESSION_BYTES = 16
TRUST_MODES = frozenset({"none", "local", "distributed"})
PHASES = frozenset({"census", "explore", "train", "evaluate"})
MAX_MANIFEST_BYTES = 1 << 20

Blocks = tuple[tuple[int, ...], ...]
"""Silos that are summed together or not at all; empty: each by itself."""


def in_whole_blocks(blocks: Blocks, present: Collection[int]) -> frozenset[int]:
    """Those of `present` whose block is there to the last; all of them where there are no blocks."""
    there = frozenset(present)
    return frozenset(silo for block in blocks if there.issuperset(block) for silo in block) if blocks else there


@dataclass(frozen=True)
class PrivacyTerms:
    """What the round asks of every silo's privacy mechanism.

    Attributes
    ----------
    trust : str
        none, local or distributed.
    dataset : str
        Which of the silo's disjoint record sets is touched: train or holdout. Each has its own budget.
    sampling_rate : float
        Poisson sampling rate of a record in this round (1.0: every record).
    steps : int
        DP steps the round performs; each is one use of the mechanism (local training may take several).
    noise_multiplier : float
        Standard deviation of the noise over the L2 sensitivity, as the accountant sees it; 0 with trust none.
    clip : float
        L2 sensitivity of one record, in the unit of the noised quantity.
    colluders : int
        Silos that may collude with the coordinator without weakening the promise.
    delta : float
        Failure probability of the whole session's promise.
    """

    trust: str
    dataset: str
    sampling_rate: float
    steps: int
    noise_multiplier: float
    clip: float
    colluders: int
    delta: float

    def __post_init__(self) -> None:
        if type(self.steps) is not int or type(self.colluders) is not int:
            raise ProtocolError("a privacy term that counts is not a whole number")
        numbers = (self.sampling_rate, self.noise_multiplier, self.clip, self.delta)
        if self.trust not in TRUST_MODES:
            raise ProtocolError(f"unknown trust mode {self.trust!r}")
        if self.dataset not in {"train", "holdout"}:
            raise ProtocolError(f"unknown record set {self.dataset!r}")
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ProtocolError(f"privacy terms {numbers} hold a negative or non-finite number")
        if self.sampling_rate > 1 or self.delta >= 1 or self.steps < 0 or self.colluders < 0:
            raise ProtocolError("privacy terms are out of range")
        if self.trust != "none" and self.noise_multiplier == 0:
            raise ProtocolError("privacy terms promise DP without noise")


@dataclass(frozen=True)
class Manifest:
    """One attempt at one round's sums. All cohorts of a round share one manifest and one slot.

    Attributes
    ----------
    session : bytes, 16
        Names the training run.
    epoch, slot : int
        Key batch and the one-time slot in it.
    epoch_hash : bytes, 32
        Hash of the epoch's signed key set-up messages (all zero where the sum has no keys).
    round, attempt : int
        Round of the run, and which try at it.
    phase : str
        census, explore, train or evaluate.
    cohorts : tuple of tuple of int
        Disjoint sets of silo ids (1-based, ascending) to be summed, each by itself.
    minimum : tuple of int
        For each cohort, the fewest silos whose sum may be opened.
    threshold : int
        Shares needed to recover a secret, t.
    model_hash, mask_hash, config_hash : bytes, 32
        SHA-256 of the model sent along, of the pruning mask, and of the run's configuration.
    channels : tuple of ChannelSpec
        What a contribution holds, in order.
    privacy : PrivacyTerms
    heads_hash : bytes, 32
        Hash of the heads of all parties' audit logs at the start of the attempt; zero where none are kept.
    blocks : tuple of tuple of int
        The cohorts, each in parts whose silos are summed together or not at all; empty: each silo by itself.
    """

    session: bytes
    epoch: int
    slot: int
    epoch_hash: bytes
    round: int
    attempt: int
    phase: str
    cohorts: tuple[tuple[int, ...], ...]
    minimum: tuple[int, ...]
    threshold: int
    model_hash: bytes
    mask_hash: bytes
    config_hash: bytes
    channels: tuple[ChannelSpec, ...]
    privacy: PrivacyTerms
    heads_hash: bytes = bytes(HASH_BYTES)
    blocks: Blocks = ()

    def __post_init__(self) -> None:
        if len(self.session) != SESSION_BYTES:
            raise ProtocolError("a manifest's session id has 16 bytes")
        hashes = (self.epoch_hash, self.model_hash, self.mask_hash, self.config_hash, self.heads_hash)
        if any(len(h) != HASH_BYTES for h in hashes):
            raise ProtocolError("a manifest's hashes have 32 bytes")
        counters = [self.epoch, self.slot, self.round, self.attempt, self.threshold, *self.minimum]
        named = [silo for part in (*self.cohorts, *self.blocks) for silo in part]
        if any(type(number) is not int for number in [*counters, *named]):
            raise ProtocolError("a manifest's counters and silo ids are whole numbers")
        if self.phase not in PHASES:
            raise ProtocolError(f"unknown phase {self.phase!r}")
        if min(self.epoch, self.slot, self.round, self.attempt) < 0 or self.threshold < 1:
            raise ProtocolError("a manifest's counters are not negative")
        if not self.cohorts or len(self.cohorts) != len(self.minimum):
            raise ProtocolError("a manifest names a minimum for each cohort")
        members = [silo for cohort in self.cohorts for silo in cohort]
        if len(set(members)) != len(members) or any(list(c) != sorted(c) or not c or c[0] < 1 for c in self.cohorts):
            raise ProtocolError("cohorts are disjoint ascending lists of silo ids")
        if any(not 1 <= least <= len(c) for least, c in zip(self.minimum, self.cohorts, strict=True)):
            raise ProtocolError("a cohort's minimum lies between 1 and its size")
        self._check_blocks(members)
        names = [spec.name for spec in self.channels]
        if not names or len(set(names)) != len(names):
            raise ProtocolError("a manifest names each channel once")

    def _check_blocks(self, members: list[int]) -> None:
        if not self.blocks:
            return
        cohort_of = {silo: index for index, cohort in enumerate(self.cohorts) for silo in cohort}
        if sorted(silo for block in self.blocks for silo in block) != sorted(members) or any(
            not block or list(block) != sorted(block) or len({cohort_of[silo] for silo in block}) > 1
            for block in self.blocks
        ):
            raise ProtocolError("blocks are ascending parts of one cohort each, and hold each of its silos once")

    def whole(self, cohort: int, present: Collection[int]) -> tuple[int, ...]:
        """Silos of a cohort that may be summed where `present` are there: those whose block is there to the last."""
        able = in_whole_blocks(self.blocks, present)
        return tuple(silo for silo in self.cohorts[cohort] if silo in able)

    def each_whole(self, present: Collection[int]) -> tuple[tuple[int, ...], ...]:
        """`whole` of every cohort."""
        return tuple(self.whole(index, present) for index in range(len(self.cohorts)))

    def cohort_of(self, silo: int) -> int:
        """Index of the cohort that holds `silo`.

        Raises
        ------
        ProtocolError
            The silo is in none of them.
        """
        for index, cohort in enumerate(self.cohorts):
            if silo in cohort:
                return index
        raise ProtocolError(f"silo {silo} is in no cohort of round {self.round}")

    def most_missing(self, cohort: int) -> int:
        """How many silos of a cohort may be missing from its sum."""
        return len(self.cohorts[cohort]) - self.minimum[cohort]

    def with_slot(self, *, epoch: int, slot: int, epoch_hash: bytes, attempt: int) -> Manifest:
        """The same statement for another attempt."""
        return replace(self, epoch=epoch, slot=slot, epoch_hash=epoch_hash, attempt=attempt)

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        privacy = self.privacy
        return msgpack.packb(
            [
                VERSION,
                self.session,
                self.epoch,
                self.slot,
                self.epoch_hash,
                self.round,
                self.attempt,
                self.phase,
                [list(cohort) for cohort in self.cohorts],
                list(self.minimum),
                self.threshold,
                self.model_hash,
                self.mask_hash,
                self.config_hash,
                [[spec.name, spec.length, spec.bits, float(spec.limit)] for spec in self.channels],
                [
                    privacy.trust,
                    privacy.dataset,
                    float(privacy.sampling_rate),
                    privacy.steps,
                    float(privacy.noise_multiplier),
                    float(privacy.clip),
                    privacy.colluders,
                    float(privacy.delta),
                ],
                self.heads_hash,
                [list(block) for block in self.blocks],
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read and validate.

        Raises
        ------
        ProtocolError
            Anything but the canonical bytes of a valid manifest.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"a manifest of {len(data)} bytes is longer than {MAX_MANIFEST_BYTES}")
        try:
            fields: list[Any] = msgpack.unpackb(data, use_list=True, strict_map_key=True)
            version, session, epoch, slot, epoch_hash, round_, attempt, phase, cohorts, minimum, *rest = fields
            threshold, model_hash, mask_hash, config_hash, channels, privacy, heads_hash, blocks = rest
            if version != VERSION:
                raise ProtocolError(f"manifest version {version} is not {VERSION}")
            manifest = cls(
                session, epoch, slot, epoch_hash, round_, attempt, phase,
                tuple(tuple(cohort) for cohort in cohorts), tuple(minimum), threshold,
                model_hash, mask_hash, config_hash,
                tuple(ChannelSpec(*channel) for channel in channels), PrivacyTerms(*privacy), heads_hash,
                tuple(tuple(block) for block in blocks),
            )  # fmt: skip
        except ProtocolError:
            raise
        except (ValueError, TypeError, EncodingError, msgpack.exceptions.UnpackException) as error:
            raise ProtocolError(f"not a manifest: {error}") from error
        if manifest.to_bytes() != data:
            raise ProtocolError("not a manifest: its bytes are not canonical")
        return manifest

    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()
