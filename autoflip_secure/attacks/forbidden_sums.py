"""Sums that a silo's rules forbid because others could be subtracted or solved for: asked for, of real silos."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoflip_secure.attacks.hiding_coordinator import HidingCoordinator
from autoflip_secure.attacks.settings import IN_BLOCKS
from autoflip_secure.attacks.survivor_lies import all_masked
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.terms import deviation_channel, update_channel
from autoflip_secure.parties.rules import Survivors
from autoflip_secure.sums.manifest import Blocks

__all__ = ["SILOS", "Tried", "forbidden_sums", "parts_of_blocks"]

SILOS, COLLUDERS = 6, 2
HONEST_PAIR = (1, 2, 3, 4)
"""A cohort whose last two silos collude: what is left of its sum is that of two."""

OPTIONS: dict[str, Any] = {"dataset": "digits", "model": "mlp", "partition": "iid", "device": "cpu", "rounds": 8}


@dataclass(frozen=True)
class Tried:
    """One forbidden sum.

    Attributes
    ----------
    name : str
        What was asked for.
    asked, answered : int
        Silos, and how many of them sent their vector, or signed that it may be opened.
    rules : frozenset of str
        By which rules they refused, from their own logs: the coordinator is told no more than that they did.
    """

    name: str
    asked: int
    answered: int
    rules: frozenset[str]


def forbidden_sums(folder: Path, data: LoadedData) -> Iterator[Tried]:
    """Ask each silo of a federation for each of them, without DP, after the sums it allows.

    Raises
    ------
    RuntimeError
        The silos do not answer what is allowed, so that refusals would prove nothing.
    """
    options = {**OPTIONS, "silos": SILOS, "colluders": COLLUDERS}
    with closing(HidingCoordinator(folder, data, "sum", options)) as coordinator:
        model = coordinator.first_model()
        live = int(model.mask.sum())
        update, squares = update_channel(coordinator.config, live), deviation_channel(live)
        everybody = coordinator.roster.silos

        def ask(name: str, round: int, **changes: Any) -> Tried:
            return _manifest(coordinator, model, name, round, **{"phase": "train", **changes})

        def allow(round: int, **changes: Any) -> None:
            _require(ask("", round, **changes))

        both, pair = (squares, update), {"cohorts": (HONEST_PAIR,), "minimum": (len(HONEST_PAIR),)}
        allow(1, channels=both, phase="explore")
        yield ask("sum and squares of two honest silos and two that collude", 2, channels=both, **pair)
        yield ask("their sum alone", 3, channels=(update,), **pair)
        yield ask("sum and squares of all, to be opened with one missing", 4, channels=both, minimum=(SILOS - 1,))
        allow(5, channels=(update,))
        yield ask("squares of a round, after its sum", 5, channels=(squares,), attempt=1)
        fewer = {"cohorts": (everybody[:-1],), "minimum": (SILOS - 1,)}
        yield ask("a second cohort for a round", 5, channels=(update,), attempt=2, **fewer)


def parts_of_blocks(folder: Path, data: LoadedData) -> Iterator[Tried]:
    """The same of a federation in blocks, for sums that have a part of one: other manifests, and shorter lists of
    survivors of an honest one.

    Raises
    ------
    RuntimeError
        As above.
    """
    options = {**OPTIONS, **IN_BLOCKS, "silos": IN_BLOCKS["block"] * 3 + 1, "prune": "none"}
    with closing(HidingCoordinator(folder, data, "sum", options)) as coordinator:
        model, (first, second, *rest) = coordinator.first_model(), coordinator.schedule.blocks

        def ask(name: str, round: int, **changes: Any) -> Tried:
            return _manifest(coordinator, model, name, round, **changes)

        _require(ask("", 1))
        yield ask("no blocks", 2, blocks=())
        swapped = ((*first[:-1], second[0]), (first[-1], *second[1:]), *rest)
        yield ask("two silos of two blocks change places", 3, blocks=swapped)
        fewer = (first[1:], second, *rest)
        yield ask("a cohort without one silo", 4, cohorts=_cohort(fewer), blocks=fewer)
        parts = tuple(block[1:] for block in (first, second, *rest))
        yield ask("a cohort without a silo of each block", 5, cohorts=_cohort(parts), blocks=parts)
        yield ask("such a cohort, and no blocks", 6, cohorts=_cohort(parts), blocks=())
        some, everybody = _cohort((second, *rest)), _cohort((first, second, *rest))
        _require(_confirmed(coordinator, model, "", 1, some))
        yield _confirmed(coordinator, model, "a list of survivors without one silo", 7, (everybody[0][1:],))


def _cohort(blocks: Blocks) -> Blocks:
    return (tuple(sorted(silo for block in blocks for silo in block)),)


def _manifest(coordinator: HidingCoordinator, model: ModelPayload, name: str, round: int, **changes: Any) -> Tried:
    """Ask for a sum by a manifest that differs from an honest one: who sent a vector?"""
    manifest = coordinator.manifest(model, round, **changes)

    def vectors() -> int:
        before = coordinator.answered
        coordinator.opened(manifest, model)
        return coordinator.answered - before

    return _tried(coordinator, name, sum(map(len, manifest.cohorts)), vectors)


def _confirmed(
    coordinator: HidingCoordinator, model: ModelPayload, name: str, round: int, survivors: Survivors
) -> Tried:
    """Ask for an honest sum, and then for signatures that these survivors' may be opened: who signs?"""
    slot = all_masked(coordinator, coordinator.open_epoch(1), model, round, 0)
    asked = slot.manifest.cohorts[0]
    return _tried(
        coordinator, name, len(asked), lambda: sum(slot.confirm(coordinator, silo, survivors) for silo in asked)
    )


def _tried(coordinator: HidingCoordinator, name: str, asked: int, answers: Callable[[], int]) -> Tried:
    refused, answered = _refusals(coordinator), answers()
    return Tried(name, asked, answered, frozenset(_refusals(coordinator) - refused))


def _require(allowed: Tried) -> None:
    if allowed.answered != allowed.asked:
        raise RuntimeError("silos do not answer what is allowed; refusals would prove nothing")


def _refusals(coordinator: HidingCoordinator) -> Counter[str]:
    """Rules in the silos' logs so far."""
    found: Counter[str] = Counter()
    for silo in coordinator.roster.silos:
        log = silo_folder(coordinator.folder.path, silo) / "silo.log"
        found.update(re.findall(r"refused by rule ([\w-]+)", log.read_text()) if log.exists() else [])
    return found
