"""Differences of sums: what a coordinator learns of one silo from sums that it is in and sums that it is not in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.common_guess import best_common_guess, smallest_sums
from autoflip_secure.attacks.outcome import SLACK, Attack, Outcome, Scale, mean_interval, proportion_interval
from autoflip_secure.attacks.settings import IN_BLOCKS, SETTINGS, run_federations
from autoflip_secure.federation.blocks import deal_blocks

__all__ = ["ATTACK"]

CLASSES, HELD, SILOS = 10, 2, 10
CHANCE = HELD / CLASSES
RECALL = f"classes found of {HELD} that a silo holds, of {CLASSES}"
BEYOND = "groups of silos of whom more is found than by the best common guess"
OPTIONS = f"--partition pathological:{HELD} --evaluate-every 1000"
ABSENT = "--participation 0.8"
PROMISED = 18
"""Runs where something is promised: a recall of no more than the common guess's and a twentieth, where this guess
itself is made, takes 350 guesses to be told, 20 a run, and that nothing is found of groups takes 30, three a run."""
BLOCKS = deal_blocks(SILOS, IN_BLOCKS["block"])
OF_BLOCKS = f", blocks of {IN_BLOCKS['block']}"
OF_ONE_BLOCK = "groups are blocks"
NO_GROUP_BOUND = "`--block 1`; DP of one patient bounds nothing about a whole silo"
TOGETHER = "silos of a group look the same in all sums"
THE_COMMON_GUESS = f"the best guess that is the same for all silos of a group, + {SLACK}"
MEAN_UPDATES, SOLVED = "mean updates from absences", "cosine of a silo's mean update as solved for and as it is"
THE_BLOCKS_MEAN = f"what the block's mean update shows without noise, + {SLACK}"
THE_BLOCKS_SUM = f"what the sum of the block shows without noise, + {SLACK}"

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
    seeds: Sequence[int]

    @property
    def options(self) -> str:
        return f"--dataset {self.data} --model mlp --rounds {self.rounds} {OPTIONS}"


def run(scale: Scale) -> Iterator[Outcome]:
    """All rows."""
    small = _Size("digits", 24, range(1 if scale.quick else PROMISED))
    size = small if scale.quick else _Size("mnist5k", 40, range(3))
    yield from _absences(scale, size)
    yield from _drops(scale, size)
    if not scale.quick:  # it is the attack on opened sums of `label_sets`, which has more runs
        yield from _nobody_absent(scale, size)
    yield from _cohorts(scale, size)
    yield from _retries(scale, size)
    yield from _absent_blocks(scale, small)
    yield from _retries(scale, small, in_blocks=True)
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
        runs = {seed: scale.work / f"absent-{setting}-{seed}" for seed in size.seeds}
        run_federations(f"{size.options} --silos {SILOS} {ABSENT}", setting, runs)
        for seed, folder in runs.items():
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
                MEAN_UPDATES,
                setting,
                SOLVED,
                *mean_interval(cosines),
                trials=len(cosines),
                chance=float(np.mean(shared)),
                note=f"{note}; chance is the mean of all silos",
            )


def _drops(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """Silos that drop out by themselves, one in ten a round."""
    for setting in ("sum + DP 1",) if scale.quick else tuple(SETTINGS)[1:]:
        yield from _passive(scale, size, f"--silos {SILOS} --dropout 0.1", "label sets from drops", setting, SILOS)


def _nobody_absent(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """The same attack where every silo is in every sum."""
    for setting in tuple(SETTINGS)[1:]:
        yield from _passive(
            scale, size, f"--silos {SILOS}", "label sets, nobody absent", setting, SILOS, together="groups are cohorts"
        )


def _absent_blocks(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """Blocks that are drawn for some rounds and not for others."""
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in IN_BLOCKS.items())
    options, name = f"--silos {SILOS} {ABSENT} {given}", f"label sets from absences{OF_BLOCKS}"
    for setting in tuple(SETTINGS)[1:]:
        yield from _passive(scale, size, options, name, setting, SILOS, together=OF_ONE_BLOCK, blocks=BLOCKS)
        if "DP" in setting:
            yield _mean_updates_in_blocks([_folder(scale, name, setting, seed) for seed in size.seeds], setting)


def _mean_updates_in_blocks(folders: Sequence[Path], setting: str) -> Outcome:
    """Least squares over all rounds, as without blocks; beside it what a block's own mean update shows of its silos."""
    from autoflip_secure.attacks import property_inference, true_silos
    from autoflip_secure.attacks.disaggregation import cosine
    from autoflip_secure.attacks.recorded_view import RecordedView

    solved, shared, shown = [], [], []
    for folder in folders:
        seen = property_inference.sums_of(RecordedView(folder), SILOS)
        spec = seen.usual_spec()
        truth = true_silos.expected_updates(folder, seen.asked, spec)
        updates, common = seen.mean_updates(spec)
        for block in BLOCKS:
            rows = np.array(block) - 1
            # Silos of a block are solved for alike: a block is one trial.
            solved.append(float(np.mean([cosine(updates[row], truth[row]) for row in rows])))
            shared += [cosine(common, truth[row]) for row in rows]
            shown += [cosine(truth[rows].mean(axis=0), truth[row]) for row in rows]
    return Outcome(
        f"{MEAN_UPDATES}{OF_BLOCKS}", setting, SOLVED, *mean_interval(solved), trials=len(solved),
        chance=float(np.mean(shared)), bound=float(np.mean(shown)) + SLACK, promise=THE_BLOCKS_MEAN,
        note="chance is the mean of all silos",
    )  # fmt: skip


