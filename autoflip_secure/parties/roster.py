"""The roster: who may take part, fixed at provisioning and held by every party; never chosen by the coordinator."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from autoflip_secure.errors import InputError, NotAvailable, ProtocolError
from autoflip_secure.parties.wire import (
    KEY_BYTES,
    MAX_ID,
    MAX_TEXT,
    Message,
    is_ascending,
    want_bytes,
    want_int,
    want_tuple,
)

__all__ = ["MAX_SILOS", "MIN_SILOS", "Roster", "RosterEntry"]

MIN_SILOS = 3
MAX_SILOS = 2000


@dataclass(frozen=True)
class RosterEntry:
    """One enrolled silo.

    Attributes
    ----------
    silo : int
        1-based id; also the silo's point in Shamir's scheme.
    name : str
    public : bytes, 32
        Identity public key.
    """

    silo: int
    name: str
    public: bytes

    def __post_init__(self) -> None:
        try:
            want_int("a silo id", self.silo, 1, MAX_ID)
            want_bytes(f"the identity of silo {self.silo}", self.public, KEY_BYTES)
        except ProtocolError as error:
            raise InputError(f"roster: {error}") from error
        if (
            not isinstance(self.name, str)
            or not 1 <= len(self.name.encode()) <= MAX_TEXT
            or not self.name.isprintable()
        ):
            raise InputError(f"roster: the name of silo {self.silo} is not 1 to {MAX_TEXT} bytes of printable text")


@dataclass(frozen=True)
class Roster:
    """Coordinator and silos of a federation, by identity key.

    Raises
    ------
    InputError
        Fewer than 3 silos, ids not ascending, or a name or key twice.
    NotAvailable
        More silos than this version was tried with.
    """

    coordinator: bytes
    entries: tuple[RosterEntry, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.coordinator, bytes) or len(self.coordinator) != KEY_BYTES:
            raise InputError(f"roster: the coordinator's identity is not {KEY_BYTES} bytes")
        if len(self.entries) > MAX_SILOS:
            raise NotAvailable(f"roster: {len(self.entries)} silos; this version serves at most {MAX_SILOS}")
        if len(self.entries) < MIN_SILOS:
            raise InputError(f"roster: {len(self.entries)} silos; a sum over fewer than {MIN_SILOS} hides nobody")
        ids = self.silos
        if not is_ascending(ids):
            raise InputError("roster: silo ids are not distinct and ascending")
        if len({entry.name for entry in self.entries}) != len(ids):
            raise InputError("roster: two silos have one name")
        if len({self.coordinator, *(entry.public for entry in self.entries)}) != len(ids) + 1:
            raise InputError("roster: two parties have one identity key")

    @property
    def silos(self) -> tuple[int, ...]:
        """Ids, ascending."""
        return tuple(entry.silo for entry in self.entries)

    @cached_property
    def _publics(self) -> dict[int, bytes]:
        return {entry.silo: entry.public for entry in self.entries}

    def __contains__(self, silo: object) -> bool:
        return silo in self._publics

    def public(self, silo: int) -> bytes:
        """Identity public key of a silo, 32 bytes.

        Raises
        ------
        ProtocolError
            No such silo.
        """
        if silo not in self._publics:
            raise ProtocolError(f"silo {silo} is not in the roster")
        return self._publics[silo]

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        entries = tuple((entry.silo, entry.name, entry.public) for entry in self.entries)
        return _RosterMessage(self.coordinator, entries).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Roster:
        """Read and validate.

        Raises
        ------
        InputError
            Anything but the canonical bytes of a valid roster.
        """
        try:
            message = _RosterMessage.from_bytes(data)
        except ProtocolError as error:
            raise InputError(f"roster: {error}") from error
        return cls(message.coordinator, tuple(RosterEntry(*entry) for entry in message.entries))

    @cached_property
    def _hash(self) -> bytes:
        return hashlib.sha256(self.to_bytes()).digest()

    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes, 32 bytes; every message of the protocol names it."""
        return self._hash


@dataclass(frozen=True, repr=False)
class _RosterMessage(Message):
    KIND = "roster"

    coordinator: bytes
    entries: tuple[tuple[int, str, bytes], ...]

    def __post_init__(self) -> None:
        want_tuple("the list of silos", self.entries)
        for entry in self.entries:
            want_tuple("an entry", entry, 3)
