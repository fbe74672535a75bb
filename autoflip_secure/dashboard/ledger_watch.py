"""A silo's ledger as the page shows it, recomputed beside the page's requests: accountants take seconds."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoflip_secure.dashboard.tail import Stamp, stamp_of
from autoflip_secure.errors import AutoflipSecureError, ConfigError, StorageError

if TYPE_CHECKING:
    from autoflip_secure.privacy.ledger_reading import LedgerEntry, LedgerRecord

__all__ = ["LedgerWatch"]

SHARE = 0.1
"""Largest share of a processor that recomputing takes while a run goes on."""

LEAST_PAUSE = 2.0

TRIES, PAUSE = 3, 0.3
"""How often a ledger is read before it is called damaged, and the seconds between."""

MOST_POINTS = 12
"""Places in a ledger at which the course of its epsilon is computed."""


class LedgerWatch:
    """Keeps the newest figures of one state.sqlite, which is opened for reading only, and only while it is read."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._turn = threading.Lock()
        self._figures: dict[str, Any] = {"status": "reading"}
        self._seen: tuple[Stamp, Stamp] | None = None
        self._busy = False
        self._not_before = 0.0
        self._known: dict[tuple[bytes, float], float] = {}

    def current(self) -> dict[str, Any]:
        """Figures as of the last time they were recomputed; begins to do so anew where the ledger has changed."""
        with self._turn:
            due = self._stamps() != self._seen and not self._busy and time.monotonic() >= self._not_before
            if due:
                self._busy = True
                threading.Thread(target=self.refresh, daemon=True).start()
            return dict(self._figures)

    def refresh(self) -> dict[str, Any]:
        """Recompute now."""
        stamps, started = self._stamps(), time.monotonic()
        figures: dict[str, Any] = {"status": "error", "error": "the ledger could not be recomputed; see this terminal"}
        try:
            figures = self._read()
        except ConfigError:
            figures = {"status": "none"}
        except AutoflipSecureError as error:
            figures = {"status": "error", "error": str(error)}
        finally:  # also where something unforeseen goes on its way: the next change is looked at again
            with self._turn:
                took = time.monotonic() - started
                self._figures, self._seen, self._busy = figures, stamps, False
                self._not_before = time.monotonic() + max(LEAST_PAUSE, took / SHARE)
        return dict(figures)

    def _read(self) -> dict[str, Any]:
        from autoflip_secure.federation.ledger_audit import policy_of
        from autoflip_secure.privacy.ledger_report import dataset_reports
        from autoflip_secure.privacy.ledger_tables import adversary_words, as_values

        record = self._record()
        reports = dataset_reports(record, delta=None, fallback=policy_of(record), now=time.time())
        values = as_values(record, reports)
        known = {each["dataset"]: each["course"] for each in self._figures.get("datasets", [])}
        for each, report in zip(values["datasets"], reports, strict=True):
            each["adversary_words"] = [words for a in report.adversaries if (words := adversary_words(a))]
            each["course"] = known.get(report.dataset, [])
        last = record.entries[-1].line if record.entries else None
        figures: dict[str, Any] = {
            "status": "read",
            "read": time.time(),
            "silo": values["silo"],
            "lines": values["lines"],
            "head": values["head"],
            "datasets": values["datasets"],
            "last": None if last is None else {"phase": last.phase, "round": last.round, "time": last.time},
        }
        with self._turn:
            self._figures = figures  # what is spent is told before how it came about, which takes longer
        courses = {r.dataset: self._course(record.of(r.dataset), r.delta, r.epsilon) for r in reports}
        return {**figures, "datasets": [{**each, "course": courses[each["dataset"]]} for each in values["datasets"]]}

    def _record(self) -> LedgerRecord:
        """The ledger; a silo that begins to write just then is waited for."""
        from autoflip_secure.privacy.ledger_reading import read_ledger

        for _ in range(TRIES - 1):
            try:
                return read_ledger(self._state)
            except StorageError:
                time.sleep(PAUSE)
        return read_ledger(self._state)

    def _course(self, entries: Sequence[LedgerEntry], delta: float, last: float) -> list[tuple[int, float]]:
        """(line, epsilon of all lines up to it), where the lines are noised; places once chosen stay chosen."""
        from autoflip_secure.privacy.accounting import epsilon
        from autoflip_secure.privacy.ledger_report import mechanisms

        stride = 1
        while len(entries) > stride * MOST_POINTS:
            stride *= 2
        points = []
        for place in range(stride, len(entries), stride):
            end = entries[place - 1]
            spent = self._known.get((end.chain, delta))
            if spent is None:
                spent = self._known[end.chain, delta] = epsilon(mechanisms(entries[:place]), delta)
            points.append((end.number, spent))
        points.append((entries[-1].number, last))
        return [point for point in points if math.isfinite(point[1])]

    def _stamps(self) -> tuple[Stamp, Stamp]:
        return stamp_of(self._state), stamp_of(self._state.with_name(self._state.name + "-wal"))
