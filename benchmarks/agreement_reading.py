"""What the tables of `agreement_privacy.py` say and the defaults they led to; figures are looked up in the rows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

Row = dict[str, Any]

SHRUNK, CLIPPED, SIZE = "shrunk energy", "clipped energy", "size alone"
HALF, BELIEVED = "shrunk energy x half agreement", "shrunk energy x half believed agreement"
POOLED = "shrunk energy x half shrunk agreement"
LEFT_OUT = "shrunk energy for that with agreement"


class Figures:
    """Means over seeds (and layers) of the rows with some settings."""

    def __init__(self, rows: list[Row], costs: list[Row]) -> None:
        self._rows, self._costs = rows, costs

    def mean(self, get: Callable[[Row], Any], **wanted: Any) -> str:
        """Two decimals; "?" where nothing was measured."""
        mine = [row for row in self._rows if all(row.get(k) == v for k, v in wanted.items())]
        found = [value for row in mine if (value := get(row)) is not None]
        return f"{np.mean(found):.2f}" if found else "?"

    def explored(self, get: Callable[[Row], Any], epsilon: float, **wanted: Any) -> str:
        """Of the default: 10 silos, 2 cohorts, 20 rounds, dirichlet:0.1."""
        usual = {"part": "explore", "silos": 10, "cohorts": 2, "rounds": 20, "partition": "dirichlet:0.1"}
        return self.mean(get, epsilon=epsilon, **(usual | wanted))

    def agreement(self, epsilon: float, **wanted: Any) -> str:
        """Rank correlation of agreement."""
        return self.explored(lambda row: row["agreement"]["ema"], epsilon, **wanted)

    def score(self, name: str, epsilon: float, **wanted: Any) -> str:
        """Rank correlation of a score."""
        return self.explored(lambda row: row["score"].get(name), epsilon, **wanted)

    def kept(self, name: str, epsilon: float, **wanted: Any) -> str:
        """Overlap of the units kept."""
        return self.explored(lambda row: row["kept 50%"].get(name), epsilon, **wanted)

    def overall(self, kind: str, epsilon: float, **wanted: Any) -> str:
        """Whole-model agreement."""
        return self.explored(lambda row: row["overall"][kind]["ema"], epsilon, **wanted)

    def local(self, get: Callable[[Row], Any], epsilon: float, **wanted: Any) -> str:
        """Trust local after round 16, iid."""
        return self.mean(get, part="local", epsilon=epsilon, **({"round": 16, "partition": "iid"} | wanted))

    def count(self, name: str, epsilon: float) -> int:
        """Seeds of the default that were measured with a score."""
        usual = {"part": "explore", "silos": 10, "cohorts": 2, "rounds": 20, "partition": "iid", "epsilon": epsilon}
        mine = [row for row in self._rows if all(row.get(k) == v for k, v in usual.items())]
        return sum(name in row["score"] for row in mine)

    def left(self, epsilon: float, when: str, silos: int = 10, cohorts: int = 2) -> str:
        """Budget that is left when so many cohorts are measured then."""
        row = next(c for c in self._costs if (c["silos"], c["cohorts"], c["when"]) == (silos, cohorts, when))
        return f"{row['effective_epsilon'][f'{epsilon:g}']:.2f}"


EXPLORATION, SELDOM = "exploration and every 20th round", "every 20th round"


def reading(rows: list[Row], costs: list[Row]) -> str:
    """The tables in plain words."""
    f = Figures(rows, costs)
    points = [*_about_agreement(f), *_about_scores(f), _about_cohorts(f), _about_local(f)]
    trained = sum(row["part"] == "training" for row in rows)
    local = len({row["seed"] for row in rows if row["part"] == "local"})
    limits = (
        "Limits: one data set of 4,000 records and one network of 80 units; ranks of 16 or 32 units have wide "
        f"intervals; at half the FLOPs few units go. Fidelity to the noise-free choice is not accuracy, of which table "
        f"4 holds {trained} runs; trust local was measured with {local} seed(s). More records a silo would lift every "
        "figure: what counts is the size of a sum against noise that does not grow with it."
    )
    return "\n".join(_item(point) for point in points) + "\n\n" + textwrap.fill(limits, 118) + "\n"


def _about_agreement(f: Figures) -> list[str]:
    iid = {"partition": "iid"}
    spread = f.explored(lambda row: row["spread"], 8, **iid)
    error = f.explored(lambda row: row["error"]["ema"], 8, **iid)
    return [
        f"**Agreement of single units is too noisy to use at epsilon 4 and below, and with iid silos at 8.** With "
        f"skewed silos its ranks correlate {f.agreement(8)} with the noise-free ones at epsilon 8, {f.agreement(4)} at "
        f"4, {f.agreement(2)} at 2 and {f.agreement(1)} at 1; with iid silos {f.agreement(8, **iid)} at 8 already. "
        f"More exploration does not help (40 rounds at epsilon 8: {f.agreement(8, rounds=40)}): gradients shrink as "
        f"the model learns, noise does not. Nor do more cohorts (20 silos, epsilon 8: "
        f"{f.agreement(8, silos=20, cohorts=2)} with 2, {f.agreement(8, silos=20, cohorts=4)} with 4).",
        f"**Where it survives best it has least to say.** Between cohorts of skewed silos the noise-free agreement of "
        f"the whole model is {f.overall('exact', 8)}: they pull apart, most units are clipped to 0 and get one "
        f"factor. With iid silos it is {f.overall('exact', 8, **iid)} and differs little between units (standard "
        f"deviation {spread}), while the estimate errs by {error}, mostly because the floor of the denominator pulls "
        "it to 0.",
        f"**Pooled it is usable at epsilon 8**, if low where silos agree. The whole model reads "
        f"{f.overall('noised', 8)} for "
        f"{f.overall('exact', 8)} (skewed) and {f.overall('noised', 8, **iid)} for {f.overall('exact', 8, **iid)} "
        f"(iid); at 2 {f.overall('noised', 2)} for {f.overall('exact', 2)} and {f.overall('noised', 2, **iid)} for "
        f"{f.overall('exact', 2, **iid)}, the sign at best. This holds because layers and model are pooled before the "
        "floor of the denominator; floors added up over units made all of these read about 0.",
    ]


def _about_scores(f: Figures) -> list[str]:
    iid = {"partition": "iid"}
    with_agreement = [
        f"{f.score(HALF, epsilon, **how)} as measured, {f.score(POOLED, epsilon, **how)} shrunk to its layer, "
        f"{f.score(LEFT_OUT, epsilon, **how)} left out"
        for epsilon, how in ((8, iid), (8, {}), (2, iid), (2, {}))
    ]
    return [
        f"**Energy fares better, if noise may not condemn.** Negative energies clipped at 0 killed up to half of the "
        f"units on no evidence: in two cohorts the units kept at 50 % of the FLOPs overlapped {f.kept(CLIPPED, 8)} "
        f"with the noise-free choice at epsilon 8 and {f.kept(CLIPPED, 2)} at 2, below random units "
        f"({f.kept('random', 8)}, {f.kept('random', 2)}). Shrunk to their layer by their known noise: "
        f"{f.kept(SHRUNK, 8)} and {f.kept(SHRUNK, 2)}. Much of that is size, which is public: alone "
        f"{f.kept(SIZE, 8)} and {f.kept(SIZE, 2)}. The silos add to it at epsilon 8 in one cohort (rank correlation "
        f"{f.score(SHRUNK, 8, cohorts=1)} against {f.score(SIZE, 8, cohorts=1)} of size alone), hardly in two "
        f"({f.score(SHRUNK, 8)}), and nothing at 2 ({f.score(SHRUNK, 2, cohorts=1)} against "
        f"{f.score(SIZE, 2, cohorts=1)}).",
        f"**Agreement in the score**, rank correlation with the noise-free score that has it: epsilon 8, iid: "
        f"{with_agreement[0]}; skewed: {with_agreement[1]}; epsilon 2, iid: {with_agreement[2]}; skewed: "
        f"{with_agreement[3]}. So as measured it helps nowhere and harms at small epsilon; shrunk by its known "
        "noise it does neither. "
        f"Of the last way some seeds lack ({f.count(LEFT_OUT, 8)} at epsilon 8, {f.count(LEFT_OUT, 2)} at 2). What the "
        f"code does, averages of ratios that are shrunk ('believed'), reads {f.score(BELIEVED, 8, **iid)} and "
        f"{f.score(BELIEVED, 8)} over {f.count(BELIEVED, 8)} seeds at epsilon 8, "
        f"{f.score(BELIEVED, 2, **iid)} and {f.score(BELIEVED, 2)} over {f.count(BELIEVED, 2)} at 2.",
    ]


def _about_cohorts(f: Figures) -> str:
    return (
        f"**Cohorts are dear.** Two cohorts of five silos carry 2.25 times the noise of one of ten (2 x 5 / 4 against "
        f"10 / 9, one colluder). Measured in 20 rounds of exploration and every 20th, that is as if epsilon 8 had been "
        f"{f.left(8, EXPLORATION)} and 2 had been {f.left(2, EXPLORATION)}; every 20th round alone "
        f"{f.left(8, SELDOM)} and {f.left(2, SELDOM)}. Four cohorts of 20 silos leave {f.left(8, EXPLORATION, 20, 4)} "
        f"of 8."
    )


def _about_local(f: Figures) -> str:
    def kept(name: str) -> str:
        return f.local(lambda row: row["kept 50%"].get(name), 8)

    exact = f.local(lambda row: row["overall"]["exact"]["ema"], 8)
    return (
        "**Trust local hides it altogether.** Unless it is taken off, silos' own noise fills the denominator: at "
        f"epsilon 8 (iid) the whole model reads {f.local(lambda row: row['overall']['noised']['ema'], 8)} for {exact}, "
        f"and {f.local(lambda row: row['overall']['noised']['noise taken out'], 8)} with the known noise taken out. "
        "Guidance "
        f"times an agreement that is noise around 0 keeps units that overlap {kept('guidance')} with the noise-free "
        f"choice, random ones {kept('random')}; size times shrunk energy, with the silos' noise taken as known, "
        f"{kept('shrunk energy')}."
    )


def defaults(rows: list[Row], costs: list[Row]) -> str:
    """The choice."""
    f = Figures(rows, costs)
    points = [
        "**Score (distributed): size x shrunk energy.** In the code. Agreement enters with half a vote and only as far "
        "as it stands out of its known noise, so a run with many silos and records gets it back without an option.",
        f"**Cohorts: 1 while exploring.** Two would leave {f.left(8, EXPLORATION)} of epsilon 8 for an agreement of "
        f"units that is noise, and blur what the score does use: shrunk energy correlates "
        f"{f.score(SHRUNK, 8, cohorts=1)} with the noise-free score in one cohort, {f.score(SHRUNK, 8)} in two.",
        f"**Two cohorts every 20 rounds, for the report, only where `--cohorts 2` asks for it.** Ten such rounds add "
        f"6 % to the noise variance of the run (epsilon 8 becomes {f.left(8, SELDOM)}), and each sum tells of half as "
        f"many silos what they hold together. At epsilon 2 and below it is noise.",
        f"**Exploration: 20 rounds, a tenth of the rounds and of the budget.** Shrunk energy in one cohort at epsilon "
        f"8: {f.score(SHRUNK, 8, cohorts=1, rounds=10)} after 10 rounds, {f.score(SHRUNK, 8, cohorts=1)} after 20, "
        f"{f.score(SHRUNK, 8, cohorts=1, rounds=40)} after 40.",
        f"**eta: 0.1, as it is.** Guidance does not enter the score under distributed trust, and a rank correlation of "
        f"{f.score('guidance', 8)} at epsilon 8 is no reason to put it there.",
        "**Trust local: size x shrunk energy as well**, with the known noise of the silos' updates taken off, instead "
        "of guidance times agreement, which stays where there is no DP. In the code.",
    ]
    return "\n".join(_item(point) for point in points) + "\n"


def _item(text: str) -> str:
    return textwrap.fill(text, 118, initial_indent="- ", subsequent_indent="  ")
