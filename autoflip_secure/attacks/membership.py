"""Membership inference: was this record among those that the run was trained on?

The adversary is the coordinator: it has the model of every round, with `--aggregation none` every silo's update too,
the run's options and seed, the record it asks about (label and silo included), and as many records of the same kind as
it needs to train shadows. It has no part of a silo's disk, memory or randomness.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.membership_federations import Game, deal, run_all
from autoflip_secure.attacks.membership_scores import area, leave_one_out, lira, rmia, true_positives
from autoflip_secure.attacks.outcome import LOOSE, Attack, Outcome, Scale, bootstrap_interval
from autoflip_secure.attacks.settings import SETTINGS, PrivacyProfile, charges_of, epsilon_of

__all__ = ["ATTACK", "Found", "outcomes_of", "scores_of"]

CANDIDATES = 800
RUNS = 6
RUNS_IN_FULL = 64

WITHOUT_DP = "--model mlp --rounds 10 --local-steps 40 --evaluate-every 1000"
"""Ten times forty steps on eighty records a silo: small hospitals that train until they know their patients."""

WITH_DP = "--model mlp --rounds 20 --sampling-rate 0.4 --evaluate-every 1000"
"""The usual plan on images, with few rounds and so many records in each as make up for that."""

PRUNING = {"": "", ", dense": "--prune none"}

FINAL, RELATIVE, EVERY_ROUND = "final model{} (LiRA)", "final model{} (RMIA)", "every round{} (LiRA)"
SUMS = "sums of every round{} (alignment)"
RATES = (0.01, 0.001)
"""False-positive rates; the second needs the full form's number of trials."""

VACUOUS = "the bound allows nearly everything"
NO_PROMISE = "nothing is promised without DP"
OF_RECORDS = {"membership": False, "membership of a wrong label": True}
TITLES = {"membership": "records with their labels", "membership of a wrong label": "records with wrong labels"}


@dataclass(frozen=True)
class Found:
    """Scores of one attack on one group of records.

    Attributes
    ----------
    scores : float64 array, shape (runs, records)
        Larger: likelier a member.
    member : bool array, shape (runs, records)
    """

    scores: NDArray[np.float64]
    member: NDArray[np.bool_]

    def drawn(self, generator: np.random.Generator | None) -> Found:
        """Runs and records drawn anew with replacement: both are clusters of scores that depend on each other."""
        if generator is None:
            return self
        runs, records = self.scores.shape
        rows = np.ix_(generator.integers(0, runs, runs), generator.integers(0, records, records))
        return Found(self.scores[rows], self.member[rows])

    def true_positives(self, false_positives: float) -> float:
        """See `membership_scores.true_positives`."""
        return true_positives(self.scores, self.member, false_positives)

    def area(self) -> float:
        """See `membership_scores.area`."""
        return area(self.scores, self.member)


def run(scale: Scale) -> Iterator[Outcome]:
    """Every setting, pruned and dense; outcomes as its federations are done."""
    game = deal(CANDIDATES, RUNS if scale.quick else RUNS_IN_FULL)
    curves: dict[str, dict[str, Found]] = {}
    for setting in SETTINGS:
        pruned: dict[str, Found] = {}
        for pruning, options in PRUNING.items():
            if pruning and scale.quick:
                continue
            folder = scale.work / f"membership-{setting.replace(' ', '')}-{pruning.strip(', ') or 'pruned'}"
            plan = WITHOUT_DP if epsilon_of(setting) is None else WITH_DP
            runs = run_all(game, setting, f"{plan} {options}", folder)
            profile = _proved(runs)
            found = scores_of(game, runs)
            shutil.rmtree(folder)
            for name, scores in found.items():
                yield from outcomes_of(name.format(pruning), setting, scores, profile, scale.quick, pruned.get(name))
            if not pruning:
                pruned = curves[setting] = found
    if scale.pictures is not None:
        from autoflip_secure.attacks.membership_picture import draw

        panels = {
            title: {setting: found[f"{kind}, {EVERY_ROUND}"] for setting, found in curves.items()}
            for kind, title in TITLES.items()
        }
        draw(scale.pictures / "membership.png", panels)


def _proved(runs: list[Path]) -> PrivacyProfile | None:
    """What DP proves about a record of any silo in any of these runs; None where they promise nothing."""
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    if all(summary["epsilon_spent"] is None for summary in summaries):
        return None
    return PrivacyProfile.of((charged for run in runs for charged in charges_of(run)), float(summaries[0]["delta"]))


def scores_of(game: Game, runs: list[Path]) -> dict[str, Found]:
    """What each attack says of each run's candidates, with right and with wrong labels; names have a place for more."""
    from autoflip_secure.attacks.membership_signals import read_signals

    signals, member = read_signals(game, runs), game.member
    scores = {
        FINAL: leave_one_out(lira, member, signals.final),
        RELATIVE: leave_one_out(rmia, member, signals.final, signals.public),
        EVERY_ROUND: np.sum([leave_one_out(lira, member, seen) for seen in signals.rounds], axis=0),
    }
    if signals.sums is not None:
        scores[SUMS] = leave_one_out(lira, member, signals.sums)
    return {
        f"{kind}, {name}": Found(values[:, game.wrong == wrong], member[:, game.wrong == wrong])
        for kind, wrong in OF_RECORDS.items()
        for name, values in scores.items()
        if not (wrong and name == RELATIVE)  # it ranks by public records, all of which a wrong label outdoes
    }


def outcomes_of(
    name: str, setting: str, found: Found, profile: PrivacyProfile | None, quick: bool, pruned: Found | None
) -> Iterator[Outcome]:
    """Rates and area of one attack against what DP proves; without a profile nothing is promised.

    `pruned` is the same attack on pruned runs with the same members, to compare.
    """
    note = "" if pruned is None else _compared(found, pruned)
    for rate in (*(RATES[:1] if quick else RATES), None):
        value, low, high = bootstrap_interval(partial(_drawn_figure, found, rate))
        measure = "area under the ROC curve" if rate is None else f"true positives at {100 * rate:g} % false ones"
        bound = None if profile is None else profile.area() if rate is None else profile.true_positives(rate)
        rests_on = "" if profile is None else profile.promise
        said = [NO_PROMISE if bound is None else VACUOUS if bound > LOOSE else "", note if rate is None else ""]
        chance, trials = 0.5 if rate is None else rate, found.scores.size
        yield Outcome(
            name, setting, measure, value, low, high, trials, chance, bound, rests_on, "; ".join(filter(None, said))
        )


def _drawn_figure(found: Found, rate: float | None, generator: np.random.Generator | None) -> float:
    """True positives at a rate of false ones; without one, the area."""
    drawn = found.drawn(generator)
    return drawn.area() if rate is None else drawn.true_positives(rate)


def _compared(dense: Found, pruned: Found) -> str:
    """The area of dense runs less that of pruned ones; both are drawn alike, since members and start are the same."""

    def difference(generator: np.random.Generator | None) -> float:
        seed = None if generator is None else int(generator.integers(2**32))
        same = [None if seed is None else np.random.default_rng(seed) for _ in range(2)]
        return dense.drawn(same[0]).area() - pruned.drawn(same[1]).area()

    value, low, high = bootstrap_interval(difference)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] more than pruned"


ATTACK = Attack(name="membership", page="membership.md", run=run)
