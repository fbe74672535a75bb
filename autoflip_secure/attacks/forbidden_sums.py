"""Sums that a silo's rules forbid because others could be subtracted or solved for: asked for, of real silos."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoflip_secure.attacks.hiding_coordinator import HidingCoordinator
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.terms import deviation_channel, update_channel

__all__ = ["SILOS", "Tried", "forbidden_sums"]

SILOS, COLLUDERS = 6, 2
HONEST_PAIR = (1, 2, 3, 4)
"""A cohort whose last two silos collude: what is left of its sum is that of two."""


@dataclass(frozen=True)
class Tried:
    """One forbidden sum.

    Attributes
    ----------
    name : str
        What was asked for.
    asked, answered : int
        Silos, and how many of them sent their vector.
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
    options = {"dataset": "digits", "model": "mlp", "silos": SILOS, "colluders": COLLUDERS, "rounds": 8}
    coordinator = HidingCoordinator(folder, data, "sum", {**options, "partition": "iid", "device": "cpu"})
    try:
        model = coordinator.first_model()
        live = int(model.mask.sum())
        update, squares = update_channel(coordinator.config, live), deviation_channel(live)
        everybody = coordinator.roster.silos

        def ask(name: str, round: int, **changes: Any) -> Tried:
            manifest = coordinator.manifest(model, round, **{"phase": "train", **changes})
            answered, refused = coordinator.answered, _refusals(coordinator)
            coordinator.opened(manifest, model)
            rules = frozenset(_refusals(coordinator) - refused)
            asked = sum(len(cohort) for cohort in manifest.cohorts)
            return Tried(name, asked, coordinator.answered - answered, rules)

        def allow(round: int, **changes: Any) -> None:
            if ask("", round, **changes).answered != len(everybody):
                raise RuntimeError("silos do not answer what is allowed; refusals would prove nothing")

        both, pair = (squares, update), {"cohorts": (HONEST_PAIR,), "minimum": (len(HONEST_PAIR),)}
        allow(1, channels=both, phase="explore")
        yield ask("sum and squares of two honest silos and two that collude", 2, channels=both, **pair)
        yield ask("their sum alone", 3, channels=(update,), **pair)
        yield ask("sum and squares of all, to be opened with one missing", 4, channels=both, minimum=(SILOS - 1,))
        allow(5, channels=(update,))
        yield ask("squares of a round, after its sum", 5, channels=(squares,), attempt=1)
        fewer = {"cohorts": (everybody[:-1],), "minimum": (SILOS - 1,)}
        yield ask("a second cohort for a round", 5, channels=(update,), attempt=2, **fewer)
    finally:
        coordinator.close()


def _refusals(coordinator: HidingCoordinator) -> Counter[str]:
    """Rules in the silos' logs so far."""
    found: Counter[str] = Counter()
    for silo in coordinator.roster.silos:
        log = silo_folder(coordinator.folder.path, silo) / "silo.log"
        found.update(re.findall(r"refused by rule ([\w-]+)", log.read_text()) if log.exists() else [])
    return found
