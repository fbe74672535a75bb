"""One secure sum of the run: build the manifest, retry aborted attempts on fresh slots, decode to Aggregates."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from autoflip_secure.autoflip.masking import scatter_live
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import Abort, BudgetExhausted, CannotContinue
from autoflip_secure.federation.audit_trail import CoordinatorTrail, manifest_in
from autoflip_secure.federation.blocks import ids_of, inside, still_enrolled
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.model_proofs import ModelProofs
from autoflip_secure.federation.run_state import RunState
from autoflip_secure.federation.schedule import RoundPlan
from autoflip_secure.federation.server_view import ServerView
from autoflip_secure.federation.sum_proof import (
    PROVED_PHASES,
    SumProof,
    is_tagged,
    untagged,
    untagged_sums,
    with_tag,
)
from autoflip_secure.federation.sum_watch import SumWatch
from autoflip_secure.federation.terms import check_grid, noise_levels, on_fine_grid
from autoflip_secure.federation.wire import TRAINING_STAGES
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import share_threshold
from autoflip_secure.privacy.plan import PrivacyPlan
from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.encoding import dequantise, recentre, unpack_integers
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.secure_sum import CohortSum, CoordinatorSecureSum

__all__ = ["SumRunner", "decode", "reserve_attempts", "scatter"]

MAX_ATTEMPTS = 10
READY_TRIES, READY_PAUSE = 5, 2.0
"""Times that silos which are not ready are asked again, and seconds by which each pause is longer than the last."""

LEAST_RESERVE = 2


def reserve_attempts(config: ResolvedConfig, rounds: int) -> int:
    """Attempts paid for beyond one a round: aborted and interrupted attempts stay spent in every ledger."""
    return math.ceil(config.reserve * rounds) + LEAST_RESERVE


@dataclass
class SumRunner:
    """Runs sums for one coordinator.

    Attributes
    ----------
    reserve : int or None
        Spare attempts the privacy plan covers; None without DP.
    trail : CoordinatorTrail or None
        The coordinator's audit log; None where there are no parties that keep any.
    places : tuple of int
        Ids of the silos that the run began with, in the order of the schedule's 1, 2, ...; empty: these numbers.
    roster : Roster
        Who is enrolled now.
    watch : SumWatch or None
        Bounds on what is opened; None: sums are taken as they are.
    proofs : ModelProofs or None
        Where silos follow the model by opened sums.
    wait_for : callable
        wait_for(manifest) returns when it makes sense to ask its cohorts.
    """

    config: ResolvedConfig
    session: bytes
    config_hash: bytes
    secure_sum: CoordinatorSecureSum
    exchange: StageExchange
    view: ServerView | None
    event: Callable[..., None]
    reserve: int | None
    privacy: PrivacyPlan
    roster: Roster
    seconds: float = 0.0
    trail: CoordinatorTrail | None = None
    places: tuple[int, ...] = ()
    watch: SumWatch | None = None
    proofs: ModelProofs | None = None
    wait_for: Callable[[Manifest], None] = lambda manifest: None
    _exhausted: dict[str, set[int]] = field(default_factory=dict, init=False)

    def run(
        self,
        state: RunState,
        phase: str,
        plan: RoundPlan,
        channels: Sequence[ChannelSpec],
        terms: PrivacyTerms,
    ) -> list[Aggregate]:
        """One Aggregate a cohort, in order; those that bounds leave out are marked, and never all of them.

        Raises
        ------
        CannotContinue
            No attempt gave a sum within the attempts allowed; the checkpoint of the last round stands.
        """
        model = state.model.to_bytes()
        manifest = self._manifest(state, phase, plan, channels, terms, model)
        if self.privacy.trust != "none":
            manifest = on_fine_grid(manifest, self.privacy.releases, self.privacy.epsilon)
            gap = check_grid(manifest, self.privacy.releases, self.privacy.epsilon)
            state.facts["grid_delta"] = max(gap, state.facts.get("grid_delta", 0.0))
        if self.proofs is not None and phase in PROVED_PHASES:
            manifest = with_tag(manifest)
        last, use = "", manifest.privacy.dataset
        for attempt in range(MAX_ATTEMPTS):
            self.wait_for(manifest)
            self.exchange.begin(state.round, attempt, model)
            self.exchange.blocks, self.exchange.exhausted = manifest.blocks, self._exhausted.setdefault(use, set())
            proved = self._proved(manifest)
            if proved is not None:
                return proved
            if self.proofs is not None:
                self._wait_until_ready(self.proofs, manifest)
                self.exchange.spared = self.proofs.have(manifest.model_hash)
            heads_hash = manifest.heads_hash if self.trail is None else self.trail.freeze()
            manifest = replace(manifest, attempt=attempt, heads_hash=heads_hash)
            if self.view is not None:
                self.view.public(round=state.round, attempt=attempt, manifest=manifest.to_bytes(), model=model)
            started = time.perf_counter()
            try:
                asking = self.exchange if self.proofs is None else _Asking(self.exchange, self.proofs)
                sums = self.secure_sum.sum(manifest, asking)
            except Abort as abort:
                self._record_abort(state, manifest, abort)
                last = self._told(abort)
                continue
            finally:
                self.seconds += time.perf_counter() - started
            if self.trail is not None:
                self.trail.opened(manifest, sums)
            self.event("sum", phase=phase, round=state.round, attempt=attempt, silos=[list(s.silos) for s in sums])
            try:
                if not isinstance(asking, _Asking) or not is_tagged(manifest):
                    return self._learnt(manifest, sums)
                assert asking.manifest is not None
                return self._shown(SumProof(asking.manifest, tuple(sums)))
            except Abort as abort:
                self._record_abort(state, manifest, abort)
                last = self._told(abort)
        raise CannotContinue(
            f"round {state.round}: {MAX_ATTEMPTS} attempts in a row gave no sum, the last {last}; the model is "
            "unchanged"
        )

    def _proved(self, manifest: Manifest) -> list[Aggregate] | None:
        """Bring silos up to the sums so far; the one asked for where silos have gone on from it already, as after a
        coordinator was stopped between a sum and its checkpoint."""
        if self.proofs is None:
            return None
        number = self.proofs.number(manifest.phase, manifest.round)
        self.proofs.prepare(number)
        kept = self.proofs.pending(number) if is_tagged(manifest) else None
        return None if kept is None else self._learnt(kept.manifest, kept.sums)

    def _wait_until_ready(self, proofs: ModelProofs, manifest: Manifest) -> None:
        """Until enough silos of each cohort know what the round goes on from: an attempt with fewer cannot succeed, and
        is paid for by those that can answer.

        Raises
        ------
        CannotContinue
            They are still too few after some tries.
        """
        number = proofs.number(manifest.phase, manifest.round)
        for tries in range(READY_TRIES):
            if tries:
                time.sleep(READY_PAUSE * tries)
                proofs.ask_anew()
                proofs.prepare(number)
            ready = proofs.ready(number)
            sizes = [len(manifest.whole(index, ready)) for index in range(len(manifest.cohorts))]
            short = [pair for pair in zip(sizes, manifest.minimum, strict=True) if pair[0] < pair[1]]
            if not short:
                return
        raise CannotContinue(
            f"round {manifest.round}: {short[0][0]} silos of a cohort have the run's key and all sums so far, its sum "
            f"needs {short[0][1]}; nothing was spent by asking, go on when the others are back (their silo.log says "
            "what they refused)"
        )

    def _shown(self, opened: SumProof) -> list[Aggregate]:
        """What sums hold that silos take as theirs."""
        assert self.proofs is not None
        proof, liars = opened.with_true_links()
        for silo in liars:
            self.event("silo_misbehaved", silo=silo, stage="unmask", reason="its link is not one of its noise chain")
        aggregates = self._learnt(proof.manifest, proof.sums)
        self.proofs.show(self.proofs.number(proof.manifest.phase, proof.manifest.round), proof)
        return aggregates

    def _learnt(self, manifest: Manifest, sums: Sequence[CohortSum]) -> list[Aggregate]:
        """What opened sums hold, without tags, those outside their bounds marked."""
        if is_tagged(manifest):
            manifest, sums = untagged(manifest), untagged_sums(manifest, sums)
        aggregates = [decode(manifest, cohort_sum) for cohort_sum in sums]
        if self.view is not None:
            for cohort_sum, aggregate in zip(sums, aggregates, strict=True):
                self.view.opened(attempt=manifest.attempt, silos=tuple(cohort_sum.silos), aggregate=aggregate)
        return aggregates if self.watch is None else self.watch.passed(manifest, sums, aggregates)

    def _told(self, abort: Abort) -> str:
        """An abort and what silos said to it; why, only each silo's own log tells."""
        refused = ", ".join(f"{count} of {name}" for name, count in sorted(self.exchange.refusals.items()))
        said = f" (silos refused: {refused}; their silo.log says why)" if refused else ""
        return f"at stage {abort.stage}: {abort.reason}{said}"

    def _manifest(
        self,
        state: RunState,
        phase: str,
        plan: RoundPlan,
        channels: Sequence[ChannelSpec],
        terms: PrivacyTerms,
        model: bytes,
    ) -> Manifest:
        cohorts = self._enrolled(state.round, plan)
        return Manifest(
            session=self.session,
            epoch=0,
            slot=0,
            epoch_hash=bytes(32),
            round=state.round,
            attempt=0,
            phase=phase,
            cohorts=cohorts,
            minimum=plan.minimum,
            threshold=share_threshold(len(self.roster.silos)),
            model_hash=hashlib.sha256(model).digest(),
            mask_hash=state.model.mask_hash(),
            config_hash=self.config_hash,
            channels=tuple(channels),
            privacy=terms,
            blocks=inside(ids_of(plan.blocks, self.places), cohorts),
        )

    def _enrolled(self, round: int, plan: RoundPlan) -> tuple[tuple[int, ...], ...]:
        """Ids of the silos in a plan's cohorts, less those that have left for good, and their blocks."""
        blocks = ids_of(plan.blocks, self.places)
        cohorts = tuple(still_enrolled(cohort, blocks, self.roster) for cohort in ids_of(plan.cohorts, self.places))
        for cohort, least in zip(cohorts, plan.minimum, strict=True):
            if len(cohort) < least:
                whole = " with the whole of their blocks" if blocks else ""
                raise CannotContinue(
                    f"round {round}: {len(cohort)} silos of a cohort are left in the roster{whole}, its sums need "
                    f"{least}; "
                    "the model of the last round is kept, begin a new run with the silos that are left"
                )
        return cohorts

    def _record_abort(self, state: RunState, manifest: Manifest, abort: Abort) -> None:
        state.attempts_aborted += 1
        if self.proofs is not None:
            self.proofs.ask_anew()
        if self.trail is not None:
            self.trail.aborted(manifest, abort)
        self.event(
            "abort",
            phase=manifest.phase,
            round=state.round,
            attempt=manifest.attempt,
            stage=abort.stage,
            reason=abort.reason,
            blamed=list(abort.blamed),
        )
        # One silo without budget, or one that says so, does not stop the others, but those of its block.
        exhausted = self.exchange.exhausted
        able = [set(cohort) - exhausted for cohort in manifest.cohorts]
        if any(len(manifest.whole(index, able[index])) < least for index, least in enumerate(manifest.minimum)):
            raise BudgetExhausted(
                f"round {state.round}: {len(exhausted)} silos have no privacy budget left; the last round's model is "
                "kept"
            ) from abort
        state.spare_attempts_used += 1
        if manifest.privacy.dataset == "train":
            state.spare_steps += manifest.privacy.steps
        if self.reserve is not None and state.spare_attempts_used > self.reserve:
            raise CannotContinue(
                f"round {state.round}: more attempts aborted than the {self.reserve} that the plan pays for; the model "
                "of the last round is kept, a new run with a larger --reserve can start from its budget"
            ) from abort


