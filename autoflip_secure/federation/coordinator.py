"""The coordinator of one run: joins silos, runs rounds, learns from sums, prunes, steps the model, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from flwr.serverapp import Grid

from autoflip_secure.attacks.bad_silos import BadSilos
from autoflip_secure.autoflip.flops import flops
from autoflip_secure.ckks.coordinator import CkksCoordinator
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation.audit_log import AuditLog
from autoflip_secure.federation.audit_trail import CoordinatorTrail
from autoflip_secure.federation.blocks import ids_of
from autoflip_secure.federation.dropout import likely_dropout
from autoflip_secure.federation.events import JsonLines, keep_lines
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.gathering import Gathering
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.model_proofs import ModelProofs
from autoflip_secure.federation.model_step import ModelStep
from autoflip_secure.federation.plan import session_plan
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.federation.run_state import RunState, has_checkpoint, load_checkpoint, save_checkpoint
from autoflip_secure.federation.schedule import RoundPlan, Schedule
from autoflip_secure.federation.scoring import Scorer
from autoflip_secure.federation.server_view import ServerView
from autoflip_secure.federation.spending import spent_after
from autoflip_secure.federation.sum_watch import SumWatch
from autoflip_secure.federation.sums import SumRunner, reserve_attempts
from autoflip_secure.secagg.coordinator import SecAggCoordinator
from autoflip_secure.storage import write_atomically
from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.manifest import PrivacyTerms
from autoflip_secure.sums.plain import PlainCoordinator
from autoflip_secure.sums.secure_sum import CoordinatorSecureSum

__all__ = ["Coordinator", "Watcher"]

Watcher = Callable[[dict[str, Any]], None]
"""Called after every round with the line that goes to metrics.jsonl."""

BYTES_FP32 = 4


class Coordinator:
    """Runs or resumes the federation of a run folder on a Grid whose nodes are its silos."""

    def __init__(self, folder: RunFolder, config: ResolvedConfig, grid: Grid, watch: Watcher) -> None:
        self._folder, self._config, self._grid, self._watch = folder, config, grid, watch
        self._task: Task = load_task(folder)
        self._schedule = Schedule(config)
        self.plan = session_plan(config, self._task, self._schedule, public_test=folder.public_test.exists())
        kept = self._restored() if has_checkpoint(folder.checkpoint) else None
        self._model = ModelStep(config, self._task, self._schedule, self._event, kept)
        self.state = self._model.state
        # Saved at once: an attempt that is interrupted, however often, is counted when the run goes on.
        self._checkpoint()
        self._events = JsonLines(folder.events, stamp=True)
        self._metrics = JsonLines(folder.metrics)
        self._view = ServerView(folder.server_view) if config.record_server_view else None
        audit_log = AuditLog(folder.audit_log, folder.coordinator_identity(), "coordinator")
        self._roster, self._places = folder.roster(), folder.places()
        # Silos asked in all rounds so far, drops and absences apart: what FedAvg would have them send is compared with.
        self._asked = sum(_silos(self._schedule.plan(round)) for round in range(self.state.round))
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
            blocks=tuple(map(tuple, ids_of(self._schedule.whole().blocks, self._places))),
            patience=config.join_timeout,
            ask=self._ask_to_join,
            joined=self._trail.joined,
            event=self._event,
        )
        self._sums.wait_for = self._gathering.wait_for
        if config.prove_models:
            self._sums.proofs = ModelProofs(
                folder.proofs,
                self._exchange,
                lambda: self._roster,
                session,
                self._model.start,
                counted=not self._task.nominal_records,
            )
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
            self._model.cohorts.begin()
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

    def _restored(self) -> RunState:
        state = load_checkpoint(self._folder.checkpoint)
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
        dropout = likely_dropout(
            self._config.dropout, self._config.silos, self._config.block, self._schedule.whole().minimum[0]
        )
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
        if not self._model.needs_census():
            return
        terms = self.plan.census_terms()
        channels = self._model.census_channels(terms.noise_multiplier)
        self._model.count(self._sums.run(self.state, "census", self._schedule.whole(), channels, terms)[0])
        self._event("census", records=self.state.model.records)
        self._checkpoint()  # asked once: what was learnt must not be asked again

    # Rounds

    def _round(self) -> None:
        started = time.perf_counter()
        self._welcome()
        state, number = self.state, self.state.round
        plan = self._schedule.plan(number)
        terms = self._terms(number)
        opened = self._sums.run(state, plan.phase, plan, self._channels(number), terms)
        trained = flops(state.model.spec)
        sums = self._model.advance(terms, opened)
        self._trail.done(number, state.model.to_bytes())
        scores = self._scorer.score(state, number)
        seconds = time.perf_counter() - started
        self._record(number, plan, terms, sums, scores, seconds, trained)
        self._checkpoint()

    def _terms(self, number: int) -> PrivacyTerms:
        return self._model.clipped(self.plan.train_terms(self._schedule.is_exploration(number)))

    def _channels(self, number: int) -> list[ChannelSpec]:
        return self._model.channels(number, self._terms(number).noise_multiplier)

    # Records

    def _record(
        self,
        number: int,
        plan: RoundPlan,
        terms: PrivacyTerms,
        aggregates: Sequence[Aggregate],
        scores: dict[str, float | None],
        seconds: float,
        trained: int,
    ) -> None:
        state = self.state
        self._asked += _silos(plan)
        state.facts["seconds"] += seconds
        state.facts["seconds_secure_sum"] += self._sums.seconds - self._exchange.training_seconds
        state.facts["seconds_training"] += self._exchange.training_seconds
        self._sums.seconds = self._exchange.training_seconds = 0.0
        agreement = self._model.pruning.agreement
        line = {
            "round": number,
            "phase": plan.phase,
            "cohorts": len(plan.cohorts),
            "silos": sum(a.silos for a in aggregates),
            **scores,
            "epsilon": self._epsilon() if scores else None,
            "clip": terms.clip if terms.trust != "none" else None,
            "agreement": None if agreement is None else round(agreement.overall, 4),
            "agreement_average": self._model.pruning.agreement_average,
            "update_variance": self._model.pruning.update_variance,
            "params_live": int(state.model.mask.sum()),
            "params_dense": self._model.dense_size,
            "flops": flops(state.model.spec),
            "flops_trained": trained,
            "flops_dense": self._model.dense_flops,
            "layers": self._model.pruning.layer_report(state.model) if self._schedule.prunes else [],
            "upload_bytes_per_silo": state.traffic.upload_contributions / len(self._places),
            "upload_bytes_total_per_silo": state.traffic.upload_total / len(self._places),
            "upload_bytes_dense_fp32": BYTES_FP32 * self._model.dense_size * self._asked / len(self._places),
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
        self._model.keep()
        self.state.epoch = self._folder.last_epoch()
        save_checkpoint(self._folder.checkpoint, self.state)

    def _finish(self) -> None:
        model = self.state.model.to_bytes()
        write_atomically(self._folder.model, model)
        self._trail.finished(self.state.round, model)
        importance = self._model.pruning.importance(self.state.model)
        if importance is not None:
            write_atomically(self._folder.importance, importance)
        if self._view is not None:
            self._view.close(model)

    def _event(self, event: str, **fields: Any) -> None:
        self._events.write(event=event, **fields)


def _silos(plan: RoundPlan) -> int:
    """How many are asked in a round."""
    return sum(map(len, plan.cohorts))
