"""Trust local in `agreement_privacy.py`: what silos' own noise does to exploration, agreement and guidance scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from agreement_measures import DIGITS, FLOPS_KEPT, by_layer, error_by_layer, jaccard, kept_units, random_scores
from agreement_simulation import Grouping, configuration, data, holders, spec, unit_map
from numpy.typing import NDArray

from autoflip_secure.autoflip.agreement import FLOOR_DEVIATIONS
from autoflip_secure.autoflip.guidance import Guidance
from autoflip_secure.autoflip.scores import EnergyAccumulator, KeepScores, guidance_scores, product_scores
from autoflip_secure.federation.pruning import PruningController
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.privacy.local_sgd import dp_sgd
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.sums.randomness import ReproducibleRandomness

Values = NDArray[np.float64]
RECORDS = 4000


def local_grouping(epsilon: float, seed: int, how: str) -> Grouping:
    """10 silos in one cohort under trust local."""
    config = configuration(dp_epsilon=epsilon, dp_trust="local", silos=10, partition=how, seed=seed)
    return Grouping(how, config, holders(how, 10, seed), np.zeros(10, np.int64))


def explored(grouping: Grouping, seed: int, start: Values, multiplier: float) -> Values:
    """Models of the silos after exploration by the run's own DP-SGD, shape (silos, size)."""
    config, records, network = grouping.config, data().train, build(spec())
    assert records is not None
    ends = []
    for silo in range(config.silos):
        mine = grouping.silo == silo
        load_flat_parameters(network, torch.from_numpy(start.astype(np.float32)))
        dp_sgd(
            network,
            torch.from_numpy(records.x[mine]),
            torch.from_numpy(records.y[mine]),
            steps=config.explore_steps,
            sampling_rate=config.sampling_rate,
            clip=config.clip,
            noise_multiplier=multiplier,
            learning_rate=config.learning_rate,
            momentum=0.0,
            live=None,
            nominal_records=RECORDS // config.silos,
            sampling=ReproducibleRandomness(seed, "exploration sample", silo),
            noise=ReproducibleRandomness(seed, "exploration noise", silo, str(config.dp_epsilon)),
        )
        ends.append(flatten_parameters(network).numpy().astype(np.float64))
    return np.stack(ends)


class LocalObserver:
    """What the coordinator learns from silos that noise their own updates: as they are, and with that taken out."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping, self.units = grouping, unit_map()
        self._controller = PruningController(
            grouping.config, Schedule(grouping.config), spec(), np.zeros(self.units.size)
        )
        self._live = np.ones(self.units.size, np.bool_)
        self._energy = EnergyAccumulator.empty(self.units.size)
        self._shared, self._own, self._variance = (np.zeros(self.units.count) for _ in range(3))

    def explore(self, deviation: Values) -> None:
        """The sum of squared deviations from the common start."""
        self._controller.observe(0, [Aggregate(0, 0, self.grouping.config.silos, {"deviation": deviation})], self._live)

    def observe(self, updates: Values, noise: float, number: int) -> None:
        """One round's updates, shape (silos, size), each coordinate with noise of this standard deviation."""
        n, limit = len(updates), self.grouping.config.update_limit
        own = self.units.unit_sum((np.clip(updates, -limit, limit) ** 2).sum(axis=0))
        total = updates.sum(axis=0)
        self._controller.observe(number, [Aggregate(number, 0, n, {"update": total, "unit_energy": own})], self._live)
        known = Aggregate(number, 0, n, {"update": total}, {"update": noise * n**0.5})
        self._energy = self._energy.add([known])
        coordinates = self.units.unit_sum(np.ones(self.units.size))
        self._shared += (self.units.unit_sum(total**2) - own) / (n - 1)
        self._own += own - n * coordinates * noise**2
        self._variance += 2 * n * coordinates * noise**4

    def agreements(self) -> dict[str, Values]:
        """By unit, not clipped; zeros after the exploration alone."""
        below = np.maximum(self._own, FLOOR_DEVIATIONS * np.sqrt(self._variance))
        return {
            "ema": self._controller.arrays()["agreement"],
            "noise taken out": np.divide(self._shared, below, out=np.zeros_like(below), where=below > 0),
        }

    def overall(self) -> dict[str, float]:
        """Of the whole model."""
        below = max(self._own.sum(), FLOOR_DEVIATIONS * float(np.sqrt(self._variance.sum())))
        return {
            "ema": round(self._controller.agreement_average or 0.0, DIGITS),
            "noise taken out": round(float(self._shared.sum() / below), DIGITS) if below else 0.0,
        }

    def scores(self, weights: Values) -> dict[str, KeepScores]:
        """Guidance times agreement, the score without DP, and the run's own: size times shrunk energy."""
        arrays, facts = self._controller.arrays(), self._controller.facts()
        average = facts["overall_average"], facts["guidance_rounds"]
        guidance = guidance_scores(Guidance(arrays["guidance"], arrays["agreement"], *average), self.units)
        if not self._energy.rounds:
            return {"guidance": guidance}
        return {"guidance": guidance, "shrunk energy": product_scores(weights, self._energy, self.units)}


def compare_local(noised: LocalObserver, exact: LocalObserver, weights: Values, seed: int) -> dict[str, Any]:
    """One row."""
    got, true = noised.agreements(), exact.agreements()
    scores, wanted = noised.scores(weights), exact.scores(weights)
    threshold = noised.grouping.config.prune_threshold
    kept = {n: kept_units(wanted[n], threshold) for n in wanted}
    target = np.clip(true["noise taken out"], 0, 1)
    return {
        "agreement": {n: by_layer(got[n], true[n]) for n in got},
        "error": {n: error_by_layer(np.clip(got[n], 0, 1), target) for n in got},
        "overall": {"noised": noised.overall(), "exact": exact.overall()},
        "score": {n: by_layer(scores[n].units, wanted[n].units) for n in scores},
        f"kept {FLOPS_KEPT:.0%}": {n: jaccard(kept_units(scores[n], threshold), kept[n]) for n in scores}
        | {"random": jaccard(kept_units(random_scores(seed), threshold), kept["guidance"])},
    }