class _Asking:
    """The exchange of one attempt; remembers the manifest as silos see it, with its slot.

    Silos that do not have the run's key are not asked for numbers: they could add no tag that holds."""

    def __init__(self, exchange: StageExchange, proofs: ModelProofs) -> None:
        self._exchange, self._proofs = exchange, proofs
        self.manifest: Manifest | None = None

    def __call__(self, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        if stage in TRAINING_STAGES and requests:
            self.manifest = manifest_in(stage, next(iter(requests.values())))
            requests = {silo: request for silo, request in requests.items() if silo in self._proofs.keyed}
        return self._exchange(stage, requests)


def decode(manifest: Manifest, cohort_sum: CohortSum) -> Aggregate:
    """What the sum holds, without the noise its survivors do not need, and how much noise is left in it."""
    index, links = cohort_sum.cohort, cohort_sum.links
    size, present = len(manifest.cohorts[index]), len(cohort_sum.silos)
    missing = size - present
    integers = unpack_integers(cohort_sum.words, manifest.channels, size)
    noise, over_least = {}, None
    for channel in manifest.channels:
        levels = noise_levels(manifest, channel, index)
        if levels is None:
            noise[channel.name] = 0.0
            continue
        for link in links.values():
            integers[channel.name][:] -= levels.excess(channel.length, channel.name, link, missing)
        recentre(integers[channel.name], channel, size)
        variance = len(links) * levels.left(missing) + (present - len(links)) * levels.drawn
        noise[channel.name] = variance**0.5 * channel.step
        if manifest.privacy.trust == "distributed":
            over_least = max(over_least or 0.0, variance / (present * levels.owed[missing]))
    return Aggregate(
        round=manifest.round,
        cohort=index,
        silos=present,
        channels={spec.name: dequantise(integers[spec.name], spec) for spec in manifest.channels},
        noise_std=noise,
        noise_over_least=over_least,
    )


def scatter(aggregate: Aggregate, model: ModelPayload) -> Aggregate:
    """The same sums in the full layout: live coordinates, or of gradients the masked ones, put back, all others 0."""
    live = int(model.mask.sum())
    channels: dict[str, NDArray[Any]] = dict(aggregate.channels)
    for name in ("update", "deviation"):
        if name in channels and channels[name].shape == (live,):
            channels[name] = scatter_live(channels[name], model.mask)
    if "gradient" in channels:
        channels["gradient"] = scatter_live(channels["gradient"], ~model.mask)
    return replace(aggregate, channels=channels)
