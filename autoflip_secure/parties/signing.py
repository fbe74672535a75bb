"""Signed messages and statements: one signature domain a kind."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeVar

from autoflip_secure.parties.identity import Identity, verify
from autoflip_secure.parties.rules import refusal
from autoflip_secure.parties.wire import SIGNATURE_BYTES, Message, want_bytes

__all__ = ["Signed", "digest_of", "open_signed", "sign_message", "sign_statement", "statement_holds"]

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, repr=False)
class Signed(Message):
    """A message and its sender's signature."""

    KIND = "signed"
    payload: bytes
    signature: bytes

    def __post_init__(self) -> None:
        want_bytes("a payload", self.payload)
        want_bytes("a signature", self.signature, SIGNATURE_BYTES)


def sign_statement(identity: Identity, statement: Message) -> bytes:
    """Signature over a statement in the domain of its kind."""
    return identity.sign(statement.KIND.encode(), statement.to_bytes())


def statement_holds(public: bytes, statement: Message, signature: bytes) -> bool:
    """Whether `public` signed the statement."""
    return verify(public, statement.KIND.encode(), statement.to_bytes(), signature)


def sign_message(identity: Identity, message: Message) -> bytes:
    """Bytes of a message with its signature."""
    payload = message.to_bytes()
    return Signed(payload, identity.sign(message.KIND.encode(), payload)).to_bytes()


def open_signed(kind: type[M], public: bytes, data: bytes) -> M:
    """The message inside, after its signature was checked.

    Raises
    ------
    ProtocolError
        Malformed bytes.
    Refusal
        Not signed by `public` as a message of this kind.
    """
    signed = Signed.from_bytes(data)
    if not verify(public, kind.KIND.encode(), signed.payload, signed.signature):
        raise refusal("signature", f"the {kind.KIND} is not signed by the party it should be from")
    return kind.from_bytes(signed.payload)


def digest_of(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()
