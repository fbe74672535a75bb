"""`make bench-landscape`: does the first map of importance stay valid as the model trains?

    python benchmarks/landscape.py [--quick] [--seeds 3] [--jobs J] [--minutes M] [--fresh] [--task NAME]

Each run of the command line trains the dense network and maps importance anew every ten rounds, from the model of that
round; exploring again leaves the model where it is. Each map is compared with the first one (`autoflip.likeness`). Rows
already in results/landscape.json are kept, so an interrupted benchmark goes on.

Writes results/landscape.{json,md,png}; with --quick results/landscape-quick.*.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from pruning_report import mean, select
from run_options import RunReport, run_parser
from run_table import DATA, simulate
from seed_interval import half_width

DENSE = "--prune-flops 1 --prune-threshold 0 --no-warm-start"
TASKS = {
    "mnist5k, cnn-tanh, dirichlet:0.1": f"--dataset mnist5k --model cnn-tanh --partition dirichlet:0.1 {DENSE}",
    "digits, mlp, dirichlet:0.1": f"--dataset digits --model mlp --partition dirichlet:0.1 {DENSE}",
    "Shakespeare by speaker, char-lstm": f"--preset quick-shakespeare {DENSE}",
}
EMBEDDED = tuple(TASKS)[:2]
LENGTH = "--rounds 101 --explore-every 10"
SAME_MODEL = "--rounds 3 --explore-every 1"
"""Every round explores and, started cold, leaves the model as it is: what other batches alone change of a map."""
QUICK_LENGTH = "--rounds 11 --explore-every 5"
LATER = (10, 50, 100)
MEASURES = {
    "cosine": "cosine",
    "chance": "cosine by chance",
    "rank": "rank correlation of units",
    "overlap": "best quarter of units shared",
}
EVENT_NAMES = {
    "cosine": "cosine_to_first", "chance": "cosine_by_chance", "rank": "rank_to_first", "overlap": "overlap_to_first"
}  # fmt: skip

Row = dict[str, Any]


def maps_of(run: Path) -> Row:
    """What events.jsonl says of maps after the first."""
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    found = [event for event in events if event["event"] == "explored"]
    return {"maps": [{"round": e["round"], **{name: e[key] for name, key in EVENT_NAMES.items()}} for e in found]}


def measured(rows: list[Row], name: str, round: int) -> list[float]:
    """A measure of the maps of one round, a value a seed."""
    return [row[name] for group in rows for row in group["figures"]["maps"] if row["round"] == round]


def fresh_maps(rows: list[Row], name: str) -> list[float]:
    """A measure of the maps of the untrained model, their mean a value a seed."""
    return [statistics.mean(found[name] for found in row["figures"]["maps"]) for row in rows]


def line(task: str, which: str, values: dict[str, list[float]], accuracy: str) -> str:
    """One row of the table."""
    shown = " | ".join(mean(values[name]) for name in MEASURES)
    return f"| {task} | {which} | {len(values['rank'])} | {shown} | {accuracy} |"


def markdown(rows: list[Row], rounds: tuple[int, ...]) -> str:
    """The whole file."""
    lines = [
        "# Stability of the map of importance",
        "",
        "Maps explored from the model of a later round, beside the first one from the common start; the dense network "
        "trains all the while. In percent, mean ± 95 % interval over seeds. Maps are not negative, so their cosine is "
        "high by construction: the column beside it says what shuffling the entries of each tensor leaves of it. Rank "
        "correlation (Spearman's, of the units' mean importance, ranks taken within layers) is 0 by chance. The last "
        "column is the share of each layer's best quarter of units in the first map that is still there: 25 by chance. "
        "`same model`: second and third maps of the untrained model from other batches, what a map's own noise leaves.",
        "",
        f"| task | map of round | seeds | {' | '.join(MEASURES.values())} | accuracy at the end |",
        "|" + "---|" * (len(MEASURES) + 4),
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        again, mine = select(rows, task=task, same_model=True), select(rows, task=task, same_model=False)
        if again:
            lines.append(line(task, "same model", {name: fresh_maps(again, name) for name in MEASURES}, "-"))
        accuracy = mean([row["figures"]["accuracy"] for row in mine])
        for round in rounds:
            lines.append(line(task, str(round), {name: measured(mine, name, round) for name in MEASURES}, accuracy))
    return "\n".join([*lines, ""])


def plot(rows: list[Row], path: Path) -> None:
    """Each measure by round, one panel a task, with bands over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if not tasks:
        return
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.8 * len(tasks), 3.6), squeeze=False, sharey=True)
    for task, panel in zip(tasks, panels[0], strict=True):
        mine = select(rows, task=task, same_model=False)
        rounds = sorted({found["round"] for row in mine for found in row["figures"]["maps"]})
        for name, label in MEASURES.items():
            values = [measured(mine, name, round) for round in rounds]
            middle = [statistics.mean(some) for some in values]
            widths = [half_width(some) if len(some) > 1 else 0.0 for some in values]
            style = {"ls": ":", "color": "grey"} if name == "chance" else {"marker": "o", "ms": 3}
            panel.plot(rounds, middle, label=label, **style)
            low, high = ([m + sign * w for m, w in zip(middle, widths, strict=True)] for sign in (-1, 1))
            if name != "chance":
                panel.fill_between(rounds, low, high, alpha=0.15)
        panel.set(title=task, xlabel="round", ylim=(-0.25, 1.05))
    panels[0][0].set_ylabel("likeness to the first map")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run what is missing and write the tables."""
    parser = run_parser(__doc__, quick="digits alone, eleven rounds, one seed: under a minute", seeds=3)
    parser.add_argument("--task", default="", help="only tasks whose name contains this")
    arguments = parser.parse_args()
    report = RunReport("landscape", arguments)
    tasks = [task for task in TASKS if arguments.task in task and (task in EMBEDDED or DATA.is_dir())]
    if arguments.quick:
        tasks = [task for task in tasks if task == EMBEDDED[1]]
    length = QUICK_LENGTH if arguments.quick else LENGTH
    seeds = range(1 if arguments.quick else arguments.seeds)
    wanted = [
        ({"task": task, "same_model": same}, f"{TASKS[task]} {SAME_MODEL if same else length}", seed)
        for seed in seeds
        for task in tasks
        for same in (True, False)
    ]
    embedded = tuple(TASKS[task] for task in EMBEDDED)
    report.table.fill(
        wanted,
        arguments.jobs,
        arguments.minutes,
        lambda options, seed: simulate(
            options, seed, ("accuracy", "seconds_total"), data=not options.startswith(embedded), read=maps_of
        ),
    )
    report.write(markdown(report.table.rows, (5, 10) if arguments.quick else LATER), plot)


if __name__ == "__main__":
    main()
