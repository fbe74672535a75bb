"""Gradient inversion: an honest but curious coordinator rebuilds records from what it sees of a round.

What it has: the recorded view (every opened sum; single updates with `--aggregation none`), the public model of each
round, learning rate, steps, clip and noise level, the number of records, and public records of the same kind. Labels it
reads off the gradient of the last bias; where noise or several steps blur that, it is given them, in its favour.

Each silo holds few records and takes one step on all of them, so that an update is the gradient times the rate: the
easiest case there is. One row has the default number of steps. The matching of pictures to records knows the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.outcome import SLACK, Attack, Outcome, Scale, mean_interval, proportion_interval
from autoflip_secure.attacks.picture_scores import GAIN, Likeness, matched, psnr
from autoflip_secure.attacks.picture_silos import PictureSilos
from autoflip_secure.attacks.settings import SETTINGS, epsilon_of

if TYPE_CHECKING:
    from autoflip_secure.attacks.gradient_match import SeenGradient

__all__ = ["ATTACK", "ROWS", "Row", "chance_of", "invert", "run"]

Pictures = NDArray[np.float32]


MEASURE = f"share of records rebuilt (PSNR {GAIN:g} dB above their class' mean)"
BEYOND = "PSNR above that of their class' mean picture, dB"
BY_MATCHING = 0.1
"""Decibels that the matching, which knows the truth, may give to pictures that are class means with a little noise."""
SEEDS = 3
OTHER_SILOS = (3, 5)
"""Smaller federations, whose sums hold fewer records, in the full form."""


@dataclass(frozen=True)
class Row:
    """One inversion, on one kind of federation.

    Attributes
    ----------
    name : str
    silos : PictureSilos
        Of seed 0.
    method : str
        angle, prior, division, row space or deep leakage; `prior` takes the place of `angle` for sums.
    settings : tuple of str
        Where it is tried.
    targets : int
        Silos that are attacked one by one where the coordinator sees them, in the quick form.
    steps : int
        Steps of the optimiser, in the quick form.
    """

    name: str
    silos: PictureSilos
    method: str
    settings: tuple[str, ...] = tuple(SETTINGS)
    targets: int = 2
    steps: int = 300


FEW, SOME = PictureSilos("cnn-tanh", 10, 1), PictureSilos("mlp", 10, 4)
USUAL = PictureSilos("mlp", 10, 40, steps=10)
ROWS = (
    Row("gradients matched, 1 record a silo", FEW, "angle", targets=5),
    Row("first layer divided, 4 records a silo", SOME, "division"),
    Row("first layer's row space, 4 records a silo", SOME, "row space"),
    Row("deep leakage, 4 records a silo", SOME, "deep leakage", ("plain",)),
    Row("gradients matched, 4 records a silo", SOME, "prior", ("sum + DP 8", "sum + DP 1"), steps=150),
    Row("gradients matched, 40 records a silo, 10 local steps", USUAL, "prior", ("plain", "sum"), 3, 100),
)


def run(scale: Scale) -> Iterator[Outcome]:
    """All rows: one seed and ten silos in the quick form; else more seeds and steps, and sums of fewer silos."""
    views: dict[tuple[PictureSilos, str], list[tuple[slice, list[SeenGradient]]]] = {}
    shown: dict[tuple[str, str], Pictures] = {}
    rows = (*ROWS, SMALLER) if scale.quick else (*map(_at_length, ROWS), *_smaller_federations())
    for row in rows:
        for setting in row.settings:
            results = []
            for seed in range(1 if scale.quick else SEEDS):
                silos = replace(row.silos, seed=seed)
                if (silos, setting) not in views:
                    views[silos, setting] = silos.seen(setting, scale)
                attacked = views[silos, setting][: row.targets]
                pictures = [invert(row, silos, setting, part, seen) for part, seen in attacked]
                truth = np.concatenate([silos.truth.x[part] for part, _ in attacked])
                labels = np.concatenate([silos.truth.y[part] for part, _ in attacked])
                found = np.concatenate(pictures)
                results.append((Likeness.of(found, truth, silos.prior.means[labels]), chance_of(silos, attacked)))
                if seed == 0:
                    shown[row.name, setting] = found
            yield _outcome(row, setting, results)
            yield _beyond_the_mean(row, setting, [likeness for likeness, _ in results])
    if scale.pictures is not None:
        from autoflip_secure.attacks.inversion_figure import draw

        panels = [(row.silos, {s: shown[row.name, s] for s in SETTINGS}) for row in (ROWS[0], ROWS[2])]
        draw(panels, scale.pictures / "gradient-inversion.png")


def invert(row: Row, silos: PictureSilos, setting: str, part: slice, seen: list[SeenGradient]) -> Pictures:
    """Pictures for the records in one vector or sum, matched to them, shape of `silos.truth.x[part]`.

    Of the truth it uses labels (sorted, and only where they cannot be read off the gradient) and the matching.
    """
    import torch

    from autoflip_secure.attacks import first_layer, reconstruction
    from autoflip_secure.attacks.gradient_match import GradientMatch, label_counts

    truth, records = silos.truth.x[part], len(silos.truth.y[part])
    if row.method == "division":
        return matched(_enough(first_layer.by_division(seen[0]), records), truth)
    labels = np.sort(silos.truth.y[part])
    if epsilon_of(setting) is None and silos.steps == 1:
        labels = np.repeat(np.arange(10), label_counts(seen[0], records, silos.public.x, silos.public.y))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if row.method in ("row space", "deep leakage"):
            match = GradientMatch(seen, labels, torch.float64)
            if row.method == "row space":
                return matched(
                    first_layer.by_row_space(seen, match, silos.prior, labels, steps=row.steps, seed=silos.seed), truth
                )
            return matched(reconstruction.by_deep_leakage(match, steps=row.steps, seed=silos.seed)[0], truth)
        # After several steps the second round's model has trained on the records already, and its gradient is small.
        match = GradientMatch(seen if silos.steps == 1 else seen[:1], labels)
        if row.method == "angle" and setting == "plain":
            return matched(reconstruction.by_angle(match, silos.prior.means[labels], steps=row.steps), truth)
        return matched(reconstruction.by_prior(match, silos.prior, labels, steps=row.steps, seed=silos.seed), truth)
    finally:
        torch.set_num_threads(threads)


def chance_of(silos: PictureSilos, attacked: list[tuple[slice, list[SeenGradient]]], draws: int = 5) -> float:
    """Share of records that somebody rebuilds who sees nothing: public pictures of the right labels, best matched.

    As many pictures as there are records, as they are or half way to their class' mean, whichever does better.
    """
    generator, shares = np.random.default_rng(0), []
    for pull in (1.0, 0.5):
        found = records = 0
        for part, _ in attacked:
            truth, labels = silos.truth.x[part], silos.truth.y[part]
            means = silos.prior.means[labels]
            for _ in range(draws):
                drawn = [generator.choice(np.flatnonzero(silos.public.y == label)) for label in labels]
                guess = means + np.float32(pull) * (silos.public.x[drawn] - means)
                found += int((psnr(matched(guess, truth), truth) >= psnr(means, truth) + GAIN).sum())
                records += len(truth)
        shares.append(found / records)
    return max(shares)


def _enough(pictures: Pictures, records: int) -> Pictures:
    """At least as many pictures as records: black ones are added where units are missing."""
    missing = max(0, records - len(pictures))
    return np.concatenate([pictures, np.zeros((missing, *pictures.shape[1:]), pictures.dtype)])


def _outcome(row: Row, setting: str, results: list[tuple[Likeness, float]]) -> Outcome:
    likenesses = [likeness for likeness, _ in results]
    chance = float(np.mean([chance for _, chance in results]))
    records = sum(likeness.records for likeness in likenesses)
    share, low, high = proportion_interval(sum(likeness.found for likeness in likenesses), records)

    def mean(pick: Callable[[Likeness], float]) -> float:
        return float(np.mean([pick(likeness) for likeness in likenesses]))

    epsilon, held = epsilon_of(setting), row.silos.silos * row.silos.records
    what = "one silo's update" if setting == "plain" else f"the sum over {row.silos.silos} silos, {held} records"
    note = (
        f"{what}; PSNR {mean(lambda r: r.psnr):.1f} dB (class mean {mean(lambda r: r.mean_psnr):.1f}), "
        f"SSIM {mean(lambda r: r.ssim):.2f} (class mean {mean(lambda r: r.mean_ssim):.2f})"
    )
    if setting == "sum":
        note += "; without DP a sum is one larger batch, and nothing is promised about it"
    bound = None if epsilon is None else chance + SLACK
    promise = "" if epsilon is None else f"epsilon {epsilon:g}; stated: chance + {SLACK:g}"
    return Outcome(row.name, setting, MEASURE, share, low, high, records, chance, bound, promise, note)


def _beyond_the_mean(row: Row, setting: str, likenesses: list[Likeness]) -> Outcome:
    """How much better than the class' mean picture, for which nobody needs a gradient, on the mean of all records."""
    gains = [gain for likeness in likenesses for gain in likeness.gains]
    epsilon = epsilon_of(setting)
    return Outcome(
        row.name, setting, BEYOND, *mean_interval(gains), len(gains), 0.0,
        bound=None if epsilon is None else BY_MATCHING,
        promise="" if epsilon is None else f"epsilon {epsilon:g}; stated: the class' mean picture, + {BY_MATCHING} dB",
    )  # fmt: skip


def _at_length(row: Row) -> Row:
    return replace(row, targets=row.silos.silos, steps=2 * row.steps)


def _smaller(row: Row, silos: int) -> Row:
    """The same inversion of a sum over fewer silos."""
    return replace(row, name=f"{row.name}, {silos} silos", silos=replace(row.silos, silos=silos), settings=("sum",))


SMALLER = _smaller(ROWS[2], OTHER_SILOS[0])


def _smaller_federations() -> Iterator[Row]:
    for silos in OTHER_SILOS:
        for row in (ROWS[0], ROWS[2]):
            yield _at_length(_smaller(row, silos))


ATTACK = Attack(name="gradient-inversion", page="gradient-inversion.md", run=run)
