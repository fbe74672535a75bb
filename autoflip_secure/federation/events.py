"""events.jsonl and metrics.jsonl: one JSON object a line, flushed as it is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autoflip_secure.errors import DataError
from autoflip_secure.storage import storing, write_atomically

__all__ = ["JsonLines", "keep_lines", "read_json_lines"]


class JsonLines:
    """Append-only log of JSON objects."""

    def __init__(self, path: Path, *, stamp: bool = False) -> None:
        _cut_to_whole_lines(path)
        self._path = path
        with storing(path):
            self._file = path.open("a", encoding="utf-8")
        self._stamp = stamp

    def write(self, **fields: Any) -> None:
        """Append one line."""
        if self._stamp:
            fields = {"time": round(time.time(), 3), **fields}
        with storing(self._path):
            self._file.write(json.dumps(fields) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a log without the lines a resumed run will write again."""
    kept = [json.dumps(line) + "\n" for line in read_json_lines(path) if wanted(line)]
    if path.exists():
        write_atomically(path, "".join(kept).encode())


def _cut_to_whole_lines(path: Path) -> None:
    """A crash may have cut the last line short: what follows must not be appended to it."""
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            write_atomically(path, data[:whole])


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a log; a last line cut short by a crash is left out.

    Raises
    ------
    DataError
        A whole line is not JSON; the message names it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    read = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: not a line of JSON ({error}); restore the file") from error
                yield read
