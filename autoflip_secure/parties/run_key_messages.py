"""Messages by which the silos of a run come to share its key. See `run_key` for who sends what."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.agreement import is_low_order
from autoflip_secure.parties.identity import verify
from autoflip_secure.parties.roster import MAX_SILOS, Roster
from autoflip_secure.parties.rules import refusal
from autoflip_secure.parties.signing import Signed
from autoflip_secure.parties.wire import (
    HASH_BYTES,
    KEY_BYTES,
    MAX_ID,
    SESSION_BYTES,
    Message,
    want_bytes,
    want_int,
    want_tuple,
)

__all__ = ["BOX_BYTES", "NONCE_BYTES", "RunKeyReply", "RunKeyRequest", "RunKeyStatement", "read_statement"]

NONCE_BYTES = 12
BOX_BYTES = NONCE_BYTES + KEY_BYTES + 16
"""A box: nonce, sealed run key, tag of AES-256-GCM."""


@dataclass(frozen=True, repr=False)
class RunKeyStatement(Message):
    """silo -> all, signed: the X25519 public key of a silo in a session, under which run keys are sealed for it."""

    KIND = "run key statement"
    session: bytes
    roster_hash: bytes
    silo: int
    public: bytes

    def __post_init__(self) -> None:
        want_bytes("a session", self.session, SESSION_BYTES)
        want_bytes("a roster hash", self.roster_hash, HASH_BYTES)
        want_int("a silo id", self.silo, 1, MAX_ID)
        want_bytes("a public key", self.public, KEY_BYTES)


@dataclass(frozen=True, repr=False)
class RunKeyRequest(Message):
    """coordinator -> silo: one of three things; not signed, as what a silo takes is under signatures of silos.

    Attributes
    ----------
    asked : str
        state: nothing else is given. share: `statements` are those of the silos to seal the run key for. take:
        `statements` is that of the sender alone, and `box` is what it sealed.
    """

    KIND = "run key request"
    session: bytes
    roster_hash: bytes
    asked: str
    statements: tuple[bytes, ...] = ()
    box: bytes = b""

    def __post_init__(self) -> None:
        want_bytes("a session", self.session, SESSION_BYTES)
        want_bytes("a roster hash", self.roster_hash, HASH_BYTES)
        counts = {"state": (0, 0), "share": (1, MAX_SILOS), "take": (1, 1)}
        if type(self.asked) is not str or self.asked not in counts:
            raise ProtocolError(f"a {self.KIND} asks for one of {', '.join(counts)}")
        _want_items("statements", self.statements, *counts[self.asked])
        want_bytes("a box", self.box, BOX_BYTES if self.asked == "take" else 0)


@dataclass(frozen=True, repr=False)
class RunKeyReply(Message):
    """silo -> coordinator: where the silo stands, and the boxes it was asked for.

    Attributes
    ----------
    statement : bytes
        The silo's own, signed.
    key_name : bytes
        32 bytes that name the run key which the silo has and tell nothing of it; empty where it has none.
    boxes : tuple of bytes
        One a statement of the request, in its order.
    """

    KIND = "run key reply"
    statement: bytes
    key_name: bytes
    boxes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        want_bytes("a statement", self.statement)
        want_bytes("the name of a run key", self.key_name, 0, HASH_BYTES)
        _want_items("boxes", self.boxes, 0, MAX_SILOS if self.key_name else 0)
        for box in self.boxes:
            want_bytes("a box", box, BOX_BYTES)


def read_statement(data: bytes, roster: Roster, session: bytes) -> RunKeyStatement:
    """A signed statement of a silo of this roster, in this session.

    Raises
    ------
    ProtocolError
        Malformed bytes.
    Refusal
        Of a silo outside the roster, not signed by it, of another roster or session, or with a key of low order.
    """
    signed = Signed.from_bytes(data)
    message = RunKeyStatement.from_bytes(signed.payload)
    silo = message.silo
    if silo not in roster:
        raise refusal("known-silos", f"silo {silo} is not in the roster")
    if not verify(roster.public(silo), RunKeyStatement.KIND.encode(), signed.payload, signed.signature):
        raise refusal("signature", f"the {message.KIND} of silo {silo} does not carry its signature")
    if message.roster_hash != roster.hash():
        raise refusal("roster", f"the {message.KIND} of silo {silo} is for another roster")
    if message.session != session:
        raise refusal("session", f"the {message.KIND} of silo {silo} is of another run")
    if is_low_order(message.public):
        raise refusal("low-order", f"silo {silo} states a key of low order")
    return message


def _want_items(what: str, value: object, least: int, most: int) -> None:
    want_tuple(what, value)
    assert isinstance(value, tuple)
    if not least <= len(value) <= most:
        raise ProtocolError(f"{len(value)} {what}; there are {least} to {most}")
    for item in value:
        want_bytes(f"an item of {what}", item)
