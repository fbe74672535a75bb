"""Models, masks and sums that nobody contributed to, told to silos that ask for proofs: how many they believe.

The silos joined a run with `--prove-models`, as institutions' policies ask for unless told otherwise, and took the sums
of its first rounds. The coordinator works with no silo: it has no run key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks import protocol_lies
from autoflip_secure.attacks.chosen_masks import chosen_mask, drawn_mask, masked
from autoflip_secure.attacks.crafted_models import Imprint, dead_model, fished_class
from autoflip_secure.attacks.lying_coordinator import LyingCoordinator
from autoflip_secure.attacks.model_attacks import KEPT, sole_classes
from autoflip_secure.attacks.outcome import Outcome, proportion_interval
from autoflip_secure.attacks.protocol_lies import Tally
from autoflip_secure.attacks.proved_run import ProvedRun
from autoflip_secure.attacks.sum_lies import sum_lies
from autoflip_secure.data.records import Records
from autoflip_secure.federation.model_payload import ModelPayload

__all__ = ["Draw", "made_up_masks", "made_up_models", "model_lies", "proof_outcomes"]

Draw = Callable[[], ModelPayload]

HONEST_ROUNDS = 3
LEAST_MOVE = 1e-4
"""Of a weight: silos allow for the last bits in which machines differ, up to 1e-5."""


def proof_outcomes(lying: LyingCoordinator, public: Records, setting: str, *, quick: bool) -> Iterator[Outcome]:
    """A row for each kind of lie, after honest rounds.

    Raises
    ------
    RuntimeError
        The silos do not answer honest rounds either, so that refusals would say nothing.
    """
    run, random, attempts = ProvedRun(lying), np.random.default_rng(0), 100 if quick else 1000
    for _ in range(HONEST_ROUNDS):
        run.go_on(run.open())
    made_up = {
        "a model that does not follow from the sums": made_up_models(run, public, random),
        "a mask that does not follow from the sums": made_up_masks(run, public, random),
    }
    rows = {attack: model_lies(run, draws, attempts) for attack, draws in made_up.items()}
    rows["a sum that silos did not make"] = sum_lies(run, attempts, random)
    for attack, tally in rows.items():
        yield Outcome(
            attack, setting, "share accepted", *proportion_interval(tally.accepted, tally.told), tally.told, 0.0, 0.0,
            "silo rules", "models proved, as policies ask for by default",
        )  # fmt: skip


# Models


def model_lies(run: ProvedRun, draws: Sequence[Draw], attempts: int) -> Tally:
    """Other models than the one that follows, each named by a manifest of the round to come, to silos in turn."""
    tally, silos = Tally(), run.lying.roster.silos
    epoch = run.lying.open_epoch(attempts)
    for number in range(attempts):
        model = draws[number % len(draws)]()
        manifest = run.manifest(model, attempt=number)
        tally.count(protocol_lies.masked(run.lying, epoch, silos[number % len(silos)], manifest, model)[1] is not None)
    return tally


def made_up_models(run: ProvedRun, public: Records, random: np.random.Generator) -> list[Draw]:
    """Draws of models over the mask that follows, and of the models of `crafted_models`."""
    honest = run.step.state.model
    labels = [int(label) for label in np.unique(public.y)]

    def some_label() -> int:
        return int(random.choice(labels))

    def weights(values: NDArray[np.floating]) -> ModelPayload:
        return replace(honest, weights=np.where(honest.mask, values, 0).astype(np.float32))

    def one_moved() -> ModelPayload:
        values = honest.weights.copy()
        values[int(random.choice(np.flatnonzero(honest.mask)))] += np.float32(LEAST_MOVE * 10 ** random.uniform(0, 7))
        return weights(values)

    def imprinted() -> ModelPayload:
        label = some_label()
        records = public.x[public.y == label].reshape(int((public.y == label).sum()), -1).astype(np.float64)
        return Imprint.over(records, label, honest.spec.widths[0], 30.0, random).model(honest.spec, honest.records)

    return [
        one_moved,
        imprinted,
        lambda: fished_class(honest, some_label()),
        lambda: dead_model(honest.spec, honest.records),
        lambda: run.models[int(random.integers(len(run.models)))],
        lambda: weights(honest.weights * random.uniform(1.01, 100)),
        lambda: weights(honest.weights + 10 ** random.uniform(-3, 1) * random.normal(size=honest.weights.size)),
        lambda: weights(random.permutation(honest.weights)),
        lambda: replace(honest, records=honest.records + int(random.integers(1, 1000))),
    ]


def made_up_masks(run: ProvedRun, public: Records, random: np.random.Generator) -> list[Draw]:
    """Draws of other masks over the weights that follow."""
    honest, lying = run.step.state.model, run.lying
    classes: dict[int, list[int]] = {}
    for label, silo in sole_classes(lying):
        classes.setdefault(silo, []).append(label)
    chosen = [chosen_mask(honest, KEPT, silo, classes, public, lying.task) for silo in classes]

    def without(count: int) -> ModelPayload:
        mask = honest.mask.copy()
        mask[random.choice(np.flatnonzero(mask), count, replace=False)] = False
        return masked(honest, mask)

    return [
        lambda: chosen[int(random.integers(len(chosen)))],
        lambda: drawn_mask(honest, random.uniform(0.01, 0.9) * honest.mask.mean(), random),
        lambda: without(1),
        lambda: without(int(random.integers(1, honest.mask.sum()))),
    ]
