"""The figures of `pruning.py`, one file a topic, from the rows of its table alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from pruning_report import select
from pruning_traces import EDGES
from seed_interval import half_width

__all__ = ["figures"]

Row = dict[str, Any]

SHOWN = 0.12
"""Share of the FLOPs at which importance is traced."""
DENSE_WITH_SQUARES = "FedAvg, squares summed"
LEVELS = np.arange(0.3, 1.0, 0.02)


def figures(rows: list[Row], stem: Path) -> None:
    """Write stem_accuracy.png, stem_uploads.png, stem_variance.png, stem_guidance.png and stem_fate.png.

    A figure whose rows are missing is left out.
    """
    by_task = {task: select(rows, task=task) for task in dict.fromkeys(row["task"] for row in rows)}
    for topic, draw in (("accuracy", accuracy), ("uploads", uploads), ("variance", variance)):
        _panels(by_task, draw, stem.with_name(f"{stem.name}_{topic}.png"))
    traced = {
        f"{row['task']}, {row['method']}, {name}": found
        for row in rows
        for name, found in row["figures"].get("importance", {}).items()
    }
    _distributions(
        {title: found for title, found in traced.items() if title.endswith("guidance")},
        stem.with_name(f"{stem.name}_guidance.png"),
    )
    _panels(traced, fate, stem.with_name(f"{stem.name}_fate.png"))


def compared(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of a task by method: dense ones, and its smallest networks, started cold where there is a choice."""
    targets = [row["flops"] for row in rows if row["flops"] is not None]
    mine = [row for row in rows if row["flops"] in (None, min(targets, default=1)) and row["start"] in ("cold", "")]
    return {method: select(mine, method=method) for method in dict.fromkeys(row["method"] for row in mine)}


def accuracy(panel: Axes, rows: list[Row]) -> None:
    """Accuracy by round."""
    for method, group in compared(rows).items():
        curves = [row["figures"]["curve"] for row in group]
        rounds = [round + 1 for round, _ in curves[0]]
        _band(panel, rounds, [[100 * score for _, score in curve] for curve in curves], method)
    panel.set(xlabel="round", ylabel="accuracy %")


def uploads(panel: Axes, rows: list[Row]) -> None:
    """Bytes a silo sends until the first scored round of at least an accuracy, mean over seeds that all reach it."""
    for method, group in compared(rows).items():
        runs = [row["figures"] for row in group if row["figures"].get("uploads")]
        points = []
        for level in LEVELS:
            reached = [_upload_to(run, level) for run in runs]
            if reached and None not in reached:
                points.append((100 * level, statistics.mean(reached) / 1e6))
        if points:
            panel.plot(*zip(*points, strict=True), label=method, lw=1.2)
    panel.set(xlabel="accuracy % to reach", ylabel="upload of a silo until then, MB")


def _upload_to(run: Row, level: float) -> float | None:
    pairs = zip(run["curve"], run["uploads"], strict=True)
    return next((sent for (_, score), sent in pairs if score >= level), None)


def variance(panel: Axes, rows: list[Row]) -> None:
    """Variance of a parameter's update over silos by round, dense and pruned."""
    for method, group in compared(rows).items():
        curves = [row["figures"]["variance"] for row in group if row["figures"].get("variance")]
        if not curves:
            continue
        rounds = [i for i in range(len(curves[0])) if all(curve[i] is not None for curve in curves)]
        style = {"color": "black", "ls": "--"} if method == DENSE_WITH_SQUARES else {}
        _band(panel, [i + 1 for i in rounds], [[curve[i] for i in rounds] for curve in curves], method, **style)
        panel.set_yscale("log")
    panel.set(xlabel="round", ylabel="variance of an update over silos")


def fate(panel: Axes, found: Row) -> None:
    """Importance at first and at last, coloured by what became of the parameter."""
    points = np.array(found["points"])
    for lives, name, color in ((0, "masked or removed", "tab:red"), (1, "lives", "tab:blue")):
        chosen = points[points[:, 2] == lives]
        panel.scatter(chosen[:, 0], chosen[:, 1], s=5, alpha=0.6, color=color, label=f"{name} ({len(chosen)})")
    panel.set(xlabel="at first", ylabel="at last", xlim=(0, 1), ylim=(0, 1))
    for axis in (panel.set_xscale, panel.set_yscale):
        axis("symlog", linthresh=EDGES[1])


def _distributions(traced: dict[str, Row], path: Path) -> None:
    """Guidance by layer at the start and the end: a row of panels a run."""
    if not traced:
        return
    width = max(len(found["layers"]) for found in traced.values())
    figure, grid = plt.subplots(len(traced), width, figsize=(3.0 * width, 2.6 * len(traced)), squeeze=False)
    for (title, found), panels in zip(traced.items(), grid, strict=True):
        for panel in panels[len(found["layers"]) :]:
            panel.set_axis_off()
        for panel, layer in zip(panels, found["layers"], strict=False):
            for name in ("first", "last", "last of the living"):
                share = np.array(layer[name]) / max(1, sum(layer["first"]))
                panel.stairs(100 * share[1:], EDGES[1:], label=f"{name} (below 1e-4: {100 * share[0]:.0f} %)")
            panel.set(xscale="log", xlabel=f"guidance, {layer['layer']}")
            panel.legend(fontsize=5)
        panels[0].set_title(title, fontsize=8, loc="left")
        panels[0].set_ylabel("% of the layer's weights")
    _save(figure, path)


def _panels(drawn: dict[str, Any], draw: Callable[[Axes, Any], None], path: Path) -> None:
    """One panel an entry, two a row; no file where nothing is drawn."""
    if not drawn:
        return
    columns = min(2, len(drawn))
    lines = -(-len(drawn) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(5.6 * columns, 3.8 * lines), squeeze=False)
    for panel in grid.flat[len(drawn) :]:
        panel.set_axis_off()
    for panel, (title, content) in zip(grid.flat, drawn.items(), strict=False):
        draw(panel, content)
        panel.set_title(title, fontsize=8)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=6)
    if any(panel.has_data() for panel in grid.flat):
        _save(figure, path)
    plt.close(figure)


def _band(panel: Axes, x: Sequence[float], curves: list[list[float]], label: str, **style: Any) -> None:
    """Mean over seeds, and the 95 % interval of the mean where there are several."""
    columns = list(zip(*curves, strict=True))
    middle = [statistics.mean(column) for column in columns]
    (line,) = panel.plot(x, middle, label=f"{label} ({len(curves)})", lw=1.2, **style)
    if len(curves) > 1:
        widths = [half_width(column) for column in columns]
        low, high = ([m + sign * w for m, w in zip(middle, widths, strict=True)] for sign in (-1, 1))
        panel.fill_between(x, low, high, color=line.get_color(), alpha=0.12)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
