"""Messages of a CKKS sum. See protocols/ckks/README.md for who sends what."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.parties.head import MAX_SLOTS, Head
from autoflip_secure.parties.rules import Survivors
from autoflip_secure.parties.signing import digest_of
from autoflip_secure.parties.wire import (
    HASH_BYTES,
    KEY_BYTES,
    MAX_ID,
    SIGNATURE_BYTES,
    Message,
    want_bytes,
    want_ids,
    want_int,
    want_tuple,
)
from autoflip_secure.sums.noise_chain import LINK_BYTES

__all__ = [
    "Ciphertext",
    "EncryptReply",
    "EncryptRequest",
    "KeyAdvertisement",
    "KeyRequest",
    "OpenReply",
    "OpenRequest",
    "Opening",
    "Part",
    "key_of",
]


def key_of(keys: bytes, slot: int) -> bytes:
    """One slot's key among those of all slots, 32 bytes."""
    return keys[KEY_BYTES * slot : KEY_BYTES * (slot + 1)]


@dataclass(frozen=True, repr=False)
class KeyRequest(Head):
    """coordinator -> silo: make new keys for an epoch of `slots` one-time slots."""

    KIND = "ckks key request"
    slots: int

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("the number of slots", self.slots, 1, MAX_SLOTS)


@dataclass(frozen=True, repr=False)
class KeyAdvertisement(Head):
    """silo -> all, signed: for each slot the X25519 key with which others agree on masks of key shares, 32 bytes each.

    Lattice keys are never advertised.
    """

    KIND = "ckks key"
    silo: int
    slots: int
    keys: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_int("the number of slots", self.slots, 1, MAX_SLOTS)
        want_bytes("keys", self.keys, KEY_BYTES * self.slots)


@dataclass(frozen=True, repr=False)
class EncryptRequest(Head):
    """coordinator -> silo of a cohort: the manifest; the first time, all signed advertisements, ascending by silo."""

    KIND = "ckks encrypt request"
    manifest: bytes
    advertisements: tuple[bytes, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        want_bytes("a manifest", self.manifest)
        want_tuple("advertisements", self.advertisements)
        for advertisement in self.advertisements:
            want_bytes("an advertisement", advertisement)


@dataclass(frozen=True, repr=False)
class EncryptReply(Message):
    """silo -> coordinator, after the coefficients of its ciphertexts: the signature of their `Ciphertext`."""

    KIND = "ckks encrypt reply"
    silo: int
    signature: bytes

    def __post_init__(self) -> None:
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a signature", self.signature, SIGNATURE_BYTES)


@dataclass(frozen=True, repr=False)
class Ciphertext(Message):
    """Signed by a silo with its ciphertexts: under which manifest it sent coefficients of which BLAKE3 hash."""

    KIND = "ckks ciphertext"
    digest: bytes
    coefficients_hash: bytes


@dataclass(frozen=True, repr=False)
class OpenRequest(Head):
    """coordinator -> silo of a sum: whose ciphertexts it is to open, cohort by cohort."""

    KIND = "ckks open request"
    slot: int
    digest: bytes
    survivors: Survivors

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("a slot", self.slot, 0, MAX_SLOTS - 1)
        want_bytes("a manifest digest", self.digest, HASH_BYTES)
        want_tuple("survivor lists", self.survivors)
        for silos in self.survivors:
            want_ids("survivors", silos)


@dataclass(frozen=True, repr=False)
class Opening(Message):
    """What one opening is of: key shares are masked under its hash."""

    KIND = "ckks opening"
    digest: bytes
    cohort: int
    survivors: tuple[int, ...]

    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes, 32 bytes."""
        return digest_of(self.to_bytes())


@dataclass(frozen=True, repr=False)
class OpenReply(Message):
    """silo -> coordinator, after the coefficients of its part: the link of its noise chain, and both signed as `Part`.

    `link` is empty where the silo has no noise that the sum can do without.
    """

    KIND = "ckks open reply"
    silo: int
    link: bytes
    signature: bytes

    def __post_init__(self) -> None:
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a link", self.link, 0, LINK_BYTES)
        want_bytes("a signature", self.signature, SIGNATURE_BYTES)


@dataclass(frozen=True, repr=False)
class Part(Message):
    """Signed by a silo with its part of an opening."""

    KIND = "ckks part"
    opening: bytes
    coefficients_hash: bytes
    link: bytes
