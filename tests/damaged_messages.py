"""What every message of the protocols has to stand: damage never makes it read as itself."""

from __future__ import annotations

from hypothesis import strategies as st

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.wire import Message

__all__ = ["check_damaged"]


def check_damaged(message: Message, data: st.DataObject) -> None:
    """A flipped, missing or added byte never reads as the same message, and what is read has just those bytes."""
    original = message.to_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    flipped = bytearray(original)
    flipped[position] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), original[:position], original + b"\0"):
        try:
            again = type(message).from_bytes(damaged)
        except ProtocolError:
            continue
        assert again != message
        assert again.to_bytes() == damaged
