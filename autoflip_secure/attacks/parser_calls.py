"""A parser, how it is called, and inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoflip_secure.attacks.parser_samples import function_of

__all__ = ["Call", "Parser", "a_file", "as_bytes", "as_text", "in_folder"]

Call = Callable[[Any, bytes, Path], object]


@dataclass(frozen=True)
class Parser:
    """One way into the package.

    Attributes
    ----------
    name : str
        `module:function` or `module:Class.method`, without the package's own name.
    samples : sequence of bytes
        Inputs that are taken.
    call : callable
        call(function, input, folder): has the function read the input; the folder is empty and its own.
    variant : str
        Tells apart parsers of one name.
    """

    name: str
    samples: Sequence[bytes]
    call: Call
    variant: str = ""

    def read(self, data: bytes, folder: Path) -> object:
        """Have it read an input."""
        return self.call(function_of(self.name), data, folder)

    def __str__(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name


def as_bytes(function: Any, data: bytes, _: Path) -> object:
    return function(data)


def as_text(function: Any, data: bytes, _: Path) -> object:
    return function(data.decode("utf-8", "replace"))


def a_file(name: str) -> Call:
    """Has the function read a file of that name, which its owner alone can read, to its end."""

    def call(function: Any, data: bytes, folder: Path) -> object:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
        found = function(path)
        return list(found) if isinstance(found, Iterator) else found

    return call


def in_folder(name: str, others: dict[str, bytes], squeeze: Callable[[bytes], bytes] = bytes) -> Call:
    """Has the function read a folder with one file made of the input, compressed by `squeeze`, and other whole ones."""

    def call(function: Any, data: bytes, folder: Path) -> object:
        for path, content in {**others, name: squeeze(data)}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return function(folder)

    return call
