"""Reads what was appended to a log of JSON lines since the last look, and notices when the log was written anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["JsonTail", "Stamp", "stamp_of"]

REMEMBERED = 64
"""Bytes before the place read up to, which must still be there at the next look."""

Stamp = tuple[int, int, int] | None
"""Inode, size and time of the last change of a file; None where there is none."""


def stamp_of(path: Path) -> Stamp:
    """What tells one state of a file from another without reading it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass
class JsonTail:
    """Follows one log.

    A resumed run rewrites its logs. That shows by another inode, by a shorter file, or by other bytes before the place
    read up to; all is then read again, and `generation` goes up.

    Attributes
    ----------
    path : Path
    generation : int
        How often the log began anew.
    damaged : int
        Lines that were no JSON object and were left out.
    """

    path: Path
    generation: int = 0
    damaged: int = 0
    _inode: int = 0
    _place: int = 0
    _before: bytes = b""

    def appended(self) -> Iterator[dict[str, Any]]:
        """Objects of whole lines added since the last call; all of them where `generation` went up.

        The generator has to be used up: the place is kept line by line.
        """
        try:
            file = self.path.open("rb")
        except OSError:
            if self._place:
                self._begin_anew(0)
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if self._place and not self._is_continued(file, inode):
                self._begin_anew(inode)
            self._inode = inode
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._place += len(line)
                self._before = (self._before + line)[-REMEMBERED:]
                value = _object(line)
                if value is None:
                    self.damaged += 1
                else:
                    yield value

    def _is_continued(self, file: Any, inode: int) -> bool:
        file.seek(self._place - len(self._before))
        return inode == self._inode and file.read(len(self._before)) == self._before

    def _begin_anew(self, inode: int) -> None:
        self.generation += 1
        self._inode, self._place, self._before, self.damaged = inode, 0, b"", 0


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
