"""The cells of `make bench-privacy`: what is run, in which order, and what waits for a larger machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

EPSILONS = (8, 4, 3, 2, 1, None)
TRUSTS = ("distributed", "local")
METHODS = {"dense": "--prune none", "autoflip": "", "random units": "--prune random"}
PARTITIONS = ("dirichlet:0.1", "iid", "pathological:2")
SILOS = (10, 4, 20)
NATURAL = ("heart", "tcga-brca")
IMAGES = ("mnist5k", "pneumonia-mnist", "mnist", "fashion-mnist")
MODELS = ("scatter", "cnn-tanh")
EMBEDDED = ("mnist5k",)
SEEDS = 5


@dataclass(frozen=True)
class Cell:
    """One setting; each seed of it is one run of the command line.

    Attributes
    ----------
    dataset : str
    model : str or None
        None: the data set's usual one.
    epsilon : int or None
        None: no DP.
    trust : str
        distributed or local; without DP it has no meaning and is distributed.
    method : str
        A key of `METHODS`.
    partition : str
    silos : int or None
        None: as many as the data set has.
    """

    dataset: str
    model: str | None
    epsilon: int | None
    trust: str
    method: str
    partition: str
    silos: int | None

    def options(self) -> str:
        """As the command line takes it, `--seed` and `--data-dir` apart."""
        parts = [f"--dataset {self.dataset}"]
        if self.model is not None:
            parts.append(f"--model {self.model}")
        if self.epsilon is not None:
            parts += [f"--dp-epsilon {self.epsilon}", f"--dp-trust {self.trust}"]
        parts.append(f"--partition {self.partition}")
        parts.append("--colluders 0" if self.silos is None else f"--silos {self.silos}")
        parts.append(METHODS[self.method])
        return " ".join(part for part in parts if part)


def all_cells() -> Iterator[Cell]:
    """The whole grid."""
    for dataset in (*NATURAL, *IMAGES):
        models = MODELS if dataset in IMAGES else (None,)
        places = list(product(PARTITIONS, SILOS)) if dataset in IMAGES else [("natural", None)]
        for model, (partition, silos), epsilon, trust, method in product(models, places, EPSILONS, TRUSTS, METHODS):
            if epsilon is not None or trust == TRUSTS[0]:
                yield Cell(dataset, model, epsilon, trust, method, partition, silos)


def runs_here() -> list[tuple[Cell, int]]:
    """(cell, seed) that two cores manage in a few hours, most telling first: an interrupted table is a smaller one."""
    runs: dict[tuple[Cell, int], None] = {}

    def take(seeds: int, cells: Iterable[Cell]) -> None:
        block = list(cells)
        runs.update(dict.fromkeys((cell, seed) for seed in range(seeds) for cell in block))

    def over(base: Cell, epsilons: Iterable[int | None], methods: Iterable[str]) -> list[Cell]:
        return [replace(base, epsilon=epsilon, method=method) for epsilon, method in product(epsilons, methods)]

    usual = Cell("mnist5k", "scatter", 8, "distributed", "autoflip", PARTITIONS[0], SILOS[0])
    raw = replace(usual, model="cnn-tanh")
    natural = [replace(usual, dataset=name, model=None, partition="natural", silos=None) for name in NATURAL]
    two = ("dense", "autoflip")
    take(3, over(raw, (8,), two))
    take(1, [replace(usual, dataset=name, epsilon=3, method="dense") for name in ("mnist", "fashion-mnist")])
    for base in natural:
        take(3, over(base, (8, 3, 1, None), METHODS))
    take(1, over(usual, (8, 2, 1), METHODS))
    take(1, over(raw, (2, 1), two))
    for partition in PARTITIONS[1:]:
        take(1, [replace(base, partition=partition, method="dense") for base in (raw, usual)])
    take(2, over(usual, EPSILONS, METHODS))
    take(1, [replace(raw, dataset="mnist", epsilon=3, method="dense")])
    take(2, over(raw, (1, 2, 3, None), two))
    for partition in PARTITIONS[1:]:
        take(2, over(replace(usual, partition=partition), (8, 1), two))
        take(2, over(replace(raw, partition=partition), (8,), ("dense",)))
    for base in (*natural, usual):
        take(3, over(replace(base, trust="local"), (8, 3, 1), two))
    for silos in SILOS[1:]:
        take(2, over(replace(usual, silos=silos), (8, 1), two))
    take(2, over(replace(usual, dataset="pneumonia-mnist"), (8, 3, 1, None), two))
    take(
        1, over(replace(usual, dataset="mnist"), (3, 1), two) + over(replace(usual, dataset="fashion-mnist"), (3,), two)
    )
    take(1, [replace(raw, dataset="fashion-mnist", epsilon=3, method="dense")])
    take(SEEDS, over(usual, EPSILONS, METHODS) + over(raw, (8, 3, 2, 1, None), METHODS))
    for base in natural:
        take(SEEDS, over(base, EPSILONS, METHODS))
    return list(runs)


def quick() -> list[tuple[Cell, int]]:
    """A few cells of embedded data, one seed."""
    usual = Cell("mnist5k", "scatter", 8, "distributed", "autoflip", PARTITIONS[0], SILOS[0])
    cells = [replace(usual, epsilon=e, method=m) for e, m in product((8, 1), ("dense", "autoflip"))]
    heart = replace(usual, dataset="heart", model=None, partition="natural", silos=None)
    return [(cell, 0) for cell in (*cells, heart, replace(heart, dataset="tcga-brca"))]
