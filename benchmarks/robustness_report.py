"""The table and the figure of `robustness.py`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from pruning_report import by_seed, mean, select

__all__ = ["markdown", "plot"]

Row = dict[str, Any]
HEAD = (
    "| bad silos | part | filter | seeds | accuracy % | less than without bad silos, points | spoilt cohorts of 5 "
    "| rightly filtered % | wrongly filtered % |"
)


def markdown(rows: list[Row]) -> str:
    """The whole file."""
    lines = [
        "# Bad silos",
        "",
        f"{', '.join(sorted({row['dataset'] for row in rows}))}, cnn-tanh, 20 silos, AutoFLIP at 48 % of the FLOPs, "
        "secure sums; noise of 10 times the honest update's norm, updates scaled by 10, labels y -> 9 - y. Accuracy "
        "after the last round on public test records, mean ± 95 % interval over seeds; the loss is paired by seed with "
        "the run of the same partition and filter and no bad silos. The filter has 5 fixed cohorts of 4. Rightly "
        "(wrongly) filtered: weight taken from cohorts with a bad silo (with none), of all that they had over the "
        "rounds.",
        "",
    ]
    for partition in dict.fromkeys(row["partition"] for row in rows):
        mine = select(rows, partition=partition)
        lines += [f"## {partition}", "", HEAD, "|---|---|---|---|---|---|---|---|---|"]
        for facts in sorted({(row["kind"], row["fraction"], row["filter"]) for row in mine}):
            lines.append(_line(mine, *facts))
        lines.append("")
    return "\n".join(lines)


def _line(rows: list[Row], kind: str, fraction: float, guard: str) -> str:
    group = select(rows, kind=kind, fraction=fraction, filter=guard)
    scores, clean = by_seed(group), by_seed(select(rows, kind="none", filter=guard))
    gaps = [clean[seed] - scores[seed] for seed in sorted(scores.keys() & clean.keys())]
    lost = "-" if kind == "none" else mean(gaps)
    spoilt, right, wrong = "-", "-", "-"
    if guard == "on":
        found = [row["figures"]["filtered"] for row in group]
        spoilt = f"{statistics.mean(f['spoilt_cohorts'] for f in found):.1f}"
        right, wrong = _share(found, "right", "spoilt"), _share(found, "wrong", "clean")
    return (
        f"| {kind} | {100 * fraction:.0f} % | {guard} | {len(group)} | {mean(list(scores.values()))} | {lost} "
        f"| {spoilt} | {right} | {wrong} |"
    )


def _share(found: list[Row], name: str, of: str) -> str:
    whole = sum(f[of] for f in found)
    return f"{100 * sum(f[f'weight_{name}'] for f in found) / whole:.0f}" if whole else "-"


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy against the part of bad silos, one panel a partition."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    partitions = list(dict.fromkeys(row["partition"] for row in rows))
    if not partitions:
        return
    figure, panels = plt.subplots(1, len(partitions), figsize=(5.5 * len(partitions), 4), squeeze=False)
    for partition, panel in zip(partitions, panels.flat, strict=True):
        mine = select(rows, partition=partition)
        kinds = [kind for kind in dict.fromkeys(row["kind"] for row in mine) if kind != "none"]
        for number, kind in enumerate(kinds):
            for guard, style in (("off", ":"), ("on", "-")):
                points = [r for r in mine if r["filter"] == guard and r["kind"] in (kind, "none")]
                parts = sorted({row["fraction"] for row in points})
                scores = [statistics.mean(by_seed(select(points, fraction=part)).values()) for part in parts]
                panel.plot(
                    [100 * part for part in parts], [100 * score for score in scores], style, marker="o", ms=3,
                    color=f"C{number}", label=f"{kind}, filter {guard}",
                )  # fmt: skip
        panel.set(title=partition, xlabel="bad silos %", ylabel="accuracy %")
        panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
