"""Silos that want the model to be bad, to bend to a trigger, or to be had for nothing, and that lie in the protocol.

What such silos have: their own records and keys, the public model of every round, and whatever software they like. They
see no other silo's vector. Judged are the final models, on public test records, and the sums that a coordinator opens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.lying_silos import LIES, Told, told_of
from autoflip_secure.attacks.outcome import Attack, Outcome, Scale, mean_interval, proportion_interval
from autoflip_secure.attacks.settings import run_federation
from autoflip_secure.attacks.spoilt_runs import SpoiltRun, predicted, spoilt_run, write_undeclared

__all__ = ["ATTACK"]

SILOS = 12
"""Two of them bad. The cohort filter needs four cohorts of three."""

NO_DP, WITH_DP = "--rounds 10", "--rounds 20"
BASE = f"--silos {SILOS} --partition iid --colluders 0"
NORM = "--update-norm 1"
"""About the norm of a silo's update in a clean run, after the first rounds."""

VARIANTS = {
    "plain": ("plain", NO_DP),
    "sum": ("sum", NO_DP),
    "sum + update norm": ("sum", f"{NO_DP} {NORM}"),
    "sum + update norm, no bounds": ("sum", f"{NO_DP} {NORM}"),
    "sum + filter": ("sum", f"{NO_DP} --cohort-filter --cohorts 4"),
    "sum + DP 8": ("sum + DP 8", WITH_DP),
    "sum + DP 8, no bounds": ("sum + DP 8", WITH_DP),
    "sum + DP 1": ("sum + DP 1", WITH_DP),
}
"""Name of a setting, the one of `attacks.settings` that it rests on, and what it adds."""

BACKDOOR = "--bad-silos backdoor:0.17:5"
SCALED = "--bad-silos scaling:0.17:10"
REVERSED = "--bad-silos scaling:0.17:-10"
FLIPPED = "--bad-silos label-flip:0.17"
FREE = "--bad-silos free-riding:0.17"
COUNTED = "--bad-silos huge-count:0.1"

STEP = "longest step of the model, over the longest that all silos could honestly take"
"""A bound on how far bad silos move the model in a round; where to is theirs to choose."""

PLAYED = (
    ("backdoor", BACKDOOR, ("plain", "sum", "sum + update norm", "sum + filter", "sum + DP 8", "sum + DP 1")),
    ("scaling by 10", SCALED, ("sum", "sum + update norm, no bounds", "sum + update norm", "sum + filter")),
    ("scaling by -10", REVERSED, ("sum", "sum + update norm", "sum + DP 8")),
    ("label flip", FLIPPED, ("sum", "sum + filter", "sum + DP 8")),
    ("free riding", FREE, ("sum", "sum + DP 8")),
)
"""Attack, what its silos do, and the settings it is tried in, with --quick too."""

ALSO = (
    ("scaling by 10", SCALED, ("plain", "sum + DP 8", "sum + DP 1")),
    ("scaling by -10", REVERSED, ("plain", "sum + filter", "sum + DP 8, no bounds", "sum + DP 1")),
    ("label flip", FLIPPED, ("plain", "sum + update norm", "sum + DP 1")),
    ("free riding", FREE, ("plain", "sum + filter", "sum + DP 1")),
)
"""What the full form tries as well."""

PROMISES = {
    "wrong shares": "the sum is exact or the attempt aborts",
    "rogue keys": "fields and ranges of opened sums",
    "wild words": "fields and ranges of opened sums",
    "a vector far out of range": "fields and ranges of opened sums",
}


@dataclass
class _Runs:
    """Runs that several rows need, made once."""

    scale: Scale

    def __post_init__(self) -> None:
        self._kept: dict[tuple[str, str, int], SpoiltRun] = {}
        quick = self.scale.quick
        self.dataset = "digits --model mlp" if quick else "mnist5k --model cnn-tanh"
        self.seeds = range(1 if quick else 3)

    def of(self, setting: str, bad: str, seed: int) -> SpoiltRun:
        """The run of a variant with these bad silos; none where the string is empty."""
        key = (setting, bad, seed)
        if key not in self._kept:
            base, more = VARIANTS[setting]
            name, model = self.dataset.split(" ", 1)
            folder = self.scale.work / f"run-{len(self._kept):03d}"
            options = f"{model} {BASE} {more} {bad}"
            self._kept[key] = spoilt_run(name, options, base, seed, folder, bounds="no bounds" not in setting)
        return self._kept[key]

    def clean(self, setting: str, seed: int) -> SpoiltRun:
        """The same without bad silos; bounds change nothing in it."""
        return self.of(setting.removesuffix(", no bounds"), "", seed)


def run(scale: Scale) -> Iterator[Outcome]:
    """Outcomes of lies in the protocol first, which take seconds, then of whole runs."""
    yield from _protocol(scale)
    yield from _counts(scale)
    runs = _Runs(scale)
    for attack, bad, settings in (*PLAYED, *(() if scale.quick else ALSO)):
        for setting in settings:
            yield from _played(runs, attack, bad, setting)


