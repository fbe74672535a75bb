"""python -m autoflip_secure.deployment.supernode ARGUMENTS : flower-supernode, looking for messages at a pace of ours.

Flower's SuperNode waits three seconds between two looks for a message and half a second between two for a reply. A
round of a secure sum is several short stages one after the other, so these waits are most of a round. Here the first
looks after a message are a fifth of a second apart, and further ones grow back to Flower's own pause: a silo that idles
asks no more often than it would otherwise.

One more thing is changed. Flower sends a reply only after it has taken the next message, so one reply too many, such as
the error that it makes up itself for a message that nobody answered, leaves it a message behind for ever: each stage
would get the reply of the one before. Here a look that finds no message sends what is ready.

Where a later Flower does these things elsewhere, this is the plain SuperNode.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["Pace", "has_reply", "keep_pace", "main"]

FIRST_PAUSE = 0.2
GROWTH = 1.2
"""From a fifth of a second to three within a quarter of a minute."""

REPLY_PAUSE = 0.02
ANY_RUN = 0
"""Flower's loop asks only whether there is a run at all."""


class Pace:
    """Stands in for the module `time` in Flower's loop: same clock, shorter sleeps.

    Parameters
    ----------
    sleep : callable
        Sleeps so many seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep, self._pause = sleep, FIRST_PAUSE

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """At most `seconds`; sleeps of a second and more are looks for messages, shorter ones looks for a reply."""
        if seconds < 1:
            self._sleep(min(seconds, REPLY_PAUSE))
            return
        self._sleep(min(seconds, self._pause))
        self._pause = min(seconds, self._pause * GROWTH)

    def quicken(self) -> None:
        """A message came: the next one is likely soon."""
        self._pause = FIRST_PAUSE


def keep_pace(loop: ModuleType, pace: Pace) -> None:
    """Let Flower's loop module sleep by `pace`, quickened by every message it answers, and leave no reply lying."""
    pull, push = loop._pull_and_store_message, loop._push_messages

    def pulling(**arguments: Any) -> Any:
        run = pull(**arguments)
        return ANY_RUN if run is None and has_reply(arguments["state"]) else run

    def pushing(**arguments: Any) -> None:
        push(**arguments)
        pace.quicken()

    loop.time = pace  # type: ignore[attr-defined]
    loop._pull_and_store_message, loop._push_messages = pulling, pushing  # type: ignore[attr-defined]


def has_reply(state: Any) -> bool:
    """Whether a node's state holds a reply that was not sent yet."""
    lock, store = getattr(state, "lock_msg_store", None), getattr(state, "msg_store", None)
    if lock is None or store is None:
        return False
    with lock:
        return any(not e.is_retrieved and e.message.metadata.reply_to_message_id for e in store.values())


def main() -> None:
    """Run flower-supernode with this process's arguments."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    keep_pace(start_client_internal, Pace())
    flower_supernode()


if __name__ == "__main__":
    main()
