"""python -m autoflip_secure.attacks NAME : one attack, its outcomes as they come."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from autoflip_secure.attacks.outcome import Outcome, Scale
from autoflip_secure.attacks.registry import MODULES, load_attack
from autoflip_secure.errors import ConfigError
from autoflip_secure.options import run_command
from autoflip_secure.storage import folder_in_memory

__all__ = ["app", "attack", "main"]

EXIT_BROKEN = 3

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Name = Annotated[str, typer.Argument(help=f"one of {', '.join(MODULES)}")]
Quick = Annotated[bool, typer.Option("--quick", help="the small form: minutes")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object a line, in place of a sentence")]
Data = Annotated[Path | None, typer.Option("--data-dir", help="folder of data sets (README); none: embedded digits")]
Pictures = Annotated[Path | None, typer.Option("--pictures", help="folder for the figures an attack draws")]


@app.command()
def attack(
    name: Name, *, quick: Quick = False, as_json: Json = False, data_dir: Data = None, pictures: Pictures = None
) -> None:
    """Run an attack against this installation; exit code 3 where a promise is broken."""
    found = load_attack(name)
    for folder in (data_dir, pictures):
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
    broken = False
    # The runs of the full forms may be more than memory holds.
    folder = folder_in_memory() if quick else None
    with tempfile.TemporaryDirectory(prefix="autoflip-attack-", dir=folder) as work:
        for outcome in found.run(Scale(quick, Path(work), data_dir, pictures)):
            broken |= outcome.verdict == "broken"
            typer.echo(json.dumps(outcome.to_json()) if as_json else sentence(outcome))
            sys.stdout.flush()
    if broken:
        raise typer.Exit(EXIT_BROKEN)


def sentence(outcome: Outcome) -> str:
    """One line for people."""
    against = [f"{word} {value:.3g}" for word, value in (("without it", outcome.chance), ("bound", outcome.bound))
               if value is not None]  # fmt: skip
    interval = f"[{outcome.low:.3g}, {outcome.high:.3g}]"
    figures = ", ".join([f"{outcome.measure} {outcome.value:.3g} {interval}", *against])
    return f"{outcome.attack}, {outcome.setting}: {figures}: {outcome.verdict}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 (bad input), 3 (a promise is broken)."""
    return run_command(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
