"""Scoring the model: on public test records where they exist, else by a (noised) secure sum over held-back records."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation.plan import SessionPlan
from autoflip_secure.federation.run_state import RunState
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sums import SumRunner
from autoflip_secure.federation.terms import metric_channel
from autoflip_secure.models.features import features_of
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.training.evaluation import MetricForm, PrivateScores, Scores, evaluate, scores_from_vector

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
        self._features: NDArray[np.float32] | None = None

    def score(self, state: RunState, round: int) -> ScoreLine:
        """Scores of the model after `round`; empty where none are due.

        loss, accuracy (None for survival), auroc (binary tasks), c_index (survival), balanced_accuracy (sums only); an
        entry is None where noise leaves nothing to say.
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
        if self._features is None:
            self._features = features_of(self._config.model, self._test.x)
        network = build(state.model.spec)
        load_flat_parameters(network, torch.from_numpy(state.model.network))
        scores = evaluate(network, self._features, self._task.targets(self._test), self._task.kind)
        return self._line(scores)

    def _private(self, state: RunState) -> ScoreLine:
        task = self._task
        form = MetricForm(task.kind, task.classes, task.expected_cuts)
        channel = metric_channel(form.length, self._plan.privacy.evaluation_noise_multiplier)
        plan, terms = self._schedule.whole(), self._plan.evaluation_terms()
        aggregate = self._sums.run(state, "evaluate", plan, [channel], terms)[0]
        noise = float(aggregate.noise_std.get("metric", 0.0))
        scores = scores_from_vector(aggregate.sum("metric"), form, noise_std=noise)
        return {**self._line(scores), "balanced_accuracy": scores.balanced_accuracy}

    def _line(self, scores: Scores | PrivateScores) -> ScoreLine:
        line = {"accuracy": scores.accuracy, "loss": scores.loss, "auroc": scores.auroc}
        return {**line, "c_index": scores.c_index} if self._task.kind == "survival" else line
