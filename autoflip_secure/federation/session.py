"""A run that a silo has joined: the checks before its records are touched, and the parts that answer."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import msgpack
import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.bad_silos import BadSilos
from autoflip_secure.errors import AutoflipSecureError, BudgetExhausted, ProtocolError
from autoflip_secure.federation.admission import Admission
from autoflip_secure.federation.blocks import ids_of, inside, still_enrolled
from autoflip_secure.federation.dropout import drops
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.outflow import run_channels
from autoflip_secure.federation.policy_rules import Rule, refusal
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sum_proof import KEY_STAGE, is_tagged, tagged, untagged
from autoflip_secure.federation.terms import check_grid, check_terms
from autoflip_secure.federation.wire import Request
from autoflip_secure.parties.run_key import RunKeys
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import SiloSecureSum
from autoflip_secure.sums.words import ContributionWords, WordSource

if TYPE_CHECKING:
    from autoflip_secure.federation.contribution import Contributor
    from autoflip_secure.federation.followed_model import FollowedModel
    from autoflip_secure.federation.model_payload import ModelPayload

__all__ = ["ContributionFailed", "Session"]

_COHORTS = """
CREATE TABLE IF NOT EXISTS cohorts (
    session BLOB, round INTEGER, phase TEXT, cohort BLOB NOT NULL, PRIMARY KEY (session, round, phase)
) STRICT
"""


TRAINING = ("explore", "train")
"""Phases in which records train the model: one a round."""

COUNTING = {"census": "count", "evaluate": "metric"}
"""The one channel of each other phase."""

NO_ROUND = -1
"""Of rows that are about a run as a whole."""

AFTER_RECORDS = "the contribution failed after the records were touched"


class ContributionFailed(AutoflipSecureError):
    """Something went wrong after the records were touched. The coordinator is told this much and no more: which error
    it was may depend on the records."""


class _Discreet:
    """Words whose encoding may fail on a value, which must not be told apart from other failures."""

    def __init__(self, source: WordSource) -> None:
        self._source = source

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def removable(self) -> bytes | None:
        return self._source.removable

    def fill(self, start: int, out: NDArray[np.uint64]) -> None:
        try:
            self._source.fill(start, out)
        except Exception as error:
            raise ContributionFailed(AFTER_RECORDS) from error


class Session:
    """One joined run at one silo.

    Parameters
    ----------
    admission : Admission
        Of the silo whose records lie in `data/` of its folder.
    run_keys : RunKeys or None
        Where the run proves its models.
    """

    def __init__(
        self,
        silo: int,
        request: JoinRequest,
        admission: Admission,
        ledger: Ledger,
        secure_sum: SiloSecureSum,
        database: sqlite3.Connection,
        run_keys: RunKeys | None = None,
    ) -> None:
        self._silo, self._request, self._admission = silo, request, admission
        self._folder, self._policy = admission.folder, admission.policy
        self._ledger, self.secure_sum, self._database = ledger, secure_sum, database
        self._config, self._digest = request.config, request.digest()
        self._run_keys = run_keys
        self._contributor: Contributor | None = None
        database.execute(_COHORTS)
        self._places = self._first_places()

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(self._config)

    def check_approval(self) -> None:
        """Whether the silo's officer still approves of the run; asked at every stage.

        Raises
        ------
        PolicyRefusal
            Denied or withdrawn since, or approved for other code or another roster.
        """
        for refused in self._admission.decision_refusals(self._digest):
            raise refused

    def forget_oldest_runs(self) -> None:
        """Delete the run keys of runs long ago; called when this one is joined."""
        if self._run_keys is not None:
            self._run_keys.forget_oldest_runs()

    def facts(self) -> dict[str, bytes]:
        """What the audit log says of the run that was joined."""
        return {"session": self._request.session, "run": self._digest, "config": self._config.digest()}

    def is_away(self, request: Request) -> bool:
        """Whether a simulated silo drops out here; only a silo whose policy says it is simulated ever does."""
        config = self._config
        return self._policy.simulated and drops(
            config.aggregation,
            config.dropout,
            config.seed,
            silo=self._silo,
            round=request.round,
            attempt=request.attempt,
            stage=request.stage,
        )

    def contributing(self, attachment: bytes) -> Callable[[Manifest], WordSource]:
        """The callback that trains: policy, then ledger, then records, in this order."""

        def contribute(manifest: Manifest) -> WordSource:
            self._check(manifest)
            model = self._open_model(manifest, attachment)
            self._check_start(manifest, model)
            if self._run_keys is not None:
                self.followed.check(manifest, model)
                model = self.followed.model  # not the one that was sent, which may differ in last bits
            self._check_cohort(manifest)
            self._check_one_model(manifest)
            self._check_least(manifest)
            self._check_plan(manifest)
            key = self._run_keys.use() if self._run_keys is not None and is_tagged(manifest) else None
            try:
                contributor = self._open_contributor()
            except Exception as error:
                raise ContributionFailed("the records cannot be made ready for training") from error
            self._ledger.charge(LedgerLine.of(manifest))
            try:
                asked = untagged(manifest)
                contribution = contributor.contribute(asked, model)
                cohort = manifest.cohorts[manifest.cohort_of(self._silo)]
                values, root = contribution.values, contribution.removable
                words = ContributionWords(values, asked.channels, len(cohort), root)
                return _Discreet(words if key is None else tagged(words, manifest, key, self._silo))
            except Exception as error:
                raise ContributionFailed(AFTER_RECORDS) from error

        return contribute

    def follow(self, stage: str, request: bytes) -> bytes:
        """Answer a stage in which no records are used: the run's key, and the opened sums that the model follows from.

        Raises
        ------
        ProtocolError
            Malformed, or the run proves nothing.
        Refusal
            A key or a sum that does not hold.
        """
        if self._run_keys is None:
            raise ProtocolError(f"the run this silo joined does not prove its models, so it has no stage {stage}")
        if stage == KEY_STAGE:
            return self._run_keys.answer(request)
        if request:
            self.followed.take(request)
        return self.followed.position().to_bytes()

    @cached_property
    def followed(self) -> FollowedModel:
        """This silo's own account of the model."""
        from autoflip_secure.federation.followed_model import FollowedModel

        assert self._run_keys is not None
        return FollowedModel(self._folder, self._request, self._run_keys)

    def _check(self, manifest: Manifest) -> None:
        self._policy.check_manifest(manifest)
        self._policy.check_data(self._folder)
        check_terms(manifest)
        terms, config = manifest.privacy, self._config
        if manifest.session != self._request.session:
            raise refusal(Rule.SESSION, "the manifest belongs to a session this silo did not join")
        if terms.trust == "none" and manifest.phase in TRAINING and manifest.round >= config.rounds:
            # Under DP the joined plan counts how often records are used, whatever the rounds are called.
            raise refusal(
                Rule.ROUNDS, f"round {manifest.round} is beyond the {config.rounds} of the run this silo joined"
            )
        if manifest.config_hash != self._digest:
            raise refusal(Rule.RUN, "the manifest's configuration is not the one this silo joined")
        if terms.trust != config.trust:
            raise refusal(Rule.RUN, "the manifest's trust mode is not the one this silo joined")
        counts_bits = any(channel.name == "clip_bits" for channel in manifest.channels)
        if counts_bits != (config.adaptive_clip is not None and manifest.phase in TRAINING):
            raise refusal(Rule.RUN, "the manifest and the run this silo joined disagree whether the clip is adaptive")
        asked = untagged(manifest) if self._run_keys is not None and is_tagged(manifest) else manifest
        leaving = {channel.name for channel in asked.channels} - self._channels_of(manifest.phase)
        if leaving:
            raise refusal(
                Rule.CHANNELS, f"{', '.join(sorted(leaving))} would leave", "the run this silo joined has none"
            )
        if terms.colluders < config.colluders or terms.delta > config.dp_delta:
            raise refusal(Rule.RUN, "the manifest promises less than the run this silo joined: colluders or delta")

    def _channels_of(self, phase: str) -> frozenset[str]:
        """What may leave in a phase of the joined run, as it was reviewed."""
        if phase in TRAINING:
            return run_channels(self._config, self._schedule)
        return frozenset({COUNTING[phase]})

    def _check_start(self, manifest: Manifest, model: ModelPayload) -> None:
        """In round 0: is the model the one that configuration and task give, or did the coordinator make one up?

        Weights can be made so that the update of few records shows them. What a later round's model should be follows
        from sums, which this silo knows where models are proved; else only sums and noise protect it there.
        """
        if manifest.round > 0 or self._policy.simulated:
            return
        from autoflip_secure.data.task import Task
        from autoflip_secure.federation.initial_model import initial_model, is_close, start_hash

        own = initial_model(self._config, Task.from_json(self._request.task))
        approved = self._admission.approved_model(self._digest)
        if approved is not None and start_hash(own) != approved:
            raise refusal(
                Rule.INITIAL_MODEL,
                f"this silo builds {start_hash(own).hex()}, approved was {approved.hex()}",
                "another PyTorch may have been installed since",
            )
        if not is_close(model, own):
            raise refusal(
                Rule.INITIAL_MODEL,
                f"round 0 starts from {start_hash(model).hex()}, the configuration gives {start_hash(own).hex()}",
            )

    def _open_model(self, manifest: Manifest, attachment: bytes) -> ModelPayload:
        """The model sent along: the one the manifest names, and of the shape of this silo's task.

        Where models are proved a silo has it already, and is not sent it if its own is the same to the bit.
        """
        from autoflip_secure.data.task import Task
        from autoflip_secure.federation.model_payload import ModelPayload

        whose = "the model sent"
        if not attachment and self._run_keys is not None:
            whose, attachment = "this silo's own model, as none was sent,", self.followed.model.to_bytes()
        if manifest.model_hash != hashlib.sha256(attachment).digest():
            raise refusal(Rule.MODEL, f"{whose} is not the one the manifest names")
        model, task = ModelPayload.from_bytes(attachment), Task.from_json(self._request.task)
        spec = model.spec
        if (spec.name, spec.input_shape, spec.outputs) != (self._config.model, task.input_shape, task.outputs):
            raise refusal(
                Rule.MODEL, f"the model sent is a {spec.name} for {spec.input_shape} -> {spec.outputs}, not this run's"
            )
        if model.mask_hash() != manifest.mask_hash:
            raise refusal(Rule.MODEL, "the mask sent is not the one the manifest names")
        return model

    def _check_cohort(self, manifest: Manifest) -> None:
        """Without DP two sums of one round whose cohorts differ would subtract to the silos in between: refuse.

        Refused too: other channels in a second asking, since what training finds is the same, and each moment of it
        that is released needs a survivor more.

        With the cohort filter, and where models are proved, the cohorts are those that the joined configuration fixes,
        DP or not. So are the blocks, of which silos of a sum are there to the last, always.
        """
        self._check_blocks(manifest)
        if self._config.cohort_filter or self._run_keys is not None:
            self._check_fixed_cohorts(manifest)
        if manifest.privacy.trust != "none":
            return
        names = sorted(channel.name for channel in manifest.channels)
        asked = msgpack.packb([list(manifest.cohorts[manifest.cohort_of(self._silo)]), names])
        before = self._asked_first(manifest, "train" if manifest.phase in TRAINING else manifest.phase, asked)
        if self._less_departed(before) != asked:
            raise refusal(
                Rule.COHORTS,
                f"round {manifest.round} was asked for before with another cohort or for other channels; without DP "
                "the difference of two sums would show single silos, and a sum and squares opened one after the other "
                "need as many survivors as both at once",
            )

    def _asked_first(self, manifest: Manifest, kind: str, asked: bytes) -> bytes:
        """What a round was asked for with the first time, kept before the answer leaves: `asked`, if that is now."""
        first = self._first(manifest.round, kind, asked)
        assert first is not None
        return first

    def _first(self, round: int, kind: str, value: bytes | None) -> bytes | None:
        """What this session kept of a kind first: `value`, if nothing was kept before; None where there is neither."""
        key = (self._request.session, round, kind)
        if value is not None:
            self._database.execute("INSERT OR IGNORE INTO cohorts VALUES (?, ?, ?, ?)", (*key, value))
        query = "SELECT cohort FROM cohorts WHERE session = ? AND round = ? AND phase = ?"
        row = self._database.execute(query, key).fetchone()
        return None if row is None else bytes(row[0])

    def _less_departed(self, asked: bytes) -> bytes:
        """A cohort asked for before, without silos that were removed since: what is left of it may be asked for.

        The federation's owner signs removals; a sum without those silos is what a retry without them opens, too.
        """
        cohort, names = msgpack.unpackb(asked)
        return bytes(msgpack.packb([list(still_enrolled(cohort, self._blocks(), self._admission.roster)), names]))

    def _check_one_model(self, manifest: Manifest) -> None:
        """Without DP a round trains one model, however often it is tried again: refuse another.

        A model made for it shows some records of a sum, and where models are not proved nothing else limits how many
        sums a round may have. Under DP the plan counts them. Round 0's model is the configuration's (`_check_start`).
        """
        if manifest.privacy.trust != "none" or manifest.phase not in TRAINING or manifest.round == 0:
            return
        if self._asked_first(manifest, "model", manifest.model_hash) != manifest.model_hash:
            raise refusal(Rule.ONE_MODEL, f"round {manifest.round} was asked for before with another model")

    def _check_least(self, manifest: Manifest) -> None:
        """A sum is opened with no fewer survivors than the run that was joined, and reviewed, opens any like it."""
        plans = [self._schedule.plan(round) for round in self._schedule.kinds]
        plans = plans if manifest.phase in TRAINING else [self._schedule.whole()]
        least, stated = min(least for plan in plans for least in plan.minimum), min(manifest.minimum)
        if stated < least:
            raise refusal(
                Rule.RUN, f"a sum over {stated} silos would be opened", f"the joined run opens none below {least}"
            )

    def _check_fixed_cohorts(self, manifest: Manifest) -> None:
        trains = manifest.phase in TRAINING
        plan = self._schedule.plan(manifest.round) if trains else self._schedule.whole()
        roster, blocks = self._admission.roster, self._blocks()
        if manifest.cohorts != tuple(
            still_enrolled(cohort, blocks, roster) for cohort in ids_of(plan.cohorts, self._places)
        ):
            raise refusal(
                Rule.COHORTS, f"round {manifest.round} was asked for with other cohorts than the joined run fixes"
            )

    def check_roster(self) -> None:
        """Whether this silo knows who is in which block of the run.

        Raises
        ------
        PolicyRefusal
            Its roster never had as many silos as the run: places would be other silos after a removal.
        """
        if self._config.block > 1 and not self._places:
            raise refusal(
                Rule.MIN_BLOCK,
                f"the run is one of {self._config.silos} silos, this silo's roster has "
                f"{len(self._admission.roster.silos)}, so nobody knows who is in which block; begin a run of these",
            )

    def _check_blocks(self, manifest: Manifest) -> None:
        """A cohort is made of blocks of the joined run, and the manifest says which: no sum that the silos open has a
        part of one. So no sums of the run differ by less than a block.

        Without any block in it a manifest would name none and be valid; with one it has to name all of its cohorts.
        """
        self.check_roster()
        blocks = inside(self._blocks(), manifest.cohorts)
        if manifest.blocks != blocks or (self._config.block > 1 and not blocks):
            raise refusal(
                Rule.BLOCKS, f"round {manifest.round} was asked for with other blocks than the joined run fixes"
            )

    def _blocks(self) -> list[list[int]]:
        """Silos of the joined run that are summed together or not at all; none where each is by itself."""
        return ids_of(self._schedule.blocks, self._places) if self._config.block > 1 else []

    def _first_places(self) -> tuple[int, ...]:
        """Ids of the silos that the run began with, by the schedule's 1, 2, ...; empty where they were never as many.

        Ids have gaps where a silo left before the run began. Who was there then is kept: silos may leave later, too.
        """
        ids = self._admission.roster.silos
        whole = msgpack.packb(list(ids)) if len(ids) == self._config.silos else None
        first = self._first(NO_ROUND, "places", whole)
        return () if first is None else tuple(msgpack.unpackb(first))

    def _check_plan(self, manifest: Manifest) -> None:
        """Under DP: only what the joined plan names, no more often than it says, on a fine enough grid."""
        terms = manifest.privacy
        if terms.trust == "none":
            return
        planned = self._request.planned.get(terms.dataset, [])
        allowed = sum(
            m.count
            for m in planned
            if (m.sampling_rate, m.noise_multiplier) == (terms.sampling_rate, terms.noise_multiplier)
        )
        used = self._ledger.session_uses(terms.dataset, terms.sampling_rate, terms.noise_multiplier)
        if used + terms.steps > allowed:
            raise BudgetExhausted(
                f"the run this silo joined plans {allowed} such uses of {terms.dataset}, {used} are spent"
            )
        releases = sum(m.count for mechanisms in self._request.planned.values() for m in mechanisms)
        check_grid(manifest, max(releases, self._ledger.releases() + 1), self._policy.epsilon)

    def _open_contributor(self) -> Contributor:
        if self._contributor is None:
            # Imported here: torch takes seconds to load and the key stages do without it.
            from autoflip_secure.data.silo_folder import read_silo
            from autoflip_secure.data.task import Task
            from autoflip_secure.federation.contribution import Contributor
            from autoflip_secure.training.device import pick_device

            task = Task.from_json(self._request.task)
            data = read_silo(self._folder / "data", task)
            device = str(pick_device(self._config.device))
            bad = None if self._config.bad_silos is None else BadSilos.parse(self._config.bad_silos)
            if bad is None or self._silo not in bad.silos(self._config.seed, self._config.silos):
                self._contributor = Contributor(self._config, task, data, self._silo, device)
            else:
                from autoflip_secure.federation.bad_contributor import BadContributor

                self._contributor = BadContributor(bad, self._config, task, data, self._silo, device)
        return self._contributor
