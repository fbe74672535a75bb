"""The trajectories that `agreement_privacy.py` measures along: distributed and local trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from agreement_local import LocalObserver, compare_local, explored, local_grouping
from agreement_measures import DIGITS, Observer, by_layer, compare
from agreement_simulation import (
    Grouping,
    SummedGradients,
    aggregates_of,
    cohort_noise,
    data,
    groupings,
    sample,
    sigma,
    start_weights,
    unit_map,
)
from numpy.typing import NDArray

from autoflip_secure.autoflip.agreement import Agreement, cross_cohort, moments
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Aggregate

Values = NDArray[np.float64]
Row = dict[str, Any]
RECORDS = 4000


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    partitions: tuple[str, ...]
    silos: tuple[int, ...]
    cohorts: tuple[int, ...]
    explored: tuple[int, ...]
    snapshots: tuple[int, ...]


def distributed(epsilon: float, seed: int, plan: Plan, gradients: SummedGradients) -> list[Row]:
    """One run's model points: cohort sums with and without noise, averaged over exploration as the controller does.

    The model moves by the sums of 10 silos in 2 cohorts, with their noise; all other groupings are measured at the
    same points with noise of their own.
    """
    groups = groupings(epsilon, seed, plan.partitions, plan.silos, plan.cohorts)
    watch = [(g, Observer(g), Observer(g)) for g in groups]
    leader = _leader(groups)
    at = sum(len(g.sizes) for g in groups[: groups.index(leader)])
    model, rows = _Model.start(leader, seed), list[Row]()
    for number in range(max(plan.explored)):
        chosen = sample(seed, number, leader.config.sampling_rate)
        members = np.concatenate([g.membership(chosen) for g in groups])
        sums = gradients(model.weights, chosen, members, leader.config.clip)
        common = _noise(leader, seed, number, "leader")
        start = 0
        for grouping, noised, exact in watch:
            mine = sums[start : start + len(grouping.sizes)]
            start += len(mine)
            same = grouping.sizes == leader.sizes and grouping.config.silos == leader.config.silos
            drawn = common if same else _noise(grouping, seed, number, grouping.partition)
            stds = [cohort_noise(grouping.config, n, unit_map().size) for n in grouping.sizes]
            noised.observe(mine + drawn, stds, number)
            exact.observe(mine, [0.0] * len(mine), number)
        model.step((sums[at : at + len(common)] + common).sum(axis=0))
        if number + 1 in plan.explored:
            for grouping, noised, exact in watch:
                row = _name("explore", epsilon, seed, grouping) | {"rounds": number + 1}
                rows.append(row | compare(noised, exact, model.weights, seed, number + 1 == 20))
    return rows


def snapshots(epsilon: float, seed: int, plan: Plan, gradients: SummedGradients) -> list[Row]:
    """Single rounds at models of the same run, of the longest exploration."""
    groups = [g for g in groupings(epsilon, seed, plan.partitions, plan.silos, plan.cohorts) if g.config.cohorts > 1]
    leader = _leader(groups)
    model, rows = _Model.start(leader, seed), list[Row]()
    for number in range(max(plan.snapshots) + 1):
        if number in plan.snapshots:
            rows += _snapshot(epsilon, seed, number, groups, model.weights, gradients)
        chosen = sample(seed, number, leader.config.sampling_rate)
        everybody = np.ones((1, chosen.size), np.float32)
        apart = number < max(plan.explored) or number % leader.config.agreement_every == 0
        noise = _noise(leader, seed, number, "leader").sum(axis=0) if apart else _whole_noise(leader, seed, number)
        model.step(gradients(model.weights, chosen, everybody, leader.config.clip)[0] + noise)
    return rows


def _leader(groups: list[Grouping]) -> Grouping:
    return next(g for g in groups if g.config.silos == 10 and g.config.cohorts == 2)


@dataclass
class _Model:
    """Weights and the server's momentum under distributed trust."""

    config: ResolvedConfig
    weights: Values
    velocity: Values

    @classmethod
    def start(cls, grouping: Grouping, seed: int) -> _Model:
        return cls(grouping.config, start_weights(seed), np.zeros(unit_map().size))

    def step(self, total: Values) -> None:
        """Move by the noised sum of a round."""
        expected = self.config.sampling_rate * RECORDS
        self.velocity = self.config.momentum * self.velocity + self.config.learning_rate * total / expected
        self.weights = self.weights + self.velocity


def _name(part: str, epsilon: float, seed: int, grouping: Grouping) -> Row:
    config = grouping.config
    return {"part": part, "epsilon": epsilon, "seed": seed, "partition": grouping.partition,
            "silos": config.silos, "cohorts": config.cohorts}  # fmt: skip


def _noise(grouping: Grouping, seed: int, number: int, *names: str | int) -> Values:
    """Noise of each cohort's sum, shape (cohorts, size)."""
    config, size = grouping.config, unit_map().size
    draw = stream(seed, "noise", number, config.silos, config.cohorts, str(config.dp_epsilon), *names)
    stds = [cohort_noise(config, n, size) for n in grouping.sizes]
    return np.stack([std * draw.standard_normal(size) for std in stds])


