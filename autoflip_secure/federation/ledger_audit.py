"""Audits of ledgers: damage, recomputed epsilon, caps, units, the plan each session joined, and what a run claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.federation.join import Planned
from autoflip_secure.federation.ledger_files import Claim, joined_plans, policy_limits
from autoflip_secure.privacy.ledger_adversaries import Adversary, adversaries
from autoflip_secure.privacy.ledger_checks import Recomputed, cap_failures, differs, recompute, unit_failures
from autoflip_secure.privacy.ledger_reading import LedgerRecord, read_ledger
from autoflip_secure.privacy.ledger_report import Limits, datasets, limits_of, mechanisms, sessions

__all__ = ["AuditedDataset", "LedgerAudit", "audit_ledger", "policy_of"]


@dataclass(frozen=True)
class AuditedDataset:
    """One record set: its recomputed epsilon, beside what the run claims and what the caps allow in all.

    `adversaries` tells apart against whom the lines hold.
    """

    dataset: str
    lines: int
    sessions: int
    recomputed: Recomputed
    claimed: float | None
    cap: float
    adversaries: tuple[Adversary, ...]


@dataclass(frozen=True)
class LedgerAudit:
    """One ledger; `failures` says in words why it does not add up, and is empty where it does."""

    path: Path
    silo: str
    head: bytes
    datasets: tuple[AuditedDataset, ...]
    failures: tuple[str, ...]


def audit_ledger(
    path: Path, claims: Sequence[Claim] | None, *, delta: float | None, now: float, noted: bytes | None = None
) -> LedgerAudit:
    """Audit one ledger.

    Parameters
    ----------
    claims : sequence of Claim or None
        What the run's summary says of all silos; None where there is none to compare with.
    delta : float or None
        Of ledgers that do not record theirs.
    now : float
        Seconds since 1970.
    noted : bytes or None
        Hash of a last line noted at an earlier audit: the ledger must still hold that line.

    Raises
    ------
    ConfigError
        No delta is known.
    """
    try:
        record = read_ledger(path)
        policy, plans = policy_of(record), joined_plans(path)
    except AutoflipSecureError as error:
        return LedgerAudit(path, path.parent.name, b"", (), (str(error),))
    rows, failures = [], []
    if noted is not None and noted not in {entry.chain for entry in record.entries}:
        failures.append(f"no line has the hash {noted.hex()[:16]}... that was noted earlier: the past was rewritten")
    for dataset in datasets(record):
        row = _audited(record, dataset, policy, claims, delta)
        rows.append(row)
        found = [*row.recomputed.failures(), *cap_failures(record, dataset, policy, now)]
        found += unit_failures(record, dataset)
        found += _plan_failures(record, dataset, plans) if plans is not None else []
        failures += [f"{dataset} records: {failure}" for failure in found]
    failures += _claim_failures(record, rows, claims)
    return LedgerAudit(path, record.silo, record.head, tuple(rows), tuple(failures))


def policy_of(record: LedgerRecord) -> Limits | None:
    """Caps of the policy beside a ledger, for the trust mode of its last line."""
    if not record.entries:
        return policy_limits(record.path, "")
    last = record.entries[-1]
    unnoised = "none" if last.line.noise_multiplier == 0 else ""
    return policy_limits(record.path, last.terms.trust if last.terms else unnoised)


def _audited(
    record: LedgerRecord, dataset: str, policy: Limits | None, claims: Sequence[Claim] | None, delta: float | None
) -> AuditedDataset:
    entries = record.of(dataset)
    limits = limits_of(record, dataset, policy, delta)
    claimed = [claim.epsilon for claim in claims or () if (claim.silo, claim.dataset) == (record.silo, dataset)]
    return AuditedDataset(
        dataset,
        len(entries),
        len(sessions(entries)),
        recompute(mechanisms(entries), limits.delta),
        claimed[0] if claimed else None,
        limits.epsilon,
        adversaries(entries, limits.delta),
    )


def _plan_failures(record: LedgerRecord, dataset: str, plans: Mapping[bytes, Planned | None]) -> list[str]:
    """Uses beyond what the session's joined plan names. Runs without DP plan nothing."""
    failures = []
    for session in sessions(record.of(dataset)):
        name = f"session {session.hex()[:8]}"
        if session not in plans:
            failures.append(f"{name} has lines, but the silo never joined it")
            continue
        failures += [f"{name} {words}" for words in _unplanned(record, dataset, session, plans[session])]
    return failures


def _unplanned(record: LedgerRecord, dataset: str, session: bytes, planned: Planned | None) -> list[str]:
    if not planned:
        return []
    allowed: Counter[tuple[float, float]] = Counter()
    for mechanism in planned.get(dataset, []):
        allowed[mechanism.sampling_rate, mechanism.noise_multiplier] += mechanism.count
    used = mechanisms(entry for entry in record.of(dataset) if entry.line.session == session)
    return [
        f"has {use.count} uses at sampling rate {use.sampling_rate:g} and noise {use.noise_multiplier:g}, its plan "
        f"{allowed[use.sampling_rate, use.noise_multiplier]}"
        for use in used
        if use.count > allowed[use.sampling_rate, use.noise_multiplier]
    ]


def _claim_failures(record: LedgerRecord, rows: Sequence[AuditedDataset], claims: Sequence[Claim] | None) -> list[str]:
    if claims is None:
        return []
    found = {row.dataset: row for row in rows}
    claimed = {claim.dataset: claim for claim in claims if claim.silo == record.silo}
    failures = []
    for dataset in sorted(found.keys() | claimed.keys()):
        row, claim = found.get(dataset), claimed.get(dataset)
        lines, said = row.lines if row else 0, claim.lines if claim else 0
        if lines != said:
            failures.append(f"{dataset} records: the ledger has {lines} lines, summary.json says {said}")
        elif row and claim and claim.epsilon is not None and _is_wrong(claim.epsilon, row.recomputed):
            failures.append(
                f"{dataset} records: summary.json claims epsilon {claim.epsilon:.4f}, the lines cost "
                f"{row.recomputed.pld:.4f}"
            )
    return failures


def _is_wrong(claimed: float, recomputed: Recomputed) -> bool:
    return differs(claimed, recomputed.prv) or differs(claimed, recomputed.pld)
