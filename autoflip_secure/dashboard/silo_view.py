"""A silo's own folder as the page shows it: ledger and caps, policy, what left. Reads only, and never silo.log."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from autoflip_secure.dashboard.approval_watch import ApprovalWatch
from autoflip_secure.dashboard.ledger_watch import LedgerWatch
from autoflip_secure.dashboard.tail import JsonTail, Stamp, stamp_of
from autoflip_secure.dashboard.values import plain
from autoflip_secure.errors import ConfigError

__all__ = ["SiloView"]

MOST_MESSAGES = 500
"""Messages kept to be shown; all are counted."""

MOST_KINDS = 40
"""Kinds of messages that are counted apart."""

LONGEST_NAME = 200
LONGEST_WORD = 64

SHOWN = (
    "n", "time", "kind", "stage", "phase", "round", "attempt", "status", "error", "bytes", "channels", "cohort",
    "ledger",
)  # fmt: skip
"""Of a line of the audit log. What chains and signs it is for `audit verify`: a reader gains nothing from it."""


class SiloView:
    """Follows one silo. Calls from several threads take turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = LedgerWatch(path / "state.sqlite")
        self._approvals = ApprovalWatch(path / "state.sqlite")
        self._turn = threading.Lock()
        self._audit = JsonTail(path / "audit.jsonl")
        self._policy: tuple[Stamp, dict[str, Any]] = (None, {"status": "none"})
        self._clear()

    def _clear(self) -> None:
        self._messages: deque[dict[str, Any]] = deque(maxlen=MOST_MESSAGES)
        self._told = 0
        self._lines: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()

    @property
    def name(self) -> str:
        """What the silo calls itself."""
        try:
            with (self.path / "name").open(encoding="utf-8") as file:
                return file.read(LONGEST_NAME).strip() or self.path.name
        except (OSError, ValueError):
            return self.path.name

    def page(self, generation: str = "", messages: int = 0) -> dict[str, Any]:
        """What changed since the page was told `messages` messages of `generation`, and all the rest."""
        ledger, asked = self.ledger.current(), self._approvals.current()
        with self._turn:
            self._follow()
            current = str(self._audit.generation)
            if generation != current:
                messages = 0
            missing = max(0, min(self._told - messages, len(self._messages)))
            return {
                "name": self.name,
                "generation": current,
                "now": time.time(),
                "ledger": ledger,
                "policy": self._read_policy(),
                "approvals": asked,
                "messages": list(self._messages)[len(self._messages) - missing :],
                "messages_told": self._told,
                "sent": self._sent(),
                "damaged": self._audit.damaged,
            }

    def figures(self) -> dict[str, Any]:
        """What is measured of the silo, for monitoring."""
        ledger, asked = self.ledger.current(), self._approvals.current()
        with self._turn:
            self._follow()
            return {"ledger": ledger, "approvals": asked, "sent": self._sent()}

    def _follow(self) -> None:
        generation = self._audit.generation
        for line in self._audit.appended():
            if self._audit.generation != generation:
                generation = self._audit.generation
                self._clear()
            self._take(line)
        if self._audit.generation != generation:
            self._clear()

    def _sent(self) -> list[dict[str, Any]]:
        """Lines and bytes by kind and stage."""
        return [
            {"kind": kind, "stage": stage, "lines": lines, "bytes": self._bytes[kind, stage]}
            for (kind, stage), lines in self._lines.items()
        ]

    def _take(self, line: dict[str, Any]) -> None:
        what = tuple(line[name][:LONGEST_WORD] if type(line.get(name)) is str else "" for name in ("kind", "stage"))
        # A coordinator may ask for stages that do not exist, as many as it likes.
        kind, stage = what if what in self._lines or len(self._lines) < MOST_KINDS else (what[0], "others")
        self._told += 1
        self._lines[kind, stage] += 1
        if type(line.get("bytes")) is int:
            self._bytes[kind, stage] += max(0, line["bytes"])
        self._messages.append({name: plain(line[name]) for name in SHOWN if name in line})

    def _read_policy(self) -> dict[str, Any]:
        from autoflip_secure.federation.policy import SiloPolicy

        file = self.path / "policy.toml"
        stamp = stamp_of(file)
        if stamp is None:
            return {"status": "none"}
        if stamp != self._policy[0]:
            try:
                found = {"status": "read", "settings": plain(SiloPolicy.read(file).model_dump(mode="json"))}
            except ConfigError as error:
                found = {"status": "error", "error": plain(str(error))}
            self._policy = stamp, found
        return self._policy[1]
