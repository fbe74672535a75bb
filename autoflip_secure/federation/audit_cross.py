"""Compares audit logs with each other: heads that one holds of another, and both ends of every message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoflip_secure.errors import AutoflipSecureError, ProtocolError
from autoflip_secure.federation.audit_chain import CheckedLog, Finding, check_log, count_lines, read_log
from autoflip_secure.federation.audit_files import Names, names_of
from autoflip_secure.federation.audit_log import Head, LogLine, witnessed_in
from autoflip_secure.privacy.ledger_reading import LedgerEntry, read_ledger

__all__ = ["first_finding", "verify_logs"]


@dataclass(frozen=True)
class _Sighting:
    """A head of another log that a line of this one holds."""

    log: CheckedLog
    place: int
    public: bytes
    head: Head

    def __str__(self) -> str:
        return f"{self.log.path} line {self.place}"


def verify_logs(files: Sequence[Path], runs: Sequence[Path] = ()) -> list[CheckedLog]:
    """Check each log and, where there are several, each against the others. Parties may write meanwhile.

    Parameters
    ----------
    runs : sequence of Path
        Folders in which no party's log may be missing.

    Raises
    ------
    ConfigError
        A file cannot be read.
    """
    names = names_of(files)
    # A log that is read now has all that others said of it before.
    before = {file: count_lines(file) for file in files}
    logs = [read_log(file, names) for file in files]
    for log in logs:
        check_log(log, names, [other for other in logs if other is not log])
    _check_same_owner(logs)
    by_owner = {log.public: log for log in sorted(logs, key=lambda log: len(log.lines)) if log.public}
    sightings = [seen for seen in _sightings(logs, names) if seen.place <= before[seen.log.path]]
    _check_forks(sightings, names)
    _check_witnesses(sightings, by_owner)
    _check_missing(sightings, by_owner, names, runs)
    for log in logs:
        _check_replies(log, by_owner, names)
        _check_ledger(log)
    _check_manifests(logs, names, before)
    for log in logs:
        log.findings.sort(key=lambda finding: finding.line)
    return logs


def _check_same_owner(logs: Sequence[CheckedLog]) -> None:
    """Two files may be one log and an older copy of it; more than that says nothing."""
    counted = Counter(log.public for log in logs if log.public)
    for log in logs:
        longest = max((other for other in logs if other.public == log.public), key=lambda other: len(other.lines))
        if counted[log.public] < 2 or log.lines == longest.lines:
            continue
        differs = next(
            (p for p, (a, b) in enumerate(zip(log.lines, longest.lines, strict=False), 1) if a != b), len(log.lines) + 1
        )
        what = "is an older copy of" if differs > len(log.lines) else f"differs at line {differs} from"
        log.add(min(differs, len(log.lines)), "copy", f"{what} {longest.path}, which is of the same party")


def _sightings(logs: Sequence[CheckedLog], names: Names) -> Iterator[_Sighting]:
    """Heads with a signature that holds; others are a finding about the log that has them."""
    valid: dict[tuple[bytes, Head], bool] = {}
    for log in logs:
        for place, line in enumerate(log.lines, start=1):
            for public, head in _witnessed(log, place, line):
                if (public, head) not in valid:
                    valid[public, head] = head.is_of(public)
                if valid[public, head]:
                    yield _Sighting(log, place, public, head)
                else:
                    log.add(place, "forged", f"a head of {head.count} lines that {names.of(public)} never signed")


def _witnessed(log: CheckedLog, place: int, line: LogLine | None) -> list[tuple[bytes, Head]]:
    try:
        return [] if line is None else list(witnessed_in(line).items())
    except ProtocolError as error:
        log.add(place, "malformed", str(error))
        return []


def _check_forks(sightings: Sequence[_Sighting], names: Names) -> None:
    """One party that signed two different lines of one number, whether or not its own log is here."""
    first: dict[tuple[bytes, int], _Sighting] = {}
    told = set()
    for seen in sightings:
        known = first.setdefault((seen.public, seen.head.count), seen)
        if known.head.digest != seen.head.digest and seen.public not in told:
            told.add(seen.public)
            seen.log.add(
                seen.place,
                "forked",
                f"{names.of(seen.public)} signed two different lines {seen.head.count}: the other head is in {known}",
            )


def _check_witnesses(sightings: Sequence[_Sighting], by_owner: dict[bytes, CheckedLog]) -> None:
    """Every head of a log that is here must be one that it has."""
    lost: dict[bytes, list[_Sighting]] = {}
    rewritten: dict[bytes, list[_Sighting]] = {}
    held: dict[bytes, dict[int, set[bytes]]] = {}
    for public, log in by_owner.items():
        held[public] = {}
        for line in log.lines:
            if line is not None:
                held[public].setdefault(line.number, set()).add(line.digest)
    longest = {public: max(lines, default=0) for public, lines in held.items()}
    for seen in sightings:
        head = seen.head
        if seen.public not in by_owner:
            continue
        if head.count > longest[seen.public]:
            lost.setdefault(seen.public, []).append(seen)
        elif head.digest not in held[seen.public].get(head.count, {head.digest}):
            rewritten.setdefault(seen.public, []).append(seen)
    for public, found in lost.items():
        log, newest = by_owner[public], max(found, key=lambda seen: seen.head.count)
        log.add(
            longest[public],
            "cut-off",
            f"the log ends here, but its party signed a head of {newest.head.count} lines, which is in {newest}: lines "
            f"were deleted at its end, or an older copy was put in its place ({_witnesses(found)})",
        )
    for public, found in rewritten.items():
        log, oldest = by_owner[public], min(found, key=lambda seen: seen.head.count)
        log.add(
            oldest.head.count,
            "rewritten",
            f"this is not the line {oldest.head.count} that its party once signed, whose head is in {oldest}: the log "
            f"was rewritten at this line or before it ({_witnesses(found)})",
        )


def _check_missing(
    sightings: Sequence[_Sighting], by_owner: dict[bytes, CheckedLog], names: Names, runs: Sequence[Path]
) -> None:
    """Where all logs of a run should lie, none is gone."""
    told = set()
    for seen in sightings:
        inside = any(seen.log.path.is_relative_to(run) for run in runs)
        if inside and seen.public not in by_owner and seen.public not in told:
            told.add(seen.public)
            words = f"the log of {names.of(seen.public)} is gone: this line holds its head of {seen.head.count} lines"
            seen.log.add(seen.place, "missing", words)


def _witnesses(found: Sequence[_Sighting]) -> str:
    logs = len({seen.log.path for seen in found})
    return f"in {logs} other log{'s' if logs > 1 else ''}"


def _check_replies(log: CheckedLog, by_owner: dict[bytes, CheckedLog], names: Names) -> None:
    """What the coordinator says that a silo sent is what the silo's line with that head says."""
    lines = {public: {n.number: n for n in other.lines if n is not None} for public, other in by_owner.items()}
    for place, line in enumerate(log.lines, start=1):
        if line is None or line.kind != "replies":
            continue
        heads = dict(_witnessed(log, place, line))
        for silo, said in line.fields.get("replies", {}).items():
            public = names.silos.get(int(silo), b"")
            sent = lines.get(public, {}).get(heads[public].count) if public in heads else None
            if sent is None or not sent.digest == sent.actual == heads[public].digest:
                continue
            stated = [sent.fields.get(name) for name in ("status", "bytes", "sha256")]
            if stated != said:
                log.add(
                    place, "contradiction", f"says that {names.of(public)} sent {said}, but line {sent.number} of "
                    f"{by_owner[public].path}, whose head came with that message, says {stated}"
                )  # fmt: skip


