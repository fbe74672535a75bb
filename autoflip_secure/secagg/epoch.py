"""What both sides check about an epoch's advertisements and dealings, and the two hashes that name them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from autoflip_secure.errors import ProtocolError
from autoflip_secure.secagg.identity import verify
from autoflip_secure.secagg.keys import is_low_order
from autoflip_secure.secagg.roster import Roster
from autoflip_secure.secagg.rules import refusal
from autoflip_secure.secagg.setup_messages import Advertisement, Dealing, Head
from autoflip_secure.secagg.signing import Signed
from autoflip_secure.secagg.wire import PROTOCOL

__all__ = ["epoch_hash", "keys_hash", "read_advertisement", "read_dealing"]

S = TypeVar("S", Advertisement, Dealing)


def keys_hash(advertisements: Sequence[bytes]) -> bytes:
    """SHA-256 over all signed advertisements, ascending by silo; shares are sealed under it."""
    return _transcript(b"|advertisements|", b"", advertisements)


def epoch_hash(keys: bytes, dealings: Sequence[bytes]) -> bytes:
    """SHA-256 over the keys hash and all signed dealings, ascending by silo; the manifest carries it.

    It also fixes who completed the set-up, since two silos that disagree on that would disagree on who masks with whom.
    """
    return _transcript(b"|epoch|", keys, dealings)


def _transcript(label: bytes, start: bytes, items: Sequence[bytes]) -> bytes:
    total = hashlib.sha256(PROTOCOL + label + start + len(items).to_bytes(4, "big"))
    for item in items:
        total.update(len(item).to_bytes(4, "big") + item)
    return total.digest()


def read_advertisement(data: bytes, roster: Roster, head: Head, slots: int) -> Advertisement:
    """A signed advertisement of the epoch that `head` names.

    Raises
    ------
    ProtocolError
        Malformed, of another epoch, of another length, with a key of low order, or not signed by the silo it names.
    """
    message = _open(Advertisement, data, roster)
    _same_epoch(message, head)
    if message.slots != slots:
        raise ProtocolError(f"silo {message.silo} advertised {message.slots} slots instead of {slots}")
    if is_low_order(message.box_key) or any(is_low_order(message.mask_key(slot)) for slot in range(slots)):
        raise ProtocolError(f"silo {message.silo} advertised a key of low order")
    return message


def read_dealing(data: bytes, roster: Roster, head: Head, keys: bytes, recipients: tuple[int, ...]) -> Dealing:
    """A signed dealing of the epoch that `head` names, to exactly `recipients`.

    Raises
    ------
    ProtocolError
        Malformed, of another epoch, to other recipients, or not signed by the silo it names.
    """
    message = _open(Dealing, data, roster)
    _same_epoch(message, head)
    if message.keys_hash != keys or message.recipients != recipients or message.silo not in recipients:
        raise ProtocolError(f"silo {message.silo} dealt for other advertisements")
    return message


def _open(kind: type[S], data: bytes, roster: Roster) -> S:
    signed = Signed.from_bytes(data)
    message = kind.from_bytes(signed.payload)
    if not verify(roster.public(message.silo), kind.KIND.encode(), signed.payload, signed.signature):
        raise refusal("signature", f"the {kind.KIND} of silo {message.silo} does not carry its signature")
    return message


def _same_epoch(message: Head, head: Head) -> None:
    if (message.session, message.roster_hash, message.epoch) != (head.session, head.roster_hash, head.epoch):
        raise ProtocolError(f"a {message.KIND} is of another session, roster or epoch")
