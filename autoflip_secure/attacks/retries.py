"""Rounds asked for again without some silos, over real silos with an institution's policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.class_signatures import ClassSignatures
from autoflip_secure.attacks.disaggregation import class_counts, cosine, likely_classes, presence
from autoflip_secure.attacks.hiding_coordinator import HidingCoordinator
from autoflip_secure.attacks.recorded_view import Asked
from autoflip_secure.attacks.true_silos import expected_updates, found_classes
from autoflip_secure.attacks.true_silos import label_sets as true_label_sets
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.federation.model_payload import ModelPayload

__all__ = ["Cosines", "Guesses", "cosines_of_differences", "label_sets", "silent_model"]

SILOS = 10
OPTIONS: dict[str, Any] = {"dataset": "digits", "model": "mlp", "partition": "pathological:2", "prune": "none"}
ROUNDS, ROUND = 24, 1


@dataclass(frozen=True)
class Guesses:
    """Label sets as guessed, and as they are.

    Attributes
    ----------
    guessed, held : list of frozenset of int
        By silo.
    sums : int
        That it took.
    """

    guessed: list[frozenset[int]]
    held: list[frozenset[int]]
    sums: int

    @property
    def found(self) -> int:
        """Classes found."""
        return found_classes(self.guessed, self.held)


@dataclass(frozen=True)
class Cosines:
    """By silo, the cosine of its own update, without noise and sampling, and of something that the coordinator has.

    Attributes
    ----------
    difference : list of float
        Of the sum and its retry without the silo, or without its block.
    whole : list of float
        The whole sum, which needs no retry.
    block : list of float
        What a difference may show: the updates of the silo's block added up, without noise (1 without blocks).
    """

    difference: list[float]
    whole: list[float]
    block: list[float]


def cosines_of_differences(folder: Path, setting: str, seed: int, silos: int = SILOS, **blocks: Any) -> Cosines:
    """Each silo's update as the difference of a round's sum and of its retry without that silo.

    Parameters
    ----------
    blocks
        Such as `settings.IN_BLOCKS`: the difference is then that of the retry without the silo's block.
    """
    options = {**OPTIONS, "seed": seed, "silos": silos, "rounds": ROUNDS, **blocks}
    coordinator = HidingCoordinator(folder / "sum", load("digits", None, seed), setting, options)
    try:
        model = coordinator.first_model()
        own = _own_updates(folder, coordinator, model, options)
        whole = coordinator.sum(model, ROUND).sum("update")
        found = Cosines([], [], [])
        for attempt, block in enumerate(coordinator.schedule.blocks, start=1):
            coordinator.hide(*block)
            difference = whole - coordinator.sum(model, ROUND, attempt=attempt).sum("update")
            updates = own[np.array(block) - 1]
            for update in updates:
                found.difference.append(cosine(difference, update))
                found.whole.append(cosine(whole, update))
                found.block.append(cosine(updates.sum(axis=0), update))
        return found
    finally:
        coordinator.close()


def label_sets(folder: Path, setting: str, seed: int, held: int, **blocks: Any) -> Guesses:
    """What all sums that one run pays for tell, each without two silos in turn, of a model that tells most.

    Without DP sums cost nothing and have no noise: two for each silo or block tell all that more of them would.

    Parameters
    ----------
    blocks
        Such as `settings.IN_BLOCKS`: each sum is then without one block.
    """
    options = {**OPTIONS, "seed": seed, "silos": SILOS, "rounds": ROUNDS, **blocks}
    coordinator = HidingCoordinator(folder, load("digits", None, seed), setting, options)
    try:
        model = silent_model(coordinator.first_model())
        parts = coordinator.schedule.blocks
        present: list[tuple[int, ...]] = []
        sums: list[NDArray[np.float64]] = []
        planned = sum(mechanism.count for mechanism in coordinator.plan.mechanisms().get("train", ()))
        planned = planned or 2 * len(parts)
        for attempt in range(planned):
            turn = attempt % len(parts)
            other = parts[(turn + 1 + attempt // len(parts)) % len(parts)]
            coordinator.hide(*parts[turn], *(() if blocks else other))
            sums.append(coordinator.sum(model, ROUND, attempt=attempt).sum("update"))
            present.append(coordinator.present)
        signatures = _signatures(coordinator, model, len(sums))
        counts = class_counts(presence(present, len(coordinator.roster.silos)), signatures, sums)
    finally:
        coordinator.close()
    return Guesses(likely_classes(counts, held), true_label_sets(folder), planned)


def silent_model(model: ModelPayload) -> ModelPayload:
    """The same network with all weights 0: all of a record's gradient goes to the bias of its class."""
    return ModelPayload(model.spec, np.zeros_like(model.weights), model.mask, model.records)


def _signatures(coordinator: HidingCoordinator, model: ModelPayload, sums: int) -> list[NDArray[np.float64]]:
    public = Records.load(coordinator.folder.public_test)
    signatures = ClassSignatures(coordinator.config, coordinator.task, public)
    single: list[tuple[int, ...]] = [(name,) for name in range(coordinator.task.classes)]
    return [signatures.of("update", single, coordinator.manifest(model, ROUND), model)] * sums


def _own_updates(
    folder: Path, coordinator: HidingCoordinator, model: ModelPayload, options: dict[str, Any]
) -> NDArray[np.float64]:
    """What the coordinator would like to know, by silo: under DP as it is on average, else as the same seed gives it
    through `--aggregation none`."""
    if coordinator.config.trust != "none":
        asked = Asked(ROUND, 0, coordinator.manifest(model, ROUND), model)
        return expected_updates(coordinator.folder.path, [asked], model.spec)
    plain = HidingCoordinator(folder / "plain", load("digits", None, options["seed"]), "plain", options)
    try:
        plain.sum(model, ROUND)
        return np.stack([vector.update for vector in sorted(plain.vectors, key=lambda v: v.silo)])
    finally:
        plain.close()