def _cohorts(scale: Scale, size: _Size) -> Iterator[Outcome]:
    """Cohorts of three that are summed apart: the same in every round, or drawn anew."""
    options = "--silos 12 --colluders 0 --cohort-filter"
    private = () if scale.quick else (("sum + DP 8", " --allow-cohort-rotation"),)
    for setting, rotation in (("sum", ""), ("sum", " --allow-cohort-rotation"), *private):
        note = "a policy has to accept it" if rotation else "all silos of a cohort get the same guess, from its classes"
        name = f"label sets from {'rotating' if rotation else 'fixed'} cohorts"
        yield from _passive(scale, size, options + rotation, name, setting, 12, note=note)


def _retries(scale: Scale, size: _Size, *, in_blocks: bool = False) -> Iterator[Outcome]:
    """A coordinator that says silos, or blocks, dropped out, and has the round again without them."""
    from autoflip_secure.attacks import retries

    blocks, which = (IN_BLOCKS, OF_BLOCKS) if in_blocks else ({}, "")
    for setting in tuple(SETTINGS)[1:]:
        folders = {seed: scale.work / f"retry-{setting}-{seed}{which}" for seed in size.seeds}
        tried = [retries.cosines_of_differences(folder, setting, seed, **blocks) for seed, folder in folders.items()]
        found = [cosine for cosines in tried for cosine in cosines.difference]
        chance = float(np.mean([cosine for cosines in tried for cosine in cosines.whole]))
        shown = float(np.mean([cosine for cosines in tried for cosine in cosines.block]))
        bound: dict[str, Any] = {"bound": shown + SLACK, "promise": THE_BLOCKS_SUM} if in_blocks else {}
        yield Outcome(
            f"one silo's update from one retry{which}",
            setting,
            "cosine of the difference and the update",
            *mean_interval(found),
            trials=len(found),
            chance=chance,
            note=f"{'without the block' if in_blocks else GUESSED_FROM[setting]}; chance is the sum of all silos",
            **bound,
        )
    for setting in tuple(SETTINGS)[1 if in_blocks else 2 :]:
        folder, name = scale.work / f"hidden-{setting}{which}", f"label sets from retries{which}"
        guesses = [retries.label_sets(folder / str(s), setting, s, HELD, **blocks) for s in size.seeds]
        paid = " that the plan pays for" if "DP" in setting else ""
        note = f"{max(g.sums for g in guesses)} sums{paid}, over a made-up model"
        if in_blocks:
            of_blocks = [_Guessed(g.guessed, g.held, BLOCKS) for g in guesses]
            yield from _beyond(name, setting, of_blocks, f"{note}; {OF_ONE_BLOCK}")
        else:
            right = sum(g.found for g in guesses)
            yield _recall(name, setting, right, SILOS * len(guesses), f"{note}; {NO_GROUP_BOUND}")


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
    together: str = "",
    blocks: Sequence[Sequence[int]] = (),
) -> Iterator[Outcome]:
    """Label sets from the recorded views of honest runs.

    Where `together` says which groups of silos have only their sums told, it is judged, too, what is found of a group
    beyond a guess that is the same for all its silos: of a block or, where there are no blocks, of a cohort.
    """
    from autoflip_secure.attacks import property_inference, true_silos
    from autoflip_secure.attacks.recorded_view import RecordedView

    runs = {seed: _folder(scale, attack, setting, seed) for seed in size.seeds}
    run_federations(f"{size.options} {options}", setting, runs)
    tried = []
    for folder in runs.values():
        seen, held = property_inference.sums_of(RecordedView(folder), silos), true_silos.label_sets(folder)
        guessed = seen.label_sets(property_inference.class_signatures(folder), CLASSES, HELD)
        tried.append(_Guessed(guessed, held, blocks or smallest_sums(seen.present)))
    if together:
        yield from _beyond(attack, setting, tried, together)
        return
    found = sum(true_silos.found_classes(t.guessed, t.held) for t in tried)
    yield _recall(attack, setting, found, silos * len(tried), note or GUESSED_FROM[setting])