def _protocol(scale: Scale) -> Iterator[Outcome]:
    """Lies against the secure sum itself: the share that spoils a sum which the coordinator then goes on with."""
    attempts = 60 if scale.quick else 1000
    for lie in LIES:
        told = told_of(lie, attempts, seed=1)
        exact = lie == "wrong shares"
        for setting, bounds in (("sum, no bounds", False), ("sum", True)):
            spoilt = sum(_spoilt(t, exact=exact) and (t.in_bounds or not bounds) for t in told)
            promised = setting == "sum" and lie in PROMISES
            value, low, high = proportion_interval(spoilt, attempts)
            yield Outcome(
                f"lie: {lie}", setting, "sums spoilt unnoticed", value, low, high, attempts, 0.0,
                0.0 if promised else None, PROMISES[lie] if promised else "", _told_note(told, bounds),
            )  # fmt: skip


def _spoilt(told: Told, *, exact: bool) -> bool:
    """Whether a wrong sum was opened: not the honest one, or off by more than the liars' own vectors can make it."""
    return told.opened and (not told.exact if exact else told.moved)


def _told_note(told: list[Told], bounds: bool) -> str:
    aborted, named = sum(not t.opened for t in told), sum(t.named for t in told)
    slandered = sum(t.slandered for t in told)
    left_out = f"{sum(t.opened and not t.in_bounds for t in told)} sums left out by bounds, " if bounds else ""
    return f"{aborted} attempts aborted, {left_out}liars named in {named}, honest silos in {slandered}."


def _played(runs: _Runs, attack: str, bad: str, setting: str) -> Iterator[Outcome]:
    """What a model that some silos spoilt does, beside the model of the same run without them."""
    spoilt = [runs.of(setting, bad, seed) for seed in runs.seeds]
    clean = [runs.clean(setting, seed) for seed in runs.seeds]
    events = sum((run.events for run in spoilt), spoilt[0].events.__class__())
    note = (
        f"{events['sum_out_of_bounds']} sums cut or left out, {events['cohort_filtered']} cohorts weighed down, "
        f"{events['abort']} aborts in {len(spoilt)} runs."
    )
    measured = {"error on public test records": ([r.wrong for r in spoilt], [r.wrong for r in clean])}
    if attack == "backdoor":
        fooled = ([r.fooled for r in spoilt], [r.fooled for r in clean])
        measured = {"triggered records given the target class": fooled, **measured}
    for measure, (after, before) in measured.items():
        value, low, high = _share(after)
        yield Outcome(attack, setting, measure, value, low, high, len(after), _share(before)[0], note=note)
    if setting == "plain":
        return  # where each silo's vector is seen, nobody has to rely on bounds on a sum
    longest, honest = (max(run.longest_step for run in made) for made in (spoilt, clean))
    promised = "no bounds" not in setting
    yield Outcome(
        attack, setting, STEP, longest, longest, longest, sum(run.steps for run in spoilt),
        bound=1.0 if promised else None, promise=_length_promise(setting) if promised else "",
        note=f"Without bad silos {honest:.2g}.",
    )  # fmt: skip


def _length_promise(setting: str) -> str:
    """What a step is measured against."""
    if "DP" in setting:
        return "clip x patients of a round, and their noise"
    return "--update-norm" if "norm" in setting else "range of what may be sent"


def _share(flags: list[NDArray[np.bool_]]) -> tuple[float, float, float]:
    """Share of records in the mean over runs: the interval is over runs, of a single one over its records."""
    if len(flags) == 1:
        return proportion_interval(int(flags[0].sum()), flags[0].size)
    return mean_interval([float(each.mean()) for each in flags])


def _counts(scale: Scale) -> Iterator[Outcome]:
    """Claims of a million patients, where their number is not public and scores come from a sum."""
    test = write_undeclared(scale.work / "hospitals", SILOS, seed=0)
    base = f"--dataset folder:{scale.work / 'hospitals'} --model mlp --silos {SILOS} --colluders 0"
    for setting, rounds in (("sum + DP 8", WITH_DP), *((("sum", NO_DP),) if not scale.quick else ())):
        wrong, off = {}, {}
        for played in ("", COUNTED):
            folder: Path = scale.work / f"counts-{setting[-1]}-{len(played)}"
            summary = run_federation(f"{base} {rounds} {played}", setting, 0, folder)
            wrong[played] = predicted(folder, test.x) != test.y
            reported = summary["accuracy"]
            off[played] = 0.0 if reported is None else reported - (1.0 - float(wrong[played].mean()))
        value, low, high = _share([wrong[COUNTED]])
        note = "Where no total is declared the census sets the step under DP: a million patients make it tiny."
        chance = float(wrong[""].mean())
        yield Outcome("huge count", setting, "error on public test records", value, low, high, 1, chance, note=note)
        lie = abs(off[COUNTED])
        yield Outcome(
            "huge count", setting, "reported accuracy off by", lie, lie, lie, 1, abs(off[""]),
            note="One silo's counts outweigh all others' in the sum that scores come from.",
        )  # fmt: skip


ATTACK = Attack(name="malicious-silos", page="malicious-silos.md", run=run)
