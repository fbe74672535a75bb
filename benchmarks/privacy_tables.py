"""Tables and figures of `make bench-privacy`, from the rows of its JSON file alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from privacy_bounds import MEASURES
from privacy_grid import EPSILONS, IMAGES, NATURAL, all_cells
from seed_interval import half_width

__all__ = ["markdown", "plot"]

Row = dict[str, Any]
TOLERATED_GAP = 0.01


def score_of(row: Row) -> float | None:
    """The score the row's data set is judged by: exact where the run itself scored through noise."""
    figures = row["figures"]
    return (figures.get("exact") or figures).get(MEASURES.get(row["cell"]["dataset"], "accuracy"))


def interval(values: Iterable[float | None]) -> str:
    """Mean and 95 % interval over seeds, in percent; the number of seeds where there are fewer than five."""
    numbers = [100 * value for value in values if value is not None]
    if not numbers:
        return "-"
    mean = f"{statistics.mean(numbers):.1f}"
    if len(numbers) == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ± {half_width(numbers):.1f}" + (f" ({len(numbers)} seeds)" if len(numbers) < 5 else "")


def by_epsilon(rows: list[Row], value: Callable[[Row], float | None]) -> str:
    """One cell of the table an epsilon."""
    return " | ".join(interval(value(row) for row in rows if row["cell"]["epsilon"] == e) for e in EPSILONS)


def header(first: str) -> list[str]:
    titles = " | ".join("no DP" if e is None else f"epsilon {e}" for e in EPSILONS)
    return [f"| {first} | {titles} |", "|---|" + "---|" * len(EPSILONS)]


def dataset_table(dataset: str, rows: list[Row], bounds: list[Row]) -> list[str]:
    """Scores of one data set, then its bounds."""
    mine = [row for row in rows if row["cell"]["dataset"] == dataset]
    if not mine:
        return []
    measure = MEASURES.get(dataset, "accuracy").replace("_", "-")
    lines = [f"## {dataset}: {measure}, %", "", *header("model, silos, partition, trust, method")]

    def key(row: Row) -> tuple[str, ...]:
        cell = row["cell"]
        silos = "its own silos" if cell["silos"] is None else f"{cell['silos']} silos"
        return (cell["model"] or "mlp", silos, cell["partition"], cell["trust"], cell["method"])

    for group in dict.fromkeys(map(key, mine)):
        lines.append(f"| {', '.join(group)} | {by_epsilon([row for row in mine if key(row) == group], score_of)} |")
    for model in dict.fromkeys(row["model"] for row in bounds if row["dataset"] == dataset):
        known = [row for row in bounds if (row["dataset"], row["model"]) == (dataset, model)]
        usual = [row for row in known if (row["partition"], row["silos"]) == (known[0]["partition"], known[0]["silos"])]
        for kind in ("pooled", "local only"):
            cells = [{"cell": {"epsilon": row["epsilon"]}, "score": row[kind]} for row in usual if kind in row]
            if not cells:
                continue
            lines.append(f"| *{model or 'mlp'}, bound: {kind}* | {by_epsilon(cells, lambda cell: cell['score'])} |")
    return [*lines, ""]


