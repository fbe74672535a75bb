"""What a ledger says, added up by record set and session: the figures of `ledger show`, recomputed from the lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.accounting import Mechanism, epsilon, merged
from autoflip_secure.privacy.ledger_adversaries import Adversary, adversaries
from autoflip_secure.privacy.ledger_caps import YEAR_SECONDS
from autoflip_secure.privacy.ledger_reading import LedgerEntry, LedgerRecord
from autoflip_secure.privacy.ledger_terms import LedgerTerms
from autoflip_secure.privacy.ledger_units import unit_of

__all__ = [
    "DatasetReport",
    "Limits",
    "SessionReport",
    "Use",
    "dataset_reports",
    "datasets",
    "limits_of",
    "mechanisms",
    "sessions",
    "within_year",
]


@dataclass(frozen=True)
class Limits:
    """Caps on a record set's epsilon at `delta`; infinite where there is none. `source` says where they are from."""

    delta: float
    epsilon: float
    per_run: float
    per_year: float
    source: str


@dataclass(frozen=True)
class Use:
    """Lines of one session that used one mechanism in one phase; `first` and `last` in seconds since 1970."""

    phase: str
    rounds: int
    uses: int
    sampling_rate: float
    noise_multiplier: float
    sensitivity: float
    first: float
    last: float


@dataclass(frozen=True)
class SessionReport:
    """One session's uses of a record set; `epsilon_after` is that of all lines up to its last, of every session.

    Trust and unit are empty, and `colluders` None, where they are not recorded.
    """

    session: bytes
    trust: str
    unit: str
    colluders: int | None
    uses: tuple[Use, ...]
    epsilon: float
    epsilon_after: float
    per_run: float


@dataclass(frozen=True)
class DatasetReport:
    """One record set; epsilons at `delta`, `epsilon_year` over the lines of the last 365 days.

    All bound the loss of one `unit`, each line against its own session's adversary (`adversaries` tells them apart).
    """

    dataset: str
    unit: str
    delta: float
    lines: int
    sessions: tuple[SessionReport, ...]
    epsilon: float
    epsilon_year: float
    adversaries: tuple[Adversary, ...]
    limits: Limits


def datasets(record: LedgerRecord) -> tuple[str, ...]:
    """Names of the record sets in the order of their first lines."""
    return tuple(dict.fromkeys(entry.line.dataset for entry in record.entries))


def mechanisms(entries: Iterable[LedgerEntry]) -> tuple[Mechanism, ...]:
    """What the lines did, as an accountant takes it."""
    return merged(entry.line.mechanism for entry in entries)


def within_year(entries: Sequence[LedgerEntry], dataset: str, now: float) -> tuple[LedgerEntry, ...]:
    """Lines of a record set that count towards the year before `now`, as `ledger_caps` explains.

    Parameters
    ----------
    entries : all lines of the ledger that were there at `now`, of every record set.
    """
    begins = next((entry.number for entry in entries if entry.line.time >= now - YEAR_SECONDS), math.inf)
    return tuple(entry for entry in entries if entry.number >= begins and entry.line.dataset == dataset)


def dataset_reports(
    record: LedgerRecord, *, delta: float | None, fallback: Limits | None, now: float
) -> tuple[DatasetReport, ...]:
    """One report a record set.

    Parameters
    ----------
    delta : float or None
        Of all figures; None takes what the ledger records.
    fallback : Limits or None
        The silo's policy of today. Its caps win over recorded ones; its delta serves where none is recorded.
    now : float
        Seconds since 1970.

    Raises
    ------
    ConfigError
        No delta is known.
    """
    return tuple(_dataset_report(record, name, delta, fallback, now) for name in datasets(record))


def _dataset_report(
    record: LedgerRecord, dataset: str, delta: float | None, fallback: Limits | None, now: float
) -> DatasetReport:
    entries = record.of(dataset)
    limits = limits_of(record, dataset, fallback, delta)
    at = limits.delta if delta is None else delta
    return DatasetReport(
        dataset,
        unit_of(entries),
        at,
        len(entries),
        tuple(_session_report(entries, session, at, limits) for session in sessions(entries)),
        epsilon(mechanisms(entries), at),
        epsilon(mechanisms(within_year(record.entries, dataset, now)), at),
        adversaries(entries, at),
        limits,
    )


def limits_of(record: LedgerRecord, dataset: str, policy: Limits | None, delta: float | None = None) -> Limits:
    """Caps that bind a record set now, at the delta its ledger works at; `delta` serves where none is known.

    Raises
    ------
    ConfigError
        No delta is known.
    """
    terms = record.of(dataset)[-1].terms
    if terms is None and policy is not None:
        return policy
    if terms is None:
        if delta is None:
            raise ConfigError(
                f"{record.path}: records no delta (an older file), and no policy is beside it; give --delta"
            )
        return Limits(delta, math.inf, math.inf, math.inf, "none is recorded")
    if policy is not None:
        return Limits(terms.delta, policy.epsilon, policy.per_run, policy.per_year, policy.source)
    return Limits(terms.delta, terms.epsilon, terms.per_run, terms.per_year, "recorded with the lines")


def sessions(entries: Sequence[LedgerEntry]) -> tuple[bytes, ...]:
    """Sessions in the order of their last lines."""
    return tuple(reversed(dict.fromkeys(entry.line.session for entry in reversed(entries))))


def _session_report(entries: Sequence[LedgerEntry], session: bytes, delta: float, limits: Limits) -> SessionReport:
    own = [entry for entry in entries if entry.line.session == session]
    terms: LedgerTerms | None = own[-1].terms
    up_to = [entry for entry in entries if entry.number <= own[-1].number]
    return SessionReport(
        session,
        terms.trust if terms else "",
        terms.unit if terms else "",
        terms.colluders if terms else None,
        _uses(own),
        epsilon(mechanisms(own), delta),
        epsilon(mechanisms(up_to), delta),
        terms.per_run if terms else limits.per_run,
    )


def _uses(entries: Sequence[LedgerEntry]) -> tuple[Use, ...]:
    groups: dict[tuple[str, float, float, float], list[LedgerEntry]] = {}
    for entry in entries:
        line = entry.line
        key = (line.phase, line.sampling_rate, line.noise_multiplier, line.sensitivity)
        groups.setdefault(key, []).append(entry)
    return tuple(
        Use(
            phase,
            len({entry.line.round for entry in group}),
            sum(entry.line.count for entry in group),
            rate, noise, sensitivity,
            min(entry.line.time for entry in group),
            max(entry.line.time for entry in group),
        )
        for (phase, rate, noise, sensitivity), group in groups.items()
    )  # fmt: skip
