"""A party's audit log: a JSON line for everything that leaves it, signed, and chained to the line before.

A line is `{"n":..,"time":..,"kind":..,...,"salt":..,"previous":..,"digest":..,"signature":..}`, its digest SHA-256 over
all that stands before the digest, as it stands there: nothing has to be written anew to check it. The salt keeps a
digest from telling what its line says. Number and digest of the last line, signed, are the log's head. It leaves with
every message, so whoever has seen one can tell later whether the log still holds that line.

Files are opened for each line and locked meanwhile, so that several processes may write one log in turn.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from autoflip_secure.errors import ProtocolError, StorageError
from autoflip_secure.parties.identity import Identity, verify
from autoflip_secure.storage import OWNER_ONLY, storing

__all__ = ["AUDIT_FILE", "AuditLog", "Head", "LogLine", "read_line", "witnessed_in"]

AUDIT_FILE = "audit.jsonl"
VERSION = 1
HEAD_DOMAIN = b"autoflip-secure/audit-head"
LINE_DOMAIN = b"autoflip-secure/audit-line|"
DIGEST_BYTES, SIGNATURE_BYTES, SALT_BYTES = 32, 64, 16
FIRST = bytes(DIGEST_BYTES)
"""What the first line names as the digest of the line before."""

MAX_COUNT = (1 << 53) - 1
RESERVED = frozenset({"n", "time", "kind", "salt", "previous", "digest", "signature"})
_LINE = re.compile(rb'(\{.*),"digest":"([0-9a-f]{64})","signature":"([0-9a-f]{128})"\}', re.DOTALL)


@dataclass(frozen=True)
class Head:
    """What a log held at some time: this many lines, the last of this digest, signed by the party whose log it is."""

    count: int
    digest: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if type(self.count) is not int or not 1 <= self.count <= MAX_COUNT:
            raise ProtocolError("the head of an audit log counts at least one line")
        for value, size in ((self.digest, DIGEST_BYTES), (self.signature, SIGNATURE_BYTES)):
            if type(value) is not bytes or len(value) != size:
                raise ProtocolError("the head of an audit log has a digest of 32 and a signature of 64 bytes")

    @classmethod
    def signed(cls, count: int, digest: bytes, identity: Identity) -> Head:
        """A head of this party's own log."""
        return cls(count, digest, identity.sign(HEAD_DOMAIN, _head_body(count, digest)))

    def is_of(self, public: bytes) -> bool:
        """Whether the party with this identity signed it."""
        return verify(public, HEAD_DOMAIN, _head_body(self.count, self.digest), self.signature)

    def row(self) -> list[Any]:
        """Count, digest, signature."""
        return [self.count, self.digest, self.signature]

    def to_bytes(self) -> bytes:
        """As it travels with a message."""
        return bytes(msgpack.packb(self.row()))

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Inverse of `to_bytes`; ProtocolError for anything else."""
        try:
            count, digest, signature = msgpack.unpackb(data)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise ProtocolError("not the head of an audit log") from error
        head = cls(count, digest, signature)
        if head.to_bytes() != data:
            raise ProtocolError("not the head of an audit log: its bytes are not canonical")
        return head


def _head_body(count: int, digest: bytes) -> bytes:
    return bytes(msgpack.packb([count, digest]))


@dataclass(frozen=True)
class LogLine:
    """One line as it stands in a file, whether or not it is what was once written there.

    Attributes
    ----------
    fields : mapping
        All that the line says, but for digest and signature.
    digest, signature : bytes
        As the line states them.
    actual : bytes
        Digest of what the line says.
    """

    fields: Mapping[str, Any]
    digest: bytes
    signature: bytes
    actual: bytes

    @property
    def number(self) -> int:
        return int(self.fields["n"])

    @property
    def kind(self) -> str:
        return str(self.fields["kind"])

    @property
    def previous(self) -> bytes:
        return bytes.fromhex(self.fields["previous"])

    @property
    def head(self) -> Head:
        """The head that the log had when this line was its last."""
        return Head(self.number, self.digest, self.signature)


def read_line(raw: bytes) -> LogLine:
    """A line without its end; ValueError, in words, where it is none."""
    found = _LINE.fullmatch(raw)
    if found is None:
        raise ValueError("does not end with a digest and a signature")
    text, digest, signature = found.groups()
    try:
        fields = json.loads(text + b"}")
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    number, previous = fields.get("n"), fields.get("previous")
    if type(number) is not int or not 1 <= number <= MAX_COUNT or type(fields.get("kind")) is not str:
        raise ValueError("has no number or no kind")
    if type(previous) is not str or re.fullmatch("[0-9a-f]{64}", previous) is None:
        raise ValueError("does not name the line before")
    return LogLine(fields, bytes.fromhex(digest.decode()), bytes.fromhex(signature.decode()), _digest(text))


def witnessed_in(line: LogLine) -> dict[bytes, Head]:
    """Heads of other parties' logs that a line holds, by identity; ProtocolError where they cannot be heads."""
    found = {}
    try:
        for public, (count, digest, signature) in line.fields.get("witnessed", {}).items():
            found[bytes.fromhex(public)] = Head(count, bytes.fromhex(digest), bytes.fromhex(signature))
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError("the heads that the line holds are none") from error
    return found


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(LINE_DOMAIN + text).digest()


