"""`make bench-compaction`: seconds of one step, dense against compacted, measured in turn on this machine.

    python benchmarks/compaction.py [--quick] [--model NAME]...

For every network, units are dropped by random scores until the compacted network keeps 50 % and 25 % of the dense
one's operations (autoflip.mask, autoflip.compaction), as pruning does it: singly, and as `--prune-round-to` does, so
that layers keep multiples of 8 or 16 channels. Then, in turn, so that other load falls on
all alike: a training step of 32 records (training.local, SGD), a DP-SGD step of 32 records (privacy.gradient_sum; small
networks), and inference of 1 and of 32 records. A ratio is the median over turns of dense seconds over compacted
seconds. Writes results/compaction.json and compaction.md. --quick takes two networks, two seconds a figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor, nn

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.flops import flops, parameters
from autoflip_secure.autoflip.mask import PruneSettings, choose_mask
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.export.network import example_records, inference_network
from autoflip_secure.export.timing import interleaved
from autoflip_secure.models.spec import ModelSpec, build, dense_spec
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.training.local import train_locally

RESULTS = Path(__file__).parent / "results"
CUTS = ((0.5, 1), (0.5, 8), (0.5, 16), (0.25, 1))
"""Share of the operations that is kept at most, and what widths are rounded to."""
BATCH = 32
TRAINING_STEPS = 4
TARGET = 1.6
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One network: the records it reads, and whether per-record gradients of it are small enough to time."""

    input_shape: tuple[int, ...]
    outputs: int
    private: bool
    cnn: bool = True


CASES = {
    "cnn-tanh": Case((1, 28, 28), 10, private=True),
    "cnn6": Case((3, 32, 32), 10, private=True),
    "femnist-cnn": Case((1, 28, 28), 62, private=False),
    "resnet-small": Case((3, 32, 32), 10, private=True),
    "mobilenet-v2": Case((3, 32, 32), 10, private=False),
    "char-lstm": Case((80,), 80, private=True, cnn=False),
    "resnet18": Case((3, 32, 32), 10, private=False),
    "efficientnet-b3": Case((3, 32, 32), 10, private=False),
}
QUICK = ("cnn-tanh", "cnn6")
LARGE = ("resnet18", "efficientnet-b3")
"""Measured where they are asked for: a step of theirs takes seconds."""


def compacted(dense: ModelSpec, kept: float, round_to: int) -> ModelSpec:
    """The network left when units with random scores die until `kept` of the operations are left."""
    units, generator = UnitMap.of(dense), np.random.default_rng(0)
    scores = generator.random(units.size), generator.random(units.count)
    settings = PruneSettings(threshold=0.0, flops_kept=kept, round_to=round_to)
    decision = choose_mask(dense, units, *scores, settings, np.ones(units.size, np.bool_))
    return compact(dense, decision.dead_units).spec


def training(net: nn.Module, x: Tensor, y: Tensor) -> Call:
    """A few steps as a silo makes them, with a mask under which everything lives: what a compacted run has."""
    live = torch.ones(sum(p.numel() for p in net.parameters()), dtype=torch.bool)
    options: dict[str, Any] = {"steps": TRAINING_STEPS, "batch_size": BATCH, "learning_rate": 1e-3, "live": live}
    return lambda: train_locally(net, x, y, generator=torch.Generator().manual_seed(0), **options)


def private(net: nn.Module, x: Tensor, y: Tensor) -> Call:
    """One sum of clipped per-record gradients: all that a silo computes in a round of distributed DP."""
    gradients = ClippedGradientSum(net)
    return lambda: gradients(x, y, 1.0)


def inference(spec: ModelSpec, net: nn.Module, x: Tensor) -> Call:
    """One forward pass of the exported form."""
    module = inference_network(spec, net)

    def forward() -> object:
        with torch.inference_mode():
            return module(x)

    return forward


def measured(calls: list[Call], seconds: float) -> dict[str, list[float]]:
    """Median milliseconds of each call, the dense one first, and of each the median of dense over own by turn."""
    taken = interleaved(calls, seconds)
    ratios = [[dense / own for dense, own in zip(taken[0], times, strict=True)] for times in taken]
    return {
        "ms": [round(1000 * statistics.median(times), 4) for times in taken],
        "speedup": [round(statistics.median(ratio), 3) for ratio in ratios],
        "turns": [len(times) for times in taken],
    }


