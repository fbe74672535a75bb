"""What an attack came to: one number against chance and against the bound that is promised, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LOOSE", "SLACK", "Attack", "Outcome", "Scale", "bootstrap_interval", "mean_interval", "proportion_interval"]

CONFIDENCE = 0.95
SLACK = 0.05
"""Allowed above what is had without the attack, where nothing but that is promised."""
LOOSE = 0.95
"""A share, rate or area that may be so large is hardly bounded."""
TRIALS_OF_NOTHING = 30
"""Where nothing is allowed, so many trials must find nothing before it says something: a share of 0.12 is out."""


@dataclass(frozen=True)
class Outcome:
    """One cell of the table: an attack under one setting.

    Attributes
    ----------
    attack : str
        Name of the attack, the same in every setting.
    setting : str
        One of `attacks.settings.SETTINGS`, or what differs from them, such as `plain + DP 8`.
    measure : str
        What `value` is, such as `recall of 2 classes of 10`; larger is better for the attacker.
    value, low, high : float
        The figure and its 95 % interval, over independent trials.
    trials : int
        How many there were. One run gives no interval.
    chance : float or None
        What is had without the attack: by somebody who guesses, with public values or with more where `note` says so,
        or from a run that nobody spoils. None where that means nothing.
    bound : float or None
        The largest value that a promise allows under this setting; None: nothing is promised here.
    promise : str
        What the bound rests on, in a few words; empty without one.
    note : str
        What a reader should know of this cell, in one sentence.
    """

    attack: str
    setting: str
    measure: str
    value: float
    low: float
    high: float
    trials: int
    chance: float | None = None
    bound: float | None = None
    promise: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.attack}, {self.setting}: {self.value} is outside [{self.low}, {self.high}]")
        if (self.bound is None) != (not self.promise):
            raise ValueError(f"{self.attack}, {self.setting}: a bound and what it rests on come together")

    @property
    def verdict(self) -> str:
        """What this says of the promise, or where nothing is promised of the attack.

        With a bound: `broken` where the whole interval lies above it, `held` where it lies below (or where nothing is
        allowed and nothing at all was found in `TRIALS_OF_NOTHING` trials), `not refuted` where so few trials do not
        tell, and `loose` where the bound itself allows nearly everything. Without: `succeeds` where the whole interval
        lies above what is had without the attack, else `no gain shown`: few trials may not show a small one.
        """
        if self.bound is None:
            return "succeeds" if self.low > (self.chance or 0.0) else "no gain shown"
        if self.low > self.bound:
            return "broken"
        if self.chance is not None and self.bound >= LOOSE:
            return "loose"
        nothing_found = self.value == self.bound == 0 and self.trials >= TRIALS_OF_NOTHING
        return "held" if self.high <= self.bound or nothing_found else "not refuted"

    def to_json(self) -> dict[str, Any]:
        """As it lies on disk."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Outcome:
        """Back from disk."""
        return cls(**row)


@dataclass(frozen=True)
class Scale:
    """How much work an attack may be.

    Attributes
    ----------
    quick : bool
        Small forms: all attacks together in under fifteen minutes on two cores.
    work : Path
        An empty folder for runs; the caller removes it.
    data : Path or None
        The folder of data sets; None where there is none, and attacks use data that comes with packages.
    pictures : Path or None
        Folder for figures that an attack draws for its page; None: none are wanted.
    """

    quick: bool
    work: Path
    data: Path | None = None
    pictures: Path | None = None


@dataclass(frozen=True)
class Attack:
    """An adversary as the table knows it.

    Attributes
    ----------
    name : str
        For `--only`, such as `label-sets`.
    page : str
        File of threat_models/ whose table it makes, such as `label-sets.md`.
    run : callable
        run(scale) yields outcomes as they come.
    """

    name: str
    page: str
    run: Callable[[Scale], Iterator[Outcome]]


def proportion_interval(hits: int, trials: int) -> tuple[float, float, float]:
    """(share, low, high) of a binomial proportion: Clopper and Pearson's exact 95 % interval."""
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return hits / trials, low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of independent values: Student's 95 % interval. One value has no interval: it is all three."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def bootstrap_interval(
    statistic: Callable[[np.random.Generator | None], float], *, draws: int = 500
) -> tuple[float, float, float]:
    """(value, low, high): the statistic of everything, and the middle 95 % of it over resamples.

    Parameters
    ----------
    statistic : callable
        statistic(None) is of all units, statistic(generator) of units that it draws with replacement.
    """
    value, generator = statistic(None), np.random.default_rng(0)
    drawn = [statistic(generator) for _ in range(draws)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return value, min(float(low), value), max(float(high), value)
