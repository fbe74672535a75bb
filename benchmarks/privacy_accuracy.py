"""`make bench-privacy`: accuracy at a price in privacy, each figure a run of the command line itself.

    python benchmarks/privacy_accuracy.py [--quick] [--minutes M] [--jobs J] [--all] [--fresh] [--only TEXT]

The grid is epsilon x trust mode x method x partition x silos x data set (`privacy_grid.py`). Two cores run the part of
it that tells most, up to five seeds; --all runs everything on a larger machine. Rows already in
results/privacy.json are kept, so an interrupted benchmark goes on; --minutes stops taking up new runs after a while.
Each run's epsilon is recomputed from its ledgers' lines with dp-accounting PLD.

Writes results/privacy.{json,md,png}; with --quick results/privacy-quick.*, and brief audit and noise tables beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import machine
from privacy_bounds import MEASURES, references
from privacy_grid import EMBEDDED, PARTITIONS, SEEDS, SILOS, Cell, all_cells, quick, runs_here
from privacy_tables import markdown, plot
from run_table import DATA, RESULTS, RunTable, run_simulation

KEPT = (
    "accuracy", "auroc", "c_index", "loss", "epsilon_spent", "flops_ratio", "params_ratio", "upload_ratio_total",
    "rounds", "rounds_aborted", "seconds_total",
)  # fmt: skip


def run(cell: Cell, seed: int) -> dict[str, Any]:
    """One run of the command line: its figures, exact scores, and epsilon by a second accountant."""
    from exact_scores import exact_scores
    from ledger_epsilons import largest_epsilons

    with tempfile.TemporaryDirectory() as folder:
        summary = run_simulation(cell.options(), seed, Path(folder) / "run", data=cell.dataset not in EMBEDDED)
        figures = {name: summary.get(name) for name in KEPT}
        if summary["accuracy"] is None or not (Path(folder) / "run" / "public_test.npz").exists():
            figures["exact"] = exact_scores(Path(folder) / "run")
        if cell.epsilon is not None:
            figures["epsilons"] = largest_epsilons(Path(folder) / "run")
        return figures


def wanted_runs(runs: list[tuple[Cell, int]], table: RunTable) -> list[tuple[Cell, int]]:
    """Those that are not there yet and have data."""
    absent = {cell.dataset for cell, _ in runs if cell.dataset not in EMBEDDED and not DATA.is_dir()}
    for dataset in sorted(absent):
        print(f"{dataset}: skipped, no data at {DATA}", file=sys.stderr)
    return [(c, s) for c, s in runs if c.dataset not in absent and not table.has(c.options(), s)]


def work_through(runs: list[tuple[Cell, int]], table: RunTable, jobs: int, deadline: float) -> None:
    """Run them, `jobs` at a time, until the deadline."""
    left = [len(runs)]

    def one(item: tuple[Cell, int]) -> None:
        cell, seed = item
        if time.monotonic() > deadline:
            return
        figures = run(cell, seed)
        table.add({"cell": asdict(cell), "options": cell.options(), "seed": seed, "figures": figures})
        left[0] -= 1
        score = measure(cell, figures)
        print(f"{cell.options()} seed {seed}: {score} ({left[0]} to go)", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))


def measure(cell: Cell, figures: dict[str, Any]) -> float | None:
    """The score a cell is judged by: exact where the run itself scored through noise."""
    name = MEASURES.get(cell.dataset, "accuracy")
    return (figures.get("exact") or figures).get(name)


def add_bounds(runs: list[tuple[Cell, int]], table: RunTable, deadline: float, *, alone: bool) -> None:
    """Pooled and local-only references of every (data set, model, epsilon) with a run of the usual silos."""
    settings: dict[tuple[Any, ...], int] = {}
    for cell, seed in runs:
        usual = cell.partition in (PARTITIONS[0], "natural") and cell.silos in (SILOS[0], None)
        if usual and table.has(cell.options(), seed) and cell.method == "dense":
            key = (cell.dataset, cell.model, cell.epsilon, cell.partition, cell.silos)
            settings[key] = min(2, max(seed + 1, settings.get(key, 0)))
    for (dataset, model, epsilon, partition, silos), seeds in settings.items():
        for seed in range(seeds):
            known = {"dataset": dataset, "model": model, "epsilon": epsilon, "partition": partition, "silos": silos}
            if any(all(row[k] == v for k, v in known.items()) and row["seed"] == seed for row in table.bounds):
                continue
            if time.monotonic() > deadline or (dataset not in EMBEDDED and not DATA.is_dir()):
                return
            options = {"dataset": dataset, "model": model, "dp_epsilon": epsilon, "partition": partition}
            options |= {"silos": silos, "data_dir": DATA}
            given = {name: value for name, value in options.items() if value is not None}
            table.add({**known, "seed": seed, **references(given, seed, alone=alone)}, "bounds")


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="six cells, one seed, pooled bounds; about eight minutes with what follows"
    )
    parser.add_argument("--all", action="store_true", help="the whole grid, five seeds: for a larger machine")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="take up no new run after so long")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings whose command line contains TEXT")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    name = "privacy-quick" if arguments.quick else "privacy"
    table = RunTable(RESULTS / f"{name}.json", fresh=arguments.fresh)
    everything = [(cell, seed) for seed in range(SEEDS) for cell in all_cells()]
    runs = quick() if arguments.quick else everything if arguments.all else runs_here()
    deadline = time.monotonic() + 60 * arguments.minutes
    taken = [(cell, seed) for cell, seed in runs if arguments.only in cell.options()]
    work_through(wanted_runs(taken, table), table, arguments.jobs, deadline)
    add_bounds(taken, table, deadline, alone=not arguments.quick)
    text = markdown(table.rows, table.bounds, machine("torch"), missing=len(wanted_runs(runs, table)))
    (RESULTS / f"{name}.md").write_text(text)
    plot(table.rows, table.bounds, RESULTS / f"{name}.png")
    print(text)


if __name__ == "__main__":
    main()
