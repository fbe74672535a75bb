"""Checks one audit log by itself: each line's digest, signature and place; what kind of tampering it looks like."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoflip_secure.errors import ConfigError, ProtocolError
from autoflip_secure.federation.audit_files import Names
from autoflip_secure.federation.audit_log import FIRST, LogLine, read_line

__all__ = ["CheckedLog", "Finding", "check_log", "count_lines", "read_log"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    line : int
        Place in the file, from 1; 0 where the file as a whole is meant.
    kind : str
        One word for the kind of tampering it looks like.
    words : str
    """

    path: Path
    line: int
    kind: str
    words: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{self.path}: {where}{self.kind}: {self.words}"


@dataclass
class CheckedLog:
    """A log that was read, and what was found in it.

    Attributes
    ----------
    public : bytes
        Identity whose log it is; empty where no line says so.
    party : str
        Whose, in words.
    lines : list of LogLine or None
        By place in the file; None where there is no readable line.
    """

    path: Path
    public: bytes
    party: str
    lines: list[LogLine | None]
    findings: list[Finding] = field(default_factory=list)

    def add(self, line: int, kind: str, words: str) -> None:
        """Note something wrong."""
        self.findings.append(Finding(self.path, line, kind, words))

    @property
    def last(self) -> LogLine | None:
        """Last readable line."""
        return next((line for line in reversed(self.lines) if line is not None), None)


def count_lines(path: Path) -> int:
    """Whole lines of a file, 0 where it cannot be read."""
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def read_log(path: Path, names: Names) -> CheckedLog:
    """Read a file, and note where its bytes are no lines.

    Raises
    ------
    ConfigError
        The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # not in the middle of a line that is being written
            *raws, rest = file.read().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read the audit log {path}: {error.strerror}") from error
    log = CheckedLog(path, b"", path.parent.name, [])
    for place, raw in enumerate(raws, start=1):
        log.lines.append(_read(raw, place, log))
    if rest:
        log.add(
            len(raws) + 1,
            "cut",
            "the file ends within this line: it was cut off, or a crash stopped the writing; the party's next start "
            "takes this piece away and records that",
        )
    if not raws:
        log.add(0, "empty", "the log has no line")
    log.public = _owner(log, names)
    first = log.lines[0] if log.lines else None
    if log.public in names.parties:
        log.party = names.of(log.public)
    elif first is not None and first.kind == "opened":
        log.party = str(first.fields.get("party"))
    return log


def _read(raw: bytes, place: int, log: CheckedLog) -> LogLine | None:
    try:
        return read_line(raw)
    except ValueError as error:
        log.add(place, "malformed", f"is no line of an audit log: it {error}")
        return None


def _owner(log: CheckedLog, names: Names) -> bytes:
    """The key that the first line names; where that line is gone, the one of the roster that signed what is there."""
    first = log.lines[0] if log.lines else None
    if first is not None and first.kind == "opened":
        try:
            return bytes.fromhex(first.fields["key"])
        except (KeyError, TypeError, ValueError):
            log.add(1, "malformed", "does not name the identity whose log this is")
    for line in log.lines:
        if line is not None:
            return next((public for public in names.parties if _signed(line, public)), b"")
    return b""


def _signed(line: LogLine, public: bytes) -> bool:
    try:
        return line.head.is_of(public)
    except ProtocolError:
        return False


def check_log(log: CheckedLog, names: Names, others: Sequence[CheckedLog]) -> None:
    """Check digests, signatures and places of all lines, and add what is wrong to the log's findings.

    Parameters
    ----------
    others : sequence of CheckedLog
        Logs that a line may have been taken from.
    """
    if not any(log.lines):
        return
    if not log.public:
        log.add(
            1, "unknown", "the first line does not say whose log this is, and no party of a roster signed what is there"
        )
    elif names.parties and log.public not in names.parties:
        log.add(
            1, "stranger", "the identity that this log names is not in the roster: it was begun by somebody else, or "
            "its silo has left the federation"
        )  # fmt: skip
    for place, line in enumerate(log.lines, start=1):
        if line is not None:
            _check_content(log, place, line, names, others)
    _check_places(log)


def _check_content(log: CheckedLog, place: int, line: LogLine, names: Names, others: Sequence[CheckedLog]) -> None:
    signed = _signed(line, log.public)
    if line.digest != line.actual:
        what = "its party signed another text of this line" if signed else "and neither does its signature fit"
        log.add(place, "edited", f"line {line.number} does not have the digest that it states: {what}")
    elif not signed:
        publics = [*names.parties, *(other.public for other in others)]
        other = next((p for p in publics if p != log.public and _signed(line, p)), None)
        if other is None:
            log.add(place, "forged", f"line {line.number} has a digest that fits, but {log.party} never signed it")
        else:
            whose = next((each.party for each in others if each.public == other), names.of(other))
            log.add(place, "spliced", f"line {line.number} is from the log of {whose}, who signed it")


def _check_places(log: CheckedLog) -> None:
    """Numbers follow each other, and each line names the digest of the one before."""
    numbers = [line.number if line is not None else 0 for line in log.lines]
    seen: dict[int, bytes] = {}
    wanted, before, broken = 1, FIRST, False
    for place, line in enumerate(log.lines, start=1):
        if line is None:
            wanted, broken = wanted + 1, True
            continue
        number, digest = line.number, line.digest
        if seen.get(number) == digest:
            log.add(place, "duplicate", f"line {number} is here for the second time")
            continue
        if number > wanted:
            _check_gap(log, place, wanted, number, numbers[place:])
        elif number < wanted and number in seen:
            log.add(place, "inserted", f"there is another line {number} before this one")
        elif number < wanted:
            log.add(place, "moved", f"line {number} stands after line {wanted - 1}")
        elif line.previous != before and not broken:
            log.add(
                place, "replaced", f"line {number} was not written after the line {number - 1} that is here: that "
                "line, or all before it, was put in place of another"
            )  # fmt: skip
        broken = number != wanted
        seen[number] = digest
        wanted, before = max(wanted, number + 1), digest


def _check_gap(log: CheckedLog, place: int, wanted: int, number: int, later: Sequence[int]) -> None:
    gone = [missing for missing in range(wanted, min(number, wanted + len(log.lines) + 1)) if missing not in later]
    if not gone:
        log.add(place, "moved", f"line {number} stands where line {wanted} should, which comes later")
        return
    which = f"line {wanted} is" if number == wanted + 1 else f"lines {wanted} to {number - 1} are"
    log.add(place, "deleted", f"{which} missing before line {number}")
