"""Crafted models and chosen masks put to real silos, and how much of single records or of one silo their sums show.

The attacks see sums, public test records and which institution treats what (a class that one silo alone holds). What is
read from the silos' folders serves to score them, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.attacks.chosen_masks import chosen_mask, drawn_mask
from autoflip_secure.attacks.clipped_steps import clipped_steps
from autoflip_secure.attacks.crafted_models import Imprint, fished_class, hidden_weights
from autoflip_secure.attacks.disaggregation import cosine
from autoflip_secure.attacks.lying_coordinator import LyingCoordinator
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build, layout_of
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.training.local import mean_gradient

__all__ = [
    "Recovered",
    "mask_cosines",
    "most_varied_first",
    "public_match",
    "recover_records",
    "single_class_cosines",
    "sole_classes",
]

Values = NDArray[np.float64]

NEARLY = 0.05
"""Relative distance up to which a record counts as recovered: less than one grey level in sixteen a pixel."""

LEAST_UPDATE = 1e-4
"""Of a bias, below which a unit took nothing up: a few grid steps of a 16-bit sum."""

BESIDE = 2.0
"""Widths of a bin to either side of its centre, within which nearly all lies that moves its unit."""


@dataclass
class Recovered:
    """What one setting's sums showed of single records.

    Attributes
    ----------
    hits, reach : int
        Records of all silos that some reconstruction comes `NEARLY` to, and how many there would be at most: a record
        for every bin of every imprint, or all there are.
    explained : list of float
        By bin, of its nearest record's squared distance from the mean picture of its class the share that the
        reconstruction explains, within [-1, 1]; 0 is as good as the mean picture.
    pictures : list of (record, reconstruction)
        The bins' nearest records, best reconstruction first.
    """

    hits: int = 0
    reach: int = 0
    explained: list[float] = field(default_factory=list)
    pictures: list[tuple[Values, Values]] = field(default_factory=list)


def held(lying: LyingCoordinator, silo: int) -> Records:
    """A silo's own records: for scoring."""
    return read_silo(silo_folder(lying.folder.path, silo) / "data", lying.task).train


def _flat(x: NDArray[np.floating]) -> Values:
    return x.reshape(len(x), -1).astype(np.float64)


def public_match(records: Records, public: Records) -> int:
    """How many records a public one of their class comes `NEARLY` to."""
    hits = 0
    for label in np.unique(records.y):
        mine, theirs = _flat(records.x[records.y == label]), _flat(public.x[public.y == label])
        near = np.linalg.norm(mine[:, None] - theirs[None], axis=2).min(1) / np.linalg.norm(mine, axis=1)
        hits += int((near <= NEARLY).sum())
    return hits


def most_varied_first(records: Records) -> NDArray[np.int64]:
    """Classes by how much their records differ from their mean: where there is most to show beside it."""
    labels = np.unique(records.y)
    return np.asarray(labels[np.argsort([-_flat(records.x[records.y == label]).var(axis=0).sum() for label in labels])])


def recover_records(
    lying: LyingCoordinator, public: Records, rounds: range, random: np.random.Generator, spread: int = 1
) -> Recovered:
    """Imprint models in the given rounds, class after class, read from the opened sums.

    With `--aggregation none` every silo's vector is read by itself. Under DP one imprint is used in all rounds, so that
    noise averages out, and rows are denoised by what is known of the class and of the noise.

    Parameters
    ----------
    spread : int
        Bins are made for records / spread: with `none` a silo's own records are all that is in a vector.
    """
    silos = {silo: held(lying, silo) for silo in lying.roster.silos}
    x, y = np.concatenate([_flat(r.x) for r in silos.values()]), np.concatenate([r.y for r in silos.values()])
    whose = np.repeat(list(silos), [len(records) for records in silos.values()])
    first, noised = lying.first_model(), lying.config.trust != "none"
    found, result = set[int](), Recovered()
    # Under DP there are rounds for one class alone.
    labels = most_varied_first(public)
    batches = [rounds] if noised else [range(round, round + 1) for round in rounds]
    for number, batch in enumerate(batches):
        label = int(labels[number % len(labels)])
        mine = _flat(public.x[public.y == label])
        expected = (lying.task.nominal_records or len(x)) / len(labels) / spread
        imprint = Imprint.over(mine, label, first.spec.widths[0], expected, random)
        model = imprint.model(first.spec, first.records)
        for owner, update, std in _updates(lying, model, batch):
            of_class = np.flatnonzero((y == label) & ((whose == owner) | (owner == 0)))
            if not of_class.size:
                continue  # a silo without the class shows nothing, and its updates say so: they are 0
            result.reach = min(len(x), result.reach + min(len(of_class), len(imprint.centres)))
            weights, biases = Imprint.rows(model.spec, model.mask, update)
            if noised:
                uptake = _uptake(
                    model, imprint, mine, lying.task.loss, random,
                    clip=lying.config.clip, rate=lying.config.sampling_rate, rounds=len(batch),
                )  # fmt: skip
                units, shown = np.arange(len(biases)), _denoised(weights, biases, std, mine, uptake)
            else:
                units, shown = Imprint.read(weights, biases, LEAST_UPDATE)
            _score(result, found, imprint, x[of_class], of_class, units, shown, mine.mean(0))
    result.hits = len(found)
    result.pictures.sort(key=lambda pair: float(np.linalg.norm(pair[0] - pair[1])))
    return result