def row(name: str, case: Case, seconds: float) -> dict[str, Any]:
    """Everything measured of one network: lists are dense first, then by `CUTS`."""
    dense = dense_spec(name, case.input_shape, case.outputs)
    specs = [dense, *(compacted(dense, *cut) for cut in CUTS)]
    generator = torch.Generator().manual_seed(0)
    x = example_records(dense, TRAINING_STEPS * BATCH, generator)
    y = torch.randint(case.outputs, (len(x),), generator=generator)
    shown = {"model": name, "input_shape": case.input_shape, "cnn": case.cnn, "widths": [s.widths for s in specs]}
    nets = [build(spec, generator) for spec in specs]
    steps = measured([training(net, x.float(), y) for net in nets], seconds)
    steps["ms"] = [round(ms / TRAINING_STEPS, 4) for ms in steps["ms"]]
    result = {
        **shown,
        "parameters": [parameters(spec) for spec in specs],
        "flops": [flops(spec) for spec in specs],
        "training": steps,
        "inference": {
            str(batch): measured(
                [inference(spec, net, x[:batch]) for spec, net in zip(specs, nets, strict=True)], seconds
            )
            for batch in (1, BATCH)
        },
    }
    if case.private:
        fresh = [build(spec, generator) for spec in specs]
        result["private"] = measured([private(net, x[:BATCH].float(), y[:BATCH]) for net in fresh], seconds)
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a network and share of operations kept."""
    lines = [
        "| network | rounded to | FLOPs kept % | parameters kept % | training step, ms dense → compacted "
        "| **times faster** | DP-SGD step | inference, batch 1 | batch 32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        for place, (_, round_to) in enumerate(CUTS, 1):
            flops_kept, kept = (100 * each[key][place] / each[key][0] for key in ("flops", "parameters"))
            steps = each["training"]
            dp = f"{each['private']['speedup'][place]:.2f}" if "private" in each else "-"
            single, many = (each["inference"][batch]["speedup"][place] for batch in ("1", str(BATCH)))
            lines.append(
                f"| {each['model']} | {round_to if round_to > 1 else '-'} | {flops_kept:.1f} | {kept:.1f} "
                f"| {steps['ms'][0]:.2f} → {steps['ms'][place]:.2f} "
                f"| **{steps['speedup'][place]:.2f}** | {dp} | {single:.2f} | {many:.2f} |"
            )
    return "\n".join(lines)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which convolutional networks reach the target at half the operations, by what widths are rounded to."""
    lines = []
    for place, (kept, round_to) in enumerate(CUTS, 1):
        if kept != CUTS[0][0]:
            continue
        gains = {each["model"]: each["training"]["speedup"][place] for each in rows if each["cnn"]}
        met = ", ".join(f"{name} ({gain:.2f})" for name, gain in gains.items() if gain >= TARGET) or "none"
        missed = ", ".join(f"{name} ({gain:.2f})" for name, gain in gains.items() if gain < TARGET) or "none"
        how = f"widths in multiples of {round_to}" if round_to > 1 else "units cut singly"
        target = f"A training step {TARGET} times faster at half of the operations, {how}"
        lines.append(f"{target}: reached by {met}; not reached by {missed}.")
    return "\n\n".join(lines)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two networks, two seconds a figure")
    parser.add_argument("--model", action="append", choices=list(CASES), help="only these")
    arguments = parser.parse_args()
    names = arguments.model or (QUICK if arguments.quick else [name for name in CASES if name not in LARGE])
    torch.set_num_threads(1)
    rows = []
    for name in names:
        rows.append(row(name, CASES[name], seconds=2.0 if arguments.quick else 8.0))
        print(*table(rows[-1:]).splitlines()[-len(CUTS) :], sep="\n", file=sys.stderr, flush=True)
    made = {**machine("torch", "opacus"), "threads": torch.get_num_threads(), "batch": BATCH, "target": TARGET}
    ending = "-quick" if arguments.quick else "-custom" if arguments.model else ""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"compaction{ending}.json").write_text(json.dumps({"machine": made, "rows": rows}, indent=1))
    text = f"{table(rows)}\n\n{verdict(rows)}\n\nDense seconds over compacted seconds, medians over turns measured in "
    text += f"turn; units dropped by random scores. Made by `python benchmarks/compaction.py` on {json.dumps(made)}.\n"
    (RESULTS / f"compaction{ending}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
