"""An epoch's keys: what both sides check about advertisements, and the hash that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from autoflip_secure.ckks.messages import KeyAdvertisement, key_of
from autoflip_secure.ckks.reference import LABEL
from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.agreement import is_low_order
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.identity import verify
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import refusal
from autoflip_secure.parties.signing import Signed
from autoflip_secure.parties.wire import is_ascending

__all__ = ["keys_hash", "read_advertisement", "read_advertisements"]


def keys_hash(advertisements: Sequence[bytes]) -> bytes:
    """SHA-256 over all signed advertisements, ascending by silo; the manifest carries it as its epoch hash."""
    total = hashlib.sha256(LABEL + b"|keys|" + len(advertisements).to_bytes(4, "big"))
    for item in advertisements:
        total.update(len(item).to_bytes(4, "big") + item)
    return total.digest()


def read_advertisement(data: bytes, roster: Roster, head: Head, slots: int) -> KeyAdvertisement:
    """A signed advertisement of the epoch that `head` names.

    Raises
    ------
    ProtocolError
        Malformed, of another epoch or length, with a key of low order, or of a silo outside the roster.
    Refusal
        Not signed by the silo it names.
    """
    signed = Signed.from_bytes(data)
    message = KeyAdvertisement.from_bytes(signed.payload)
    public = roster.public(message.silo)
    if not verify(public, KeyAdvertisement.KIND.encode(), signed.payload, signed.signature):
        raise refusal("signature", f"the key of silo {message.silo} does not carry its signature")
    if (message.session, message.roster_hash, message.epoch) != (head.session, head.roster_hash, head.epoch):
        raise ProtocolError("a key is of another session, roster or epoch")
    if message.slots != slots:
        raise ProtocolError(f"silo {message.silo} made keys for {message.slots} slots instead of {slots}")
    if any(is_low_order(key_of(message.keys, slot)) for slot in range(slots)):
        raise ProtocolError(f"silo {message.silo} advertised a key of low order")
    return message


def read_advertisements(data: Sequence[bytes], roster: Roster, head: Head, slots: int) -> dict[int, bytes]:
    """Advertised keys of all slots by silo, 32 bytes a slot.

    Raises
    ------
    Refusal
        Not in ascending order, one a silo.
    """
    messages = [read_advertisement(item, roster, head, slots) for item in data]
    if not is_ascending([message.silo for message in messages]):
        raise refusal("known-silos", "keys are not in ascending order, one a silo")
    return {message.silo: message.keys for message in messages}