def _updates(lying: LyingCoordinator, model: ModelPayload, rounds: range) -> list[tuple[int, Values, float]]:
    """What is opened, averaged over the rounds, and the standard deviation of its noise; the silo it is of, or 0."""
    opened = [lying.sum(model, round) for round in rounds]
    if lying.config.aggregation == "none":
        return [(vector.silo, vector.update, 0.0) for vector in lying.vectors]
    std = float(np.mean([aggregate.noise_std["update"] for aggregate in opened])) / len(opened) ** 0.5
    return [(0, np.mean([aggregate.channels["update"] for aggregate in opened], axis=0), std)]


@dataclass(frozen=True)
class _Uptake:
    """What is foretold of a unit's bias in the mean of noised sums: how much of its bin's records its row holds.

    Attributes
    ----------
    mean, variance : float64 array, shape (units,)
        Over the records that may lie in a bin, and over which of them are drawn. The mean has the unit's sign: every
        second one is wired to show its records negated.
    """

    mean: Values
    variance: Values


def _uptake(
    model: ModelPayload, imprint: Imprint, public: Values, loss: str, random: np.random.Generator,
    *, clip: float, rate: float, rounds: int,
) -> _Uptake:  # fmt: skip
    """Foretold from public records, moved along the measurement to anywhere in or near the bin of each unit.

    Parameters
    ----------
    public : float64 array, shape (n, features)
        Public records of the imprint's class.
    rate : float
        Share of its records that a silo draws for a sum.
    rounds : int
        Sums over which the mean is taken.
    """
    direction, units = imprint.direction, len(imprint.centres)
    beside = random.uniform(-BESIDE, BESIDE, (units, len(public))) * imprint.widths[:, None]
    further = imprint.centres[:, None] + beside - public @ direction
    probes = public + further[..., None] * direction / (direction @ direction)
    taken = _taken_up(model, probes.reshape(-1, public.shape[1]), imprint.label, loss, clip)
    own = taken.reshape(units, len(public), units)[np.arange(units), :, np.arange(units)]
    # A Poisson number of records, one a width; each is in a random share of the sums, whose mean is the rate.
    records, squared_share = 2 * BESIDE, rate**2 + rate * (1 - rate) / rounds
    return _Uptake(records * rate * own.mean(1), records * squared_share * np.mean(own**2, axis=1))


def _taken_up(model: ModelPayload, records: Values, label: int, loss: str, clip: float) -> Values:
    """What each record's clipped gradient adds to the update of the first layer's biases, shape (records, units)."""
    biases = next(where for name, where, _ in layout_of(model.spec).slices() if name == "fc1.bias")
    x = records.reshape(-1, *model.spec.input_shape).astype(np.float32)
    probes = Records(x, np.full(len(x), label, np.int64))
    return clipped_steps(model, probes, clip, np.arange(biases.start, biases.stop), loss)


def _denoised(weights: Values, biases: Values, std: float, public: Values, uptake: _Uptake) -> Values:
    """Best estimate of the record in each bin from noised sums of clipped gradients, shape (units, features).

    A unit shows K (x, 1) and noise, for a record x that is alone in its bin. K is estimated first, by generalised least
    squares with what is foretold of it; then x by the linear filter that is best for what is known of K (Wiener). x has
    the public records' mean and covariance. Without noise the record is the row over the bias; under much of it the
    mean stays.

    Parameters
    ----------
    weights : float64 array, shape (units, features)
    biases : float64 array, shape (units,)
    std : float
        Standard deviation of the noise in each of them, above 0.
    public : float64 array, shape (n, features)
        Public records of the class.
    """
    mean, features = public.mean(0), public.shape[1]
    spread = np.cov(public.T) + 1e-3 * np.eye(features)
    pattern, noise = np.append(mean, 1.0), std**2 * np.eye(features + 1)
    shown = np.empty_like(weights)
    for unit, (row, bias) in enumerate(zip(weights, biases, strict=True)):
        before, variance = uptake.mean[unit], uptake.variance[unit]
        unknown = noise.copy()
        unknown[:-1, :-1] += (before**2 + variance) * spread
        weighed = np.linalg.solve(unknown, pattern)
        certainty = 1 + variance * (weighed @ pattern)
        taken, left = (before + variance * (weighed @ np.append(row, bias))) / certainty, variance / certainty
        seen = (taken**2 + left) * spread + left * np.outer(mean, mean) + noise[:-1, :-1]
        shown[unit] = mean + taken * spread @ np.linalg.solve(seen, row - taken * mean)
    return shown


