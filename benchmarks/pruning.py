"""`make bench-pruning`: AutoFLIP from sums beside other ways to prune, at equal FLOPs and through the same secure sum.

    python benchmarks/pruning.py [--quick] [--seeds 5] [--jobs J] [--minutes M] [--fresh] [--task NAME]

Each figure is a run of the command line. Every method explores in the first round and reaches the same share of the
dense network's measured FLOPs on a physically smaller network; `cold` starts training from the common start with the
mask that exploration chose, `warm` goes on from where exploration led. Differences to random units and to magnitude are
paired by seed. Rows already in results/pruning.json are kept, so an interrupted benchmark goes on.

Writes results/pruning.{json,md,png} and results/pruning_{accuracy,uploads,variance,guidance,fate}.png; with --quick
results/pruning-quick*.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import product
from pathlib import Path
from typing import Any

from machine import machine
from pruning_figures import DENSE_WITH_SQUARES, SHOWN, figures
from pruning_report import markdown, plot
from pruning_traces import importance_of, traces_of
from run_table import DATA, RESULTS, RunTable, simulate

TASKS = {
    "mnist5k, cnn-tanh, dirichlet:0.1": "--dataset mnist5k --model cnn-tanh --partition dirichlet:0.1 --rounds 40",
    "mnist5k, cnn6, pathological:2": "--preset quick-mnist --rounds 40",
    "cifar10 (JPEG copy), resnet-small, pathological:2": "--preset quick-cifar10",
    "MNIST by writer, cnn6": "--preset quick-femnist",
    "Shakespeare by speaker, char-lstm": "--preset quick-shakespeare",
}
EMBEDDED = tuple(TASKS)[:2]
DENSE = {
    "FedAvg": "--prune none",
    "FedProx": "--prune none --prox-mu 0.1",
    "FedAdam": "--prune none --server-optimizer adam",
    # Of plain FedAvg no squares are summed: how far silos are apart is read from a network of which nothing dies.
    DENSE_WITH_SQUARES: "--prune-flops 1 --prune-threshold 0 --no-warm-start",
}
PRUNED = {
    "random units": "--prune random",
    "magnitude": "--prune magnitude",
    "SNIP": "--prune snip",
    "PruneFL": "--prune prunefl",
    "FedDST, mask chosen from sums": "--prune feddst",
    "EFLPrune": "--prune eflprune",
    "FedMask, global mask": "--prune fedmask",
    "guidance": "--score guidance",
    "guidance x agreement": "--score guidance-agreement",
    "size x energy": "--score product",
    "size x energy x agreement": "--score product-agreement",
    "AutoFLIP (hybrid)": "--score hybrid",
}
TRACED = ("guidance x agreement", "AutoFLIP (hybrid)")
"""Importance is drawn of their first seed at one FLOP target, started warm."""
UNEXPLORED = ("random units", "FedDST, mask chosen from sums", "EFLPrune")
"""Nothing is explored first: no choice of start."""
STARTS = {"cold": "--no-warm-start", "warm": "--warm-start"}
FLOPS = (0.48, 0.25, 0.12)
FIGURES = (
    "accuracy", "loss", "flops_ratio", "params_ratio", "upload_ratio", "upload_ratio_total", "rounds_aborted",
    "agreement_final", "seconds_training", "seconds_total",
)  # fmt: skip


def settings(task: str, flops: tuple[float, ...], starts: tuple[str, ...]) -> list[tuple[dict[str, Any], str]]:
    """(facts, options) of every run of a task."""
    made = [
        ({"task": task, "method": method, "start": "", "flops": None}, f"{TASKS[task]} {options}")
        for method, options in DENSE.items()
    ]
    for kept, (method, options), start in product(flops, PRUNED.items(), starts):
        explored = method not in UNEXPLORED
        if not explored and start != starts[0]:
            continue
        facts = {"task": task, "method": method, "start": start if explored else "", "flops": kept}
        warmth = f" {STARTS[start]}" if explored else ""
        made.append((facts, f"{TASKS[task]} {options} --prune-flops {kept}{warmth}"))
    return made


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one task, one seed, one budget: about ten minutes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="take up no new run after so long")
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    parser.add_argument("--task", default="", help="only tasks whose name contains this")
    arguments = parser.parse_args()
    name = "pruning-quick" if arguments.quick else "pruning"
    table = RunTable(RESULTS / f"{name}.json", fresh=arguments.fresh)
    tasks = [task for task in TASKS if arguments.task in task and (task in EMBEDDED or DATA.is_dir())]
    flops, starts = ((0.25,), ("warm",)) if arguments.quick else (FLOPS, tuple(STARTS))
    wanted = [
        (facts, options, seed)
        for task in (tasks[:1] if arguments.quick else tasks)
        for seed in range(1 if arguments.quick else arguments.seeds)
        for facts, options in settings(task, flops, starts)
    ]
    traced = {
        options
        for facts, options, _ in wanted
        if facts["method"] in TRACED and facts["flops"] == SHOWN and facts["start"] == "warm"
    }

    def run(options: str, seed: int) -> dict[str, Any]:
        def read(folder: Path) -> dict[str, Any]:
            importance = importance_of(folder) if options in traced and seed == 0 else {}
            return {**traces_of(folder), **importance}

        return simulate(options, seed, FIGURES, data=not options.startswith(EMBEDDED_OPTIONS), read=read)

    table.fill(wanted, arguments.jobs, arguments.minutes, run)
    text = markdown(table.rows) + f"\nMade by `python benchmarks/pruning.py` on {json.dumps(machine('torch'))}.\n"
    (RESULTS / f"{name}.md").write_text(text)
    plot(table.rows, RESULTS / f"{name}.png")
    figures(table.rows, RESULTS / name)
    print(text)


EMBEDDED_OPTIONS = tuple(TASKS[task] for task in EMBEDDED)


if __name__ == "__main__":
    main()
