"""What the signed messages of a run's sums start with."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.parties.wire import HASH_BYTES, SESSION_BYTES, Message, want_bytes, want_int

__all__ = ["MAX_SLOTS", "Head"]

MAX_SLOTS = 1024
"""Most slots of one key set-up."""


@dataclass(frozen=True, repr=False)
class Head(Message):
    """What every signed message starts with: the run, the roster it assumes, and the epoch."""

    session: bytes
    roster_hash: bytes
    epoch: int

    def __post_init__(self) -> None:
        want_bytes("a session", self.session, SESSION_BYTES)
        want_bytes("a roster hash", self.roster_hash, HASH_BYTES)
        want_int("an epoch", self.epoch, 0)
