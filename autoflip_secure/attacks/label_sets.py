"""Label-set inference: which classes a silo holds, that is which illnesses a hospital treats, from what it sends.

What the coordinator has: its recorded view (models, manifests, every message of the silos), the run's configuration,
public test records, and that every silo holds two classes. With `--aggregation none` the view holds each silo's vector.
Through the secure sum it holds, of a single silo, its masked vector, and the attack reads that in place of the clear
one. Beside that it has the opened sums, one of all silos or one of each cohort: they tell what the silos of a sum hold
together, so whoever goes by them guesses the same of all of these, and right the more often the fewer they are. What
silos hold is read for scoring alone.

A short run has less noise under one epsilon than a long one, in every round: that helps the attacker, so where the sum
is attacked runs are short. Where single vectors are seen under DP, the coordinator starts a run of full length, whose
noise is that of the long run, and goes away after the first rounds.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.class_signatures import ClassSignatures, best_sets, fits, fits_of_squares, sets_of_classes
from autoflip_secure.attacks.common_guess import best_common_guess, smallest_sums
from autoflip_secure.attacks.outcome import SLACK, Attack, Outcome, Scale, proportion_interval
from autoflip_secure.attacks.property_inference import class_signatures, sums_of
from autoflip_secure.attacks.recorded_view import Asked, RecordedView, SingleVector
from autoflip_secure.attacks.settings import SETTINGS, epsilon_of, run_federations
from autoflip_secure.attacks.true_silos import found_classes, label_sets
from autoflip_secure.sums.encoding import unpack_sum, word_count

__all__ = [
    "ATTACK", "Reading", "guessed_sets", "masked_vectors", "read", "single_vector_outcomes", "stopped_run",
    "sums_outcome",
]  # fmt: skip

CLASSES, HELD, SILOS = 10, 2, 20
CHANCE = HELD / CLASSES
MEASURE = f"recall of {HELD} classes of {CLASSES}"
FEDERATION = f"--partition pathological:{HELD} --silos {SILOS} --model cnn-tanh --evaluate-every 1000"
PROMISE = f"chance + {SLACK}: of one silo, only a masked vector is seen"
ALONE = (8.0, 2.0, 1.0)
"""Epsilons under which single vectors are seen."""

GUIDANCE, UPDATES, SUMS = "label sets from guidance", "label sets from updates", "label sets from opened sums"
OF_A_SUM = f"the best guess that is the same for all silos of a sum, + {SLACK}"
ALSO = {"sum + DP 2": "--dp-epsilon 2", "sum + DP 8, two cohorts": "--dp-epsilon 8 --cohorts 2"}
"""Settings of this attack alone, and what they add to `sum`."""


@dataclass(frozen=True)
class _Size:
    """How much is tried.

    Attributes
    ----------
    rounds : int
        Of the runs that are attacked through the sum, and beside them in the clear.
    without_dp : str
        More options of these runs where there is no DP.
    alone : int
        Rounds after which a coordinator that sees single vectors under DP goes away.
    seeds, seen : int
        Runs where something is promised, and where single vectors are seen. A promise of no more than a quarter, where
        a fifth is chance, takes some six hundred guesses to be told: 40 a run.
    also : dict of str to int
        Runs of those settings of `ALSO` that are tried.
    """

    rounds: int
    without_dp: str
    alone: int
    seeds: int
    seen: int
    also: dict[str, int]


QUICK = _Size(
    rounds=2, without_dp="--local-steps 2 --explore-steps 2", alone=1, seeds=16, seen=1, also={"sum + DP 2": 8}
)
FULL = _Size(rounds=4, without_dp="", alone=4, seeds=40, seen=5, also=dict.fromkeys(ALSO, 40))
AT_A_TIME = 10
"""Runs that lie on disk together."""


@dataclass(frozen=True)
class Reading:
    """What the attacks made of one run, and what is true.

    Attributes
    ----------
    held : list of frozenset of int
        Classes of each silo, by the silos in their order.
    guessed : dict of list of frozenset of int
        The same by each attack.
    common : int
        Classes found by the best guess that is the same for all silos of a sum.
    sums : frozenset of int
        How many silos the smallest sums are of.
    """

    held: list[frozenset[int]]
    guessed: dict[str, list[frozenset[int]]]
    common: int
    sums: frozenset[int]

    def hits(self, attack: str) -> int:
        """Classes that the attack found."""
        return found_classes(self.guessed[attack], self.held)


def attack(scale: Scale) -> Iterator[Outcome]:
    """The settings, and single vectors under DP: guidance and updates of each, and the sums where they are opened."""
    size = QUICK if scale.quick else FULL
    data = f"--dataset {'mnist5k' if scale.quick or scale.data is None else 'mnist'}"
    for setting in (*SETTINGS, *size.also):
        base, more = (setting, "") if setting in SETTINGS else ("sum", ALSO[setting])
        options = f"{FEDERATION} {data} --rounds {size.rounds} {more}"
        if epsilon_of(base) is None and not more:
            options += f" {size.without_dp}"
        readings, wanted = [], size.seen if base == "plain" else size.also.get(setting, size.seeds)
        for first in range(0, wanted, AT_A_TIME):
            seeds = range(first, min(first + AT_A_TIME, wanted))
            runs = {seed: scale.work / f"{setting.replace(' ', '')}-{seed}" for seed in seeds}
            run_federations(options, base, runs, data=scale.data)
            readings += [_read_and_remove(run) for run in runs.values()]
        yield from single_vector_outcomes(setting, readings)
        if base != "plain":
            yield sums_outcome(setting, readings)
    for epsilon in ALONE:
        readings = []
        for seed in range(size.seen):
            run = scale.work / f"alone-{epsilon:g}-{seed}"
            stopped_run(run, size.alone, dataset="mnist5k", silos=SILOS, seed=seed, dp_epsilon=epsilon)
            readings.append(_read_and_remove(run))
        note = f"each silo alone keeps epsilon {epsilon:g}, and is seen: DP of one patient hides no label set"
        yield from single_vector_outcomes(f"plain + DP {epsilon:g}", readings, note)


def _read_and_remove(run: Path) -> Reading:
    reading = read(run)
    shutil.rmtree(run)
    return reading


def read(run: Path) -> Reading:
    """All attacks on one recorded run in which every silo takes part in every round."""
    view, signatures, held = RecordedView(run), class_signatures(run), label_sets(run)
    seen = sums_of(view, len(held))
    groups = smallest_sums(seen.present)
    guessed = guessed_sets(view, signatures)
    if not view.single_vectors:
        guessed[SUMS] = seen.label_sets(signatures, CLASSES, HELD)
    common = sum(best_common_guess(held, group, HELD) for group in groups)
    return Reading(held, guessed, common, frozenset(map(len, groups)))


def single_vector_outcomes(setting: str, readings: list[Reading], note: str = "") -> Iterator[Outcome]:
    """From guidance and from updates: recall over all silos of all runs."""
    trials = sum(HELD * len(reading.held) for reading in readings)
    protected = setting.startswith("sum")
    for attack in (GUIDANCE, UPDATES):
        value, low, high = proportion_interval(sum(reading.hits(attack) for reading in readings), trials)
        yield Outcome(
            attack, setting, MEASURE, value, low, high, trials, CHANCE,
            bound=CHANCE + SLACK if protected else None,
            promise=PROMISE if protected else "",
            note=note or ("read from each silo's masked vector" if protected else "each silo's vector is seen"),
        )  # fmt: skip


def sums_outcome(setting: str, readings: list[Reading]) -> Outcome:
    """From all sums that were opened: recall over all silos of all runs, by cohorts if there are any."""
    trials = sum(HELD * len(reading.held) for reading in readings)
    value, low, high = proportion_interval(sum(reading.hits(SUMS) for reading in readings), trials)
    common = sum(reading.common for reading in readings)
    shown = " or ".join(map(str, sorted(set[int]().union(*(reading.sums for reading in readings)))))
    return Outcome(
        SUMS, setting, MEASURE, value, low, high, trials, CHANCE,
        bound=common / trials + SLACK, promise=OF_A_SUM, note=f"sums of {shown} silos",
    )  # fmt: skip


def guessed_sets(view: RecordedView, signatures: ClassSignatures, held: int = HELD) -> dict[str, list[frozenset[int]]]:
    """The classes that each silo holds, by the silos in their order, as the coordinator would have it.

    Parameters
    ----------
    view : RecordedView
        Of a run in which every silo takes part in every round.
    held : int
        How many classes a silo holds, which is known.

    Returns
    -------
    dict of list of frozenset
        From guidance and from updates; empty lists where no such vectors were seen.
    """
    vectors = view.single_vectors or masked_vectors(view)
    sets = sets_of_classes(signatures.classes, held)
    guessed = {}
    for attack in (GUIDANCE, UPDATES):
        evidence: dict[int, NDArray[np.float64]] = {}
        for asked, seen in _by_attempt(vectors):
            found = _evidence(attack, asked, seen, signatures, sets)
            if found is not None:
                for vector, row in zip(seen, found, strict=True):
                    evidence[vector.silo] = evidence.get(vector.silo, 0.0) + row
        guessed[attack] = best_sets(np.stack([evidence[silo] for silo in sorted(evidence)]), sets) if evidence else []
    return guessed


def _evidence(
    attack: str, asked: Asked, seen: list[SingleVector], signatures: ClassSignatures, sets: list[tuple[int, ...]]
) -> NDArray[np.float64] | None:
    """How well each set fits each silo's vector of one attempt, shape (silos, sets); None: it tells nothing of it.

    Guidance is of exploring rounds alone. Where silos explore with gradient sums (distributed noise), a silo's share of
    the map is the square of its sum, which the coordinator takes. How much noise there is in a vector is public.
    """
    channels, guiding = seen[0].channels.keys(), attack == GUIDANCE
    if (asked.manifest.phase != "explore") if guiding else ("update" not in channels):
        return None
    terms = (sets, asked.manifest, asked.model)
    if not guiding:
        return fits(np.stack([vector.channels["update"] for vector in seen]), signatures.of("update", *terms))
    channel, power = ("deviation", 1) if "deviation" in channels else ("update", 2)
    squares = np.stack([vector.channels[channel] ** power for vector in seen])
    variance = signatures.noise_variance(asked.manifest, asked.model)
    if variance:
        return fits_of_squares(squares, signatures.of("update", *terms), variance)
    return fits(squares, signatures.of("deviation", *terms))


def _by_attempt(vectors: list[SingleVector]) -> Iterator[tuple[Asked, list[SingleVector]]]:
    attempts: dict[int, list[SingleVector]] = defaultdict(list)
    for vector in vectors:
        attempts[id(vector.asked)].append(vector)
    for seen in attempts.values():
        yield seen[0].asked, seen


def masked_vectors(view: RecordedView) -> list[SingleVector]:
    """Each silo's masked words, decoded as if they were clear: all that a coordinator receives of a single vector."""
    found = []
    for message in view.messages:
        if message["stage"] != "masked" or message["fields"]["status"] != "ok":
            continue
        place, reply = (message["round"], message["attempt"]), message["fields"]["reply"]
        asked = next(a for a in view.asked if (a.round, a.attempt) == place)
        channels, silo = asked.manifest.channels, message["from"]
        silos = len(asked.manifest.cohorts[asked.manifest.cohort_of(silo)])
        words = np.frombuffer(reply, np.uint64, word_count(channels, silos))
        found.append(SingleVector(asked, silo, dict(unpack_sum(words, channels, silos))))
    return found


