"""`make bench-robustness`: accuracy against bad silos, with and without the cohort filter, through the secure sum.

    python benchmarks/robustness.py [--quick] [--seeds 3] [--jobs J] [--minutes M] [--fresh] [--partition NAME]

Each figure is a run of the command line: MNIST (where its folder is absent, and with --quick, the five thousand
embedded digits), cnn-tanh, 20 silos, AutoFLIP at 48 % of the FLOPs, a part of the silos sending noise, flipped labels
or scaled updates. With the filter, cohorts are said to be filtered rightly where a bad silo is in them; events.jsonl
is what is counted. Rows in results/robustness.json are kept: a benchmark that was interrupted goes on, the most
telling rows first.

Writes results/robustness.{json,md,png}; with --quick results/robustness-quick.*.
"""

from __future__ import annotations

import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from robustness_report import markdown, plot
from run_options import RunReport, run_parser
from run_table import DATA, run_simulation

WHOLE, EMBEDDED = "mnist", "mnist5k"
"""Scored on 10,000 digits and on 1,000: of the second, two runs differ by half a point for nothing."""
BASE = "--model cnn-tanh --silos 20 --colluders 0 --rounds 30 --prune-flops 0.48"
PARTITIONS = ("iid", "dirichlet:0.5")
KINDS = ("label-flip", "noise", "scaling")
FRACTIONS = (0.2, 0.4, 0.1)
FILTERS = {"off": "", "on": " --cohort-filter --cohorts 5"}
FIGURES = ("accuracy", "loss", "flops_ratio", "upload_ratio_total", "rounds_aborted", "seconds_total")

Row = dict[str, Any]


def settings(
    dataset: str, partitions: tuple[str, ...], kinds: tuple[str, ...], fractions: tuple[float, ...]
) -> list[tuple[Row, str]]:
    """(facts, options) of every run, no bad silos first: losses are against them."""
    made = []
    for partition, (kind, fraction), guard in product(
        partitions, [("none", 0.0), *((k, f) for f, k in product(fractions, kinds))], FILTERS
    ):
        options = f"--dataset {dataset} {BASE} --partition {partition}{FILTERS[guard]}"
        if fraction:
            options += f" --bad-silos {kind}:{fraction}"
        facts = {"dataset": dataset, "partition": partition, "kind": kind, "fraction": fraction, "filter": guard}
        made.append((facts, options))
    return made


def counted(events: list[Row]) -> Row:
    """What the filter did: cohort-rounds that lost weight, with and without a bad silo in them, and all.

    `weight_right` and `weight_wrong` add up the weights that were taken.
    """
    bad = {silo for event in events if event["event"] == "bad_silos" for silo in event["silos"]}
    cohorts = next((event["cohorts"] for event in events if event["event"] == "cohort_filter"), [])
    spoilt = [bool(bad & set(cohort)) for cohort in cohorts]
    rounds = sum(event["event"] == "sum" and event["phase"] != "evaluate" for event in events)
    found = {"spoilt": rounds * sum(spoilt), "clean": rounds * (len(spoilt) - sum(spoilt))}
    for name, wanted in (("right", True), ("wrong", False)):
        taken = [1 - e["weight"] for e in events if e["event"] == "cohort_filtered" and spoilt[e["cohort"]] == wanted]
        found |= {name: len(taken), f"weight_{name}": round(sum(taken), 3)}
    return {**found, "spoilt_cohorts": sum(spoilt), "cohorts": len(spoilt)}


def one(options: str, seed: int) -> Row:
    """One run: figures of its summary, and what its events say of cohorts."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        summary = run_simulation(options, seed, run, data=f"--dataset {WHOLE} " in options)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        return {**{name: summary.get(name) for name in FIGURES}, "filtered": counted(events)}


def main() -> None:
    """Run what is missing and write the tables."""
    parser = run_parser(__doc__, quick="iid, one fraction, one seed: about ten minutes", seeds=3)
    parser.add_argument("--partition", default="", help="only partitions whose name contains this")
    arguments = parser.parse_args()
    report = RunReport("robustness", arguments)
    partitions = tuple(p for p in PARTITIONS if arguments.partition in p)
    if arguments.quick:
        runs = settings(EMBEDDED, PARTITIONS[:1], KINDS, FRACTIONS[:1])
    else:
        runs = settings(WHOLE if DATA.is_dir() else EMBEDDED, partitions, KINDS, FRACTIONS)
    seeds = range(1 if arguments.quick else arguments.seeds)
    wanted = [(facts, options, seed) for seed in seeds for facts, options in runs]
    wanted.sort(key=lambda run: run[0]["fraction"] not in (0.0, FRACTIONS[0]))
    report.table.fill(wanted, arguments.jobs, arguments.minutes, one)
    report.write(markdown(report.table.rows), plot)


if __name__ == "__main__":
    main()
