"""What `agreement_privacy.py` compares: a noised estimate with its noise-free value, unit by unit."""

from __future__ import annotations

from typing import Any

import numpy as np
from agreement_pooled import PooledAgreement
from agreement_simulation import Grouping, aggregates_of, spec, unit_map
from numpy.typing import NDArray
from scipy.stats import rankdata

from autoflip_secure.autoflip.guidance import Guidance
from autoflip_secure.autoflip.mask import PruneSettings, choose_mask
from autoflip_secure.autoflip.scores import EnergyAccumulator, KeepScores, guidance_scores, product_scores
from autoflip_secure.federation.pruning import PruningController
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.seeds import stream

Values = NDArray[np.float64]
FLOPS_KEPT, SMALL_FLOPS = 0.5, 0.25
DIGITS = 3
RATE = 0.1


def by_layer(estimate: Values, truth: Values) -> list[float]:
    """Spearman's rank correlation over the units of each layer; 0 where either side is constant."""
    layers, found = unit_map().layer, []
    for layer in np.unique(layers):
        a, b = rankdata(estimate[layers == layer]), rankdata(truth[layers == layer])
        spread = a.std() * b.std()
        found.append(round(float(np.mean((a - a.mean()) * (b - b.mean())) / spread), DIGITS) if spread else 0.0)
    return found


def error_by_layer(estimate: Values, truth: Values) -> list[float]:
    """Root mean squared difference over the units of each layer."""
    return np.round(np.sqrt(unit_map().layer_mean((estimate - truth) ** 2)), DIGITS).tolist()


def kept_units(scores: KeepScores, threshold: float, flops: float = FLOPS_KEPT) -> NDArray[np.bool_]:
    """Units that live when the dense network is pruned by these scores."""
    live = np.ones(unit_map().size, np.bool_)
    settings = PruneSettings(threshold=threshold, flops_kept=flops)
    return ~choose_mask(spec(), unit_map(), scores.parameters, scores.units, settings, live).dead_units


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Units in both over units in either."""
    return round(float((a & b).sum() / (a | b).sum()), DIGITS)


def random_scores(seed: int) -> KeepScores:
    """Scores that know nothing."""
    draw = stream(seed, "random scores")
    return KeepScores(draw.random(unit_map().size), draw.random(unit_map().count))


class Observer:
    """What a coordinator learns from the sums of one grouping: the run's own controller, and pooled agreement."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping, self.units = grouping, unit_map()
        self._controller = PruningController(
            grouping.config, Schedule(grouping.config), spec(), np.zeros(self.units.size)
        )
        self._first_sets: Values | None = None
        self.pooled: PooledAgreement | None = None

    def observe(self, sums: Values, noise: list[float], round: int) -> None:
        """One round."""
        aggregates = aggregates_of(sums, self.grouping.sizes, noise, round)
        self._controller.observe(round, aggregates, np.ones(self.units.size, np.bool_))
        if self._controller.agreement is None:
            return
        rho, past = self._controller.agreement.rho, self._first_sets
        self._first_sets = rho if past is None else (1 - RATE) * past + RATE * rho
        measured = PooledAgreement.of(aggregates, self.units)
        self.pooled = measured if self.pooled is None else self.pooled + measured

    def agreements(self) -> dict[str, Values]:
        """Estimates of agreement by unit, not clipped; empty with one cohort."""
        if self.pooled is None or self._first_sets is None:
            return {}
        return {
            "ema, first round sets it": self._first_sets,
            "ema": self._controller.arrays()["agreement"],
            "pooled": self.pooled.rho,
            "pooled, shrunk": self.pooled.shrunk(self.units),
            "layer": self.pooled.per_layer(self.units)[self.units.layer],
        }

    def overall(self) -> dict[str, Any]:
        """Pooled forms: whole model and by layer, over the rounds so far."""
        assert self.pooled is not None
        return {
            "ema": round(self._controller.agreement_average or 0.0, DIGITS),
            "pooled": round(self.pooled.overall, DIGITS),
            "layers": np.round(self.pooled.per_layer(self.units), DIGITS).tolist(),
        }

    def scores(self, weights: Values) -> dict[str, KeepScores]:
        """Keep-scores of the same model in different ways."""
        arrays, facts = self._controller.arrays(), self._controller.facts()
        shrunk = EnergyAccumulator(arrays["energy"], arrays["energy_variance"])
        raw = EnergyAccumulator(arrays["energy"], np.zeros(self.units.size))
        flat = EnergyAccumulator(np.ones(self.units.size), np.zeros(self.units.size))
        made = {
            "clipped energy": product_scores(weights, raw, self.units),
            "shrunk energy": product_scores(weights, shrunk, self.units),
            "size alone": product_scores(weights, flat, self.units),
        }
        rho = self.agreements()
        if rho:
            ema, pooled = ((1 + np.clip(rho[n], 0, 1)) / 2 for n in ("ema", "pooled, shrunk"))
            made["clipped energy x half agreement"] = product_scores(weights, raw, self.units, ema)
            made["shrunk energy x half agreement"] = product_scores(weights, shrunk, self.units, ema)
            made["shrunk energy x half shrunk agreement"] = product_scores(weights, shrunk, self.units, pooled)
            known = facts["overall_average"], facts["guidance_rounds"], arrays["agreement_variance"]
            guidance = Guidance(arrays["guidance"], arrays["agreement"], *known)
            believed = (1 + guidance.believed_agreement(self.units)) / 2
            made["shrunk energy x half believed agreement"] = product_scores(weights, shrunk, self.units, believed)
            made["guidance"] = guidance_scores(guidance, self.units)
        return made