def _folder(scale: Scale, attack: str, setting: str, seed: int) -> Path:
    """Where the run of a passive attack lies."""
    return scale.work / f"{attack}-{setting}-{seed}"


def _recall(attack: str, setting: str, found: int, silos: int, note: str, common: float | None = None) -> Outcome:
    """Chance is a blind guess. Nothing is promised but where sums are of whole groups: no more than the best guess that
    is the same for all silos of a group, which is right for the share `common` of the classes."""
    share = proportion_interval(found, HELD * silos)
    return Outcome(
        attack, setting, RECALL, *share, trials=HELD * silos, chance=CHANCE,
        bound=None if common is None else common + SLACK, promise="" if common is None else THE_COMMON_GUESS, note=note,
    )  # fmt: skip


@dataclass(frozen=True)
class _Guessed:
    """Label sets of one run as guessed and as they are, and the groups of silos (ids 1, 2, ...) whose sums are told."""

    guessed: list[frozenset[int]]
    held: list[frozenset[int]]
    groups: Sequence[Sequence[int]]

    def counts(self) -> Iterator[tuple[int, int, int]]:
        """By group: classes found, those that the best guess finds that is the same for all its silos, and silos."""
        for group in self.groups:
            found = sum(len(self.guessed[silo - 1] & self.held[silo - 1]) for silo in group)
            yield found, best_common_guess(self.held, group, HELD), len(group)


def _beyond(attack: str, setting: str, tried: Sequence[_Guessed], note: str) -> Iterator[Outcome]:
    """What is found of silos whose sums are of whole groups, and in how many groups that is more than the best common
    guess finds.

    Of the latter nothing is allowed: the attack's guesses are the same for silos that are in the same sums, and so are
    those of any attack on sums but by luck. A group of which more is found was not always summed whole.
    """
    counts = [count for guessed in tried for count in guessed.counts()]
    silos = sum(members for _, _, members in counts)
    found, common = (sum(column) for column in list(zip(*counts, strict=True))[:2])
    yield _recall(attack, setting, found, silos, note, common / (HELD * silos))
    share = proportion_interval(sum(found > best for found, best, _ in counts), len(counts))
    yield Outcome(
        attack, setting, BEYOND, *share, trials=len(counts), chance=0.0, bound=0.0, promise=TOGETHER, note=note
    )


def _determined(present: NDArray[np.float64]) -> str:
    """When the sums determine every silo, if updates were constant: the project's own bound."""
    from autoflip_secure.federation.rotation import determined

    needed = next((r for r in range(1, len(present) + 1) if determined(present[:r]).all()), None)
    return "sums never determine all silos" if needed is None else f"{needed} sums determine all silos"
