"""`make bench-personal`: what each silo gets of a run for records like its own, and FedMask with a mask for each silo.

    python benchmarks/personal.py [--quick] [--seeds 3] [--jobs J] [--minutes M] [--fresh]

FedMask (Li et al. 2021) gives each device a mask of its own, which the server has to see: it runs without a secure sum
here, and what each silo sent in the last round is read from the recorded view of the server (`--aggregation none`). All
other methods give everybody one network. Each is scored for each silo on public test records, weighted so that classes
are as frequent as in the silo's own records; as it comes, and after the silo has trained it on its own records for a
while, as FedMask's devices do in the end, under the mask that it has. Beside them: silos that train by themselves, as
many steps as the federation made, from the common start.

Rows already in results/personal.json are kept, so an interrupted benchmark goes on. Writes
results/personal.{json,md,png}; with --quick results/personal-quick.*.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pruning_report import mean, select
from run_options import RunReport, run_parser
from run_table import DATA, run_simulation

from autoflip_secure.attacks.recorded_view import RecordedView
from autoflip_secure.autoflip.flops import flops
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig, load_config_file
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.data.task import Task
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.initial_model import whole_model
from autoflip_secure.federation.model_payload import HALF, ModelPayload
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.models.features import features_of
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.seeds import torch_stream
from autoflip_secure.training.evaluation import predict
from autoflip_secure.training.local import train_locally

PARTITIONS = ("dirichlet:0.1", "pathological:2")
PRUNED = "--prune-flops 0.48"
METHODS = {
    "FedAvg": "--prune none",
    "AutoFLIP (hybrid)": f"--score hybrid --prune-threshold 0.6 --no-warm-start {PRUNED}",
    # Its steps move scores of masks. Sent in the clear: there is no secure sum of masks that stay apart.
    "FedMask, a mask for each silo": (
        f"--prune fedmask --no-warm-start {PRUNED} --aggregation none --record-server-view"
    ),
}
ALONE = "each silo by itself"
STEPS, RATE = 100, 0.1
"""Of the training at each silo's own, in the end: plain SGD on the run's batches."""
MEASURES = {
    "accuracy": "one network, all records",
    "own": "own network, own classes",
    "trained": "and after own training",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """Scores networks for one silo.

    Attributes
    ----------
    task : Task
    config : ResolvedConfig
    test : Records
        Public.
    """

    task: Task
    config: ResolvedConfig
    test: Records

    def network(self, model: ModelPayload) -> torch.nn.Module:
        """Module of a payload, masked."""
        module = build(model.spec)
        load_flat_parameters(module, torch.from_numpy(model.weights.astype(np.float32)))
        return module

    def accuracy(self, module: torch.nn.Module, own: Records | None) -> float:
        """Share of the test records predicted rightly, with the classes as frequent as in `own`; None: as they are."""
        targets = self.task.targets(self.test)
        right = predict(module, features_of(self.config.model, self.test.x)).argmax(axis=1) == targets
        if own is None:
            return float(right.mean())
        classes, counts = np.unique(self.task.targets(own), return_counts=True)
        return float(np.average([right[targets == one].mean() for one in classes], weights=counts))

    def trained(self, model: ModelPayload, own: Records, silo: int, **steps: Any) -> torch.nn.Module:
        """The network after training on a silo's records; what its mask leaves out stays 0."""
        module = self.network(model)
        train_locally(
            module,
            torch.from_numpy(features_of(self.config.model, own.x)),
            torch.from_numpy(self.task.targets(own)),
            batch_size=self.config.batch_size,
            generator=torch_stream(self.config.seed, "own training", silo),
            live=torch.from_numpy(model.mask),
            loss=self.task.loss,
            **steps,
        )
        return module

    def personal(self, models: list[ModelPayload], records: list[Records], **steps: Any) -> float:
        """Mean accuracy over silos, each with its model, for its own classes; after training if steps are given."""
        scores = []
        for silo, (model, own) in enumerate(zip(models, records, strict=True), 1):
            network = self.trained(model, own, silo, **steps) if steps else self.network(model)
            scores.append(self.accuracy(network, own))
        return float(np.mean(scores))


def judged(run: Path) -> Row:
    """What silos get of a finished run."""
    folder = RunFolder(run)
    config, task = ResolvedConfig.create(**load_config_file(folder.config)), load_task(folder)
    judge = Judge(task, config, Records.load(folder.public_test))
    records = [read_silo(silo_folder(run, silo) / "data").train for silo in range(1, config.silos + 1)]
    dense = dense_spec(config.model, task.input_shape, task.outputs)
    common = ModelPayload.from_bytes(folder.model.read_bytes())
    models = own_models(run) if config.prune == "fedmask" else [common] * config.silos
    start = flatten_parameters(build(dense, torch_stream(config.seed, "init"))).numpy()
    alone = {"steps": config.rounds * config.local_steps, "learning_rate": config.rate(0), "momentum": config.momentum}
    return {
        "accuracy": judge.accuracy(judge.network(common), None),
        "own": judge.personal(models, records),
        "trained": judge.personal(models, records, steps=STEPS, learning_rate=RATE),
        # The same whatever the federation does, so it is made once.
        "alone": None
        if config.prune != "none"
        else judge.personal([whole_model(dense, start, task)] * config.silos, records, **alone),
        "flops": float(np.mean([flops(model.spec) for model in models])) / flops(dense),
        "parameters": float(np.mean([model.mask.sum() for model in models])) / start.size,
    }