def _check_manifests(logs: Sequence[CheckedLog], names: Names, before: Mapping[Path, int]) -> None:
    """Every manifest that a silo gave numbers for is one that its coordinator says it asked with."""
    coordinators = [log for log in logs if log.public in names.coordinators]
    joins = [(line, log) for log in coordinators for line in log.lines if line is not None and line.kind == "join"]
    sessions = {line.fields.get("session"): log for line, log in joins}
    known = {line.fields.get("manifest") for log in coordinators for line in log.lines if line}
    for log in logs:
        session = None
        for place, line in enumerate(log.lines, start=1):
            if line is None or log.public in names.coordinators or place > before[log.path]:
                continue
            if line.kind == "join" and line.fields.get("status") == "ok":
                session = line.fields.get("session")
            manifest = line.fields.get("manifest")
            if manifest is not None and session in sessions and manifest not in known:
                known.add(manifest)
                sessions[session].add(
                    0, "concealed", f"no line is about the manifest {str(manifest)[:16]}..., which {log.party} was "
                    f"asked to answer ({log.path} line {place})"
                )  # fmt: skip


def _check_ledger(log: CheckedLog) -> None:
    """Lines of the privacy ledger beside a log are those that the log names."""
    file = log.path.parent / "state.sqlite"
    named = [(p, line.fields["ledger"]) for p, line in enumerate(log.lines, 1) if line and "ledger" in line.fields]
    if not named or not file.is_file():
        return
    try:
        entries = read_ledger(file).entries
    except AutoflipSecureError as error:
        log.add(0, "ledger", f"the privacy ledger beside the log cannot be compared with it: {error}")
        return
    for place, said in named:
        if not _holds(entries, said):
            log.add(place, "ledger", f"the privacy ledger {file} does not have the line that this one was charged with")


def _holds(entries: Sequence[LedgerEntry], said: object) -> bool:
    match said:
        case [int(number), str(chain)] if 1 <= number <= len(entries):
            return entries[number - 1].chain.hex() == chain
    return False


def first_finding(logs: Sequence[CheckedLog]) -> Finding | None:
    """The finding to name in one line: of the log with most of them."""
    worst = max(logs, key=lambda log: len(log.findings), default=None)
    return worst.findings[0] if worst is not None and worst.findings else None
