"""Runs of the command line as rows on disk, kept after each run, so that an interrupted benchmark goes on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import machine

__all__ = ["DATA", "RESULTS", "RunTable", "run_simulation", "simulate"]

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"

Row = dict[str, Any]


class RunTable:
    """Rows, one a setting and seed, and the bounds they are measured against where a benchmark has some.

    Parameters
    ----------
    path : Path
        The JSON file; rows already there are kept.
    fresh : bool
        Forget them.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path, self._lock = path, threading.Lock()
        kept = {} if fresh or not path.exists() else json.loads(path.read_text())
        self.rows: list[Row] = kept.get("rows", [])
        self.bounds: list[Row] = kept.get("bounds", [])

    def has(self, options: str, seed: int) -> bool:
        """Whether the run is there."""
        return any((row["options"], row["seed"]) == (options, seed) for row in self.rows)

    def add(self, row: Row, kind: str = "rows") -> None:
        """Keep one of `rows` or `bounds`, on disk too: one line each, so that a file stays readable in a diff."""
        with self._lock:
            getattr(self, kind).append(row)
            self._path.parent.mkdir(exist_ok=True)
            parts = [f'"machine": {json.dumps(machine("torch"))}']
            for name, content in (("rows", self.rows), ("bounds", self.bounds)):
                lines = ",\n".join(json.dumps(item) for item in content)
                parts += [f'"{name}": [\n{lines}\n]'] if content else []
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text("{" + ",\n".join(parts) + "}\n")
            fresh.replace(self._path)

    def fill(
        self, wanted: Sequence[tuple[Row, str, int]], jobs: int, minutes: float, run: Callable[[str, int], Row]
    ) -> None:
        """Run what is missing of (facts, options, seed), `jobs` at a time; figures join them in the row.

        After so many minutes no new run is taken up.
        """
        deadline = time.monotonic() + 60 * minutes
        missing = [item for item in wanted if not self.has(item[1], item[2])]
        left = [len(missing)]

        def one(item: tuple[Row, str, int]) -> None:
            facts, options, seed = item
            if time.monotonic() > deadline:
                return
            figures = run(options, seed)
            self.add({**facts, "options": options, "seed": seed, "figures": figures})
            left[0] -= 1
            shown = figures.get("accuracy")
            print(f"{options} --seed {seed}: {shown} ({left[0]} to go)", file=sys.stderr, flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, missing))


def run_simulation(options: str, seed: int, run: Path, *, data: bool) -> Row:
    """One run of the command line on one core, kept in the folder `run`; its summary.

    Raises
    ------
    RuntimeError
        The run failed; the message is its own.
    """
    command = [sys.executable, "-m", "autoflip_secure.sim", *shlex.split(options), "--seed", str(seed)]
    command += ["--run-dir", str(run), "--workers", "0", "--summary", "json", "--quiet", "--no-report"]
    command += ["--data-dir", str(DATA)] if data else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {ended.stderr.strip()}")
    summary: Row = json.loads(ended.stdout.splitlines()[-1])
    return summary


def nothing_more(run: Path) -> Row:
    """Of a run's folder, no more than `simulate` reads."""
    return {}


def simulate(
    options: str,
    seed: int,
    figures: Sequence[str],
    *,
    data: bool,
    read: Callable[[Path], Row] = nothing_more,
) -> Row:
    """One run that is not kept: the figures of its summary, its accuracy by round, and what `read` makes of its folder.

    Raises as `run_simulation`.
    """
    with tempfile.TemporaryDirectory() as folder:
        summary = run_simulation(options, seed, Path(folder) / "run", data=data)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        curve = [(line["round"], line["accuracy"]) for line in map(json.loads, lines) if "accuracy" in line]
        return {**{name: summary.get(name) for name in figures}, "curve": curve, **read(Path(folder) / "run")}
