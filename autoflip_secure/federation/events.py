"""events.jsonl and metrics.jsonl: one JSON object a line, flushed as it is written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["JsonLines", "read_json_lines"]


class JsonLines:
    """Append-only log of JSON objects."""

    def __init__(self, path: Path, *, stamp: bool = False) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._stamp = stamp

    def write(self, **fields: Any) -> None:
        """Append one line."""
        if self._stamp:
            fields = {"time": round(time.time(), 3), **fields}
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a log; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
