"""Does agreement between silos tell what to prune? Of whole units and of single weights, `make bench-agreement`.

    python benchmarks/agreement_levels.py [--quick] [--seeds 10] [--fresh]

How far ten silos move a unit or a weight can be counted in four ways, which differ in how much agreement counts:

    own       Q = mean_k d_k^2               not at all: what silos do on their own, AutoFLIP's deviations
    shared    E = (mean_k d_k)^2 = Q (1 + (n - 1) rho) / n     as far as it survives the sum
    cross     mu2 = E less what independent silos would leave in it = Q rho     wholly; below zero it counts as 0
    agreement rho alone

each by itself and times size (|w|). For every one the network is pruned, trained on by the same federation and scored;
only the score differs. `cold`: scored after an exploration, trained from the common start. `warm`: scored over eight
rounds of training that goes on. Units are pruned to 12 % of the operations, weights to 5 % of the weights. Comparisons
are paired by seed.

Scores of units also settle how wide each layer is left, which counts by itself. At the levels `widths` and `even` they
say only which units of a layer stay: all scores leave layers as wide as `own` does, or as random units do, which takes
about the same part of every layer. `dissent`, what cancels in the sum (Q - E), is tried there, too.

Writes results/agreement_levels.{json,md,png}.
"""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np
import torch
from levels_federation import SILOS, SPEC, Federation, RoundSums, test_records, units
from levels_report import markdown, plot
from numpy.typing import NDArray
from run_options import RunReport, run_parser

from autoflip_secure.autoflip.mask import PruneSettings, choose_mask
from autoflip_secure.seeds import stream

Values = NDArray[np.float64]

PARTITIONS = ("iid", "dirichlet:0.1", "pathological:2")
STARTS = ("warm", "cold")
LEVELS = {"units": 0.12, "weights": 0.05, "widths": 0.12, "even": 0.12}
"""What is kept of the operations or, of single weights, of those."""
WARM_ROUNDS, ROUNDS, LAST = 8, 16, 4
LEAST = 1e-15


def unit_scores(weights: Values, sums: RoundSums) -> dict[str, Values]:
    """Scores of units, (units,)."""
    return _family(*_of_units(weights, sums))


def _of_units(weights: Values, sums: RoundSums) -> tuple[Values, Values, Values]:
    """Size of each unit, and own and shared energy of all its incoming parameters, (units,) each."""
    of = units()
    size = np.sqrt(of.unit_sum(np.where(of.prunable, weights**2, 0.0)))
    return size, of.unit_sum(sums.own), of.unit_sum(sums.shared)


def ranked_scores(weights: Values, sums: RoundSums, given: Values | None = None) -> dict[str, Values]:
    """Scores of units, (units,), that leave layers equally wide: those given, handed out in the order of each score.

    Without any, `own`'s are. Of units that have no agreement left the largest comes first.
    """
    size, own, shared = _of_units(weights, sums)
    cross = np.maximum((SILOS * shared - own) / (SILOS - 1), 0.0)
    agreement = cross / np.maximum(own, LEAST)
    orders = {
        "size": size, "own": own, "shared": shared, "cross": cross, "agreement": agreement, "dissent": own - shared,
        "size x own": size * np.sqrt(own), "size x shared": size * np.sqrt(shared),
        "size x cross": size * np.sqrt(cross), "size x agreement": size * agreement,
    }  # fmt: skip
    return {name: reordered(np.sqrt(own) if given is None else given, order, size) for name, order in orders.items()}


def reordered(scores: Values, order: Values, ties: Values) -> Values:
    """The scores of each layer's units, the largest to the unit that is first by `order`, and then by `ties`."""
    layer, found = units().layer, np.empty_like(scores)
    for number in np.unique(layer):
        members = np.flatnonzero(layer == number)
        found[members[np.lexsort((ties[members], order[members]))]] = np.sort(scores[members])
    return found


def weight_scores(weights: Values, sums: RoundSums) -> dict[str, Values]:
    """Scores of single weights, (size,)."""
    return _family(np.abs(weights), sums.own, sums.shared)


def _family(size: Values, own: Values, shared: Values) -> dict[str, Values]:
    cross = np.maximum((SILOS * shared - own) / (SILOS - 1), LEAST)
    agreement = np.clip(cross / np.maximum(own, LEAST), 0.0, 1.0)
    lengths = {"own": np.sqrt(own), "shared": np.sqrt(shared), "cross": np.sqrt(cross), "agreement": agreement}
    return {"size": size, **lengths, **{f"size x {name}": size * length for name, length in lengths.items()}}


def mask_of(level: str, scores: Values) -> NDArray[np.bool_]:
    """The mask that the project's own `choose_mask` makes of scores of one level."""
    of, everything = units(), np.ones(units().size, np.bool_)
    if level != "weights":
        settings = PruneSettings(threshold=0.0, flops_kept=LEVELS[level], hysteresis=0.0)
        return choose_mask(SPEC, of, np.ones(of.size), scores, settings, everything).mask
    settings = PruneSettings(threshold=1 - LEVELS[level], layer_floor=0.02, hysteresis=0.0)
    return choose_mask(SPEC, of, scores, np.ones(of.count), settings, everything).mask


def compare(how: str, start: str, level: str, seed: int) -> dict[str, Any]:
    """By score: accuracies when pruned, 1 and 4 rounds later, and in the last rounds; and units left of each layer."""
    federation, of = Federation(how, seed), units()
    if start == "cold":
        begin, sums = federation.start, federation.explore()
        judged = begin.double().numpy() + sums.moved
    else:
        begin, sums = federation.train_dense(WARM_ROUNDS)
        judged = begin.double().numpy()
    random = stream(seed, "random scores").random(of.size if level == "weights" else of.count)
    if level == "even":
        made = {"random": random, **ranked_scores(judged, sums, random)}
    elif level == "widths":
        made = ranked_scores(judged, sums)
        made = {"random": reordered(made["own"], random, random), **made}
    else:
        made = {"random": random, **(unit_scores if level == "units" else weight_scores)(judged, sums)}
    masks = [np.ones(of.size, np.bool_), *(mask_of(level, scores) for scores in made.values())]
    found = federation.train_pruned(begin, np.stack(masks), ROUNDS, LAST)
    names = ("dense", *made)
    left = [of.layer_sum((of.unit_sum(mask) > 0).astype(np.float64)) for mask in masks]
    return {
        "by_score": {name: [round(float(v), 4) for v in found[:, i]] for i, name in enumerate(names)},
        "units_left": {name: [int(v) for v in left[i]] for i, name in enumerate(names)},
    }


def main() -> None:
    """Run what is missing and write the tables."""
    parser = run_parser(
        __doc__, quick="two seeds of the skewed partitions: about two minutes", seeds=10, parallel=False
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = RunReport("agreement_levels", arguments)
    wanted: list[tuple[dict[str, Any], str, int]] = [
        ({"partition": how, "start": start, "level": level}, f"{how} {start} {level}", seed)
        for seed in range(2 if arguments.quick else arguments.seeds)
        for how, start, level in product(PARTITIONS[1:] if arguments.quick else PARTITIONS, STARTS, LEVELS)
    ]

    def run(options: str, seed: int) -> dict[str, Any]:
        started = time.perf_counter()
        found = compare(*options.split(), seed)
        return {**found, "seconds": round(time.perf_counter() - started, 1)}

    report.table.fill(wanted, 1, arguments.minutes, run)
    report.write(markdown(report.table.rows, test_records()[2]), plot)


if __name__ == "__main__":
    main()
