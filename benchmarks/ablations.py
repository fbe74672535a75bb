"""`make bench-ablations`: AutoFLIP's settings, one varied at a time from a stated base.

    python benchmarks/ablations.py [--quick] [--seeds 5] [--jobs J] [--minutes M] [--fresh] [--topic NAME]

Each figure is a run of the command line on MNIST 5k and its small CNN, silos skewed in two ways, at 25 and 12 % of the
FLOPs. Differences to the base of a topic are paired by seed. Rows already in results/ablations.json are kept, so an
interrupted benchmark goes on; a run that two topics share is made once.

Writes results/ablations.{json,md,png}; with --quick results/ablations-quick.*.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from pruning_report import against, by_seed, mean
from run_options import RunReport, run_parser
from run_table import simulate
from safetensors import safe_open

from autoflip_secure.federation.model_payload import ModelPayload

Row = dict[str, Any]

BASE = "--dataset mnist5k --model cnn-tanh --rounds 40"
PARTITIONS = ("dirichlet:0.1", "pathological:2")
FLOPS = (0.25, 0.12)


@dataclass(frozen=True)
class Topic:
    """One setting.

    Attributes
    ----------
    values : dict of str to str
        What is shown, and the options that make it; the first is the base the others are compared with.
    common : str
        Options of all its runs, where the setting has no effect under the defaults.
    """

    values: dict[str, str]
    common: str = ""


GUIDED = "--score guidance-agreement"
LATER = "--warm-start --prune-steps 3"
"""Units die in three decisions. The first comes right after exploration, when there is no agreement yet and all scores
rest on the same deviations: with one decision, as at a cold start, many of them keep the same network."""

TOPICS = {
    "agreement in guidance": Topic({"guidance": "--score guidance", "guidance x agreement": GUIDED}, LATER),
    "agreement in size x energy": Topic(
        {"size x energy": "--score product", "size x energy x agreement": "--score product-agreement"}, LATER
    ),
    "agreement within layers": Topic(
        {
            "hybrid": "",
            "agreement keeps units": "--score hybrid-agreement",
            "disagreement keeps units": "--score hybrid-disagreement",
        },
        LATER,
    ),
    "decisions on the way": Topic({"1": "", "3": "--prune-steps 3"}),
    "score": Topic(
        {
            "hybrid": "",
            "own energy": "--score own-energy",
            "size x own energy": "--score own-product",
            "size x shared energy": "--score product",
        },
        LATER,
    ),
    "threshold Tp": Topic(
        {"0.3": "", "0": "--prune-threshold 0", "0.6": "--prune-threshold 0.6", "0.8": "--prune-threshold 0.8"}
    ),
    "steps of an exploring silo": Topic({"20": "", "5": "--explore-steps 5", "80": "--explore-steps 80"}),
    # Twenty silos: a sum of three of ten would not be opened.
    "silos that explore": Topic(
        {"all": "", "0.6": "--explore-participation 0.6", "0.3": "--explore-participation 0.3"}, "--silos 20"
    ),
    "exploring again": Topic({"once": "", "every 10 rounds": "--explore-every 10"}, GUIDED),
    "eta": Topic({"0.1": "", "0": "--eta 0", "0.5": "--eta 0.5"}, GUIDED),
    "level of guidance": Topic({"parameter": "", "unit": "--guidance-level unit"}, GUIDED),
    "hysteresis": Topic({"0.1": "", "0": "--prune-hysteresis 0"}, GUIDED),
}
FIGURES = ("accuracy", "flops_ratio", "params_ratio", "upload_ratio_total", "rounds_aborted", "seconds_total")


def options_of(topic: Topic, value: str, partition: str, flops: float) -> str:
    """The command line of one run, its seed left out."""
    parts = (BASE, f"--partition {partition} --prune-flops {flops}", topic.common, topic.values[value])
    return " ".join(part for part in parts if part)


def table_of(rows: list[Row], name: str) -> list[str]:
    """One topic: a line a partition, FLOP target and value."""
    topic = TOPICS[name]
    base = next(iter(topic.values))
    lines = [
        f"## {name}",
        "",
        f"Base: `{' '.join(part for part in (BASE, topic.common, topic.values[base]) if part)}`.",
        "",
        f"| partition | FLOPs asked % | {name} | seeds | accuracy % | less {base} | FLOPs kept % | weights kept % "
        "| units by layer | upload % of FedAvg |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for partition, flops in product(PARTITIONS, FLOPS):
        groups = {
            value: [row for row in rows if row["options"] == options_of(topic, value, partition, flops)]
            for value in topic.values
        }
        for value, group in groups.items():
            if not group:
                continue
            scores = by_seed(group)
            gap = "" if value == base else against(scores, by_seed(groups[base]))
            others, mine = weights_of(groups[base]), weights_of(group)
            same = sum(others.get(seed) == digest for seed, digest in mine.items())
            if value != base and same:
                gap += f"; the same weights live in {same}"
            arithmetic, kept, sent = (
                f"{100 * statistics.mean(row['figures'][figure] for row in group):.1f}"
                for figure in ("flops_ratio", "params_ratio", "upload_ratio_total")
            )
            widths = Counter(
                "-".join(map(str, row["figures"]["widths"])) for row in group if "widths" in row["figures"]
            )
            shown = ", ".join(width if count == 1 else f"{count} x {width}" for width, count in widths.items())
            lines.append(
                f"| {partition} | {100 * flops:.0f} | {value} | {len(group)} | {mean(list(scores.values()))} | {gap} "
                f"| {arithmetic} | {kept} | {shown or '-'} | {sent} |"
            )
    return [*lines, ""]


def weights_of(group: list[Row]) -> dict[int, str]:
    """Which weights of the dense network were left, by seed, of runs that say so."""
    return {row["seed"]: row["figures"]["living"] for row in group if "living" in row["figures"]}


def network_left(run: Path) -> Row:
    """Units of each layer that a run ended with, and a digest of which weights of the dense network live."""
    model = ModelPayload.from_bytes((run / "model.safetensors").read_bytes())
    with safe_open(run / "importance.safetensors", "numpy") as file:
        living = file.get_tensor("mask") > 0
    return {"widths": list(model.spec.widths), "living": sha256(np.packbits(living).tobytes()).hexdigest()[:16]}


def markdown(rows: list[Row]) -> str:
    """The whole file."""
    lines = [
        "# Ablations",
        "",
        "One setting of AutoFLIP varied at a time. Accuracy on public test records, mean ± 95 % interval over seeds; "
        "differences to the topic's base are paired by seed, bold where their interval excludes zero (each by itself: "
        "of twenty that mean nothing one is bold); 1,000 records are scored, so 0.1 is one of them. `units by layer`: "
        "of the final network; networks of equal FLOPs may differ in it, and so in how many weights they keep (`-`: of "
        "a run before this was kept). Runs without DP, 10 silos unless said otherwise. Where the usual "
        "score does not use a setting (guidance and what moves it), the base keeps by guidance x agreement. A unit "
        "whose agreement is not above zero scores 0 and dies before any other; where silos hold different classes that "
        "empties the layer that most of the weights are in. What agreement tells of units in layers equally wide is "
        "measured in [agreement_levels.md](agreement_levels.md).",
        "",
    ]
    made = {row["options"] for row in rows}
    for name, topic in TOPICS.items():
        base, *varied = topic.values
        if any(
            options_of(topic, base, *where) in made
            and any(options_of(topic, value, *where) in made for value in varied)
            for where in product(PARTITIONS, FLOPS)
        ):
            lines += table_of(rows, name)
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy less the base's by value, one panel a topic; a mark a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = math.ceil(len(TOPICS) / 3)
    figure, panels = plt.subplots(height, 3, figsize=(13, 3 * height), squeeze=False)
    for panel in panels.flat[len(TOPICS) :]:
        panel.set_axis_off()
    for panel, (name, topic) in zip(panels.flat, TOPICS.items(), strict=False):
        base, *others = topic.values
        for shift, (partition, flops) in enumerate(product(PARTITIONS, FLOPS)):
            scores = {
                value: by_seed([row for row in rows if row["options"] == options_of(topic, value, partition, flops)])
                for value in topic.values
            }
            places, gaps = [], []
            for place, value in enumerate(others):
                both = scores[value].keys() & scores[base].keys()
                places += [place + 0.15 * (shift - 1.5)] * len(both)
                gaps += [100 * (scores[value][seed] - scores[base][seed]) for seed in sorted(both)]
            panel.scatter(places, gaps, s=12, alpha=0.7, label=f"{partition}, {100 * flops:.0f} %")
        panel.axhline(0, color="grey", lw=0.8)
        panel.set_xticks(range(len(others)), others)
        panel.set_xlim(-0.5, len(others) - 0.5)
        panel.set_title(f"{name}, less {base}", fontsize=9)
    panels[0][0].legend(fontsize=6)
    for row in panels:
        row[0].set_ylabel("accuracy, points")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run what is missing and write the tables."""
    parser = run_parser(__doc__, quick="one partition, one FLOP target, one seed, one topic", seeds=5)
    parser.add_argument("--topic", default="", help="only topics whose name contains this")
    arguments = parser.parse_args()
    report = RunReport("ablations", arguments)
    topics = [topic for title, topic in TOPICS.items() if arguments.topic in title]
    partitions, targets, seeds = PARTITIONS, FLOPS, arguments.seeds
    if arguments.quick:
        topics, partitions, targets, seeds = topics[:1], PARTITIONS[:1], FLOPS[:1], 1
    # By options, so that what two topics share is run once; seeds outermost: every row has one before any has two.
    wanted = {
        (options_of(topic, value, partition, flops), seed): {"partition": partition, "flops": flops}
        for seed, flops, partition, topic in product(range(seeds), targets, partitions, topics)
        for value in topic.values
    }
    report.table.fill(
        [(facts, options, seed) for (options, seed), facts in wanted.items()],
        arguments.jobs,
        arguments.minutes,
        lambda options, seed: simulate(options, seed, FIGURES, data=False, read=network_left),
    )
    report.write(markdown(report.table.rows), plot)


if __name__ == "__main__":
    main()
