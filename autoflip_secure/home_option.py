"""What commands about a party's home share: the option --home, and how facts are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BaseImageOption", "HomeOption", "Json", "OutOption", "UserOption", "print_facts", "print_paths"]

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="AUTOFLIP_SECURE_HOME", help="the party's folder", show_default="./")
]
Json = Annotated[bool, typer.Option("--json", help="as JSON on stdout")]
Lines = Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="last lines of each log")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="go on with what is added")]
OutOption = Annotated[Path, typer.Option("--out", help="folder to write; no party's home")]
UserOption = Annotated[str, typer.Option("--user", help="account that owns the home and runs the unit")]
BaseImageOption = Annotated[
    str | None,
    typer.Option("--base-image", help="image to build on, with its tag and maybe @sha256:DIGEST [Python's own, slim]"),
]


def print_paths(paths: Iterable[Path]) -> None:
    """One path a line."""
    for path in paths:
        print(path)


def print_facts(facts: dict[str, str], *, json: bool) -> None:
    """One fact a line, or all of them as a JSON object."""
    if json:
        import json as codec

        codec.dump(facts, sys.stdout, indent=1)
        print()
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