def _whole_noise(grouping: Grouping, seed: int, number: int) -> Values:
    draw = stream(seed, "noise", number, "whole", str(grouping.config.dp_epsilon))
    std = cohort_noise(grouping.config, grouping.config.silos, unit_map().size)
    return std * draw.standard_normal(unit_map().size)


def _snapshot(
    epsilon: float, seed: int, number: int, groups: list[Grouping], weights: Values, gradients: SummedGradients
) -> list[Row]:
    """Agreement of one round at one model: noised sums, the same sums without noise, and all records without noise."""
    config, units = groups[0].config, unit_map()
    everybody = np.arange(len(data().train.y))  # type: ignore[union-attr]
    holders = {(g.partition, g.config.silos): g for g in groups}
    members = np.concatenate([g.silo_membership(everybody) for g in holders.values()])
    full = gradients(weights, everybody, members, config.clip)
    chosen = sample(seed, 10_000 + number, config.sampling_rate)
    members = np.concatenate([g.membership(chosen) for g in groups])
    sampled = gradients(weights, chosen, members, config.clip)
    rows, start = [], 0
    ends = np.cumsum([g.config.silos for g in holders.values()])
    last = dict(zip(holders, ends.tolist(), strict=True))
    for grouping in groups:
        n, sizes = grouping.config.silos, grouping.sizes
        end = last[grouping.partition, n]
        silos = full[end - n : end]
        mine = sampled[start : start + len(sizes)]
        start += len(sizes)
        stds = [cohort_noise(grouping.config, s, units.size) for s in sizes]
        whole = np.stack([silos[grouping.cohort == c].sum(axis=0) for c in range(len(sizes))])
        noise = _noise(grouping, seed, number, "snapshot", grouping.partition)
        found = {
            "noised": cross_cohort(aggregates_of(mine + noise, sizes, stds, number), units),
            "sampled": cross_cohort(aggregates_of(mine, sizes, [0.0] * len(sizes), number), units),
            "full": cross_cohort(aggregates_of(whole, sizes, [0.0] * len(sizes), number), units),
            "silos": between_silos(silos, number),
        }
        rows.append(_name("snapshot", epsilon, seed, grouping) | {"round": number} | _compared(found))
    return rows


def between_silos(updates: Values, number: int) -> Agreement:
    """Moments form over silos' vectors, shape (silos, size)."""
    units = unit_map()
    energy = units.unit_sum((updates**2).sum(axis=0))
    channels = {"update": updates.sum(axis=0), "unit_energy": energy}
    return moments([Aggregate(number, 0, len(updates), channels)], units)


def _compared(found: dict[str, Agreement]) -> Row:
    pairs = (("noised", "sampled"), ("sampled", "full"), ("noised", "full"), ("full", "silos"))
    return {
        "agreement": {f"{a} / {b}": by_layer(found[a].rho, found[b].rho) for a, b in pairs},
        "layers": {name: np.round(one.per_layer, DIGITS).tolist() for name, one in found.items()},
        "overall": {name: round(one.overall, DIGITS) for name, one in found.items()},
    }


def local(epsilon: float, seed: int, partitions: tuple[str, ...], gradients: SummedGradients) -> list[Row]:
    """Trust local: each silo's update carries its own noise. Rows at the first two decisions on the mask.

    10 silos; the model moves by the mean of the noised updates, and every partition is measured at the same points.
    """
    groups = [local_grouping(epsilon, seed, how) for how in partitions]
    watch = [(LocalObserver(g), LocalObserver(g)) for g in groups]
    config, size = groups[0].config, unit_map().size
    start = weights = start_weights(seed)
    velocity = np.zeros(size)
    per_step = config.learning_rate / (config.sampling_rate * RECORDS / config.silos)
    noise = per_step * sigma(config) * config.clip
    for grouping, (noised, exact) in zip(groups, watch, strict=True):
        for observer, multiplier in ((noised, sigma(config)), (exact, 0.0)):
            ends = explored(grouping, seed, start, multiplier)
            observer.explore(((ends - start) ** 2).sum(axis=0))
    rows = [_local_row(0, epsilon, seed, g, *pair, weights) for g, pair in zip(groups, watch, strict=True)]
    gap = max(1, (config.rounds - 1) // (2 * config.prune_steps))
    for number in range(1, gap + 1):
        chosen = sample(seed, number, config.sampling_rate)
        members = np.concatenate([g.silo_membership(chosen) for g in groups])
        sums = per_step * gradients(weights, chosen, members, config.clip)
        draw = stream(seed, "local noise", number, str(epsilon))
        drawn = noise * draw.standard_normal((config.silos, size))
        for index, (noised, exact) in enumerate(watch):
            mine = sums[index * config.silos : (index + 1) * config.silos]
            noised.observe(mine + drawn, noise, number)
            exact.observe(mine, 0.0, number)
        step = (sums[: config.silos] + drawn).mean(axis=0)
        velocity = config.momentum * velocity + step
        weights = weights + velocity
    rows += [_local_row(gap, epsilon, seed, g, *pair, weights) for g, pair in zip(groups, watch, strict=True)]
    return rows


def _local_row(
    number: int, epsilon: float, seed: int, grouping: Grouping, noised: LocalObserver, exact: LocalObserver, w: Values
) -> Row:
    return _name("local", epsilon, seed, grouping) | {"round": number} | compare_local(noised, exact, w, seed)
