"""`make bench-threats`: every attack of threat_models/ against plain AutoFLIP, the secure sum, and that with DP.

    python benchmarks/threats.py [--quick] [--only NAME ...] [--jobs J] [--fresh]

Each attack is a process of its own (`python -m autoflip_secure.attacks NAME`) against real runs and real silo code.
Outcomes already in results/threats.json are kept but those of --only, so an interrupted benchmark goes on with the
next attack. Pages of threat_models/ show the table of the last run of theirs.

Writes results/threats.{json,md} (with --quick results/threats-quick.*), the tables in threat_models/*.md and figures in
threat_models/pictures/. Exit code 3 where an attack broke a promise, 1 where one did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import machine
from run_table import DATA, RESULTS
from threats_report import markdown, write_pages

from autoflip_secure.attacks.__main__ import EXIT_BROKEN, sentence
from autoflip_secure.attacks.outcome import Outcome
from autoflip_secure.attacks.registry import MODULES

PAGES = Path(__file__).parents[1] / "threat_models"
LONGEST_FIRST = ("label-sets", "malicious-silos", "membership", "gradient-inversion", "differences", "mask-leakage")
"""Begun first, so that no core waits for them at the end."""
ALONE = ("side-channels",)
"""Begun when all others are done: they measure times."""


class Outcomes:
    """What attacks came to, by attack, on disk after each."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path, self._lock = path, threading.Lock()
        kept = {} if fresh or not path.exists() else json.loads(path.read_text())
        self.attacks: dict[str, dict[str, Any]] = kept.get("attacks", {})

    def put(self, name: str, rows: list[dict[str, Any]], seconds: float) -> None:
        """Keep an attack's rows in place of what was there of it."""
        with self._lock:
            self.attacks[name] = {"seconds": round(seconds), "machine": machine("torch"), "rows": rows}
            ordered = {name: self.attacks[name] for name in MODULES if name in self.attacks}
            parts = []
            for attack, found in ordered.items():
                rest = json.dumps({key: value for key, value in found.items() if key != "rows"})[1:-1]
                lines = ",\n".join(json.dumps(row) for row in found["rows"])
                parts.append(f'"{attack}": {{{rest}, "rows": [\n{lines}\n]}}')
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text('{"attacks": {\n' + ",\n".join(parts) + "\n}}\n")
            fresh.replace(self._path)


def run_attack(name: str, *, quick: bool, draws: bool) -> list[dict[str, Any]]:
    """One attack in a process of its own, on one core; shows its outcomes as they come, and draws its figures if asked.

    Raises
    ------
    RuntimeError
        It stopped without an end; the message is its last line.
    """
    pictures = PAGES / "pictures"
    pictures.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "autoflip_secure.attacks", name, "--json"]
    command += ["--pictures", str(pictures)] if draws else []
    command += ["--quick"] if quick else []
    command += ["--data-dir", str(DATA)] if DATA.is_dir() else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows, said = [], "?"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        for line in child.stdout or ():
            if not line.startswith("{"):
                said = line.strip() or said
                continue
            rows.append(json.loads(line))
            print(f"{name}: {sentence(Outcome.from_json(rows[-1]))}", file=sys.stderr, flush=True)
    if child.returncode not in (0, EXIT_BROKEN):
        raise RuntimeError(f"{name}: exit code {child.returncode}: {said}")
    return rows


def main() -> int:
    """Run what is missing, and write table and pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small forms: under fifteen minutes on two cores")
    parser.add_argument("--only", nargs="+", choices=tuple(MODULES), help="run these again, and no others")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="attacks at a time")
    parser.add_argument("--fresh", action="store_true", help="forget the outcomes already there")
    arguments = parser.parse_args()
    path = RESULTS / ("threats-quick" if arguments.quick else "threats")
    outcomes = Outcomes(path.with_suffix(".json"), fresh=arguments.fresh and not arguments.only)
    wanted = arguments.only or [name for name in MODULES if name not in outcomes.attacks]
    wanted = sorted(wanted, key=lambda name: LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(MODULES))
    failed: dict[str, str] = {}
    full = Outcomes(RESULTS / "threats.json", fresh=False).attacks if arguments.quick else {}

    def one(name: str) -> None:
        started = time.perf_counter()
        try:
            # Pages show the full form where there is one, and so do their figures.
            rows = run_attack(name, quick=arguments.quick, draws=not (arguments.quick and name in full))
        except RuntimeError as error:
            failed[name] = str(error)
            print(error, file=sys.stderr, flush=True)
            return
        outcomes.put(name, rows, time.perf_counter() - started)

    began = time.perf_counter()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, [name for name in wanted if name not in ALONE]))
    for name in set(wanted) & set(ALONE):
        one(name)
    wall = time.perf_counter() - began
    whole = None if set(wanted) - set(failed) != set(MODULES) else wall
    text = markdown(outcomes.attacks, quick=arguments.quick, full=full, failed=list(failed), wall=whole)
    path.with_suffix(".md").write_text(text)
    write_pages(PAGES, RESULTS)
    print(text)
    print(f"{len(wanted) - len(failed)} attacks in {wall:.0f} s", file=sys.stderr)
    for line in failed.values():
        print(f"did not run: {line}", file=sys.stderr)
    rows = [Outcome.from_json(row) for attack in outcomes.attacks.values() for row in attack["rows"]]
    return 1 if failed else EXIT_BROKEN if any(row.verdict == "broken" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
