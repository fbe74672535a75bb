"""`make bench-pruning`: AutoFLIP from sums beside other ways to prune, at equal FLOPs and through the same secure sum.

    python benchmarks/pruning.py [--quick] [--seeds 5] [--jobs J] [--minutes M] [--fresh] [--task NAME] [--main]
                                 [--start cold | warm]

Each figure is a run of the command line. Every method explores in the first round and reaches the same share of the
dense network's measured FLOPs on a physically smaller network; `cold` starts training from the common start with the
mask that exploration chose, `warm` goes on from where exploration led. Differences to random units and to magnitude are
paired by seed. Rows already in results/pruning.json are kept, so an interrupted benchmark goes on.

Writes results/pruning.{json,md,png} and results/pruning_{accuracy,uploads,variance,guidance,fate}.png; with --quick
results/pruning-quick*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pruning_figures import DENSE_WITH_SQUARES, SHOWN, figures
from pruning_report import main_rows, markdown, plot
from pruning_traces import importance_of, traces_of
from run_options import RunReport, run_parser
from run_table import DATA, simulate


@dataclass(frozen=True)
class PruningTask:
    """Data, network and training of one table.

    Attributes
    ----------
    name : str
    options : str
        Of the command line.
    threshold : float
        Share of the weights that dies at least, the same for all methods that prune weights, so that uploads compare
        too.
    flops : tuple of float
        Shares of the dense network's FLOPs that are kept.
    pruned, dense : str
        Options of the pruned and of the dense methods alone: the learning rate that each kind of network does best with
        of those that were tried, for methods that have none of their own.
    tried : tuple of str
        Learning rates that dense FedAvg and AutoFLIP run at, first seed, to find these; the usual one first.
    prox : str
        Weight of FedProx's proximal term, which its paper (arXiv 1812.06127) tunes by task: a network that needs many
        steps to leave its start hardly moves under a heavy one.
    floor : str
        Least share of each layer's units that pruned methods keep, where the usual one leaves layers too narrow.
    seeds : int
        Most seeds; tasks that take long have fewer.
    data : bool
        Whether it needs the folder of data sets.
    """

    name: str
    options: str
    threshold: float
    flops: tuple[float, ...]
    pruned: str = ""
    dense: str = ""
    tried: tuple[str, ...] = ()
    prox: str = "0.1"
    floor: str = ""
    seeds: int = 5
    data: bool = True


TASKS = (
    PruningTask(
        "MNIST, cnn-tanh, dirichlet:0.1",
        "--dataset mnist --model cnn-tanh --partition dirichlet:0.1 --rounds 40",
        0.6,
        (0.12, 0.48),
    ),
    PruningTask(
        "MNIST, cnn-tanh, dirichlet:0.1, a tenth of the weights",
        "--dataset mnist --model cnn-tanh --partition dirichlet:0.1 --rounds 40",
        0.9,
        (0.48,),
        seeds=10,
    ),
    PruningTask(
        # Each kind of network at the rate it does best with, of the two tried: the dense one at the usual 0.3.
        "MNIST, cnn-tanh, dirichlet:0.1, 250 rounds",
        "--dataset mnist --model cnn-tanh --partition dirichlet:0.1 --rounds 250",
        0.6,
        (0.48,),
        pruned=" --learning-rate 0.45",
    ),
    PruningTask(
        "MNIST by writer, cnn6, 60 rounds",
        "--preset quick-femnist --rounds 60",
        0.6,
        (0.48,),
        pruned=" --learning-rate 2e-3",
        tried=("1e-3", "2e-3"),
        seeds=3,
    ),
    PruningTask(
        "CIFAR-10 (lossy JPEG copy), resnet-small, dirichlet:0.5, 100 rounds",
        # Scores of all layers compare badly in a residual network: by the usual floor of a tenth its first two layers
        # are left with 4 channels of 16, and the last ones lose none.
        "--preset quick-cifar10 --partition dirichlet:0.5 --rounds 100",
        0.6,
        (0.48,),
        pruned=" --learning-rate 2e-3",
        tried=("1e-3", "2e-3", "4e-3"),
        floor="0.6",
        seeds=3,
    ),
    PruningTask(
        # As many weights as half of the bytes of dense secure sums leave room for.
        "CIFAR-10 (lossy JPEG copy), resnet-small, dirichlet:0.5, 100 rounds, 46 % of the weights",
        "--preset quick-cifar10 --partition dirichlet:0.5 --rounds 100",
        0.54,
        (0.48,),
        pruned=" --learning-rate 2e-3",
        floor="0.6",
        seeds=3,
    ),
    PruningTask(
        "Shakespeare by speaker, char-lstm, 40 rounds",
        "--preset quick-shakespeare --local-steps 5 --rounds 40",
        0.6,
        (0.48,),
        pruned=" --learning-rate 6e-3",
        dense=" --learning-rate 6e-3",
        tried=("3e-3", "6e-3", "1e-2"),
        prox="0.001",
        seeds=3,
    ),
    PruningTask(
        "mnist5k, cnn6, pathological:2",
        "--preset quick-mnist --rounds 40",
        0.6,
        (0.12, 0.48),
        data=False,
    ),
)
QUICK = PruningTask(
    "mnist5k, cnn-tanh, dirichlet:0.1",
    "--dataset mnist5k --model cnn-tanh --partition dirichlet:0.1 --rounds 40",
    0.6,
    (0.12,),
    data=False,
)
DENSE = {
    "FedAvg": "--prune none",
    "FedProx": "--prune none --prox-mu",
    "FedAdam": "--prune none --server-optimizer adam",
    # Of plain FedAvg no squares are summed: how far silos are apart is read from a network of which nothing dies.
    DENSE_WITH_SQUARES: "--prune-flops 1 --prune-threshold 0 --no-warm-start",
}
AUTOFLIP = "AutoFLIP (hybrid)"
PRUNED = {
    "random units": "--prune random",
    "magnitude": "--prune magnitude",
    "SNIP": "--prune snip",
    "PruneFL": "--prune prunefl",
    "FedDST, mask chosen from sums": "--prune feddst",
    "EFLPrune": "--prune eflprune",
    # Its steps move scores of masks, so the presets' local Adam is not for it.
    "FedMask, global mask": "--prune fedmask --optimizer sgd --learning-rate 0.3",
    "guidance": "--score guidance",
    "guidance x agreement": "--score guidance-agreement",
    "size x shared energy": "--score product",
    "size x shared energy x agreement": "--score product-agreement",
    "size x own energy": "--score own-product",
    AUTOFLIP: "--score hybrid",
}
TRACED = ("guidance x agreement", AUTOFLIP)
"""Importance is drawn of their first seed at one FLOP target, started warm."""
UNEXPLORED = ("random units", "FedDST, mask chosen from sums", "EFLPrune")
"""Nothing is explored first: no choice of start."""
WHOLE_UNITS = ("FedAvg", "FedProx", "FedAdam", "EFLPrune", "FedMask, global mask")
"""Methods that take no share of single weights: what FedMask masks in the end is for its votes to say."""
STARTS = {"cold": "--no-warm-start", "warm": "--warm-start"}
MAIN = ("FedAvg", "random units", "magnitude", "guidance x agreement", AUTOFLIP)
"""What `--main` leaves of the methods: the claim, and what it is measured against."""
RATE = " --learning-rate "
FLOOR = " --prune-floor "
USUAL_FLOOR = "0.1"
FIGURES = (
    "accuracy", "loss", "flops_ratio", "training_flops_ratio", "params_ratio", "upload_ratio", "upload_ratio_total",
    "rounds_aborted", "agreement_final", "seconds_training", "seconds_total",
)  # fmt: skip


def settings(task: PruningTask, starts: tuple[str, ...], *, main: bool) -> list[tuple[dict[str, Any], str]]:
    """(facts, options) of every run of a task."""
    shared = {
        method: task.options + ("" if method in WHOLE_UNITS else f" --prune-threshold {task.threshold}")
        for method in (*DENSE, *PRUNED)
    }
    prox = {"FedProx": f" {task.prox}"}
    made = [
        (
            {"task": task.name, "method": method, "start": "", "flops": None},
            f"{shared[method]} {options}{prox.get(method, '')}{task.dense}",
        )
        for method, options in DENSE.items()
        if method in MAIN or not main
    ]
    for kept, start, (method, choice) in product(task.flops, starts, PRUNED.items()):
        explored = method not in UNEXPLORED
        if (not explored and start != starts[0]) or (main and method not in MAIN):
            continue
        facts = {"task": task.name, "method": method, "start": start if explored else "", "flops": kept}
        warmth = f" {STARTS[start]}" if explored else ""
        rate = "" if "--learning-rate" in choice else task.pruned
        floor = FLOOR + task.floor if task.floor else ""
        made.append((facts, f"{shared[method]} {choice} --prune-flops {kept}{warmth}{rate}{floor}"))
    return made


def rate_settings(task: PruningTask) -> list[tuple[dict[str, Any], str]]:
    """(facts, options) of the runs that a task's learning rates and floor were chosen by; `rate` is a fact of them
    alone."""
    made, chosen = [], chosen_rates((task,))
    for rate, method in product(task.tried, ("FedAvg", AUTOFLIP)):
        dense = method in DENSE
        name = rate if dense or not task.floor else f"{rate}, floor {USUAL_FLOOR}"
        if name == chosen[task.name, dense]:
            continue
        facts = {
            "task": task.name,
            "method": method,
            "start": "" if dense else "cold",
            "flops": None if dense else task.flops[-1],
            "rate": name,
        }
        options = DENSE[method] if dense else f"--prune-threshold {task.threshold} {PRUNED[method]}"
        kept = "" if dense else f" --prune-flops {task.flops[-1]} {STARTS['cold']}"
        given = "" if rate == task.tried[0] else RATE + rate
        made.append((facts, f"{task.options} {options}{kept}{given}"))
    if task.prox != PruningTask.prox:
        facts = {"task": task.name, "method": "FedProx", "start": "", "flops": None}
        facts["rate"] = f"{chosen[task.name, True]}, mu {PruningTask.prox}"
        made.append((facts, f"{task.options} {DENSE['FedProx']} {PruningTask.prox}{task.dense}"))
    return made


def chosen_rates(tasks: tuple[PruningTask, ...]) -> dict[tuple[str, bool], str]:
    """Learning rate of a task's dense networks (True) and pruned ones (False), of tasks that tried several, and the
    floor where it is not the usual one."""
    floors = {task.name: f", floor {task.floor}" if task.floor else "" for task in tasks}
    return {
        (task.name, dense): (options.removeprefix(RATE) or task.tried[0]) + ("" if dense else floors[task.name])
        for task in tasks
        if task.tried
        for dense, options in ((True, task.dense), (False, task.pruned))
    }


def main() -> None:
    """Run what is missing and write the tables."""
    parser = run_parser(
        __doc__,
        quick="one small task, one seed, warm starts: about ten minutes",
        seeds=5,
        seeds_help="at most; tasks that take long have fewer",
    )
    parser.add_argument(
        "--main", action="store_true", help="only AutoFLIP, FedAvg, random units, magnitude and the rule of the design"
    )
    parser.add_argument("--start", choices=tuple(STARTS), help="only this start [both]")
    parser.add_argument("--task", default="", help="only tasks whose name contains this")
    parser.add_argument("--only", default="", help="only runs whose 'task | method | start | FLOPs' match this pattern")
    arguments = parser.parse_args()
    report = RunReport("pruning", arguments)
    starts = (arguments.start,) if arguments.start else (("warm",) if arguments.quick else tuple(STARTS))
    if arguments.quick:
        tasks, seeds = [QUICK], 1
    else:
        tasks = [task for task in TASKS if arguments.task in task.name and (DATA.is_dir() or not task.data)]
        seeds = arguments.seeds
    wanted = [
        (facts, options, seed)
        for seed in range(seeds)
        for task in tasks
        if seed < task.seeds
        for facts, options in settings(task, starts, main=arguments.main) + (rate_settings(task) if not seed else [])
        if re.search(arguments.only, " | ".join(str(fact) for fact in facts.values()))
    ]
    reading_data = tuple(task.options for task in tasks if task.data)
    traced = {options for facts, options, _ in wanted if facts["method"] in TRACED and facts["flops"] == SHOWN}

    def run(options: str, seed: int) -> dict[str, Any]:
        def read(folder: Path) -> dict[str, Any]:
            importance = importance_of(folder) if options in traced and seed == 0 else {}
            return {**traces_of(folder), **importance}

        return simulate(options, seed, FIGURES, data=options.startswith(reading_data), read=read)

    report.table.fill(wanted, arguments.jobs, arguments.minutes, run)
    report.write(markdown(report.table.rows, chosen_rates(TASKS)), plot)
    figures(main_rows(report.table.rows), report.path)


if __name__ == "__main__":
    main()
