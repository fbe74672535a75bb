"""Differences of sums: what a coordinator learns of one silo from sums that it is in and sums that it is not in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.outcome import SLACK, Attack, Outcome, Scale, mean_interval, proportion_interval
from autoflip_secure.attacks.settings import IN_BLOCKS, SETTINGS, run_federation
from autoflip_secure.federation.blocks import deal_blocks

__all__ = ["ATTACK"]

CLASSES, HELD, SILOS = 10, 2, 10
CHANCE = HELD / CLASSES
RECALL = f"classes found of {HELD} that a silo holds, of {CLASSES}"
OPTIONS = f"--partition pathological:{HELD} --evaluate-every 1000"
ABSENT = "--participation 0.8"
BLOCKS = deal_blocks(SILOS, IN_BLOCKS["block"])
OF_BLOCKS = f", blocks of {IN_BLOCKS['block']}"
BLOCK_GUESS = "without the attack: the best guess from the classes of the block's silos"
NO_GROUP_BOUND = "`--block 1`; DP of one patient bounds nothing about a whole silo"
TOGETHER = f"a sum tells what its silos hold together: their best guess + {SLACK}"

GUESSED_FROM = {
    "plain": "each silo's vector is seen",
    "sum": "`--block 1` and no DP: not defended",
    "sum + DP 8": NO_GROUP_BOUND,
    "sum + DP 1": NO_GROUP_BOUND,
}


@dataclass(frozen=True)
class _Size:
    """Data, rounds and seeds of the runs."""

    data: str
    rounds: int
    seeds: tuple[int, ...]

    @property
    def options(self) -> str:
        return f"--dataset {self.data} --model mlp --rounds {self.rounds} {OPTIONS}"


def run(scale: Scale) -> Iterator[Outcome]:
    """All rows."""
    size = _Size("digits", 24, (0,)) if scale.quick else _Size("mnist5k", 40, (0, 1, 2))
    yield from _absences(scale, size)
    yield from _drops(scale, size)
    yield from _nobody_absent(scale, size)
    yield from _cohorts(scale, size)
    yield from _retries(scale, size)
    yield from _absent_blocks(scale, size)
    yield from _retries(scale, size, in_blocks=True)
    yield from _forbidden(scale)


ATTACK = Attack(name="differences", page="differences.md", run=run)


def _absences(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """Silos that are drawn for some rounds and not for others: --participation below 1."""
    from autoflip_secure.attacks import property_inference, true_silos
    from autoflip_secure.attacks.disaggregation import cosine
    from autoflip_secure.attacks.recorded_view import RecordedView

    truths: dict[int, NDArray[np.float64]] = {}
    for setting in SETTINGS:
        found, cosines, shared = 0, [], []
        for seed in size.seeds:
            folder = scale.work / f"absent-{setting}-{seed}"
            run_federation(f"{size.options} --silos {SILOS} {ABSENT}", setting, seed, folder)
            view = RecordedView(folder)
            seen = property_inference.sums_of(view, SILOS)
            guessed = seen.label_sets(property_inference.class_signatures(folder), CLASSES, HELD)
            found += true_silos.found_classes(guessed, true_silos.label_sets(folder))
            spec = seen.usual_spec()
            if setting == "plain":
                yield from _power_sums(view)
                truths[seed] = true_silos.own_updates(view.single_vectors, SILOS, spec)
            private = "DP" in setting
            truth = true_silos.expected_updates(folder, seen.asked, spec) if private else truths[seed]
            updates, common = seen.mean_updates(spec)
            cosines += [cosine(a, b) for a, b in zip(updates, truth, strict=True)]
            shared += [cosine(common, b) for b in truth]
        yield _recall("label sets from absences", setting, found, SILOS * len(size.seeds), GUESSED_FROM[setting])
        if setting != "plain":
            note = f"{GUESSED_FROM[setting]}; {_determined(seen.present)}"
            yield Outcome(
                "mean updates from absences",
                setting,
                "cosine of a silo's mean update as solved for and as it is",
                *mean_interval(cosines),
                trials=len(cosines),
                chance=float(np.mean(shared)),
                note=f"{note}; chance is the mean of all silos",
            )


def _drops(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """Silos that drop out by themselves, one in ten a round."""
    for setting in ("sum + DP 1",) if scale.quick else tuple(SETTINGS)[1:]:
        yield _passive(scale, size, f"--silos {SILOS} --dropout 0.1", "label sets from drops", setting, SILOS)


def _nobody_absent(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """The same attack where every silo is in every sum."""
    for setting in tuple(SETTINGS)[1:]:
        note = "without the attack: the best guess from the classes of the cohort's silos"
        yield _passive(
            scale, size, f"--silos {SILOS}", "label sets, nobody absent", setting, SILOS, promise=TOGETHER, note=note
        )


def _absent_blocks(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """Blocks that are drawn for some rounds and not for others."""
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in IN_BLOCKS.items())
    options, name = f"--silos {SILOS} {ABSENT} {given}", f"label sets from absences{OF_BLOCKS}"
    for setting in tuple(SETTINGS)[1:]:
        yield _passive(scale, size, options, name, setting, SILOS, promise=TOGETHER, note=BLOCK_GUESS, blocks=BLOCKS)


def _cohorts(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """Cohorts of three that are summed apart: the same in every round, or drawn anew."""
    options = "--silos 12 --colluders 0 --cohort-filter"
    private = () if scale.quick else (("sum + DP 8", " --allow-cohort-rotation"),)
    for setting, rotation in (("sum", ""), ("sum", " --allow-cohort-rotation"), *private):
        note = "a policy has to accept it" if rotation else "all silos of a cohort get the same guess, from its classes"
        name = f"label sets from {'rotating' if rotation else 'fixed'} cohorts"
        yield _passive(scale, size, options + rotation, name, setting, 12, note=note)


def _retries(scale: Scale, size: _Size, *, in_blocks: bool = False) -> Iterator[Outcome]:
    """A coordinator that says silos, or blocks, dropped out, and has the round again without them."""
    from autoflip_secure.attacks import retries

    blocks, which = (IN_BLOCKS, OF_BLOCKS) if in_blocks else ({}, "")
    for setting in tuple(SETTINGS)[1:]:
        cosines, shared = [], []
        for seed in size.seeds:
            folder = scale.work / f"retry-{setting}-{seed}{which}"
            found_there = retries.cosines_of_differences(folder, setting, seed, **blocks)
            cosines += found_there[0]
            shared += found_there[1]
        alone = f"{GUESSED_FROM[setting]}; chance is the sum of all silos"
        yield Outcome(
            f"one silo's update from one retry{which}",
            setting,
            "cosine of the difference and the update",
            *mean_interval(cosines),
            trials=len(cosines),
            chance=float(np.mean(shared)),
            note="without the block; chance is the sum of its silos, without noise" if in_blocks else alone,
        )
    for setting in tuple(SETTINGS)[1 if in_blocks else 2 :]:
        folder = scale.work / f"hidden-{setting}{which}"
        tried = [retries.label_sets(folder / str(s), setting, s, HELD, **blocks) for s in size.seeds]
        bound: dict[str, Any] = {}
        if in_blocks:
            bound = {"chance": float(np.mean([_best_guesses(t.held, BLOCKS) for t in tried])), "promise": TOGETHER}
        paid = " that the plan pays for" if "DP" in setting else ""
        note = f"{max(t.sums for t in tried)} sums{paid}, over a made-up model"
        note = f"{note}; {BLOCK_GUESS if in_blocks else NO_GROUP_BOUND}"
        found = sum(t.found for t in tried)
        yield _recall(f"label sets from retries{which}", setting, found, SILOS * len(size.seeds), note, **bound)


def _forbidden(scale: Scale) -> Iterator[Outcome]:
    """Sums that rules forbid, asked of real silos."""
    from autoflip_secure.attacks.forbidden_sums import forbidden_sums, parts_of_blocks
    from autoflip_secure.data.registry import load

    data = load("digits", None, 0)
    tried = [*forbidden_sums(scale.work / "forbidden", data), *parts_of_blocks(scale.work / "parts", data)]
    asked, answered = sum(t.asked for t in tried), sum(t.answered for t in tried)
    rules = sorted(set().union(*(t.rules for t in tried)))
    yield Outcome(
        "forbidden sums",
        "sum",
        "silos that answer, of those asked",
        *proportion_interval(answered, asked),
        trials=asked,
        bound=0.0,
        promise="rules of policy and secure sum",
        note=f"{len(tried)} kinds, refused by rules {', '.join(rules)}",
    )


def _power_sums(view: Any) -> Iterator[Outcome]:
    """Two silos' values from the sum and squares of both, which the rule `minimum` never lets a coordinator have."""
    from autoflip_secure.attacks.power_sums import pairs_solved

    shares, chances = pairs_solved([v.channels for v in view.single_vectors])
    yield Outcome(
        "two silos' values from sum and squares",
        "plain",
        "coordinates solved within 5 %",
        *mean_interval(shares),
        trials=len(shares),
        chance=float(np.mean(chances)),
        note="what rule `minimum` is for: the secure sum opens no such pair (forbidden sums)",
    )


