"""Scoring the model: on public test records where they exist, else by a (noised) secure sum over held-back records."""

from __future__ import annotations

import torch

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation.plan import SessionPlan
from autoflip_secure.federation.run_state import RunState
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sums import SumRunner
from autoflip_secure.federation.terms import metric_channel
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.training.evaluation import evaluate, metric_length, metrics_from_counts

__all__ = ["Scorer"]

ScoreLine = dict[str, float | None]


class Scorer:
    """Scores rounds that are due, by the schedule fixed before the run."""

    def __init__(
        self,
        config: ResolvedConfig,
        task: Task,
        plan: SessionPlan,
        schedule: Schedule,
        sums: SumRunner,
        public_test: Records | None,
    ) -> None:
        self._config, self._task, self._plan, self._schedule = config, task, plan, schedule
        self._sums, self._test = sums, public_test

    def score(self, state: RunState, round: int) -> ScoreLine:
        """Scores of the model after `round`; empty where none are due.

        accuracy, loss (public data only), auroc (binary tasks), balanced_accuracy (sums only); an entry is None where
        noise leaves nothing to say.
        """
        if not self.is_due(round):
            return {}
        return self._public(state) if self._test is not None else self._private(state)

    def is_due(self, round: int) -> bool:
        """Whether `round` is scored: every so many rounds on public data; private scores are spread evenly."""
        if round == self._schedule.rounds - 1:
            return True
        if self._test is not None:
            return (round + 1) % self._config.evaluate_every == 0
        count = self._config.evaluations
        due = {(self._schedule.rounds * k) // count - 1 for k in range(1, count + 1)}
        return round in due

    def _public(self, state: RunState) -> ScoreLine:
        assert self._test is not None
        network = build(state.model.spec)
        load_flat_parameters(network, torch.from_numpy(state.model.weights))
        scores = evaluate(network, self._test.x, self._test.y, self._task.kind)
        return {"accuracy": scores.accuracy, "loss": scores.loss, "auroc": scores.auroc}

    def _private(self, state: RunState) -> ScoreLine:
        channel = self._metric_channel()
        plan, terms = self._schedule.whole(), self._plan.evaluation_terms()
        aggregate = self._sums.run(state, "evaluate", plan, [channel], terms)[0]
        noise = float(aggregate.noise_std.get("metric", 0.0))
        scores = metrics_from_counts(aggregate.sum("metric"), self._task.kind, noise_std=noise)
        return {
            "accuracy": scores.accuracy,
            "loss": None,
            "auroc": scores.auroc,
            "balanced_accuracy": scores.balanced_accuracy,
        }

    def _metric_channel(self) -> ChannelSpec:
        length = metric_length(self._task.classes, self._task.kind)
        return metric_channel(length, self._plan.privacy.evaluation_noise_multiplier)
