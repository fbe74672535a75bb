"""The heads of all parties' audit logs, as the coordinator shows them to every silo, and a silo's checks of them.

A manifest names the hash of the list, so silos that are shown different lists get masks that do not cancel. A silo sees
the coordinator's head and those of its own block, and of the other blocks their hashes: the list grows by 34 bytes for
up to 32 silos, not by 3 kilobytes, and still every silo's head stands in at least 15 other logs, or in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation.audit_log import AuditLog, Head
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import refusal

__all__ = ["BLOCK", "HeadList", "ShownHeads", "check_heads"]

BLOCK = 32
"""Most silos of a block. Blocks are about equal, so with more than one each has half as many or more."""
Range = tuple[int, int, bytes]
"""First and last silo of a block, and its hash. No silo is in two blocks, so all of one are shown the same one."""

LIST_DOMAIN = b"autoflip-secure/audit-heads|"
BLOCK_DOMAIN = b"autoflip-secure/audit-heads-block|"


@dataclass(frozen=True)
class HeadList:
    """The newest head of the coordinator and of every silo of a run, by id."""

    coordinator: Head
    silos: Mapping[int, Head]

    def _blocks(self) -> list[bytes]:
        rows = [[silo, *head.row()] for silo, head in sorted(self.silos.items())]
        return [bytes(msgpack.packb(rows[start:end])) for start, end in self._edges()]

    def _edges(self) -> list[tuple[int, int]]:
        silos, blocks = len(self.silos), -(-len(self.silos) // BLOCK)
        return [(silos * block // blocks, silos * (block + 1) // blocks) for block in range(blocks)]

    def _ranges(self, blocks: list[bytes]) -> list[Range]:
        ordered = sorted(self.silos)
        return [
            (ordered[start], ordered[end - 1], _block_hash(block))
            for (start, end), block in zip(self._edges(), blocks, strict=True)
        ]

    def hash(self) -> bytes:
        """What the manifest names, 32 bytes."""
        return _hash(self.coordinator, self._ranges(self._blocks()))

    def shown(self) -> dict[int, bytes]:
        """By silo, what travels to it; the same object for all silos of a block."""
        blocks = self._blocks()
        ranges = self._ranges(blocks)
        parts = [bytes(msgpack.packb([self.coordinator.row(), n, block, ranges])) for n, block in enumerate(blocks)]
        ordered = sorted(self.silos)
        return {
            silo: part for part, (start, end) in zip(parts, self._edges(), strict=True) for silo in ordered[start:end]
        }


@dataclass(frozen=True)
class ShownHeads:
    """What one silo is shown of a list, and the hash of the whole."""

    coordinator: Head
    silos: Mapping[int, Head]
    hash: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> ShownHeads:
        """Read what travelled; ProtocolError where it is none."""
        try:
            coordinator, place, block, ranges = msgpack.unpackb(data)
            rows: list[list[Any]] = msgpack.unpackb(block)
            head, heads = Head(*coordinator), {row[0]: Head(*row[1:]) for row in rows}
            if any(type(silo) is not int or silo < 1 for silo in heads) or [row[0] for row in rows] != sorted(heads):
                raise ProtocolError("a list of audit heads names each silo once, by its id, in their order")
            own = [min(heads), max(heads), _block_hash(block)]
            if len(rows) > BLOCK or type(place) is not int or place < 0 or ranges[place] != own:
                raise ProtocolError("the audit heads shown are not those of their block")
            if len(ranges) > 1 and len(rows) < BLOCK // 2:
                raise ProtocolError("the block of audit heads shown is smaller than blocks of so long a list are")
            edges = [edge for first, last, _ in ranges for edge in (first, last + 1)]
            if edges != sorted(edges) or any(first > last for first, last, _ in ranges):
                raise ProtocolError(
                    "blocks of audit heads overlap, so that others may be shown another one in its place"
                )
            whole = _hash(head, ranges)
        except (ValueError, TypeError, LookupError, msgpack.exceptions.UnpackException) as error:
            raise ProtocolError("not a list of audit heads") from error
        return cls(head, heads, whole)


def _block_hash(block: bytes) -> bytes:
    return hashlib.sha256(BLOCK_DOMAIN + block).digest()


def _hash(coordinator: Head, ranges: Sequence[Range]) -> bytes:
    return hashlib.sha256(LIST_DOMAIN + msgpack.packb([coordinator.row(), ranges])).digest()


def check_heads(data: bytes, heads_hash: bytes, silo: int, roster: Roster, log: AuditLog) -> dict[bytes, Head]:
    """The heads that a silo is shown with a manifest, by identity, without those its log has already, and its own.

    Raises
    ------
    Refusal
        Rule `heads`: not the list the manifest names, without this silo or with a head it never had, one that is not
        signed by its party, or one that goes back behind an earlier one.
    """
    if not data:
        raise refusal("heads", "the request shows no heads of audit logs, so nobody would witness this silo's log")
    try:
        shown = ShownHeads.from_bytes(data)
    except ProtocolError as error:
        raise refusal("heads", str(error)) from error
    if shown.hash != heads_hash:
        raise refusal("heads", "the heads shown are not those that the manifest names; others may have been shown more")
    own = shown.silos.get(silo)
    if own is None or not log.has(own):
        what = "leaves this silo out" if own is None else f"has a head of {own.count} lines that this log never had"
        raise refusal(
            "heads",
            f"the list {what}; if this log was restored from a backup, its last lines are lost for ever, and the silo "
            "has to be enrolled again with a new identity and an empty log",
        )
    new = {}
    for number, head in [(0, shown.coordinator), *shown.silos.items()]:
        if number == silo:
            continue
        if number and number not in roster:
            raise refusal("heads", f"silo {number} of the list is not in the roster")
        public = roster.public(number) if number else roster.coordinator
        whose = f"silo {number}" if number else "the coordinator"
        if _is_new(log.witnessed.get(public), head, whose):
            if not head.is_of(public):
                raise refusal("heads", f"head {head.count} of {whose} is not signed by it")
            new[public] = head
    return new


def _is_new(known: Head | None, head: Head, whose: str) -> bool:
    if known is None or head.count > known.count:
        return True
    if head.count < known.count or head.digest != known.digest:
        raise refusal(
            "heads",
            f"the audit log of {whose} is shown with {head.count} lines after it had {known.count}, or with another "
            "last line than before: its past was rewritten",
        )
    return False
