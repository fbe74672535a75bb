"""A ledger as CSV or JSON lines: all that another tool needs to recompute epsilon and the chain of hashes.

The hash of a line is SHA-256 of the msgpack array [hash before, session, phase, round, attempt, dataset, sampling rate,
noise multiplier, sensitivity, count, manifest, seconds], with nothing before the first. Where terms were written with a
line, the hash before it is SHA-256 of [hash of the line before, "terms", line, session, dataset, terms' seconds, trust,
unit, colluders, delta, accountant, epsilon, epsilon per run, epsilon per year].
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from autoflip_secure.privacy.ledger_reading import LedgerEntry, LedgerRecord

__all__ = ["FIELDS", "as_csv", "as_json_lines", "rows", "utc", "values_of"]

FIELDS = (
    "silo", "line", "time", "time_seconds", "session", "trust", "phase", "round", "attempt", "dataset",
    "sampling_rate", "noise_multiplier", "sensitivity", "count", "manifest", "chain",
    "unit", "colluders", "delta", "accountant", "epsilon_cap", "epsilon_per_run_cap", "epsilon_per_year_cap",
    "terms_line", "terms_seconds",
)  # fmt: skip
"""The last nine and `trust` are those of the terms in force; `terms_line` is the line they were written with."""


def rows(record: LedgerRecord) -> list[dict[str, Any]]:
    """One row a line: numbers as they are, bytes in hexadecimal, times in UTC and as seconds since 1970."""
    return [_row(record.silo, entry) for entry in record.entries]


def as_csv(records: Iterable[LedgerRecord]) -> str:
    """All lines of the ledgers under one header; what a file of the first version does not record is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerows(rows(record))
    return text.getvalue()


def as_json_lines(records: Iterable[LedgerRecord]) -> str:
    """One JSON object a line, of `values_of`."""
    return "".join(json.dumps(row) + "\n" for record in records for row in values_of(record))


def values_of(record: LedgerRecord) -> list[dict[str, Any]]:
    """One row a line for JSON: None where nothing is recorded, and for a cap that is infinite."""
    return [_finite(row) for row in rows(record)]


def utc(seconds: float) -> str:
    """ISO 8601 to the microsecond, in UTC; empty where a clock was so wrong that no calendar has the date."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return ""


def _row(silo: str, entry: LedgerEntry) -> dict[str, Any]:
    line, terms = entry.line, entry.terms
    allowed = (None,) * 10 if terms is None else (
        terms.trust, terms.unit, terms.colluders, terms.delta, terms.accountant, terms.epsilon, terms.per_run,
        terms.per_year, terms.line, terms.time,
    )  # fmt: skip
    values = (
        silo, entry.number, utc(line.time), line.time, line.session.hex(), allowed[0], line.phase, line.round,
        line.attempt, line.dataset, line.sampling_rate, line.noise_multiplier, line.sensitivity, line.count,
        line.manifest.hex(), entry.chain.hex(), *allowed[1:],
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
