"""The coordinator of one run: joins silos, runs rounds, learns from sums, prunes, steps the model, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from autoflip_secure.attacks.bad_silos import BadSilos
from autoflip_secure.autoflip.flops import flops
from autoflip_secure.ckks.coordinator import CkksCoordinator
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation.adaptive_clip import AdaptiveClip
from autoflip_secure.federation.audit_log import AuditLog
from autoflip_secure.federation.audit_trail import CoordinatorTrail
from autoflip_secure.federation.cohort_watch import CohortWatch
from autoflip_secure.federation.dropout import likely_dropout
from autoflip_secure.federation.events import JsonLines, keep_lines
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.gathering import Gathering
from autoflip_secure.federation.global_masks import pruning_controller
from autoflip_secure.federation.initial_model import whole_model
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.plan import session_plan
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.federation.run_state import RunState, has_checkpoint, load_checkpoint, save_checkpoint
from autoflip_secure.federation.schedule import RoundPlan, Schedule
from autoflip_secure.federation.scoring import Scorer
from autoflip_secure.federation.server_step import ServerMoments, moved
from autoflip_secure.federation.server_view import ServerView
from autoflip_secure.federation.spending import spent_after
from autoflip_secure.federation.sum_watch import SumWatch
from autoflip_secure.federation.sums import SumRunner, reserve_attempts, scatter
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
from autoflip_secure.secagg.coordinator import SecAggCoordinator
from autoflip_secure.seeds import torch_stream
from autoflip_secure.storage import write_atomically
from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.manifest import PrivacyTerms
from autoflip_secure.sums.plain import PlainCoordinator
from autoflip_secure.sums.secure_sum import CoordinatorSecureSum

__all__ = ["Coordinator", "Watcher"]

Watcher = Callable[[dict[str, Any]], None]
"""Called after every round with the line that goes to metrics.jsonl."""

BYTES_FP32 = 4
TIMES = ("seconds", "seconds_training", "seconds_secure_sum")


class Coordinator:
    """Runs or resumes the federation of a run folder on a Grid whose nodes are its silos."""

    def __init__(self, folder: RunFolder, config: ResolvedConfig, grid: Grid, watch: Watcher) -> None:
        self._folder, self._config, self._grid, self._watch = folder, config, grid, watch
        self._task: Task = load_task(folder)
        self._schedule = Schedule(config)
        self.plan = session_plan(config, self._task, self._schedule, public_test=folder.public_test.exists())
        dense = dense_spec(config.model, self._task.input_shape, self._task.outputs)
        self._dense_flops = flops(dense)
        self._start = flatten_parameters(build(dense, torch_stream(config.seed, "init"))).numpy()
        self._pruning = pruning_controller(config, self._schedule, dense, self._start)
        self._dense_size = self._start.size
        self.state = self._restore() if has_checkpoint(folder.checkpoint) else self._fresh_state(dense)
        self._clip = AdaptiveClip(config.clip, config.adaptive_clip, self.state.facts.get("clip", config.clip))
        self._cohorts = CohortWatch(config, self._schedule, self._event, self.state.facts.get("cohorts"))
        # Saved at once: an attempt that is interrupted, however often, is counted when the run goes on.
        self._checkpoint()
        self._events = JsonLines(folder.events, stamp=True)
        self._metrics = JsonLines(folder.metrics)
        self._view = ServerView(folder.server_view) if config.record_server_view else None
        audit_log = AuditLog(folder.audit_log, folder.coordinator_identity(), "coordinator")
        self._roster, self._places = folder.roster(), folder.places()
        self._trail = CoordinatorTrail(audit_log, self._roster)
        self._exchange = StageExchange(
            grid,
            self.state.traffic,
            timeout=config.stage_timeout,
            view=self._view,
            event=self._event,
            trail=self._trail,
        )
        session = folder.session()
        self._join_request = JoinRequest(session, config, self._task.to_json(), self.plan.mechanisms())
        self._sums = SumRunner(
            config,
            session,
            self._join_request.digest(),
            self._secure_sum(session),
            self._exchange,
            self._view,
            self._event,
            None if config.trust == "none" else reserve_attempts(config, self._schedule.rounds),
            self.plan.privacy,
            trail=self._trail,
            places=self._places,
            roster=self._roster,
            watch=SumWatch(config, self._task.nominal_records or 0, self._event),
        )
        self._gathering = Gathering(
            grid,
            self._exchange,
            folder.nodes,
            self._roster,
            needed=frozenset(self._places) & frozenset(self._roster.silos),
            least=self._schedule.whole().minimum[0],
            patience=config.join_timeout,
            ask=self._ask_to_join,
            joined=self._trail.joined,
            event=self._event,
        )
        self._sums.wait_for = self._gathering.wait_for
        test = Records.load(folder.public_test) if folder.public_test.exists() else None
        self._scorer = Scorer(config, self._task, self.plan, self._schedule, self._sums, test)

    def run(self) -> RunState:
        """Run to the last round.

        Raises
        ------
        CannotContinue
            The run stopped; a checkpoint of the last whole round is on disk.
        """
        try:
            self._announce_bad_silos()
            self._cohorts.begin()
            self._exchange.begin(self.state.round, 0, b"")
            self._gathering.gather(begun=self.state.round > 0)
            self._census()
            while self.state.round < self._schedule.rounds:
                self._round()
            self._finish()
        finally:
            self._events.close()
            self._metrics.close()
        return self.state

    # Start

    def _announce_bad_silos(self) -> None:
        if self._config.bad_silos is not None:
            bad = BadSilos.parse(self._config.bad_silos)
            silos = sorted(bad.silos(self._config.seed, self._config.silos))
            self._event("bad_silos", kind=bad.kind, fraction=bad.fraction, strength=bad.strength, silos=silos)

    def _fresh_state(self, dense: Any) -> RunState:
        whole = whole_model(dense, self._start, self._task)
        model = self._pruning.draw(whole)
        return RunState(0, model, ServerMoments.zeros(model.weights.size), facts=dict.fromkeys(TIMES, 0.0))

    def _restore(self) -> RunState:
        state = load_checkpoint(self._folder.checkpoint)
        self._pruning.restore(state.model.spec, state.pruning, state.facts["pruning"])
        keep_lines(self._folder.metrics, lambda line: line["round"] < state.round)
        if state.round < self._schedule.rounds:
            # The interrupted attempt may be in the silos' ledgers.
            state.spare_attempts_used += 1
            state.spare_steps += self.plan.train_terms(self._schedule.is_exploration(state.round)).steps
        return state

    def _secure_sum(self, session: bytes) -> CoordinatorSecureSum:
        if self._config.aggregation == "none":
            return PlainCoordinator()
        parties = (self._folder.coordinator_identity(), self._roster, session)
        epochs: dict[str, Any] = {
            "slots": min(self._config.epoch_slots, self._most_sums()),
            "first_epoch": self._folder.last_epoch() + 1,
            "on_epoch": self._folder.announce_epoch,
            "events": lambda name, fields: self._event(name, **fields),
        }
        if self._config.aggregation == "ckks":
            return CkksCoordinator(*parties, **epochs)
        dropout = likely_dropout(self._config.dropout, self._config.silos)
        return SecAggCoordinator(*parties, **epochs, colluders=self._config.colluders, dropout=dropout)

    def _most_sums(self) -> int:
        """Slots a run uses up where few attempts abort: a short run needs no keys for a long one."""
        rounds = self._schedule.rounds
        return rounds + self._config.evaluations + 1 + reserve_attempts(self._config, rounds)

    def _ask_to_join(self) -> tuple[bytes, bytes]:
        """The join request, made anew for each asking, and the federation's bundle that is shown with it."""
        request = self._join_request.sign(self._folder.coordinator_identity())
        self._trail.joining(self._join_request, request)
        return request, self._folder.bundle()

    def _welcome(self) -> None:
        """Before a round: take in silos that come late, and a roster that its authority has changed."""
        roster = self._folder.roster()
        changed = roster.hash() != self._roster.hash()
        if not changed and not self._gathering.missing:
            return
        self._exchange.begin(self.state.round, 0, b"")
        if not changed:
            self._gathering.look_for_late()
            return
        self._event("roster_changed", silos=list(roster.silos))
        self._roster = self._sums.roster = roster
        self._trail.enrol(roster)
        # Keys are the roster's: the next sum makes new ones.
        self._sums.secure_sum = self._secure_sum(self._join_request.session)
        self._gathering.forget(roster)
        self._gathering.gather(begun=True)

    def _census(self) -> None:
        """Where the number of records is not public, learn it once through a sum (noised under DP)."""
        if self.state.model.records:
            return
        terms = self.plan.census_terms()
        aggregate = self._sums.run(
            self.state, "census", self._schedule.whole(), [count_channel(terms.noise_multiplier)], terms
        )[0]
        counted = float(aggregate.sum("count")[0]) * len(self._places) / aggregate.silos
        self.state.model = replace(self.state.model, records=max(1, round(counted)))
        self._event("census", records=self.state.model.records)
        self._checkpoint()  # asked once: what was learnt must not be asked again

    # Rounds

    def _round(self) -> None:
        started = time.perf_counter()
        self._welcome()
        state, number = self.state, self.state.round
        plan = self._schedule.plan(number)
        terms = self._terms(number)
        live = state.model.mask
        sums = [
            self._clip.in_first_units(scatter(a, state.model))
            for a in self._sums.run(state, plan.phase, plan, self._channels(number), terms)
        ]
        aggregates = self._cohorts.passed(number, plan, sums, live, self._silo_variance(terms))
        self._step(number, aggregates)
        if self._schedule.prunes:
            self._pruning.observe(number, aggregates, live, self._silo_variance(terms))
            self._report_exploration(number)
            if self._pruning.is_decision(number):
                self._prune(number)
        self._clip.follow(aggregates, self._expected_batch(sum(a.silos for a in aggregates)))
        state.round += 1
        self._trail.done(number, state.model.to_bytes())
        scores = self._scorer.score(state, number)
        seconds = time.perf_counter() - started
        self._record(number, plan, terms, sums, scores, seconds)
        self._checkpoint()

    def _terms(self, number: int) -> PrivacyTerms:
        terms = self.plan.train_terms(self._schedule.is_exploration(number))
        return terms if self._config.adaptive_clip is None else replace(terms, clip=self._clip.value)

    def _expected_batch(self, silos: int) -> float:
        """Patients expected of so many silos. Silos that are away take their share of a round's batch with them."""
        return self._config.sampling_rate * self.state.model.records * silos / len(self._places)

    def _silo_variance(self, terms: PrivacyTerms) -> float:
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

    def _noise_a_silo(self, number: int) -> float:
        """Standard deviation of the noise of a round's sum as it is drawn, over its silos, in clipping norms."""
        if self._config.trust != "distributed":
            return 0.0
        plan = self._schedule.plan(number)
        honest = [least - self._config.colluders for least in plan.minimum]
        sizes = [len(cohort) for cohort in plan.cohorts]
        return self.plan.privacy.noise_multiplier * max(
            1.0 / math.sqrt(size * sure) for size, sure in zip(sizes, honest, strict=True)
        )

    def _channels(self, number: int) -> list[ChannelSpec]:
        config, model = self._config, self.state.model
        live = int(model.mask.sum())
        if model.votes is not None and not self._schedule.is_exploration(number):
            return [mask_channel(self._pruning.weights)]
        if config.trust != "distributed" and self._schedule.is_exploration(number):
            channels = [deviation_channel(live)] if config.prune == "autoflip" else []
            summed = not channels or self._schedule.sums_explored_updates(number)
            return [*channels, update_channel(config, live)] if summed else channels
        channels = [update_channel(config, live, self._clip.value, self._expected_batch(1), self._noise_a_silo(number))]
        if self._schedule.is_readjustment(number):
            channels.append(gradient_channel(config, model.mask.size - live))
        if self._schedule.sends_energy:
            channels.append(energy_channel(self._pruning.units))
        cohort = min(len(silos) for silos in self._schedule.plan(number).cohorts)
        return channels + self._clip.channels(self._expected_batch(cohort), self.plan.privacy.noise_multiplier)

    def _step(self, number: int, aggregates: Sequence[Aggregate]) -> None:
        """Move the model by the sum: along the noised gradient sum, or the mean of the silos' updates."""
        state, config = self.state, self._config
        if self._schedule.leaves_the_model(number) or "update" not in aggregates[0].channels:
            return
        total = np.sum([a.sum("update") for a in aggregates], axis=0)
        present = sum(a.silos for a in aggregates)
        if config.trust == "distributed":
            step = config.rate(number) * total / self._expected_batch(present)
        else:
            step = total / present
        state.model, state.server = moved(config, number, state.model, state.server, step)

    def _report_exploration(self, number: int) -> None:
        """How like the first map this one is: whether exploring once is enough."""
        likeness = self._pruning.likeness
        if likeness is not None:
            self._event(
                "explored",
                round=number,
                cosine_to_first=round(likeness.cosine, 4),
                cosine_by_chance=round(likeness.chance, 4),
                rank_to_first=round(likeness.rank, 4),
                overlap_to_first=round(likeness.overlap, 4),
            )

    def _prune(self, number: int) -> None:
        state = self.state
        before = int(state.model.mask.sum())
        state.model, kept = self._pruning.decide(number, state.model)
        state.server = state.server.compact(kept, state.model.mask)
        self._event(
            "pruned",
            round=number,
            live_before=before,
            live_after=int(state.model.mask.sum()),
            widths=list(state.model.spec.widths),
            flops_ratio=round(flops(state.model.spec) / self._dense_flops, 4),
        )

    # Records

    def _record(
        self,
        number: int,
        plan: RoundPlan,
        terms: PrivacyTerms,
        aggregates: Sequence[Aggregate],
        scores: dict[str, float | None],
        seconds: float,
    ) -> None:
        state = self.state
        state.facts["seconds"] += seconds
        state.facts["seconds_secure_sum"] += self._sums.seconds - self._exchange.training_seconds
        state.facts["seconds_training"] += self._exchange.training_seconds
        self._sums.seconds = self._exchange.training_seconds = 0.0
        agreement = self._pruning.agreement
        line = {
            "round": number,
            "phase": plan.phase,
            "cohorts": len(plan.cohorts),
            "silos": sum(a.silos for a in aggregates),
            **scores,
            "epsilon": self._epsilon() if scores else None,
            "clip": terms.clip if terms.trust != "none" else None,
            "agreement": None if agreement is None else round(agreement.overall, 4),
            "agreement_average": self._pruning.agreement_average,
            "update_variance": self._pruning.update_variance,
            "params_live": int(state.model.mask.sum()),
            "params_dense": self._dense_size,
            "flops": flops(state.model.spec),
            "flops_dense": self._dense_flops,
            "layers": self._pruning.layer_report(state.model) if self._schedule.prunes else [],
            "upload_bytes_per_silo": state.traffic.upload_contributions / len(self._places),
            "upload_bytes_total_per_silo": state.traffic.upload_total / len(self._places),
            "upload_bytes_dense_fp32": BYTES_FP32 * self._dense_size * state.round,
            "download_bytes_per_silo": state.traffic.download_total / len(self._places),
            "aborts": state.attempts_aborted,
            "drops": dict(state.traffic.drops),
            "noise_over_least": max((a.noise_over_least for a in aggregates if a.noise_over_least), default=None),
            "seconds": round(seconds, 4),
        }
        self._metrics.write(**line)
        self._watch(line)
        target = self._config.target_accuracy
        accuracy = scores.get("accuracy")
        if target is not None and accuracy is not None and accuracy >= target and "target" not in state.facts:
            state.facts["target"] = {"rounds": state.round, "upload_bytes": line["upload_bytes_per_silo"]}

    def _epsilon(self) -> float | None:
        return spent_after(self.plan, self._schedule, self.state.round, self.state.spare_steps)

    def _checkpoint(self) -> None:
        self.state.pruning = self._pruning.arrays()
        self.state.facts["pruning"] = self._pruning.facts()
        self.state.facts["clip"] = self._clip.value
        self.state.facts["cohorts"] = self._cohorts.facts()
        self.state.epoch = self._folder.last_epoch()
        save_checkpoint(self._folder.checkpoint, self.state)

    def _finish(self) -> None:
        model = self.state.model.to_bytes()
        write_atomically(self._folder.model, model)
        self._trail.finished(self.state.round, model)
        importance = self._pruning.importance(self.state.model)
        if importance is not None:
            write_atomically(self._folder.importance, importance)
        if self._view is not None:
            self._view.close(model)

    def _event(self, event: str, **fields: Any) -> None:
        self._events.write(event=event, **fields)
