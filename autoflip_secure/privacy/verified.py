"""Compositions known to stay within a budget, shared by all ledgers of a process, so few need the accountant."""

from __future__ import annotations

import threading
from collections import Counter
from functools import lru_cache
from typing import TypeAlias

from autoflip_secure.privacy.accounting import Accountant

__all__ = ["Composition", "Verified", "verified"]

Composition: TypeAlias = Counter[tuple[float, float]]
"""Uses by (sampling rate, noise multiplier)."""


class Verified:
    """Compositions that fit one budget: whatever uses no mechanism more often than one of them fits too.

    Dropping uses is post-processing, so epsilon never grows by it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[Composition] = []

    def covers(self, composition: Composition) -> bool:
        """Whether the composition is known to fit."""
        with self._lock:
            return any(composition <= known for known in self._known)

    def add(self, composition: Composition) -> None:
        """Record that the composition fits."""
        with self._lock:
            self._known = [known for known in self._known if not known <= composition]
            self._known.append(Counter(composition))


@lru_cache(maxsize=256)
def verified(budget: float, delta: float, accountant: Accountant) -> Verified:
    """The process's one memory for these terms."""
    return Verified()
