"""A run that proves its models, honest so far, in the hands of a coordinator that is about to lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from autoflip_secure.attacks.lying_coordinator import LyingCoordinator
from autoflip_secure.federation.audit_trail import manifest_in
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.model_step import ModelStep
from autoflip_secure.federation.sum_proof import (
    FOLLOW_STAGE,
    KEY_STAGE,
    Position,
    SumProof,
    untagged,
    untagged_sums,
    with_tag,
)
from autoflip_secure.federation.sums import decode
from autoflip_secure.federation.terms import on_fine_grid
from autoflip_secure.parties.run_key import distribute
from autoflip_secure.sums.manifest import Manifest

__all__ = ["ProvedRun"]


class ProvedRun:
    """Silos that joined with `--prove-models` and share a run key, and what the coordinator knows of the run.

    Parameters
    ----------
    lying : LyingCoordinator
        Its silos have joined, and none was asked for a round. One cohort a round, and a public number of records.

    Attributes
    ----------
    step : ModelStep
        The model that follows from the sums so far.
    proofs : list of SumProof
        Sums that all silos took.
    models : list of ModelPayload
        Models of all rounds before the one to come.

    Raises
    ------
    RuntimeError
        A silo has no run key.
    """

    def __init__(self, lying: LyingCoordinator) -> None:
        self.lying = lying
        self.step = ModelStep(lying.config, lying.task, lying.schedule, _silent)
        self.proofs: list[SumProof] = []
        self.models: list[ModelPayload] = []
        exchange = partial(lying.exchange(lambda silo: b"", round=0), KEY_STAGE)
        if distribute(exchange, lying.roster.silos, lying.roster, lying.session) != set(lying.roster.silos):
            raise RuntimeError("not every silo has the run key")

    @property
    def round(self) -> int:
        """The round to come."""
        return self.step.state.round

    def manifest(self, model: ModelPayload, *, attempt: int = 0) -> Manifest:
        """An honest coordinator's for the round to come, but for the model: channels fit what lives of it."""
        lying, honest = self.lying, self.step.state.model
        terms = self.step.clipped(lying.plan.train_terms(lying.schedule.is_exploration(self.round)))
        lives, live = int(honest.mask.sum()), int(model.mask.sum())
        channels = tuple(
            replace(channel, length=live) if channel.length == lives else channel
            for channel in self.step.channels(self.round, terms.noise_multiplier)
        )
        made = lying.manifest(model, self.round, attempt=attempt, channels=channels, privacy=terms)
        if terms.trust != "none":
            made = on_fine_grid(made, lying.plan.privacy.releases, lying.plan.privacy.epsilon)
        return with_tag(made)

    def open(self, *, attempt: int = 0, missing: int | None = None) -> SumProof:
        """Open the sum of the round to come honestly, without one silo where asked; it is shown to nobody yet."""
        model = self.step.state.model
        content, seen = model.to_bytes(), list[Manifest]()
        ask = self.lying.exchange(lambda silo: content, round=self.round, attempt=attempt)

        def exchange(stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
            if stage == "masked":
                seen.append(manifest_in(stage, next(iter(requests.values()))))
                requests = {silo: request for silo, request in requests.items() if silo != missing}
            yield from ask(stage, requests)

        opened = self.lying.cohort_sum(self.manifest(model, attempt=attempt), exchange)
        return SumProof(seen[-1], (opened,))

    def believes(self, silo: int, proof: bytes) -> bool:
        """Whether a silo goes on by what it is shown as the sum of the round to come."""
        reply = self.lying.ask(silo, FOLLOW_STAGE, proof, round=self.round)
        return reply.status == "ok" and Position.read(reply.reply).taken > self.round

    def go_on(self, proof: SumProof) -> None:
        """Show an honest sum to all silos, and move the model by it.

        Raises
        ------
        RuntimeError
            A silo does not take it.
        """
        data = proof.to_bytes()
        doubting = [silo for silo in self.lying.roster.silos if not self.believes(silo, data)]
        if doubting:
            raise RuntimeError(f"silos {doubting} did not take an honest sum of round {self.round}")
        plain = untagged(proof.manifest)
        self.models.append(self.step.state.model)
        self.proofs.append(proof)
        self.step.advance(plain.privacy, [decode(plain, each) for each in untagged_sums(proof.manifest, proof.sums)])


def _silent(event: str, **fields: object) -> None:
    pass
