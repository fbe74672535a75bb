"""Messages of a round's three stages. See protocols/secagg/README.md for who sends what."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.parties.head import MAX_SLOTS, Head
from autoflip_secure.parties.rules import Survivors
from autoflip_secure.parties.wire import (
    HASH_BYTES,
    MAX_ID,
    SIGNATURE_BYTES,
    Message,
    want_bytes,
    want_ids,
    want_int,
    want_tuple,
)
from autoflip_secure.secagg.dealing import REVEALED_BYTES
from autoflip_secure.sums.noise_chain import LINK_BYTES

__all__ = [
    "ConfirmReply",
    "ConfirmRequest",
    "Confirmation",
    "MaskedReply",
    "MaskedRequest",
    "Receipt",
    "UnmaskReply",
    "UnmaskRequest",
]


@dataclass(frozen=True, repr=False)
class MaskedRequest(Head):
    """coordinator -> silo of a cohort: the manifest, and a delivery (empty once the silo has it)."""

    KIND = "masked request"
    manifest: bytes
    delivery: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        want_bytes("a manifest", self.manifest)
        want_bytes("a delivery", self.delivery)


@dataclass(frozen=True, repr=False)
class MaskedReply(Message):
    """silo -> coordinator, after the masked words (little-endian): the signature of their `Receipt`.

    It comes last, so that words can leave while later ones are computed.
    """

    KIND = "masked reply"
    silo: int
    signature: bytes

    def __post_init__(self) -> None:
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a signature", self.signature, SIGNATURE_BYTES)


@dataclass(frozen=True, repr=False)
class Receipt(Message):
    """Signed by a silo with its masked words: under which manifest it sent words of which BLAKE3 hash."""

    KIND = "receipt"
    digest: bytes
    words_hash: bytes


@dataclass(frozen=True, repr=False)
class ConfirmRequest(Head):
    """coordinator -> every silo of the epoch: whose vectors arrived, cohort by cohort.

    `receipts` holds (silo, words hash, signature of the `Receipt`), ascending, for each of them whose shares the
    receiver holds.
    """

    KIND = "confirm request"
    manifest: bytes
    survivors: Survivors
    receipts: tuple[tuple[int, bytes, bytes], ...]
    delivery: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        want_bytes("a manifest", self.manifest)
        want_bytes("a delivery", self.delivery)
        _want_survivors(self.survivors)
        want_tuple("receipts", self.receipts)
        for receipt in self.receipts:
            want_tuple("a receipt", receipt, 3)
            want_bytes("a words hash", receipt[1], HASH_BYTES)
            want_bytes("a signature", receipt[2], SIGNATURE_BYTES)
        want_ids("silos with a receipt", tuple(receipt[0] for receipt in self.receipts))


@dataclass(frozen=True, repr=False)
class Confirmation(Message):
    """Signed by a silo, once a slot: the manifest and survivor lists it will help to open."""

    KIND = "confirmation"
    digest: bytes
    survivors: Survivors


@dataclass(frozen=True, repr=False)
class ConfirmReply(Message):
    """silo -> coordinator: the signature of its `Confirmation`."""

    KIND = "confirm reply"
    silo: int
    signature: bytes

    def __post_init__(self) -> None:
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a signature", self.signature, SIGNATURE_BYTES)


@dataclass(frozen=True, repr=False)
class UnmaskRequest(Head):
    """coordinator -> silo that confirmed: at least t confirmations as (silo, signature), ascending by silo."""

    KIND = "unmask request"
    slot: int
    digest: bytes
    survivors: Survivors
    confirmations: tuple[tuple[int, bytes], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        want_int("a slot", self.slot, 0, MAX_SLOTS - 1)
        want_bytes("a manifest digest", self.digest, HASH_BYTES)
        _want_survivors(self.survivors)
        want_tuple("confirmations", self.confirmations)
        for confirmation in self.confirmations:
            want_tuple("a confirmation", confirmation, 2)
            want_bytes("a signature", confirmation[1], SIGNATURE_BYTES)
        want_ids("signers", tuple(silo for silo, _ in self.confirmations))


@dataclass(frozen=True, repr=False)
class UnmaskReply(Message):
    """silo -> coordinator: its share of every survivor's seed and of every dropped silo's mask key, in list order.

    As far as it was dealt shares by them; empty bytes where the dealer's box did not open. `link` is the link of its
    own noise chain that suits the survivors, empty where there is nothing to remove.
    """

    KIND = "unmask reply"
    silo: int
    digest: bytes
    seed_shares: tuple[bytes, ...]
    key_shares: tuple[bytes, ...]
    link: bytes

    def __post_init__(self) -> None:
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a manifest digest", self.digest, HASH_BYTES)
        for shares in (self.seed_shares, self.key_shares):
            want_tuple("shares", shares)
            for share in shares:
                # Nothing where the dealer's box did not open.
                want_bytes("a share", share, 0, REVEALED_BYTES)
        want_bytes("a link", self.link, 0, LINK_BYTES)


def _want_survivors(value: object) -> None:
    want_tuple("survivor lists", value)
    assert isinstance(value, tuple)
    for silos in value:
        want_ids("survivors", silos)
