"""The tables and the figure of `pruning.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_interval import half_width

__all__ = ["main_rows", "markdown", "plot"]

Row = dict[str, Any]
DENSE = "FedAvg"
REFERENCES = ("random units", "magnitude")
UPLOAD = "upload_ratio_total"


def mean(values: Sequence[float], digits: int = 1) -> str:
    """Mean and 95 % interval, in percent."""
    scaled = [100 * value for value in values]
    if not scaled:
        return "-"
    shown = f"{statistics.mean(scaled):.{digits}f}"
    return shown + (f" ± {half_width(scaled):.{digits}f}" if len(scaled) > 1 else " (1 seed)")


def select(rows: list[Row], **facts: Any) -> list[Row]:
    """Rows with these facts."""
    return [row for row in rows if all(row[name] == value for name, value in facts.items())]


def by_seed(rows: list[Row]) -> dict[int, float]:
    """Accuracy of each seed."""
    return {row["seed"]: row["figures"]["accuracy"] for row in rows}


def against(mine: dict[int, float], other: dict[int, float]) -> str:
    """Mean difference over the seeds that both have; in bold where its interval excludes zero."""
    both = sorted(mine.keys() & other.keys())
    if not both:
        return "-"
    gaps = [mine[seed] - other[seed] for seed in both]
    shown = mean(gaps)
    certain = len(gaps) > 1 and abs(statistics.mean(gaps)) > half_width(gaps)
    fewer = f" ({len(gaps)} pairs)" if 1 < len(gaps) < len(mine) else ""
    return (f"**{shown}**" if certain else shown) + fewer


def dense_of(rows: list[Row], task: str) -> list[Row]:
    """FedAvg's rows of a task; where it has none, of one that trains the same: tasks may differ in what is pruned."""
    own = select(rows, task=task, flops=None, method=DENSE)
    if own:
        return own
    trained = {row["options"].partition(" --prune")[0] for row in select(rows, task=task)}
    others = select(rows, flops=None, method=DENSE)
    return [row for row in others if row["options"].removesuffix(" --prune none") in trained]


