"""Part of `make bench-privacy`: what DP noise leaves of agreement and of the scores that prune.

    python benchmarks/agreement_privacy.py [--seeds 5] [--quick] [--fresh] [--tables]

Writes results/agreement.json (every seed, setting, figure and the machine), agreement.md (tables and the defaults they
led to) and agreement.png. Jobs already in the JSON are kept, so an interrupted benchmark goes on; --fresh starts anew.
About 25 minutes of one core's time, spread over all of them; under two with --quick (agreement-quick.*).
"""

from __future__ import annotations

import os

# One thread a process, before anything reads them: jobs run side by side.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from agreement_costs import costs
from agreement_report import draw, report
from agreement_runs import Plan, distributed, local, snapshots
from agreement_simulation import SummedGradients
from agreement_training import train
from machine import machine

RESULTS = Path(__file__).parent / "results"
PARTITIONS = ("dirichlet:0.1", "pathological:2", "iid")
EPSILONS = (8.0, 2.0, 4.0, 1.0)
FULL = Plan(PARTITIONS, (10, 20), (1, 2, 3, 4), (5, 10, 20, 40), (5, 10, 20, 50, 100))
QUICK = Plan(("dirichlet:0.1", "iid"), (10,), (1, 2), (5, 20), (5, 20))
TRAINED, TRAINED_SEEDS, FLOPS_TRAINED = (8.0, 2.0), 3, 0.25
SNAPSHOT_SEEDS = 2
LOCAL_PARTITIONS = ("dirichlet:0.1", "iid")

Job = tuple[str, float, int]


def jobs(quick: bool, seeds: int) -> list[Job]:
    """Part, epsilon and seed of everything there is to do."""
    if quick:
        return [("distributed", 8.0, 0), ("local", 8.0, 0), ("distributed", 2.0, 0), ("snapshot", 8.0, 0)]
    made = [("distributed", epsilon, seed) for seed in range(seeds) for epsilon in EPSILONS]
    rest = [("local", epsilon, seed) for seed in range(seeds) for epsilon in EPSILONS]
    rest += [("training", epsilon, seed) for seed in range(min(seeds, TRAINED_SEEDS)) for epsilon in TRAINED]
    rest += [("snapshot", epsilon, seed) for seed in range(min(seeds, SNAPSHOT_SEEDS)) for epsilon in EPSILONS]
    # Every part has its first seeds before any has its last.
    return made + sorted(rest, key=lambda job: job[2])


def work(job: Job, quick: bool) -> tuple[Job, list[dict[str, Any]], float]:
    """One job: its rows and its seconds of processor time."""
    part, epsilon, seed = job
    began, plan = time.process_time(), QUICK if quick else FULL
    if part == "training":
        rows = train(epsilon, seed, FLOPS_TRAINED)
    elif part == "local":
        rows = local(epsilon, seed, LOCAL_PARTITIONS, SummedGradients())
    elif part == "snapshot":
        rows = snapshots(epsilon, seed, plan, SummedGradients())
    else:
        rows = distributed(epsilon, seed, plan, SummedGradients())
    return job, rows, time.process_time() - began


def run(
    *, quick: bool = False, fresh: bool = False, tables: bool = False, seeds: int = 5, processes: int | None = None
) -> str:
    """Do what is missing (with `tables` nothing) and write the tables; returns the markdown."""
    RESULTS.mkdir(exist_ok=True)
    name = "agreement-quick" if quick else "agreement"
    path = RESULTS / f"{name}.json"
    done: dict[str, Any] = {} if fresh or not path.exists() else json.loads(path.read_text())
    results = {"machine": machine("torch"), "jobs": done.get("jobs", []), "rows": done.get("rows", [])}
    results |= {key: done[key] for key in ("costs",) if key in done}
    finished = {(job["part"], job["epsilon"], job["seed"]) for job in results["jobs"]}
    missing = [] if tables else [job for job in jobs(quick, seeds) if job not in finished]
    workers = min(processes or len(os.sched_getaffinity(0)), max(1, len(missing)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(work, job, quick) for job in missing]):
            (part, epsilon, seed), rows, seconds = future.result()
            results["rows"] += rows
            results["jobs"].append({"part": part, "epsilon": epsilon, "seed": seed, "seconds": round(seconds, 1)})
            path.write_text(_json(results))
            print(f"{part}, epsilon {epsilon:g}, seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
    if not quick and "costs" not in results:
        results["costs"] = costs()
        path.write_text(_json(results))
    text = report(results, full=not quick)
    (RESULTS / f"{name}.md").write_text(text)
    draw(results, RESULTS / f"{name}.png")
    return text


def _json(results: dict[str, Any]) -> str:
    """One line a row: the file stays readable in a diff, and small."""
    lines = {key: [json.dumps(item) for item in results[key]] for key in ("jobs", "costs", "rows") if key in results}
    parts = [f'"{key}": [\n' + ",\n".join(items) + "\n]" for key, items in lines.items()]
    return "{" + f'"machine": {json.dumps(results["machine"])},\n' + ",\n".join(parts) + "}\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, few settings, under two minutes")
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    parser.add_argument("--tables", action="store_true", help="write the tables of what is there, measure nothing")
    parser.add_argument("--processes", type=int, help="jobs side by side [one a core]")
    arguments = parser.parse_args()
    print(run(**vars(arguments)))


if __name__ == "__main__":
    main()