def own_models(run: Path) -> list[ModelPayload]:
    """Of each silo in order: the last round's fixed weights under the mask that it sent then."""
    sent = {vector.silo: vector for vector in RecordedView(run).single_vectors if "mask" in vector.channels}
    found = []
    for _, vector in sorted(sent.items()):
        model = vector.asked.model
        mask: NDArray[np.bool_] = np.ones(model.mask.size, np.bool_)
        mask[UnitMap.of(model.spec).prunable] = vector.channels["mask"] >= HALF
        found.append(ModelPayload(model.spec, np.where(mask, model.weights, np.float32(0)), mask, model.records))
    return found


def line(partition: str, method: str, seeds: int, figures: list[Row]) -> str:
    """One row of the table."""
    scores = " | ".join(mean([row[name] for row in figures if row[name] is not None]) for name in MEASURES)
    sizes = " | ".join(f"{100 * statistics.mean(row[name] for row in figures):.1f}" for name in ("flops", "parameters"))
    return f"| {partition} | {method} | {seeds} | {scores} | {sizes} |"


def markdown(rows: list[Row]) -> str:
    """The whole file."""
    lines = [
        "# What a silo gets for records like its own",
        "",
        "MNIST, cnn-tanh. Percent of public test records predicted rightly, mean ± 95 % interval over seeds. In the "
        "first column all records count alike and there is one network for everybody (of FedMask the one that most "
        "votes keep). In the others it is the mean over silos, of records whose classes are as frequent as in the "
        "silo's own: a silo of few classes has an easier task, and one that trains by itself is hard to beat. The last "
        f"training is {STEPS} steps of plain SGD at {RATE} on the silo's own records. FedMask's masks are sent in the "
        "clear, since the server has to see each one; all others go through the secure sum.",
        "",
        f"| partition | method | seeds | {' | '.join(MEASURES.values())} | FLOPs kept % | parameters kept % |",
        "|" + "---|" * (len(MEASURES) + 5),
    ]
    for partition in dict.fromkeys(row["partition"] for row in rows):
        for method in METHODS:
            mine = [row["figures"] for row in select(rows, partition=partition, method=method)]
            if mine:
                lines.append(line(partition, method, len(mine), mine))
        alone = [row["figures"]["alone"] for row in select(rows, partition=partition, method="FedAvg")]
        if alone:
            lines.append(f"| {partition} | {ALONE}, dense | {len(alone)} | - | {mean(alone)} | - | 100.0 | 100.0 |")
    return "\n".join([*lines, ""])


def plot(rows: list[Row], path: Path) -> None:
    """Bars of the three measures by method, one panel a partition."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    partitions = list(dict.fromkeys(row["partition"] for row in rows))
    figure, panels = plt.subplots(1, len(partitions), figsize=(5 * len(partitions), 3.6), squeeze=False, sharey=True)
    for partition, panel in zip(partitions, panels[0], strict=True):
        for place, (name, label) in enumerate(MEASURES.items()):
            found = [[r["figures"][name] for r in select(rows, partition=partition, method=m)] for m in METHODS]
            heights = [100 * statistics.mean(some) if some else 0.0 for some in found]
            panel.bar(np.arange(len(METHODS)) + 0.27 * (place - 1), heights, 0.25, label=label)
        alone = [row["figures"]["alone"] for row in select(rows, partition=partition, method="FedAvg")]
        if alone:
            panel.axhline(100 * statistics.mean(alone), color="grey", ls=":", label=ALONE)
        panel.set_xticks(range(len(METHODS)), [name.replace(", ", ",\n") for name in METHODS], fontsize=7)
        panel.set(title=partition)
    panels[0][0].set_ylabel("accuracy %")
    figure.legend(*panels[0][0].get_legend_handles_labels(), fontsize=7, loc="lower center", ncols=4)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run what is missing and write the table."""
    parser = run_parser(__doc__, quick="mnist5k, ten rounds, one seed: about two minutes", seeds=3)
    arguments = parser.parse_args()
    report = RunReport("personal", arguments)
    real = DATA.is_dir() and not arguments.quick
    dataset, rounds = ("mnist", 40) if real else ("mnist5k", 10 if arguments.quick else 40)
    wanted = [
        (
            {"partition": partition, "method": method},
            f"--dataset {dataset} --model cnn-tanh --partition {partition} --rounds {rounds} {options}",
            seed,
        )
        for seed in range(1 if arguments.quick else arguments.seeds)
        for partition in PARTITIONS
        for method, options in METHODS.items()
    ]

    def run(options: str, seed: int) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            run_simulation(options, seed, Path(folder) / "run", data=real)
            torch.set_num_threads(1)
            return judged(Path(folder) / "run")

    report.table.fill(wanted, arguments.jobs, arguments.minutes, run)
    report.write(markdown(report.table.rows), plot)


if __name__ == "__main__":
    main()