def targets(rows: list[Row], bounds: list[Row]) -> list[str]:
    """What was aimed at, and what came out."""

    def mean(dataset: str, epsilon: int | None, method: str, model: str | None = None, **more: Any) -> float | None:
        cell = {"dataset": dataset, "epsilon": epsilon, "method": method, "model": model, "trust": "distributed"}
        cell |= {"partition": "natural" if dataset in NATURAL else "dirichlet:0.1"}
        cell |= {"silos": None if dataset in NATURAL else 10, **more}
        scores = [score_of(row) for row in rows if row["cell"] == cell]
        return 100 * statistics.mean(scores) if scores and None not in scores else None

    def bound(kind: str, dataset: str, epsilon: int, model: str) -> float | None:
        scores = [
            row[kind] for row in bounds
            if kind in row and (row["dataset"], row["epsilon"], row["model"]) == (dataset, epsilon, model)
        ]  # fmt: skip
        return 100 * statistics.mean(scores) if scores else None

    def less(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one - other

    raw, scatter = "cnn-tanh", "scatter"
    wanted: list[tuple[str, float | None, float]] = [
        ("mnist, epsilon 3, dense, cnn-tanh", mean("mnist", 3, "dense", raw), 98.1),
        ("mnist, epsilon 3, dense, public features", mean("mnist", 3, "dense", scatter), 98.5),
        ("fashion-mnist, epsilon 3, dense, public features", mean("fashion-mnist", 3, "dense", scatter), 86.0),
        ("mnist5k, epsilon 8, dense, cnn-tanh", mean("mnist5k", 8, "dense", raw), 94.5),
        ("mnist5k, epsilon 8, half the FLOPs, cnn-tanh", mean("mnist5k", 8, "autoflip", raw), 94.0),
        ("mnist5k, epsilon 8, half the FLOPs, public features", mean("mnist5k", 8, "autoflip", scatter), 94.0),
        ("heart, epsilon 8, AUROC", mean("heart", 8, "autoflip"), 80.0),
        ("tcga-brca, epsilon 8, C-index", mean("tcga-brca", 8, "autoflip"), 75.0),
    ]
    for model in (raw, scatter):
        for epsilon in (2, 1):
            gap = less(mean("mnist5k", epsilon, "autoflip", model), mean("mnist5k", epsilon, "dense", model))
            wanted.append((f"mnist5k, epsilon {epsilon}, {model}: pruned less dense", gap, 0.0))
        here = mean("mnist5k", 8, "dense", model)
        pooled = less(here, bound("pooled", "mnist5k", 8, model))
        wanted.append((f"mnist5k, epsilon 8, dense, {model}: less pooled DP-SGD", pooled, -0.3))
        skewed, even = (mean("mnist5k", 8, "dense", model, partition=p) for p in ("pathological:2", "iid"))
        wanted.append((f"mnist5k, epsilon 8, dense, {model}: pathological:2 less iid", less(skewed, even), -1.0))
        pooled = less(mean("mnist", 3, "dense", model), bound("pooled", "mnist", 3, model))
        wanted.append((f"mnist, epsilon 3, dense, {model}: less pooled DP-SGD", pooled, -0.3))
    lines = ["| target | reached | at least | |", "|---|---|---|---|"]
    for name, reached, least in wanted:
        shown = "not run" if reached is None else f"{reached:.1f}"
        verdict = "" if reached is None else "met" if round(reached, 1) >= least else "short"
        lines.append(f"| {name} | {shown} | {least:.1f} | {verdict} |")
    return [*lines, ""]


def ledgers(rows: list[Row]) -> list[str]:
    """How far the accountants are apart over all runs with DP."""
    known = [row["figures"]["epsilons"] for row in rows if row["figures"].get("epsilons")]
    if not known:
        return []
    apart = [abs(e["prv"] - e["pld"]) / max(e["prv"], e["pld"]) for e in known]
    over = sum(row["figures"]["epsilon_spent"] > row["cell"]["epsilon"] for row in rows if row["cell"]["epsilon"])
    return [
        f"Ledgers of {len(known)} runs with DP, recomputed from their lines: Opacus PRV and dp-accounting PLD differ "
        f"by {100 * max(apart):.2f} % at most (allowed: {100 * TOLERATED_GAP:.0f} %); {over} runs spent more than "
        "promised.",
        "",
    ]


def costs(rows: list[Row]) -> list[str]:
    """FLOPs and bytes by method, for the usual settings at epsilon 8."""
    lines = ["| data set, model, method (epsilon 8) | FLOPs kept % | parameters kept % | upload % of FedAvg |"]
    lines.append("|---|---|---|---|")
    eight = [r for r in rows if r["cell"]["epsilon"] == 8 and r["cell"]["trust"] == "distributed"]

    def key(row: Row) -> tuple[str, str, str]:
        cell = row["cell"]
        return (cell["dataset"], cell["model"] or "mlp", cell["method"])

    for group in dict.fromkeys(map(key, eight)):
        mine = [row["figures"] for row in eight if key(row) == group]
        figures = [
            f"{100 * statistics.mean(f[name] for f in mine):.1f}"
            for name in ("flops_ratio", "params_ratio", "upload_ratio_total")
        ]
        lines.append(f"| {', '.join(group)} | {' | '.join(figures)} |")
    return [*lines, ""]


def markdown(rows: list[Row], bounds: list[Row], machine: dict[str, Any], *, missing: int) -> str:
    """The whole file."""
    cells = {tuple(row["cell"].values()) for row in rows}
    grid = sum(1 for _ in all_cells())
    waiting = f" {missing} runs of the part for two cores are still to be made." if missing else ""
    lines = [
        "# Accuracy against privacy",
        "",
        f"{len(rows)} runs of the command line over {len(cells)} of the grid's {grid} settings, through secure "
        "aggregation, mean ± 95 % interval over five seeds unless said otherwise. The rest is marked - and waits for "
        f"a larger machine (`make bench-privacy ARGS=--all`).{waiting} Scores are on public test records, or exact on "
        "the silos' held-back patients pooled (which only a simulation can do); the runs themselves score those "
        "through a noised sum. `scatter` learns on fixed wavelet features, `cnn-tanh` on pixels. Runs of before "
        "December 2026 with `autoflip`, distributed noise and an epsilon above 2 were summed in two cohorts every 20 "
        "rounds, as was the default.",
        "",
        *targets(rows, bounds),
        *ledgers(rows),
    ]
    for dataset in ("mnist5k", *NATURAL, *(name for name in IMAGES if name != "mnist5k")):
        lines += dataset_table(dataset, rows, bounds)
    lines += ["## What it costs", "", *costs(rows)]
    lines.append(f"Made by `python benchmarks/privacy_accuracy.py` on {json.dumps(machine)}.")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], bounds: list[Row], path: Path) -> None:
    """Score against epsilon, one panel a data set; no DP at the right edge."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    datasets = list(dict.fromkeys(row["cell"]["dataset"] for row in rows))
    if not datasets:
        return
    columns = min(3, len(datasets))
    height = -(-len(datasets) // columns)
    figure, panels = plt.subplots(height, columns, figsize=(5 * columns, 3.8 * height), squeeze=False)
    places = {epsilon: place for place, epsilon in enumerate(reversed(EPSILONS[:-1]))} | {None: len(EPSILONS) - 1}
    for panel, dataset in zip(panels.flat, datasets, strict=False):
        series: dict[str, dict[int, list[float]]] = {}
        for row in rows:
            cell, score = row["cell"], score_of(row)
            usual = cell["partition"] in ("dirichlet:0.1", "natural") and cell["silos"] in (10, None)
            if cell["dataset"] == dataset and score is not None and usual:
                label = f"{cell['model'] or 'mlp'}, {cell['trust']}, {cell['method']}"
                series.setdefault(label, {}).setdefault(places[cell["epsilon"]], []).append(score)
        for row in bounds:
            if row["dataset"] == dataset and row["silos"] in (10, None):
                for kind in (kind for kind in ("pooled", "local only") if kind in row):
                    label = f"{row['model'] or 'mlp'}, bound: {kind}"
                    series.setdefault(label, {}).setdefault(places[row["epsilon"]], []).append(row[kind])
        for label, points in sorted(series.items()):
            xs = sorted(points)
            means = [statistics.mean(points[x]) for x in xs]
            errors = [statistics.stdev(points[x]) / len(points[x]) ** 0.5 if len(points[x]) > 1 else 0.0 for x in xs]
            panel.errorbar(xs, means, errors, marker="o", ms=3, lw=1, ls=":" if "bound" in label else "-", label=label)
        panel.set_xticks(list(places.values()), ["none" if e is None else str(e) for e in places])
        panel.set(title=dataset, xlabel="epsilon", ylabel=MEASURES.get(dataset, "accuracy").replace("_", "-"))
        panel.legend(fontsize=6)
    for panel in list(panels.flat)[len(datasets) :]:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
