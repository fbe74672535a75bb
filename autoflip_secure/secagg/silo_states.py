"""The states a silo can be in, one small class each, holding only what the next stage may use.

An epoch goes Advertised -> Dealt -> Ready; each of its slots goes (unused) -> Spent -> Masked -> Confirmed -> Answered.
A silo that only helps skips Masked. A broken rule leads to Closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoflip_secure.parties.wire import KEY_BYTES
from autoflip_secure.secagg.graph import ShareGraph

__all__ = [
    "Advertised",
    "Answered",
    "Closed",
    "Confirmed",
    "Dealt",
    "EpochState",
    "Masked",
    "Ready",
    "SlotState",
    "Spent",
]


@dataclass(frozen=True)
class Advertised:
    """Keys exist and were advertised; secrets are not yet shared."""

    session: bytes
    epoch: int
    slots: int
    advertisement: bytes = field(repr=False)


@dataclass(frozen=True)
class Dealt:
    """Secrets were shared; the shares of others have not arrived."""

    session: bytes
    epoch: int
    slots: int
    graph: ShareGraph
    box_key: bytes = field(repr=False)
    keys_hash: bytes
    dealing: bytes = field(repr=False)
    advertisements: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class Ready:
    """The epoch's key set-up is complete.

    Attributes
    ----------
    members : tuple of int
        Silos of the epoch, ascending.
    mask_keys : mapping of int to bytes
        For every peer, that is every member this silo masks with, its public mask keys, 32 bytes a slot.
    holdings : tuple of int
        Members whose shares this silo was dealt, ascending.
    holders : mapping of int to tuple of int
        On a sparse graph, to whom every member dealt; empty on the complete one.
    """

    session: bytes
    epoch: int
    slots: int
    graph: ShareGraph
    epoch_hash: bytes
    members: tuple[int, ...] = field(repr=False)
    mask_keys: Mapping[int, bytes] = field(repr=False)
    holdings: tuple[int, ...] = field(repr=False)
    holders: Mapping[int, tuple[int, ...]] = field(repr=False)

    def mask_key(self, silo: int, slot: int) -> bytes:
        """Public mask key of a silo in a slot, 32 bytes."""
        return self.mask_keys[silo][KEY_BYTES * slot : KEY_BYTES * (slot + 1)]


@dataclass(frozen=True)
class Spent:
    """The slot is bound to a manifest and this silo has no vector in it."""

    slot: int
    manifest: bytes = field(repr=False)


@dataclass(frozen=True)
class Masked:
    """This silo's masked vector exists under the manifest."""

    slot: int
    manifest: bytes = field(repr=False)


@dataclass(frozen=True)
class Confirmed:
    """This silo signed one statement about the slot: manifest digest and survivor lists."""

    slot: int
    manifest: bytes = field(repr=False)
    statement: bytes = field(repr=False)
    request_hash: bytes = field(repr=False)
    reply: bytes = field(repr=False)


@dataclass(frozen=True)
class Answered:
    """This silo revealed its shares of the slot."""

    slot: int
    manifest: bytes = field(repr=False)
    statement: bytes = field(repr=False)
    request_hash: bytes = field(repr=False)
    reply: bytes = field(repr=False)
    unmask_hash: bytes = field(repr=False)
    unmask_reply: bytes = field(repr=False)


@dataclass(frozen=True)
class Closed:
    """A rule was broken; the slot's secrets and shares are gone."""

    slot: int
    manifest: bytes = field(repr=False)


EpochState = Advertised | Dealt | Ready
SlotState = Spent | Masked | Confirmed | Answered | Closed
