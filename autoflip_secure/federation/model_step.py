"""What a round's sums make of the model: step, mask, clip and weights of cohorts, from public numbers alone.

Coordinator and silos compute it alike, each on its own: a silo that knows the opened sums needs to believe nobody what
the next model is (see `followed_model`). So nothing here may depend on the machine, on time or on what only one of them
has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.flops import flops
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.task import Task
from autoflip_secure.federation.adaptive_clip import AdaptiveClip
from autoflip_secure.federation.cohort_watch import CohortWatch
from autoflip_secure.federation.global_masks import pruning_controller
from autoflip_secure.federation.initial_model import whole_model
from autoflip_secure.federation.run_state import RunState
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.server_step import ServerMoments, moved
from autoflip_secure.federation.sums import scatter
from autoflip_secure.federation.terms import (
    count_channel,
    deviation_channel,
    energy_channel,
    gradient_channel,
    mask_channel,
    update_channel,
)
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy.local_sgd import update_noise_variance
from autoflip_secure.seeds import torch_stream
from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.manifest import PrivacyTerms

__all__ = ["TIMES", "ModelStep"]

TIMES = ("seconds", "seconds_training", "seconds_secure_sum")
"""Facts of a run that add up from 0."""


class ModelStep:
    """The model of a run, moved from round to round by sums.

    Parameters
    ----------
    state : RunState or None
        To go on from, as `keep` left it; None: round 0.
    start : float32 array, shape (dense_size,), optional
        Weights before anything is pruned, where they are not to be drawn from the run's seed.
    event : callable
        event(name, **fields) is told of masks and of cohorts that were left out.

    Attributes
    ----------
    state : RunState
        Round, model, moments of the server.
    start : float32 array, shape (dense_size,)
    dense_flops, dense_size : int
        Of the network before anything is pruned.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        task: Task,
        schedule: Schedule,
        event: Callable[..., None],
        state: RunState | None = None,
        start: NDArray[np.float32] | None = None,
    ) -> None:
        self._config, self._schedule, self._event = config, schedule, event
        dense = dense_spec(config.model, task.input_shape, task.outputs)
        if start is None:
            start = flatten_parameters(build(dense, torch_stream(config.seed, "init"))).numpy()
        self.start = start
        self.dense_flops, self.dense_size = flops(dense), int(start.size)
        self.pruning = pruning_controller(config, schedule, dense, start)
        if state is None:
            model = self.pruning.draw(whole_model(dense, start, task))
            state = RunState(0, model, ServerMoments.zeros(model.weights.size), facts=dict.fromkeys(TIMES, 0.0))
        else:
            self.pruning.restore(state.model.spec, state.pruning, state.facts["pruning"])
        self.state = state
        self.clip = AdaptiveClip(config.clip, config.adaptive_clip, state.facts.get("clip", config.clip))
        self.cohorts = CohortWatch(config, schedule, event, state.facts.get("cohorts"))

    def keep(self) -> RunState:
        """The state with all that a checkpoint needs to go on from it."""
        self.state.pruning = self.pruning.arrays()
        self.state.facts["pruning"] = self.pruning.facts()
        self.state.facts["clip"] = self.clip.value
        self.state.facts["cohorts"] = self.cohorts.facts()
        return self.state

    def needs_census(self) -> bool:
        """Whether the number of records is not known yet."""
        return not self.state.model.records

    def count(self, aggregate: Aggregate) -> None:
        """Take the number of records from a census; silos that were away count as those that were there."""
        counted = float(aggregate.sum("count")[0]) * self._config.silos / aggregate.silos
        self.state.model = replace(self.state.model, records=max(1, round(counted)))

    def advance(self, terms: PrivacyTerms, opened: Sequence[Aggregate]) -> list[Aggregate]:
        """Move the model by the sums of the round to come, one a cohort; returns them in the full layout.

        Parameters
        ----------
        terms : PrivacyTerms
            Of the round's manifest.
        opened : sequence of Aggregate
            As decoded, those outside their bounds marked; live coordinates only.
        """
        state, number = self.state, self.state.round
        live, plan = state.model.mask, self._schedule.plan(number)
        sums = [self.clip.in_first_units(scatter(aggregate, state.model)) for aggregate in opened]
        aggregates = self.cohorts.passed(number, plan, sums, live, self.silo_variance(terms))
        self.step(number, aggregates)
        if self._schedule.prunes:
            self.pruning.observe(number, aggregates, live, self.silo_variance(terms))
            self._report_exploration(number)
            if self.pruning.is_decision(number):
                self.prune(number)
        self.clip.follow(aggregates, self.expected_batch(sum(a.silos for a in aggregates)))
        state.round += 1
        return sums

    def clipped(self, terms: PrivacyTerms) -> PrivacyTerms:
        """The planned terms of a round with the clip of the round to come."""
        return terms if self._config.adaptive_clip is None else replace(terms, clip=self.clip.value)

    def channels(self, number: int, noise_multiplier: float) -> list[ChannelSpec]:
        """What silos are asked for in a round.

        Parameters
        ----------
        noise_multiplier : float
            Of the round's terms; 0 without DP.
        """
        config, model = self._config, self.state.model
        live = int(model.mask.sum())
        if model.votes is not None and not self._schedule.is_exploration(number):
            return [mask_channel(self.pruning.weights)]
        if config.trust != "distributed" and self._schedule.is_exploration(number):
            channels = [deviation_channel(live)] if self._schedule.sums_squares else []
            summed = not channels or self._schedule.sums_explored_updates(number)
            return [*channels, update_channel(config, live)] if summed else channels
        noise = self._noise_a_silo(number, noise_multiplier)
        channels = [update_channel(config, live, self.clip.value, self.expected_batch(1), noise)]
        masked = model.mask.size - live
        if masked and self._schedule.is_readjustment(number):
            channels.append(gradient_channel(config, masked))
        if self._schedule.sends_energy:
            channels.append(energy_channel(self.pruning.units))
        cohort = min(len(silos) for silos in self._schedule.plan(number).cohorts)
        return channels + self.clip.channels(self.expected_batch(cohort), noise_multiplier)

    @staticmethod
    def census_channels(noise_multiplier: float) -> list[ChannelSpec]:
        """What silos are asked for in a census."""
        return [count_channel(noise_multiplier)]

    def expected_batch(self, silos: int) -> float:
        """Patients expected of so many silos. Silos that are away take their share of a round's batch with them."""
        return self._config.sampling_rate * self.state.model.records * silos / self._config.silos

    def silo_variance(self, terms: PrivacyTerms) -> float:
        """What a silo's own noise adds to each live coordinate of its update; 0 where silos do not noise them."""
        if terms.trust != "local":
            return 0.0
        return update_noise_variance(
            steps=terms.steps,
            expected_batch=terms.sampling_rate * self.state.model.nominal_records(self._config.silos),
            clip=terms.clip,
            noise_multiplier=terms.noise_multiplier,
            learning_rate=self._config.rate(self.state.round),
        )

    def _noise_a_silo(self, number: int, noise_multiplier: float) -> float:
        """Standard deviation of the noise of a round's sum as it is drawn, over its silos, in clipping norms."""
        if self._config.trust != "distributed":
            return 0.0
        plan = self._schedule.plan(number)
        honest = [least - self._config.colluders for least in plan.minimum]
        sizes = [len(cohort) for cohort in plan.cohorts]
        return noise_multiplier * max(1.0 / math.sqrt(size * sure) for size, sure in zip(sizes, honest, strict=True))

    def step(self, number: int, aggregates: Sequence[Aggregate]) -> None:
        """Move the model by the sum: along the noised gradient sum, or the mean of the silos' updates."""
        state, config = self.state, self._config
        if self._schedule.leaves_the_model(number) or "update" not in aggregates[0].channels:
            return
        total = np.sum([a.sum("update") for a in aggregates], axis=0)
        present = sum(a.silos for a in aggregates)
        if config.trust == "distributed":
            step = config.rate(number) * total / self.expected_batch(present)
        else:
            step = total / present
        state.model, state.server = moved(config, number, state.model, state.server, step)

    def prune(self, number: int) -> None:
        """Choose the mask anew and remove the units that it leaves dead."""
        state = self.state
        before = int(state.model.mask.sum())
        state.model, kept = self.pruning.decide(number, state.model)
        state.server = state.server.compact(kept, state.model.mask)
        self._event(
            "pruned",
            round=number,
            live_before=before,
            live_after=int(state.model.mask.sum()),
            widths=list(state.model.spec.widths),
            flops_ratio=round(flops(state.model.spec) / self.dense_flops, 4),
        )

    def _report_exploration(self, number: int) -> None:
        """How like the first map this one is: whether exploring once is enough."""
        likeness: Any = self.pruning.likeness
        if likeness is not None:
            self._event(
                "explored",
                round=number,
                cosine_to_first=round(likeness.cosine, 4),
                cosine_by_chance=round(likeness.chance, 4),
                rank_to_first=round(likeness.rank, 4),
                overlap_to_first=round(likeness.overlap, 4),
            )
