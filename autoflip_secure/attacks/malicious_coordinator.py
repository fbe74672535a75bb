"""What a coordinator gets that lies to real silos: crafted models, chosen masks, split views, small sums, epsilon.

It holds its own key and every reply (`lying_coordinator`). The silos hold digits of two classes each, as hospitals that
treat different illnesses; their policy accepts the joined run and nothing less. In one run a setting they take models
as they come, so that it shows what crafted ones do; in another they ask for proofs, as policies do by default.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from autoflip_secure.attacks.lying_coordinator import LyingCoordinator
from autoflip_secure.attacks.outcome import SLACK, Attack, Outcome, Scale, mean_interval, proportion_interval
from autoflip_secure.attacks.proof_lies import proof_outcomes
from autoflip_secure.attacks.settings import SETTINGS, PrivacyProfile, charges_of, epsilon_of

__all__ = ["ATTACK"]

OPTIONS: dict[str, Any] = {
    "dataset": "digits",
    "model": "mlp",
    "silos": 5,
    "colluders": 1,
    "prune": "magnitude",
    "partition": "pathological:2",
}
ONE_STEP: dict[str, Any] = {"local_steps": 1, "batch_size": 2000}
"""Without DP: one step over all records, as FedSGD takes it. Officers approve such runs every day."""

FEW_LARGE: dict[str, Any] = {"sampling_rate": 0.5}
"""Under DP: few rounds with half of the records each, for which the plan adds the least noise to a round."""

DP_ROUNDS = 32
"""With its reserve enough for all attacks; what the others leave goes to the records."""

DP_TARGETS, DP_VICTIMS, DP_SLOTS = 4, 2, 4
"""Under DP: silos that one class or one mask is tried on, silos shown another model, slots with other survivors."""

PROVED_ROUNDS = 8
"""Of runs that prove their models: a few are honest, and no lie uses one up."""

CHANCE_OF_NOISE = 0.05
"""Cosine to one silo's update that masked words may have by accident: about four times its standard deviation."""

UNPROVED = "models not proved: `proved_models = false`"
"""A silo that asks for proofs answers no such model (`proof_lies`)."""

NO_MORE_THAN_ITS_CLASS = f"a class's mean picture, + {SLACK}"
BY_ACCIDENT = "what is near a record by accident taken as public records are"
SECURE_SUM, RULES, LEDGER = "secure sum", "silo rules", "ledger"


def _run(scale: Scale) -> Iterator[Outcome]:
    from autoflip_secure.data.registry import load

    data, pictures = load("digits", None, 0), {}
    assert data.public_test is not None
    for number, setting in enumerate(SETTINGS):
        noised = epsilon_of(setting) is not None
        options = {**OPTIONS, **({"rounds": DP_ROUNDS, **FEW_LARGE} if noised else {"rounds": 400, **ONE_STEP})}
        with closing(LyingCoordinator(scale.work / f"malicious-{number}", data, setting, options)) as lying:
            attacks = _Attacks(lying, data.public_test, setting, scale.quick)
            yield from attacks.outcomes()
            pictures[setting] = attacks.pictures
        if "none" not in SETTINGS[setting]:
            options |= {"rounds": PROVED_ROUNDS, "prove_models": True}
            with closing(LyingCoordinator(scale.work / f"proved-{number}", data, setting, options)) as lying:
                yield from proof_outcomes(lying, data.public_test, setting, quick=scale.quick)
    if scale.pictures is not None:
        from autoflip_secure.attacks.crafted_picture import draw

        draw(pictures, scale.pictures)


ATTACK = Attack(name="malicious-coordinator", page="malicious-coordinator.md", run=_run)