def _passive(
    scale: Scale,
    size: _Size,
    options: str,
    attack: str,
    setting: str,
    silos: int,
    *,
    note: str = "",
    promise: str = "",
    blocks: Sequence[Sequence[int]] = (),
) -> Outcome:
    """Label sets from the recorded views of honest runs.

    With a promise, that sums tell no more than of the silos of a block together (of a cohort, where there are no
    blocks), chance is a guess among their classes.
    """
    from autoflip_secure.attacks import property_inference, true_silos
    from autoflip_secure.attacks.recorded_view import RecordedView

    found, within = 0, []
    for seed in size.seeds:
        folder = scale.work / f"{attack}-{setting}-{seed}"
        run_federation(f"{size.options} {options}", setting, seed, folder)
        seen, held = property_inference.sums_of(RecordedView(folder), silos), true_silos.label_sets(folder)
        guessed = seen.label_sets(property_inference.class_signatures(folder), CLASSES, HELD)
        found += true_silos.found_classes(guessed, held)
        sizes = seen.present.sum(axis=1)
        cohorts = [np.flatnonzero(row) + 1 for row in seen.present[sizes == sizes.min()]]
        within.append(_best_guesses(held, blocks or cohorts))
    note = note or GUESSED_FROM[setting]
    chance = float(np.mean(within)) if promise else CHANCE
    return _recall(attack, setting, found, silos * len(size.seeds), note, chance=chance, promise=promise)