PRODUCT, WITH_AGREEMENT = "clipped energy", "clipped energy x half agreement"
LEFT_OUT = "shrunk energy for that with agreement"


def compare(noised: Observer, exact: Observer, weights: Values, seed: int, small: bool) -> dict[str, Any]:
    """One row: everything the noise did to agreement, score and choice of units.

    Scores that differ only in how they treat noise share one noise-free value: the product, and where agreement is in
    it the product with it. `small` also compares choices at `SMALL_FLOPS`.
    """
    scores, wanted = noised.scores(weights), exact.scores(weights)
    targets = {n: "guidance" if n == "guidance" else WITH_AGREEMENT if "agreement" in n else PRODUCT for n in scores}
    if WITH_AGREEMENT in wanted:
        # What leaving agreement out costs, if agreement belongs in the score.
        scores[LEFT_OUT] = scores["shrunk energy"]
        targets[LEFT_OUT] = WITH_AGREEMENT
    row: dict[str, Any] = {"score": {n: by_layer(scores[n].units, wanted[t].units) for n, t in targets.items()}}
    for flops in (FLOPS_KEPT, SMALL_FLOPS) if small else (FLOPS_KEPT,):
        threshold = noised.grouping.config.prune_threshold
        kept = {t: kept_units(wanted[t], threshold, flops) for t in set(targets.values())}
        chosen = {n: kept_units(scores[n], threshold, flops) for n in scores}
        random = kept_units(random_scores(seed), threshold, flops)
        name = f"kept {flops:.0%}"
        row[name] = {n: jaccard(chosen[n], kept[t]) for n, t in targets.items()}
        row[name]["random"] = jaccard(random, kept[PRODUCT])
        row[f"units {flops:.0%}"] = {n: int(chosen[n].sum()) for n in scores} | {"noise-free": int(kept[PRODUCT].sum())}
    return row | _agreement_part(noised, exact)


def _agreement_part(noised: Observer, exact: Observer) -> dict[str, Any]:
    got, true = noised.agreements(), exact.agreements()
    if not got:
        return {}
    units, target = noised.units, np.clip(true["pooled"], 0, 1)
    return {
        "agreement": {n: by_layer(got[n], true[n]) for n in ("ema, first round sets it", "ema", "pooled")},
        "agreement to pooled": {n: by_layer(got[n], true["pooled"]) for n in got if n != "layer"},
        "error": {n: error_by_layer(np.clip(got[n], 0, 1), target) for n in got},
        "spread": error_by_layer(units.layer_mean(target)[units.layer], target),
        "overall": {"noised": noised.overall(), "exact": exact.overall()},
    }