class AuditLog:
    """The log of one party, for writing. Nothing is written before the first line is asked for.

    The chain is checked once in a process, from the first line on, and the signature of the last line.

    Parameters
    ----------
    path : Path
        Made with mode 0600.
    identity : Identity
        Signs every line.
    party : str
        Whose log it is, in words, for the first line.
    """

    def __init__(self, path: Path, identity: Identity, party: str) -> None:
        self._path, self._identity, self._party = path, identity, party
        self._digests: list[bytes] = []
        self._read = 0
        self._torn = b""
        self._signature = b""
        self._witnessed: dict[bytes, Head] = {}
        self._damage = ""

    @property
    def head(self) -> Head | None:
        """Head after the last line read or written here; None while there is none."""
        return Head(len(self._digests), self._digests[-1], self._signature) if self._digests else None

    @property
    def witnessed(self) -> Mapping[bytes, Head]:
        """Newest head of every other log that this one holds, by identity."""
        return self._witnessed

    def has(self, head: Head) -> bool:
        """Whether this was a head of this log."""
        return head.count <= len(self._digests) and self._digests[head.count - 1] == head.digest

    def refresh(self) -> None:
        """Read what other processes wrote since.

        Raises
        ------
        StorageError
            The file cannot be read, or its lines are not a chain of this party's: nothing is to be sent.
        """
        if self._path.exists() or self._digests:
            with self._locked() as file:
                self._catch_up(file)

    def append(
        self, kind: str, *, sync: bool = True, witnessed: Mapping[bytes, Head] | None = None, **facts: Any
    ) -> Head:
        """Write a line; on disk when this returns, unless `sync` is false: then with the next line for which it is not.

        Parameters
        ----------
        witnessed : mapping of bytes to Head, optional
            Heads of other logs, by identity.
        facts
            Whatever JSON holds; bytes are written as hexadecimal digits.

        Returns
        -------
        Head
            To leave with the message that the line is about.

        Raises
        ------
        StorageError
            As for `refresh`, or the disk refused; the lines before are kept, and nothing is to be sent.
        """
        if witnessed:
            facts["witnessed"] = {
                public.hex(): [h.count, h.digest.hex(), h.signature.hex()] for public, h in witnessed.items()
            }
        with self._locked() as file:
            self._catch_up(file)
            lines: list[tuple[str, dict[str, Any]]] = [(kind, facts)]
            if self._torn:
                lines.insert(0, ("torn", {"bytes": len(self._torn), "sha256": hashlib.sha256(self._torn).digest()}))
            if not self._digests:
                lines.insert(0, ("opened", {"version": VERSION, "key": self._identity.public, "party": self._party}))
            self._write(file, lines, sync=sync)
        self._witnessed.update(witnessed or {})
        head = self.head
        assert head is not None
        return head

    @contextmanager
    def _locked(self) -> Iterator[int]:
        with storing(self._path):
            if not self._path.exists():
                _create(self._path)
            file = os.open(self._path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            finally:
                os.close(file)

    def _catch_up(self, file: int) -> None:
        """Check and take in what stands behind the last line known here. What was damaged once is not read again."""
        if self._damage:
            raise self._damaged(self._damage)
        size = os.fstat(file).st_size
        if size < self._read:
            raise self._damaged("is shorter than it was")
        *lines, self._torn = _read_at(file, self._read, size).split(b"\n")
        for raw in lines:
            self._take(raw)
        if lines:
            head = self.head
            assert head is not None
            if not head.is_of(self._identity.public):
                raise self._damaged(f"line {head.count} is not signed by this party's identity")

    def _take(self, raw: bytes) -> None:
        number = len(self._digests) + 1
        try:
            line = read_line(raw)
            witnessed = witnessed_in(line)
        except (ValueError, ProtocolError) as error:
            raise self._damaged(f"line {number}: {error}") from None
        before = self._digests[-1] if self._digests else FIRST
        if (line.number, line.previous, line.digest) != (number, before, line.actual):
            raise self._damaged(f"line {number} is not the one that was written after line {number - 1}")
        self._took(line.digest, line.signature, len(raw) + 1)
        self._witnessed.update(witnessed)

    def _took(self, digest: bytes, signature: bytes, size: int) -> None:
        self._digests.append(digest)
        self._signature = signature
        self._read += size

    def _write(self, file: int, lines: list[tuple[str, dict[str, Any]]], *, sync: bool) -> None:
        digests, data = self._digests[-1:] or [FIRST], b""
        heads: list[tuple[Head, int]] = []
        for kind, facts in lines:
            head, raw = self._made(len(self._digests) + len(heads) + 1, digests[-1], kind, facts)
            digests.append(head.digest)
            heads.append((head, len(raw)))
            data += raw
        try:
            _write_at(file, data, self._read)
            if self._torn:
                os.ftruncate(file, self._read + len(data))
            if sync:
                os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, self._read)
            raise
        self._torn = b""
        for head, size in heads:
            self._took(head.digest, head.signature, size)

    def _made(self, number: int, previous: bytes, kind: str, facts: dict[str, Any]) -> tuple[Head, bytes]:
        if RESERVED & facts.keys():
            raise ValueError(f"a line of an audit log has its own {', '.join(sorted(RESERVED & facts.keys()))}")
        fields = {"n": number, "time": round(time.time(), 3), "kind": kind, **facts}
        fields |= {"salt": os.urandom(SALT_BYTES), "previous": previous}
        text = json.dumps(fields, separators=(",", ":"), allow_nan=False, default=_hex)[:-1].encode()
        head = Head.signed(number, _digest(text), self._identity)
        end = f',"digest":"{head.digest.hex()}","signature":"{head.signature.hex()}"}}\n'
        return head, text + end.encode()

    def _damaged(self, what: str) -> StorageError:
        self._damage = what
        return StorageError(
            f"the audit log {self._path} {what}; nothing was sent; see `autoflip-secure audit verify {self._path}`, "
            "and restore the file from a backup"
        )

    def __repr__(self) -> str:
        return f"AuditLog({self._path}, {len(self._digests)} lines)"


def _hex(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"no line of an audit log holds a {type(value).__name__}")


def _create(path: Path) -> None:
    """An empty file, readable by its owner, that survives a power loss; another process may be first."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY))
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read_at(file: int, start: int, end: int) -> bytes:
    parts = []
    while start < end:
        part = os.pread(file, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _write_at(file: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written
