"""The model as a silo follows it: computed from opened sums that prove themselves, not taken from the coordinator.

A coordinator that makes up a model can have a sum show one record, or one silo (Boenisch et al. 2021, arXiv 2112.02918;
Wen et al. 2022, arXiv 2202.00580). The initial model follows from configuration and seed, and each later one from the
one before and a round's opened sums. So where a silo can check that a sum was made by silos of the run alone, it knows
every model by itself, and contributes to no other. What is shown of a sum no silo can take for another: its tag is a
one-time authenticator under a key that only the silos of the run have.

The tag covers where each silo's noise chain ends, too, so that no noise is taken out of a sum but by links that its
silos revealed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoflip_secure.data.task import Task
from autoflip_secure.errors import Abort, ProtocolError, StorageError
from autoflip_secure.federation.initial_model import ROUNDING, is_close
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.model_step import ModelStep
from autoflip_secure.federation.plan import round_steps
from autoflip_secure.federation.policy_rules import Rule, refusal
from autoflip_secure.federation.run_state import (
    RunState,
    checkpoint_stamp,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sum_proof import (
    PROVED_PHASES,
    Position,
    SumProof,
    is_tagged,
    proof_spec,
    untagged,
    untagged_sums,
)
from autoflip_secure.federation.sum_watch import SumWatch
from autoflip_secure.federation.sums import decode
from autoflip_secure.federation.terms import COUNT_SENSITIVITY, on_fine_grid
from autoflip_secure.parties.run_key import RunKeys
from autoflip_secure.parties.run_key_store import KEPT_RUNS
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import HASH_BYTES, Manifest, PrivacyTerms

__all__ = ["FollowedModel"]

FOLDER = "followed"
CLOSE = 1e-6
"""Relative distance of public numbers that two machines may compute apart: their libraries round last bits."""

_log = logging.getLogger(__name__)


class FollowedModel:
    """A silo's own account of the model of the run it joined; durable, so a restart forgets nothing.

    Parameters
    ----------
    folder : Path
        The silo's own.
    request : JoinRequest
        The run.
    keys : RunKeys
        Has the key that the run's silos share.
    """

    def __init__(self, folder: Path, request: JoinRequest, keys: RunKeys) -> None:
        self._request, self._keys = request, keys
        # A run may rest while others go on, and its session may not be given to a run that computes anything else.
        self._folder = folder / FOLDER / request.run_digest().hex()
        _forget_oldest(folder / FOLDER)
        self._task = Task.from_json(request.task)
        self._schedule, self._counted = Schedule(request.config), not self._task.nominal_records
        self._watch = SumWatch(request.config, self._task.nominal_records or 0, _silent)
        self._load()

    def _load(self) -> None:
        self._stamp = checkpoint_stamp(self._folder)
        self._step = ModelStep(self._request.config, self._task, self._schedule, _silent, self._kept())
        facts = self._step.state.facts
        self._taken, self._last = int(facts.get("taken", 0)), str(facts.get("last", ""))

    def _refresh(self) -> None:
        """Another process may have answered for this silo since."""
        if checkpoint_stamp(self._folder) != self._stamp:
            self._load()

    @property
    def taken(self) -> int:
        """Opened sums taken so far, a census included."""
        self._refresh()
        return self._taken

    def position(self) -> Position:
        """How many that is, and the hash of the model they lead to."""
        last = bytes.fromhex(self._last) if self.taken else bytes(HASH_BYTES)
        return Position(self._taken, hashlib.sha256(self.model.to_bytes()).digest(), last)

    def _kept(self) -> RunState | None:
        """What is kept of this run; None: nothing, or it is damaged, and then all sums have to be shown again."""
        if not has_checkpoint(self._folder):
            return None
        try:
            return load_checkpoint(self._folder)
        except StorageError as error:
            _log.warning("%s; this silo asks for all sums of the run anew", error)
            return None

    @property
    def model(self) -> ModelPayload:
        """The model that the sums taken so far lead to."""
        self._refresh()
        return self._step.state.model

    def take(self, proof: bytes) -> None:
        """Check the opened sums that come next, and move the model by them; the last ones once more change nothing.

        Raises
        ------
        PolicyRefusal
            They are not those of the run's next round, or not what its silos contributed.
        ProtocolError
            Malformed.
        """
        self._refresh()
        name = hashlib.sha256(proof).hexdigest()
        if name == self._last:
            return
        shown = SumProof.from_bytes(proof)
        manifest = shown.manifest
        self._check_next(manifest)
        self._check_tags(shown)
        plain, sums = untagged(manifest), untagged_sums(manifest, shown.sums)
        try:
            aggregates = self._watch.passed(plain, sums, [decode(plain, each) for each in sums])
        except Abort as abort:
            raise refusal(Rule.PROOF, f"round {manifest.round}: {abort.reason}") from abort
        try:
            self._adopt(shown.start)
            if manifest.mask_hash != self._step.state.model.mask_hash():
                raise refusal(Rule.PROOF, f"round {manifest.round} was trained on another mask")
            if manifest.phase == "census":
                self._step.count(aggregates[0])
            else:
                self._step.advance(manifest.privacy, aggregates)
            self._taken, self._last = self._taken + 1, name
            state = self._step.keep()
            state.facts |= {"taken": self._taken, "last": name}
            save_checkpoint(self._folder, state)
        except Exception:
            self._load()  # what is on disk is what counts
            raise
        self._stamp = checkpoint_stamp(self._folder)

    def _adopt(self, start: bytes) -> None:
        """Before the first sums: start from the very weights that the coordinator drew, where they are close enough."""
        if self._taken or not start:
            return
        if len(start) != 4 * self._step.dense_size:
            raise ProtocolError("the weights that the run starts from are not as many as its network has")
        weights = np.frombuffer(start, "<f4").astype(np.float32)
        if not np.abs(weights - self._step.start).max(initial=0.0) <= ROUNDING:
            raise refusal(Rule.PROOF, "the run starts from other weights than configuration and seed give")
        self._step = ModelStep(self._request.config, self._task, self._schedule, _silent, start=weights)

    def _check_next(self, manifest: Manifest) -> None:
        phase, round = self._next()
        # That it is of this very run the key of its tags tells: the code that asked may have been another since.
        if manifest.session != self._request.session:
            raise refusal(Rule.PROOF, "sums of another run were shown")
        if (manifest.phase, manifest.round) != (phase, round):
            raise refusal(
                Rule.PROOF,
                f"sums of {manifest.phase} round {manifest.round} were shown, those of {phase} round {round} come next",
            )
        if not is_tagged(manifest):
            raise refusal(Rule.PROOF, f"the sums of round {round} carry no tag")

    def _next(self) -> tuple[str, int]:
        """Phase and round of the sums that come next."""
        if self._counted and not self._taken:
            return "census", 0
        round = self._taken - self._counted
        if round >= self._schedule.rounds:
            raise refusal(Rule.PROOF, "sums were shown of a round after the run's last")
        return self._schedule.plan(round).phase, round

    def _check_tags(self, shown: SumProof) -> None:
        key = self._keys.tag_key
        if key is None:
            raise refusal(Rule.PROOF, "this silo does not have the run's key yet")
        if not shown.holds(key):
            silos = sorted(silo for each in shown.sums for silo in each.silos)
            raise refusal(
                Rule.PROOF,
                f"round {shown.manifest.round}: what was shown as sums of silos {silos} is not what they contributed",
            )
        if self._keys.use() != key:
            raise refusal(Rule.PROOF, "another process of this silo took another run key meanwhile")

    def check(self, manifest: Manifest, model: ModelPayload) -> None:
        """Whether a round asks for what follows from the sums taken: this model, these channels, this clip.

        Raises
        ------
        PolicyRefusal
            Says what does not follow.
        """
        self._refresh()
        needed = 0 if manifest.phase == "census" else manifest.round + self._counted
        if self._taken != needed:
            raise refusal(
                Rule.PROOF, f"round {manifest.round} was asked for, this silo was shown the sums of {self._taken}"
            )
        if manifest.phase in PROVED_PHASES and not is_tagged(manifest):
            raise refusal(Rule.PROOF, f"round {manifest.round} asks for no tag: its sum could not be shown to anybody")
        if is_tagged(manifest) and self._keys.key is None:
            raise refusal(Rule.PROOF, "a tag is asked for, and this silo does not have the run's key yet")
        counting = manifest.phase == "census"
        if not is_close(model, self.model) or (model.records != self.model.records and not counting):
            raise refusal(
                Rule.PROOF, f"the model of round {manifest.round} does not follow from the sums that were shown"
            )
        if manifest.phase in PROVED_PHASES:
            self._check_promise(manifest)
            (self._check_census if counting else self._check_terms)(manifest)

    def _check_promise(self, manifest: Manifest) -> None:
        terms, config = manifest.privacy, self._request.config
        plan = self._schedule.whole() if manifest.phase == "census" else self._schedule.plan(manifest.round)
        if (terms.colluders, terms.delta, manifest.minimum) != (config.colluders, config.dp_delta, plan.minimum):
            raise refusal(Rule.PROOF, "a round of the joined run has other colluders, delta or fewest survivors")

    def _check_census(self, manifest: Manifest) -> None:
        if not self._counted:
            raise refusal(Rule.PROOF, "the joined run has no census")
        terms = manifest.privacy
        noise = 0.0 if terms.trust == "none" else self._request.planned["train"][-1].noise_multiplier
        if (terms.clip, terms.noise_multiplier) != (COUNT_SENSITIVITY, noise):
            raise refusal(Rule.PROOF, "the census of the joined run has another noise")
        self._check_channels(manifest, ModelStep.census_channels(noise))

    def _check_terms(self, manifest: Manifest) -> None:
        if manifest.round >= self._schedule.rounds:
            raise refusal(Rule.PROOF, f"the joined run ends before round {manifest.round}")
        phase = self._schedule.plan(manifest.round).phase
        if manifest.phase != phase:
            raise refusal(Rule.PROOF, f"round {manifest.round} of the joined run is one of phase {phase}")
        terms, config = manifest.privacy, self._request.config
        self._check_use(terms, exploring=phase == "explore")
        if terms.trust != "none" and not _close(terms.clip, self._step.clip.value):
            raise refusal(Rule.PROOF, f"the clip of round {manifest.round} does not follow from the sums")
        wanted = replace(manifest, channels=tuple(self._step.channels(manifest.round, terms.noise_multiplier)))
        if terms.trust != "none":
            releases = sum(m.count for mechanisms in self._request.planned.values() for m in mechanisms)
            wanted = on_fine_grid(wanted, releases, float(config.dp_epsilon or 0.0))
        self._check_channels(manifest, wanted.channels)

    def _check_channels(self, manifest: Manifest, channels: Sequence[ChannelSpec]) -> None:
        asked, expected = manifest.channels, (*channels, proof_spec(manifest))
        if len(asked) != len(expected) or not all(map(_same_channel, asked, expected)):
            raise refusal(Rule.PROOF, f"the channels of round {manifest.round} are not those that follow from the sums")

    def _check_use(self, terms: PrivacyTerms, *, exploring: bool) -> None:
        """Whether a round uses the records as the joined run's rounds do: as often, of as many, under as much noise."""
        config = self._request.config
        wanted = (1.0, 0.0)
        if terms.trust != "none":
            wanted = (config.sampling_rate, self._request.planned["train"][0].noise_multiplier)
        if terms.steps != round_steps(config, exploring) or (terms.sampling_rate, terms.noise_multiplier) != wanted:
            raise refusal(Rule.PROOF, "a round of the joined run takes other steps, sampling rate or noise")


def _forget_oldest(folder: Path) -> None:
    """Delete what is kept of runs long ago."""
    kept = sorted((each for each in folder.glob("*") if each.is_dir()), key=lambda each: each.stat().st_mtime)
    for each in kept[:-KEPT_RUNS]:
        shutil.rmtree(each, ignore_errors=True)


def _same_channel(asked: ChannelSpec, expected: ChannelSpec) -> bool:
    names = (asked.name, asked.length, asked.bits)
    return names == (expected.name, expected.length, expected.bits) and _close(asked.limit, expected.limit)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=CLOSE)


def _silent(event: str, **fields: object) -> None:
    """Events are the coordinator's: a silo has its own log."""