def task_table(rows: list[Row], task: str) -> list[str]:
    """All methods of one task."""
    mine = select(rows, task=task)
    lines = [
        f"## {task}",
        "",
        "| FLOPs asked % | method | start | seeds | accuracy % | less dense FedAvg | less random units "
        "| less magnitude | FLOPs kept % | of all training % | weights kept % | upload % of FedAvg "
        "| of dense secure sums |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    dense = dense_of(rows, task)
    if dense and dense[0]["task"] != task:
        lines[1:1] = ["", f"Dense FedAvg is that of {dense[0]['task']}: it trains the same."]
    dense_upload = statistics.mean(row["figures"][UPLOAD] for row in dense) if dense else None
    made = dict.fromkeys((row["flops"], row["method"], row["start"]) for row in mine)
    for facts in sorted(made, key=lambda facts: (facts[0] is not None, -(facts[0] or 0))):
        flops, method, start = facts
        group = select(mine, flops=flops, method=method, start=start)
        scores = by_seed(group)
        gaps = ["" if flops is None else against(scores, by_seed(dense))]
        for reference in REFERENCES:
            # What starts in no way of its own starts cold: from the common start.
            others = [
                row for row in select(mine, flops=flops, method=reference) if row["start"] in (start or "cold", "")
            ]
            gaps.append("" if method == reference or flops is None else against(scores, by_seed(others)))
        kept, sent = (statistics.mean(row["figures"][name] for row in group) for name in ("flops_ratio", UPLOAD))
        training, weights = (known_by_all(group, name) for name in ("training_flops_ratio", "params_ratio"))
        asked = "dense" if flops is None else f"{100 * flops:.0f}"
        lines.append(
            f"| {asked} | {method} | {start} | {len(group)} | {mean(list(scores.values()))} | {' | '.join(gaps)} "
            f"| {100 * kept:.1f} | {training} | {weights} | {100 * sent:.1f} "
            f"| {f'{100 * sent / dense_upload:.1f}' if dense_upload else '-'} |"
        )
    return [*lines, ""]


def known_by_all(group: list[Row], figure: str) -> str:
    """Mean of a figure in percent; a dash where it was not kept yet when one of the runs was made."""
    values = [row["figures"].get(figure) for row in group]
    return f"{100 * statistics.mean(values):.1f}" if all(value is not None for value in values) else "-"


def main_rows(rows: list[Row]) -> list[Row]:
    """Rows of the tables: those that only chose a learning rate left out."""
    return [row for row in rows if "rate" not in row]


def rate_table(rows: list[Row], chosen: dict[tuple[str, bool], str]) -> list[str]:
    """Accuracy of the first seed at the learning rates tried; in bold what the tables above use."""
    lines = [
        "## Learning rates and floors tried",
        "",
        "First seed; bold: used above, for all dense methods and for all pruned ones of the task. The floor is the "
        "least share of a layer's units that stays, 0.1 where nothing is said; mu the weight of FedProx's proximal "
        "term, 0.1, and on Shakespeare 0.001, where nothing is said.",
        "",
        "| task | method | learning rate: accuracy % |",
        "|---|---|---|",
    ]
    for task in dict.fromkeys(task for task, _ in chosen):
        for method in dict.fromkeys(row["method"] for row in rows if row["task"] == task and "rate" in row):
            mine = [row for row in select(rows, task=task, method=method, seed=0) if row["start"] in ("cold", "")]
            scores = {
                row.get("rate", chosen[task, row["flops"] is None]): ("rate" not in row, row["figures"]["accuracy"])
                for row in mine
            }
            shown = [
                f"**{rate}: {100 * score:.1f}**" if main else f"{rate}: {100 * score:.1f}"
                for rate, (main, score) in sorted(
                    scores.items(), key=lambda item: (float(item[0].split(",")[0]), item[0])
                )
            ]
            lines.append(f"| {task} | {method} | {', '.join(shown)} |")
    return [*lines, ""]


def markdown(rows: list[Row], chosen: dict[tuple[str, bool], str]) -> str:
    """The whole file.

    Parameters
    ----------
    chosen : dict of (task, dense) to str
        The learning rates in use, of tasks that tried several.
    """
    lines = [
        "# Pruning from sums",
        "",
        "Every method through the same secure sum, on physically smaller networks of no more than the measured FLOPs "
        "that were asked; how many weights these leave differs, and is shown. Accuracy "
        "on public test records, mean ± 95 % interval over seeds; differences are paired by seed, bold where their "
        "interval excludes zero (each by itself: of twenty that mean nothing one is bold). `cold`: training starts "
        "from the common start with the mask that exploration chose"
        + ("; `warm`: it goes on from where exploration led" if any(row["start"] == "warm" for row in rows) else "")
        + ". FLOPs kept are the final network's; `of all training`: of every step of the run, those of exploration "
        "included, over as many dense rounds (`-`: of runs before a figure was kept). Uploads are all bytes a silo "
        "sends, exploration included, over those of plain float32 FedAvg, and over those of the dense network through "
        "the same secure sum. FedAvg takes the plain mean of the silos' updates after the same number of steps each. "
        "FedMask is scored by the one mask that half of the silos or more vote for; its paper reports personal ones, "
        "which the server has to see ([personal.md](personal.md)). Its local training is our reading of the little "
        "that is public.",
        "",
    ]
    for task in dict.fromkeys(row["task"] for row in main_rows(rows)):
        lines += task_table(main_rows(rows), task)
    if any("rate" in row for row in rows):
        lines += rate_table(rows, chosen)
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy against FLOPs, one panel a task and start."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = main_rows(rows)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if not tasks:
        return
    figure, panels = plt.subplots(len(tasks), 2, figsize=(11, 3.8 * len(tasks)), squeeze=False)
    for (task, start), panel in zip(((t, s) for t in tasks for s in ("cold", "warm")), panels.flat, strict=True):
        mine = [row for row in select(rows, task=task) if row["start"] in (start, "") and row["flops"] is not None]
        for method in dict.fromkeys(row["method"] for row in mine):
            points = sorted({row["flops"] for row in select(mine, method=method)})
            scores = [statistics.mean(by_seed(select(mine, method=method, flops=flops)).values()) for flops in points]
            panel.plot(
                [100 * flops for flops in points], [100 * score for score in scores], marker="o", ms=3, label=method
            )
        dense = by_seed(select(rows, task=task, method="FedAvg"))
        if dense:
            panel.axhline(100 * statistics.mean(dense.values()), ls=":", color="grey", label="FedAvg, dense")
        panel.set(title=f"{task}, {start}", xlabel="FLOPs kept %", ylabel="accuracy %")
        panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
