"""The tables and the figure of `agreement_levels.py`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from pruning_report import against, mean, select

__all__ = ["markdown", "plot"]

Row = dict[str, Any]
SETTINGS = ("level", "start", "partition")
END = 3
FAMILIES = {"by itself": ("own", "shared", "cross", "agreement"), "times size": ("own", "shared", "cross", "agreement")}


def by_seed(rows: list[Row], score: str, moment: int = END) -> dict[int, float]:
    """Accuracy of a score by seed."""
    return {row["seed"]: row["figures"]["by_score"][score][moment] for row in rows}


def settings_of(rows: list[Row]) -> list[dict[str, str]]:
    """All settings there are, units first."""
    found = {tuple(row[name] for name in SETTINGS) for row in rows}
    return [dict(zip(SETTINGS, values, strict=True)) for values in sorted(found)]


def markdown(rows: list[Row], scored_on: str) -> str:
    """The whole file."""
    lines = [
        "# Does agreement tell what to prune?",
        "",
        "Ten silos of mnist5k averaged to 14 x 14, a perceptron of 196, 64, 32 and 10, averaging with ten local steps "
        f"of plain SGD; scored on {scored_on}. Units are pruned to 12 % of the operations, weights to 5 % of them; "
        "`widths` and `even` are units again, with layers as wide for all scores as `own` or random units leave them. "
        "Figures are accuracies in percent over the last 4 of 16 rounds after pruning, mean ± 95 % interval over "
        "seeds; differences are paired by seed, bold where their interval excludes zero. `own`, `shared`, `cross` and "
        "`agreement` count agreement between silos not at all, as far as the sum does, wholly, and alone: see "
        "`benchmarks/agreement_levels.py`.",
        "",
        "## What it says",
        "",
        "- **Of whole units agreement does not tell what to keep.** Where silos hold different classes, the more it "
        "counts the worse the choice; by itself it is no better than random units. So it is where all scores leave "
        "layers equally wide (`even`). Energy counted silo by silo, before anything cancels, is first or level with "
        "the first there, and it is what AutoFLIP's deviations are. What cancels in the sum (`dissent`) does as well "
        "as all of it: a unit that silos pull different ways is one that the network cannot do without.",
        "- **How wide a score leaves layers counts besides.** `own` leaves 7 and 24 of 64 and 32 units, random units "
        "and scores by agreement 8 and 12. As wide as `own` leaves them (`widths`) layers do better by random units, "
        "too, and with three quarters of the second layer there is little left to choose.",
        "- **Of single weights it does.** Moves of a weight that cancel in the sum were for nothing, so the energy "
        "that is left in it is the better guide on skewed silos, at a cold start by far. Agreement by itself, without "
        "how far a weight moves, is no guide at all.",
        "- With iid silos all energies rank alike, and size does as well as they do or better.",
        "- Differences shrink as training goes on after pruning; a warm start leaves less to choose.",
        "",
        "## What agreement adds",
        "",
        "The same energy with more weight on agreement, less the one with less. Below zero: agreement does harm.",
        "",
        "| pruned | start | silos | seeds | shared less own | the same, times size | cross less own, times size "
        "| agreement less random |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for facts in settings_of(rows):
        mine = select(rows, **facts)
        pairs = (
            ("shared", "own"), ("size x shared", "size x own"), ("size x cross", "size x own"), ("agreement", "random")
        )  # fmt: skip
        gaps = [against(by_seed(mine, more), by_seed(mine, less)) for more, less in pairs]
        lines.append(
            f"| {facts['level']} | {facts['start']} | {facts['partition']} | {len(mine)} | " + " | ".join(gaps) + " |"
        )
    lines += ["", *widths_table(rows), "## All scores", ""]
    for facts in settings_of(rows):
        lines += score_table(select(rows, **facts), f"{facts['level']}, {facts['start']}, {facts['partition']}")
    return "\n".join(lines)


def widths_table(rows: list[Row]) -> list[str]:
    """What a choice of units gains with layers as wide as it leaves them, and with layers equally wide for all."""
    pairs = (("own", "random"), ("shared", "own"), ("cross", "own"), ("agreement", "own"), ("agreement", "random"))
    lines = [
        "## How many units of a layer, and which",
        "",
        "Units alone. `units`: each score settles how wide layers are. `widths`: all are as wide as `own` leaves them, "
        "`even`: as random units do.",
        "",
        f"| start | silos | level | {' | '.join(f'{more} less {less}' for more, less in pairs)} | dissent less own |",
        "|---|---|---|" + "---|" * (len(pairs) + 1),
    ]
    for facts in sorted(settings_of(rows), key=lambda facts: (facts["start"], facts["partition"])):
        if facts["level"] == "weights":
            continue
        mine = select(rows, **facts)
        gaps = [against(by_seed(mine, more), by_seed(mine, less)) for more, less in pairs]
        tried = "dissent" in mine[0]["figures"]["by_score"]
        gaps.append(against(by_seed(mine, "dissent"), by_seed(mine, "own")) if tried else "")
        lines.append(f"| {facts['start']} | {facts['partition']} | {facts['level']} | {' | '.join(gaps)} |")
    return [*lines, ""]


def score_table(rows: list[Row], title: str) -> list[str]:
    """All scores of one setting, best first."""
    lines = [
        f"### {title}",
        "",
        "| score | when pruned | 4 rounds later | at the end | less random | less size |",
        "|---|---|---|---|---|---|",
    ]
    names = list(rows[0]["figures"]["by_score"])
    ends = {name: by_seed(rows, name) for name in names}
    for name in sorted(names, key=lambda name: -statistics.mean(ends[name].values())):
        shown = [mean(list(by_seed(rows, name, moment).values())) for moment in (0, 2, END)]
        gaps = ["" if name in (other, "dense") else against(ends[name], ends[other]) for other in ("random", "size")]
        lines.append(f"| {name} | " + " | ".join([*shown, *gaps]) + " |")
    return [*lines, ""]


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy against how much agreement counts, one panel a setting: the two levels lean to opposite sides."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = settings_of(rows)
    if not settings:
        return
    across = len({facts["partition"] for facts in settings})
    down = -(-len(settings) // across)
    figure, panels = plt.subplots(down, across, figsize=(3.6 * across, 2.7 * down), squeeze=False)
    for facts, panel in zip(settings, panels.flat, strict=False):
        mine = select(rows, **facts)
        for family, names in FAMILIES.items():
            scores = [f"size x {name}" if family == "times size" else name for name in names]
            heights = [100 * statistics.mean(by_seed(mine, score).values()) for score in scores]
            panel.plot(names, heights, marker="o", ms=3, label=family)
        for score, dashes in (("size", "--"), ("random", ":")):
            panel.axhline(100 * statistics.mean(by_seed(mine, score).values()), ls=dashes, color="grey", label=score)
        panel.set_title(f"{facts['level']}, {facts['start']}, {facts['partition']}", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0, 0].legend(fontsize=6)
    figure.supylabel("accuracy %", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