class _Attacks:
    """All attacks on one federation, in an order in which rounds are used once and the plan of a DP run suffices."""

    def __init__(self, lying: LyingCoordinator, public: Any, setting: str, quick: bool) -> None:
        self._lying, self._public, self._setting, self._quick = lying, public, setting, quick
        self._random = np.random.default_rng(0)
        self._noised = lying.config.trust != "none"
        self._plain = lying.config.aggregation == "none"
        self._round = 1
        self.pictures: list[Any] = []

    def outcomes(self) -> Iterator[Outcome]:
        yield from self._records()
        yield from self._single_silo()
        yield from self._split_view()
        if self._plain:
            yield self._plain_sums()
            return
        yield from self._lies()
        yield from self._survivors()
        if self._noised:
            yield from self._epsilon()

    def _rounds(self, count: int) -> range:
        """Rounds that were not used before."""
        self._round += count
        return range(self._round - count, self._round)

    def _unclaimed_rounds(self) -> int:
        """Rounds that the joined plan pays for and no other attack needs; those whose lies are refused use none up."""
        planned = sum(mechanism.count for mechanism in self._lying.joined.planned["train"])
        # A target is asked about four times: one class and one mask, each beside an honest model.
        return planned - 4 * DP_TARGETS - DP_VICTIMS - DP_SLOTS

    def _records(self) -> Iterator[Outcome]:
        from autoflip_secure.attacks.model_attacks import held, public_match, recover_records

        rounds = self._unclaimed_rounds() if self._noised else 20 if self._quick else 200
        found = recover_records(self._lying, self._public, self._rounds(rounds), self._random)
        self.pictures = found.pictures
        records = [held(self._lying, silo) for silo in self._lying.roster.silos]
        matched = sum(public_match(each, self._public) for each in records)
        by_chance = proportion_interval(matched, sum(map(len, records)))
        bound, rests_on = None, ""
        if self._noised:
            # Of the rounds that the attack had so far; the ledgers have no others yet.
            proved = PrivacyProfile.of(charges_of(self._lying.folder.path), self._lying.config.dp_delta)
            bound, rests_on = proved.true_positives(by_chance[2]), f"{proved.promise}; {BY_ACCIDENT}"
        note = f"one imprint in {rounds} rounds, denoised" if self._noised else f"{rounds} rounds; more recover more"
        yield Outcome(
            "crafted model: single records", self._setting, "of the records within reach, recovered nearly exactly",
            *proportion_interval(found.hits, found.reach), found.reach, by_chance[0], bound, rests_on,
            self._noted(note),
        )  # fmt: skip
        yield Outcome(
            "crafted model: beyond the class", self._setting, "explained of a record, beyond its class's mean picture",
            *mean_interval(found.explained), len(found.explained), 0.0,
            SLACK if self._noised else None, NO_MORE_THAN_ITS_CLASS if self._noised else "",
            self._noted("a sum without DP is not defended" if self._setting == "sum" else ""),
        )  # fmt: skip

    def _noted(self, note: str) -> str:
        """The note of a row on silos that take models as they come; with `none` nothing could be proved."""
        return note if self._plain else "; ".join(part for part in (note, UNPROVED) if part)

    def _single_silo(self) -> Iterator[Outcome]:
        from autoflip_secure.attacks.model_attacks import mask_cosines, single_class_cosines, sole_classes

        targets = sole_classes(self._lying)
        targets = targets[:: max(1, len(targets) // 5)][: DP_TARGETS if self._noised else 5]
        rounds = self._rounds(2 * len(targets))
        honest, crafted = single_class_cosines(self._lying, targets, rounds)
        note = "" if self._noised else "the sum is the silo's update: not defended without DP"
        yield self._cosines("crafted model: one silo by its class", crafted, honest, note)
        honest, chosen = mask_cosines(self._lying, self._public, targets, self._rounds(2 * len(targets)), self._random)
        yield self._cosines("chosen mask: one silo", chosen, honest, "honest weights, a tenth of them alive")

    def _cosines(self, attack: str, values: list[float], honest: list[float], note: str) -> Outcome:
        return Outcome(
            attack, self._setting, "cosine of what opens to one silo's update",
            *mean_interval(values), len(values), None if self._plain else float(np.mean(honest)),
            note="each vector comes alone" if self._plain else self._noted(note),
        )  # fmt: skip

    def _split_view(self) -> Iterator[Outcome]:
        from autoflip_secure.attacks.crafted_models import dead_model, hidden_weights
        from autoflip_secure.attacks.disaggregation import cosine
        from autoflip_secure.attacks.model_attacks import own_update
        from autoflip_secure.attacks.survivor_lies import split_view

        lying, good = self._lying, self._lying.first_model()
        dead, hidden = dead_model(good.spec, good.records), hidden_weights(good.spec)
        victims = lying.roster.silos[: DP_VICTIMS if self._noised else 5]
        values, helped = [], 0
        for victim, round in zip(victims, self._rounds(len(victims)), strict=True):
            total, opened = split_view(lying, victim, good, dead, round=round)
            values.append(cosine(total[hidden], own_update(lying, victim, good)[hidden]))
            helped += opened
        yield Outcome(
            "other models to other silos", self._setting, "cosine of what opens to one silo's update",
            *mean_interval(values), len(values), 0.0, None if self._plain else CHANCE_OF_NOISE,
            "" if self._plain else SECURE_SUM, f"{helped} of {len(victims)} sums were opened",
        )  # fmt: skip

    def _lies(self) -> Iterator[Outcome]:
        from autoflip_secure.attacks.protocol_lies import model_lies, second_models, set_up_lies, size_lies

        attempts = 100 if self._quick else 1000
        (round,) = self._rounds(1)
        sizes = size_lies(self._lying, attempts, self._random, round=round)
        keys = set_up_lies(self._lying, attempts // 10, self._random)
        yield self._accepted(
            "small cohorts, low minimum or threshold", sizes.told + keys.told, sizes.accepted + keys.accepted
        )
        (round,) = self._rounds(1)
        models = model_lies(self._lying, attempts, self._random, round=round)
        yield self._accepted("a model that the manifest does not name", models.told, models.accepted)
        if not self._noised:
            (round,) = self._rounds(1)
            second = second_models(self._lying, attempts, self._random, round=round)
            yield self._accepted("a second model for one round", second.told, second.accepted)

    def _survivors(self) -> Iterator[Outcome]:
        from autoflip_secure.attacks.survivor_lies import survivor_lies

        (round,) = self._rounds(1)
        slots = DP_SLOTS if self._noised else 15 if self._quick else 200
        tally = survivor_lies(self._lying, slots, self._random, round=round)
        yield self._accepted("other survivors to other silos", tally.requests.told, tally.requests.accepted)
        yield self._accepted(
            "other survivors: more than one sum",
            tally.slots.told,
            tally.slots.accepted,
            "share of slots in which it opens",
        )

    def _epsilon(self) -> Iterator[Outcome]:
        from autoflip_secure.attacks.protocol_lies import budget_lies, join_lies, rounds_beyond

        attempts = 90 if self._quick else 900
        (round,) = self._rounds(1)
        before = self._spent()
        told = [
            budget_lies(self._lying, attempts, self._random, round=round),
            join_lies(self._lying, 6 if self._quick else 50, self._random),
        ]
        charged = self._spent() - before
        told.append(rounds_beyond(self._lying, 20, round=round))
        yield self._accepted(
            "more epsilon than joined", sum(t.told for t in told), sum(t.accepted for t in told),
            note=f"refused requests charged {charged:g} of epsilon",
        )  # fmt: skip
        share = self._spent() / (self._lying.config.dp_epsilon or np.inf)
        yield Outcome(
            "epsilon after all of this", self._setting, "spent by the ledger, of what the policy accepts",
            share, share, share, 1, None, 1.0, LEDGER, "silo 1, recomputed from its lines",
        )  # fmt: skip

    def _spent(self) -> float:
        """Epsilon of silo 1, recomputed from its ledger by the audit that officers have."""
        from autoflip_secure.federation.client_app import silo_folder
        from autoflip_secure.federation.ledger_audit import audit_ledger

        path = silo_folder(self._lying.folder.path, 1) / "state.sqlite"
        audit = audit_ledger(path, None, delta=self._lying.config.dp_delta, now=time.time())
        if audit.failures:
            raise RuntimeError(f"the ledger does not add up: {audit.failures[0]}")
        return max((row.recomputed.pld for row in audit.datasets), default=0.0)

    def _plain_sums(self) -> Outcome:
        """Nothing to lie about: an honest round of the joined run brings every silo's vector alone."""
        lying, rounds = self._lying, self._rounds(20)
        for round in rounds:
            lying.sum(lying.first_model(), round)
        alone = len(lying.vectors)
        return Outcome(
            "small cohorts, low minimum or threshold", self._setting, "share accepted",
            *proportion_interval(alone, len(lying.silos)), alone, 0.0,
            note="no lie is needed: each vector comes alone",
        )  # fmt: skip

    def _accepted(
        self, attack: str, told: int, accepted: int, measure: str = "share accepted", note: str = ""
    ) -> Outcome:
        return Outcome(
            attack, self._setting, measure, *proportion_interval(accepted, told), told, 0.0, 0.0, RULES, note
        )
