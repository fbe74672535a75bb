"""`make bench-sim`: the whole pipeline on embedded data, one row a setting, each a run of the command line itself.

    python benchmarks/sim.py [--seeds 3] [--quick] [--fresh]

Writes results/sim.json (every seed, setting, figure and the machine), sim.md (means and standard errors) and sim.png.
Rows already in sim.json are kept, so an interrupted benchmark goes on; --fresh starts anew. About 25 minutes on two
cores with three seeds, under five with --quick (one seed, three rows).
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from exact_scores import exact_scores
from machine import machine

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"

ROWS = {
    "epsilon 8, pruned": "--dp-epsilon 8",
    "epsilon 8, dense": "--dp-epsilon 8 --prune none",
    "no DP, pruned": "",
    "no DP, dense": "--prune none",
    "epsilon 8, pruned, 10 % drops": "--dp-epsilon 8 --dropout 0.1",
    "epsilon 8 by each silo alone (local trust)": "--dp-epsilon 8 --dp-trust local",
    "epsilon 3, pruned": "--dp-epsilon 3",
    "epsilon 1, pruned": "--dp-epsilon 1",
}
REAL = {
    "heart, four real hospitals, epsilon 8": "--dataset heart --partition natural --dp-epsilon 8 --colluders 0",
    "survival with breast cancer, six real regions, epsilon 8": "--dataset tcga-brca --dp-epsilon 8 --colluders 0",
}
QUICK = ("epsilon 8, pruned", "epsilon 8, dense", "no DP, pruned")
FIGURES = ("flops_ratio", "params_ratio", "upload_ratio_total", "epsilon_spent", "seconds_total")


def run(options: str, seed: int) -> dict[str, Any]:
    """One run; its summary, and as `exact` the scores without the noise that the run scores itself with."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "autoflip_secure.sim", *shlex.split(options), "--seed", str(seed)]
        command += ["--run-dir", f"{folder}/run", "--summary", "json", "--quiet"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{shlex.join(command)}: {ended.stderr.strip()}")
        return {**json.loads(ended.stdout.splitlines()[-1]), "exact": exact_scores(Path(folder) / "run")}


def mean(values: list[float | None], percent: bool) -> str:
    """Mean and standard error, or a dash."""
    numbers = [100 * v if percent else v for v in values if v is not None]
    if not numbers:
        return "-"
    error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else None
    return f"{statistics.mean(numbers):.1f}" + (f" ± {error:.1f}" if error is not None else "")


def scores(mine: list[dict[str, Any]], *figures: str) -> str:
    """The first score that the task has, with the exact one where what the run reports is noised."""
    for figure in figures:
        reported = [summary.get(figure) for summary in mine]
        exact = [summary["exact"][figure] for summary in mine if "exact" in summary]
        if any(value is not None for value in reported):
            noised = len(exact) == len(reported) and exact != reported
            return mean(reported, True) + (f" (exact: {mean(exact, True)})" if noised else "")
    return mean([], True)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a setting."""
    lines = [
        "| run | seeds | accuracy % | AUROC, C-index % | epsilon spent | FLOPs kept % | live parameters % "
        "| upload % of FedAvg | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row["summary"] for row in rows if row["name"] == name]
        option = next(row["options"] for row in rows if row["name"] == name)
        get = {figure: [s[figure] for s in mine] for figure in FIGURES}
        lines.append(
            f"| {name}<br>`{option or '(no options)'}` | {len(mine)} | {scores(mine, 'accuracy')} "
            f"| {scores(mine, 'auroc', 'c_index')} | {mean(get['epsilon_spent'], False)} "
            f"| {mean(get['flops_ratio'], True)} | {mean(get['params_ratio'], True)} "
            f"| {mean(get['upload_ratio_total'], True)} | {mean(get['seconds_total'], False)} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against upload, one point a run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row["summary"] for row in rows if row["name"] == name]
        axes.scatter([s["upload_ratio_total"] for s in mine], [s["accuracy"] for s in mine], label=name)
    axes.set(xlabel="upload over plain float32 FedAvg", ylabel="accuracy", title="mnist5k, 10 silos, dirichlet:0.5")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, three rows")
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    name = "sim-quick" if arguments.quick else "sim"
    path = RESULTS / f"{name}.json"
    done = {} if arguments.fresh or not path.exists() else json.loads(path.read_text())
    rows: list[dict[str, Any]] = done.get("rows", [])
    wanted = {key: ROWS[key] for key in QUICK} if arguments.quick else ROWS | REAL
    for setting, options in wanted.items():
        if setting in REAL and not DATA.is_dir():
            print(f"{setting}: skipped, no data at {DATA}", file=sys.stderr)
            continue
        full = f"{options} --data-dir {DATA}" if setting in REAL else options
        for seed in range(1 if arguments.quick else arguments.seeds):
            if any((row["name"], row["options"], row["seed"]) == (setting, options, seed) for row in rows):
                continue
            summary = run(full, seed)
            summary.pop("ledgers")
            rows.append({"name": setting, "options": options, "seed": seed, "summary": summary})
            path.write_text(json.dumps({"machine": machine("torch"), "rows": rows}, indent=1))
            print(f"{setting}, seed {seed}: {scores([summary], 'accuracy', 'c_index')}", file=sys.stderr, flush=True)
    order = list(ROWS | REAL)
    rows.sort(key=lambda row: order.index(row["name"]))  # rows made anew stand where they stood
    text = f"{table(rows)}\n\nMean ± standard error over seeds. Made by `python benchmarks/{name.split('-')[0]}.py`"
    text += f" on {json.dumps(machine('torch'))}.\n"
    (RESULTS / f"{name}.md").write_text(text)
    plot([row for row in rows if row["summary"]["dataset"] == "mnist5k"], RESULTS / f"{name}.png")
    print(text)


if __name__ == "__main__":
    main()
