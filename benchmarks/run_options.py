"""What the benchmarks of many runs share: their arguments, and the files that their tables go to."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

from machine import machine
from run_table import RESULTS, Row, RunTable

__all__ = ["RunReport", "run_parser"]


def run_parser(
    description: str | None, *, quick: str, seeds: int, seeds_help: str | None = None, parallel: bool = True
) -> argparse.ArgumentParser:
    """The parser of --quick, --seeds, --jobs, --minutes and --fresh, to which a benchmark adds its own.

    Parameters
    ----------
    description : str, optional
        The script's docstring, shown as it is.
    quick, seeds_help : str
        Helps of --quick and --seeds.
    seeds : int
        Default of --seeds.
    parallel : bool
        Whether runs are processes of their own, of which --jobs go on at a time.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--seeds", type=int, default=seeds, help=seeds_help)
    if parallel:
        parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="take up no new run after so long")
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    return parser


class RunReport:
    """Table, text and figure of `benchmarks/NAME.py`: results/NAME.{json,md,png}, with --quick results/NAME-quick.*.

    Attributes
    ----------
    table : RunTable
        Rows that are there already are kept, but with --fresh.
    path : Path
        The files' common path, without an ending.
    """

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self._script = f"benchmarks/{name}.py"
        self.path = RESULTS / (f"{name}-quick" if arguments.quick else name)
        self.table = RunTable(self.path.with_suffix(".json"), fresh=arguments.fresh)

    def write(self, text: str, plot: Callable[[list[Row], Path], None]) -> None:
        """Write the text, with the machine below it, and the figure; show the text."""
        text += f"\nMade by `python {self._script}` on {json.dumps(machine('torch'))}.\n"
        self.path.with_suffix(".md").write_text(text)
        plot(self.table.rows, self.path.with_suffix(".png"))
        print(text)