def _score(
    result: Recovered, found: set[int], imprint: Imprint, records: Values, numbers: NDArray[np.int64],
    units: NDArray[np.int64], shown: Values, mean: Values,
) -> None:  # fmt: skip
    where = records @ imprint.direction
    guesses = {int(unit): record for unit, record in zip(units, shown, strict=True)}
    for unit, centre in enumerate(imprint.centres):
        guess = guesses.get(unit, mean)
        # Pixels have a known range: what is outside of it is no record, and the mean picture is the better guess.
        guess = guess if guess.min() > -0.1 and guess.max() < 1.1 else mean
        nearest = records[np.argmin(np.abs(where - centre))]
        error, usual = np.sum((guess - nearest) ** 2), np.sum((mean - nearest) ** 2)
        result.explained.append(float(np.clip(1 - error / usual, -1, 1)))
        result.pictures.append((nearest, guess))
        distance = np.linalg.norm(records - guess, axis=1) / np.linalg.norm(records, axis=1)
        if distance.min() <= NEARLY:
            found.add(int(numbers[np.argmin(distance)]))


# One silo out of the sum


def sole_classes(lying: LyingCoordinator) -> list[tuple[int, int]]:
    """(class, silo) where one silo alone holds the class: known to the coordinator, as who treats what is."""
    holders: dict[int, list[int]] = {}
    for silo in lying.roster.silos:
        for label in np.unique(held(lying, silo).y):
            holders.setdefault(int(label), []).append(silo)
    return [(label, silos[0]) for label, silos in sorted(holders.items()) if len(silos) == 1]


def own_update(lying: LyingCoordinator, silo: int, model: ModelPayload) -> Values:
    """Direction of a silo's own contribution, one step over all records, shape (live,): for scoring."""
    records, config = held(lying, silo), lying.config
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    x, y = torch.from_numpy(records.x), torch.from_numpy(lying.task.targets(records))
    if config.trust == "none":
        return -mean_gradient(network, x, y, loss=lying.task.loss).numpy().astype(np.float64)[model.mask]
    with ClippedGradientSum(network, lying.task.loss) as sums:
        return -sums(x, y, config.clip, torch.from_numpy(model.mask))[model.mask]


def _opened_cosine(lying: LyingCoordinator, silo: int, model: ModelPayload, round: int) -> float:
    """Cosine of what is opened, in the hidden layers, to what the silo itself contributed to it."""
    summed, hidden = lying.sum(model, round).channels["update"], hidden_weights(model.spec)[model.mask]
    if lying.config.aggregation == "none":
        summed = next(vector.update for vector in lying.vectors if vector.silo == silo)
    return cosine(summed[hidden], own_update(lying, silo, model)[hidden])


def single_class_cosines(
    lying: LyingCoordinator, targets: list[tuple[int, int]], rounds: range
) -> tuple[list[float], list[float]]:
    """Cosines of the sum to one silo's own update, of each target: with the honest first model, and with one that only
    that silo's class moves."""
    first, numbers = lying.first_model(), iter(rounds)
    honest = [_opened_cosine(lying, silo, first, next(numbers)) for _, silo in targets]
    crafted = [_opened_cosine(lying, silo, fished_class(first, label), next(numbers)) for label, silo in targets]
    return honest, crafted


def mask_cosines(
    lying: LyingCoordinator, public: Records, targets: list[tuple[int, int]], rounds: range, random: np.random.Generator
) -> tuple[list[float], list[float]]:
    """The same for honest weights under a random mask and under one that the coordinator chose for the silo."""
    first, numbers = lying.first_model(), iter(rounds)
    classes: dict[int, list[int]] = {}
    for label, silo in sole_classes(lying):
        classes.setdefault(silo, []).append(label)
    honest, chosen = [], []
    for _, silo in targets:
        honest.append(_opened_cosine(lying, silo, drawn_mask(first, KEPT, random), next(numbers)))
        made = chosen_mask(first, KEPT, silo, classes, public, lying.task)
        chosen.append(_opened_cosine(lying, silo, made, next(numbers)))
    return honest, chosen


KEPT = 0.1
"""Share of the hidden weights that the masks keep."""
