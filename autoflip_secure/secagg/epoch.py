"""What both sides check about an epoch's advertisements and dealings, and the two hashes that name them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.agreement import is_low_order
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.identity import verify
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import refusal
from autoflip_secure.parties.signing import Signed, digest_of
from autoflip_secure.parties.wire import KEY_BYTES, PROTOCOL
from autoflip_secure.secagg.graph import ShareGraph
from autoflip_secure.secagg.setup_messages import Advertisement, Dealing

__all__ = ["check_mask_keys", "epoch_hash", "keys_hash", "read_advertisement", "read_dealing"]

S = TypeVar("S", Advertisement, Dealing)


def keys_hash(graph: ShareGraph, advertisements: Sequence[bytes]) -> bytes:
    """SHA-256 over the share graph and all signed advertisements, ascending by silo; shares are sealed under it."""
    return _transcript(b"|advertisements|" + struct.pack(">II", graph.holders, graph.threshold), advertisements)


def epoch_hash(keys: bytes, dealings: Sequence[bytes]) -> bytes:
    """SHA-256 over the keys hash and all signed dealings, ascending by silo; the manifest carries it.

    It also fixes who completed the set-up, since two silos that disagree on that would disagree on who masks with whom.
    """
    return _transcript(b"|epoch|" + keys, dealings)


def _transcript(start: bytes, items: Sequence[bytes]) -> bytes:
    total = hashlib.sha256(PROTOCOL + start + len(items).to_bytes(4, "big"))
    for item in items:
        total.update(len(item).to_bytes(4, "big") + item)
    return total.digest()


def read_advertisement(data: bytes, roster: Roster, head: Head, slots: int) -> Advertisement:
    """A signed advertisement of the epoch that `head` names.

    Raises
    ------
    ProtocolError
        Malformed, of another epoch, of another length, with a box key of low order, or not signed by the silo it names.
    """
    message = _open(Advertisement, data, roster)
    _same_epoch(message, head)
    if message.slots != slots:
        raise ProtocolError(f"silo {message.silo} advertised {message.slots} slots instead of {slots}")
    if is_low_order(message.box_key):
        raise ProtocolError(f"silo {message.silo} advertised a key of low order")
    return message


def check_mask_keys(advertisement: Advertisement, mask_keys: bytes) -> None:
    """Whether these are the mask keys that the advertisement hashes, one a slot.

    Raises
    ------
    ProtocolError
        They are not, or one has low order.
    """
    silo = advertisement.silo
    if len(mask_keys) != KEY_BYTES * advertisement.slots or digest_of(mask_keys) != advertisement.mask_keys_hash:
        raise ProtocolError(f"the mask keys of silo {silo} are not those it signed for")
    starts = range(0, len(mask_keys), KEY_BYTES)
    if any(is_low_order(mask_keys[start : start + KEY_BYTES]) for start in starts):
        raise ProtocolError(f"silo {silo} advertised a key of low order")


def read_dealing(
    data: bytes, roster: Roster, head: Head, keys: bytes, advertisers: tuple[int, ...], graph: ShareGraph
) -> Dealing:
    """A signed dealing of the epoch that `head` names, to as many of the advertisers as the graph says.

    Raises
    ------
    ProtocolError
        Malformed, of another epoch, to other or more or fewer recipients, or not signed by the silo it names.
    """
    message = _open(Dealing, data, roster)
    _same_epoch(message, head)
    if message.keys_hash != keys or message.silo not in advertisers:
        raise ProtocolError(f"silo {message.silo} dealt for other advertisements")
    if not _fits(message, advertisers, graph):
        raise ProtocolError(f"silo {message.silo} dealt to other silos than the share graph allows")
    return message


def _fits(dealing: Dealing, advertisers: tuple[int, ...], graph: ShareGraph) -> bool:
    if graph.holders == 0:
        return dealing.recipients == advertisers
    recipients = set(dealing.recipients)
    return len(recipients) == graph.holders and recipients <= set(advertisers) - {dealing.silo}


def _open(kind: type[S], data: bytes, roster: Roster) -> S:
    signed = Signed.from_bytes(data)
    message = kind.from_bytes(signed.payload)
    if not verify(roster.public(message.silo), kind.KIND.encode(), signed.payload, signed.signature):
        raise refusal("signature", f"the {kind.KIND} of silo {message.silo} does not carry its signature")
    return message


def _same_epoch(message: Head, head: Head) -> None:
    if (message.session, message.roster_hash, message.epoch) != (head.session, head.roster_hash, head.epoch):
        raise ProtocolError(f"a {message.KIND} is of another session, roster or epoch")