class _Enough(Exception):
    """The coordinator has seen what it wanted."""


def stopped_run(run: Path, rounds: int, **options: Any) -> None:
    """A run with `--aggregation none` and local trust whose coordinator goes away after so many rounds.

    Parameters
    ----------
    run : Path
        Its folder; must not exist.
    rounds : int
        At least 1, below those that the run plans and pays noise for.
    options
        Fields of the configuration, beside those that make the setting.
    """
    from autoflip_secure.config import RunConfig
    from autoflip_secure.data.registry import load
    from autoflip_secure.federation.defaults import resolve
    from autoflip_secure.federation.engines import run_federation as run_engine
    from autoflip_secure.federation.provisioning import RunFolder, provision

    def watch(line: dict[str, Any]) -> None:
        if line["round"] + 1 >= rounds:
            raise _Enough

    config = RunConfig.create(
        partition=f"pathological:{HELD}", aggregation="none", dp_trust="local", device="cpu", workers=0,
        record_server_view=True, **options,
    )  # fmt: skip
    data = load(config.dataset, config.data_dir, config.seed)
    resolved = resolve(config, data.task, natural_silos=None)
    provision(RunFolder(run), resolved, data)
    try:
        run_engine(RunFolder(run), resolved, watch)
    except _Enough:
        return
    raise RuntimeError(f"{run}: ended before its coordinator went away")


ATTACK = Attack("label-sets", "label-sets.md", attack)
