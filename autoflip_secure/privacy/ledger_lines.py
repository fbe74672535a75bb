"""One line of a silo's privacy ledger, its row in the table, and the hash that chains it to the line before."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import msgpack

from autoflip_secure.errors import ConfigError, StorageError
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.sums.manifest import Manifest

__all__ = ["LedgerLine", "chain_hash"]

DIGEST_BYTES = 32


@dataclass(frozen=True)
class LedgerLine:
    """One use of a silo's records.

    Attributes
    ----------
    session : bytes
    phase : str
        census, explore, train or evaluate.
    round, attempt : int
    dataset : str
        train or holdout.
    sampling_rate : float
        In (0, 1].
    noise_multiplier : float
        0 where no noise is added (trust none): recorded, not bounded.
    sensitivity : float
        L2 sensitivity of one record in the unit of the noised quantity; 0 where nothing bounds it.
    count : int
        Uses of the mechanism.
    manifest : bytes, 32
        Digest of the manifest the silo answers.
    time : float
        Seconds since 1970.
    """

    session: bytes
    phase: str
    round: int
    attempt: int
    dataset: str
    sampling_rate: float
    noise_multiplier: float
    sensitivity: float
    count: int
    manifest: bytes
    time: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        whole = (self.round, self.attempt, self.count)
        real = (self.sampling_rate, self.noise_multiplier, self.sensitivity, self.time)
        if not all(type(text) is str and text for text in (self.phase, self.dataset)):
            raise ConfigError("a ledger line names its phase and record set")
        if not (type(self.session) is type(self.manifest) is bytes and len(self.manifest) == DIGEST_BYTES):
            raise ConfigError(f"a ledger line holds a session id and a manifest digest of {DIGEST_BYTES} bytes")
        if not all(type(number) is int and number >= 0 for number in whole) or not self.count:
            raise ConfigError(f"round, attempt and count {whole} of a ledger line are not whole and positive")
        if not all(type(number) is float and math.isfinite(number) and number >= 0 for number in real):
            raise ConfigError(f"a ledger line holds a number that is negative or not finite: {real}")
        _ = self.mechanism

    @property
    def mechanism(self) -> Mechanism:
        """The line as the accountant sees it."""
        return Mechanism(self.sampling_rate, self.noise_multiplier, self.count)

    @classmethod
    def of(cls, manifest: Manifest, *, now: float | None = None) -> LedgerLine:
        """The line that answering `manifest` costs."""
        terms = manifest.privacy
        return cls(
            manifest.session, manifest.phase, manifest.round, manifest.attempt, terms.dataset,
            float(terms.sampling_rate), float(terms.noise_multiplier), float(terms.clip), max(1, terms.steps),
            manifest.digest(), time.time() if now is None else now,
        )  # fmt: skip

    def to_row(self) -> tuple[Any, ...]:
        """Values in the order of the table's columns."""
        return astuple(self)

    @classmethod
    def from_row(cls, number: int, values: Sequence[Any]) -> LedgerLine:
        """Inverse of `to_row` for line `number`.

        Raises
        ------
        StorageError
            The values are not a ledger line's.
        """
        try:
            return cls(*values)
        except (ConfigError, TypeError) as error:
            raise StorageError(
                f"the privacy ledger is damaged at line {number}: {error}; nothing was released; restore the file from "
                "a backup"
            ) from error


def chain_hash(previous: bytes, line: LedgerLine) -> bytes:
    """SHA-256 over the hash of the line before (empty for the first) and this line, 32 bytes."""
    return hashlib.sha256(msgpack.packb([previous, *line.to_row()])).digest()