def _recall(
    attack: str, setting: str, found: int, silos: int, note: str, *, chance: float = CHANCE, promise: str = ""
) -> Outcome:
    """Where the promise is that chance is all there is, the bound is chance and some slack."""
    share = proportion_interval(found, HELD * silos)
    bound: dict[str, Any] = {"bound": chance + SLACK, "promise": promise} if promise else {}
    return Outcome(attack, setting, RECALL, *share, trials=HELD * silos, chance=chance, note=note, **bound)


def _best_guesses(held: Sequence[frozenset[int]], groups: Iterable[Iterable[int]]) -> float:
    """Recall where all silos of a group, given by ids 1, 2, ..., get one guess: the classes that most of them hold."""
    right = silos = 0
    for group in map(list, groups):
        counts = np.bincount([name for silo in group for name in held[silo - 1]], minlength=CLASSES)
        right, silos = right + int(np.sort(counts)[::-1][:HELD].sum()), silos + len(group)
    return right / (HELD * silos)


def _determined(present: NDArray[np.float64]) -> str:
    """When the sums determine every silo, if updates were constant: the project's own bound."""
    from autoflip_secure.federation.rotation import determined

    needed = next((r for r in range(1, len(present) + 1) if determined(present[:r]).all()), None)
    return "sums never determine all silos" if needed is None else f"{needed} sums determine all silos"
