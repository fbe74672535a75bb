"""The coordinator's bounds on opened sums in a run: what no honest silos could have sent is left out or cut down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from autoflip_secure.autoflip.sum_bounds import (
    SQUARED,
    length_limit,
    most_sampled,
    out_of_fields,
    out_of_range,
    scaled_to,
    sum_length,
)
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.splits import HOLDOUT_FRACTION
from autoflip_secure.errors import Abort
from autoflip_secure.federation.terms import noise_levels
from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum

__all__ = ["STAGE", "SumWatch"]

STAGE = "opened"
"""Stage of an abort after the sums were opened: what was opened is no sum of honest silos' values."""


class SumWatch:
    """Bounds on every sum of a run (see `autoflip.sum_bounds`), applied before anything is learnt from it.

    - Range: a cohort's sum outside its silos' ranges added up, or of words whose fields ran over, is left out. Where
      that is every cohort, the attempt is aborted: who lied the secure sum hides, so nobody is blamed, and a silo that
      does it every time stops the run.
    - Length: a longer sum is scaled down to what all silos together may reach. Leaving it out would gain nothing, as
      liars can stop short of any bound that they know, and would let a little too much spoil the round.
      Without DP the bound is --update-norm; with distributed noise it is the clip times the patients that a round
      samples of the whole federation, where their number is public. A census, which liars add to, sets no bound.

    Parameters
    ----------
    patients : int
        Public number of training patients of all silos; 0 where none is declared.
    """

    def __init__(self, config: ResolvedConfig, patients: int, event: Callable[..., None]) -> None:
        self._config, self._event = config, event
        self._present: dict[int, tuple[int, ...]] = {}
        # What silos hold back of a public total is drawn or rounded by each, and some may hold back nothing.
        self._patients = math.ceil(patients / (1 - HOLDOUT_FRACTION)) + config.silos if patients else 0

    def passed(self, manifest: Manifest, sums: Sequence[CohortSum], aggregates: Sequence[Aggregate]) -> list[Aggregate]:
        """The same sums, those outside their range marked as such, those too long scaled down.

        Parameters
        ----------
        sums : sequence of CohortSum
            What was opened.
        aggregates : sequence of Aggregate
            What they decode to, in the same order.

        Raises
        ------
        Abort
            Every cohort's sum lies outside its range.
        """
        self._present = {opened.cohort: opened.silos for opened in sums}
        judged = [self._in_range(manifest, *pair) for pair in zip(sums, aggregates, strict=True)]
        if all(aggregate.outside for aggregate in judged):
            raise Abort("the opened sum is outside what its silos can add up to; the model is unchanged", stage=STAGE)
        for spec in manifest.channels:
            judged = self._of_length(manifest, spec, judged)
        return judged

    def _in_range(self, manifest: Manifest, opened: CohortSum, aggregate: Aggregate) -> Aggregate:
        size = len(manifest.cohorts[aggregate.cohort])
        excess = out_of_fields(
            opened.words, manifest.channels, size, aggregate.silos, _drawn(manifest, opened)
        ) or out_of_range(aggregate, manifest.channels, size)
        if excess is None:
            return aggregate
        limit = excess.high if excess.value > excess.high else excess.low
        told = {"channel": excess.channel, "found": excess.value, "limit": limit, "entries": excess.entries}
        self._tell(manifest, [aggregate], factor=0.0, **told)
        return replace(aggregate, outside=True)

    def _of_length(self, manifest: Manifest, spec: ChannelSpec, aggregates: Sequence[Aggregate]) -> list[Aggregate]:
        found = []
        for aggregate in aggregates:
            honest = self.honest_length(manifest, spec, aggregate.silos)
            if honest is None or aggregate.outside:
                found.append(aggregate)
                continue
            limit = length_limit(honest, aggregate.silos, spec, aggregate.noise_std.get(spec.name, 0.0))
            found += self._cut(manifest, spec.name, limit, [aggregate])
        left = [aggregate for aggregate in found if not aggregate.outside]
        silos = sum(aggregate.silos for aggregate in left)
        honest = self.honest_length(manifest, spec, silos)
        if honest is None or len(left) == 1:
            return found
        # Patients are in one cohort each, so the bound on all of them holds for the cohorts together, too.
        noise_std = sum(aggregate.noise_std.get(spec.name, 0.0) ** 2 for aggregate in left) ** 0.5
        cut = iter(self._cut(manifest, spec.name, length_limit(honest, silos, spec, noise_std), left))
        return [aggregate if aggregate.outside else next(cut) for aggregate in found]

    def _cut(
        self, manifest: Manifest, channel: str, limit: float, aggregates: Sequence[Aggregate]
    ) -> Sequence[Aggregate]:
        length = sum_length(aggregates, channel)
        if length <= limit:
            return aggregates
        factor = limit / length
        self._tell(manifest, aggregates, factor=factor, channel=channel, found=length, limit=limit)
        return [scaled_to(aggregate, channel, factor) for aggregate in aggregates]

    def honest_length(self, manifest: Manifest, spec: ChannelSpec, silos: int) -> float | None:
        """Largest length of honest silos' real vectors added up; None where nothing bounds it but the range."""
        norm = self._config.update_norm
        if norm is not None and spec.name in {"update", *SQUARED}:
            return silos * (norm**2 if spec.name in SQUARED else norm)
        terms = manifest.privacy
        if spec.name == "update" and terms.trust == "distributed" and self._patients:
            return terms.clip * most_sampled(self._patients, terms.sampling_rate)
        return None

    def _tell(self, manifest: Manifest, judged: Sequence[Aggregate], *, factor: float, **found: Any) -> None:
        silos = [silo for aggregate in judged for silo in self._present[aggregate.cohort]]
        cohort = judged[0].cohort if len(judged) == 1 else None
        told = {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}
        where = {"phase": manifest.phase, "round": manifest.round, "attempt": manifest.attempt, "cohort": cohort}
        self._event("sum_out_of_bounds", **where, silos=silos, **told, factor=float(f"{factor:.4g}"))


def _drawn(manifest: Manifest, opened: CohortSum) -> dict[str, float]:
    """Standard deviation of all noise in an opened sum, by channel that has any, in the channel's unit."""
    levels = {spec: noise_levels(manifest, spec, opened.cohort) for spec in manifest.channels}
    silos = len(opened.silos)
    return {spec.name: (silos * each.drawn) ** 0.5 * spec.step for spec, each in levels.items() if each is not None}
