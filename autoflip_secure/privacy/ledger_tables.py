"""The figures of `ledger show` and `ledger verify` as tables for a terminal, and as plain values for machines."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table
from rich.text import Text

from autoflip_secure.privacy.ledger_adversaries import Adversary
from autoflip_secure.privacy.ledger_export import utc
from autoflip_secure.privacy.ledger_reading import LedgerRecord
from autoflip_secure.privacy.ledger_report import DatasetReport, SessionReport

__all__ = [
    "adversary_words",
    "as_values",
    "cap_text",
    "epsilon_text",
    "lines_table",
    "spending_table",
    "spending_words",
    "table",
]

SECONDS = len("2026-01-31T12:00:00")
CELLS = 8
"""Hexadecimal digits of a session or hash that are shown; export has all."""


def table(title: str, *columns: str) -> Table:
    """An empty table; columns that begin with # are aligned to the right."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        # Folded and not cut where a terminal is narrow: a figure with its end missing is a wrong figure.
        made.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left", overflow="fold")
    return made


def epsilon_text(value: float) -> str:
    """Four digits; what nothing bounds is named."""
    return "unbounded" if math.isinf(value) else f"{value:.4g}"


def spending_table(silo: str, report: DatasetReport) -> Table:
    """One row for each phase and mechanism of each session."""
    made = table(
        f"Silo {silo}, {report.dataset} records: epsilon of a {report.unit} at delta {report.delta:.6g}",
        "session", "trust", "unit", "#colluders", "phase", "#rounds", "#uses", "#sampling rate", "#sigma",
        "#sensitivity", "#epsilon of run", "#epsilon after", "first (UTC)", "last (UTC)",
    )  # fmt: skip
    for session in report.sessions:
        for number, use in enumerate(session.uses):
            last = number == len(session.uses) - 1
            cells = (
                session.session.hex()[:CELLS], session.trust or "?", session.unit or "?", _colluders(session),
                use.phase, str(use.rounds), str(use.uses),
                f"{use.sampling_rate:.4g}", f"{use.noise_multiplier:.4g}", f"{use.sensitivity:.4g}",
                *(_costs(session) if last else ("", "")), utc(use.first)[:SECONDS], utc(use.last)[:SECONDS],
            )  # fmt: skip
            made.add_row(*map(Text, cells))
    return made


def _colluders(session: SessionReport) -> str:
    if session.trust == "local":
        return "all"
    return "?" if session.colluders is None else str(session.colluders)


def _costs(session: SessionReport) -> tuple[str, str]:
    of_cap = "" if math.isinf(session.per_run) else f" of {session.per_run:g}"
    return epsilon_text(session.epsilon) + of_cap, epsilon_text(session.epsilon_after)


def cap_text(cap: float) -> str:
    """A cap, or that there is none."""
    return "none" if math.isinf(cap) else f"{cap:g}"


def spending_words(report: DatasetReport) -> str:
    """What is spent, capped and left, in one line."""
    limits = report.limits
    return (
        f"spent {_of(report.epsilon, limits.epsilon)} over all runs, {_of(report.epsilon_year, limits.per_year)} "
        f"within 365 days; cap of one run: {cap_text(limits.per_run)} (caps: {limits.source})"
    )


def adversary_words(adversary: Adversary) -> str:
    """What lines cost against an adversary that not all of them bear, in one line; empty where all do."""
    if not adversary.weaker:
        return ""
    who = "all other silos" if math.isinf(adversary.colluders) else f"{adversary.colluders:g}"
    bears = "1 colluder" if adversary.weaker_hold == 1 else f"{adversary.weaker_hold:g} colluders"
    return (
        f"{adversary.weaker} uses hold against {bears} at most, and a run promises {who}: "
        f"against these the other {adversary.uses} uses cost epsilon {epsilon_text(adversary.epsilon)}, those "
        f"{adversary.weaker} are not bounded"
    )


def _of(spent: float, cap: float) -> str:
    if math.isinf(cap):
        return f"{epsilon_text(spent)} (no cap)"
    return f"{epsilon_text(spent)} of {cap:g} ({epsilon_text(max(cap - spent, 0.0))} left)"


def lines_table(record: LedgerRecord) -> Table:
    """Every line, in order."""
    made = table(
        f"Silo {record.silo}: lines",
        "#line", "time (UTC)", "session", "dataset", "phase", "#round", "#attempt", "#uses", "#sampling rate",
        "#sigma", "#sensitivity", "manifest", "chain",
    )  # fmt: skip
    for entry in record.entries:
        line = entry.line
        cells = (
            entry.number, utc(line.time)[:SECONDS], line.session.hex()[:CELLS], line.dataset, line.phase, line.round,
            line.attempt, line.count, f"{line.sampling_rate:.4g}", f"{line.noise_multiplier:.4g}",
            f"{line.sensitivity:.4g}", line.manifest.hex()[:CELLS], entry.chain.hex()[:CELLS],
        )  # fmt: skip
        made.add_row(*(Text(str(cell)) for cell in cells))
    return made


def as_values(record: LedgerRecord, reports: tuple[DatasetReport, ...]) -> dict[str, Any]:
    """A ledger's figures for JSON; null stands for no bound and for no cap."""
    return {
        "path": str(record.path),
        "silo": record.silo,
        "lines": len(record.entries),
        "head": record.head.hex(),
        "datasets": [_dataset_values(report) for report in reports],
    }


def _dataset_values(report: DatasetReport) -> dict[str, Any]:
    limits = report.limits
    return {
        "dataset": report.dataset,
        "unit": report.unit,
        "delta": report.delta,
        "lines": report.lines,
        "epsilon": _finite(report.epsilon),
        "epsilon_cap": _finite(limits.epsilon),
        "epsilon_left": _left(report.epsilon, limits.epsilon),
        "epsilon_year": _finite(report.epsilon_year),
        "epsilon_per_year_cap": _finite(limits.per_year),
        "epsilon_year_left": _left(report.epsilon_year, limits.per_year),
        "epsilon_per_run_cap": _finite(limits.per_run),
        "caps_from": limits.source,
        "adversaries": [_adversary_values(adversary) for adversary in report.adversaries],
        "sessions": [_session_values(session) for session in report.sessions],
    }


def _session_values(session: SessionReport) -> dict[str, Any]:
    return {
        "session": session.session.hex(),
        "trust": session.trust,
        "unit": session.unit,
        "colluders": session.colluders,
        "epsilon": _finite(session.epsilon),
        "epsilon_after": _finite(session.epsilon_after),
        "epsilon_per_run_cap": _finite(session.per_run),
        "uses": [{**vars(use), "first": utc(use.first), "last": utc(use.last)} for use in session.uses],
    }


def _adversary_values(adversary: Adversary) -> dict[str, Any]:
    """Null colluders stand for all other silos."""
    return {
        "colluders": _finite(adversary.colluders),
        "epsilon": _finite(adversary.epsilon),
        "uses": adversary.uses,
        "uses_that_bear_fewer": adversary.weaker,
    }


def _left(spent: float, cap: float) -> float | None:
    return _finite(max(cap - spent, 0.0)) if math.isfinite(cap) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
