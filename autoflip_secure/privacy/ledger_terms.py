"""What a session may spend, recorded with the line it first charges: an auditor needs no other file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import msgpack

from autoflip_secure.errors import StorageError
from autoflip_secure.privacy.plan import UNITS

__all__ = ["LedgerTerms", "terms_hash"]


@dataclass(frozen=True)
class LedgerTerms:
    """Terms under which a session charges a record set, from ledger line `line` on.

    Attributes
    ----------
    line : int
        Number of the first line charged under them; both are written in one transaction.
    session : bytes
    dataset : str
        train or holdout.
    time : float
        Seconds since 1970.
    trust : str
        none, local or distributed; empty where whoever opened the ledger did not say.
    unit : str
        Whose loss the lines bound: record, or patient with all records at the silo.
    colluders : int
        Silos that may work with the coordinator without weakening the lines (trust distributed); else 0.
    delta : float
        Delta the accountant works at.
    accountant : str
        prv, rdp or pld.
    epsilon, per_run, per_year : float
        Largest epsilon over all sessions, by this one, and within 365 days; infinite where nothing is promised.
    """

    line: int
    session: bytes
    dataset: str
    time: float
    trust: str
    unit: str
    colluders: int
    delta: float
    accountant: str
    epsilon: float
    per_run: float
    per_year: float

    def same_but_for_time(self, other: LedgerTerms) -> bool:
        """Whether both say the same, whenever they were written."""
        return replace(other, line=self.line, time=self.time) == self

    def to_row(self) -> tuple[Any, ...]:
        """Values in the order of the table's columns."""
        return astuple(self)

    @classmethod
    def from_row(cls, values: Sequence[Any]) -> LedgerTerms:
        """Inverse of `to_row`.

        Raises
        ------
        StorageError
            The values are not those of terms.
        """
        terms = cls(*values)
        caps = (terms.epsilon, terms.per_run, terms.per_year)
        numbers = 0 < terms.delta < 1 and math.isfinite(terms.time) and all(cap > 0 for cap in caps)
        if not (numbers and terms.unit in UNITS and terms.colluders >= 0):
            raise StorageError(f"the terms of line {terms.line} of the privacy ledger are damaged")
        return terms


def terms_hash(previous: bytes, terms: LedgerTerms) -> bytes:
    """Link of the chain between the line before and line `terms.line`: SHA-256 over both, 32 bytes."""
    return hashlib.sha256(msgpack.packb([previous, "terms", *terms.to_row()])).digest()
