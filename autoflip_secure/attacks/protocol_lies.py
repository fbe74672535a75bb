"""Lies of a coordinator about sizes, budgets and models, drawn at random: how many of them a silo answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoflip_secure.attacks.lying_coordinator import LyingCoordinator
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.terms import deviation_channel, energy_channel
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch
from autoflip_secure.secagg.round_messages import MaskedRequest
from autoflip_secure.secagg.setup_messages import ShareRequest
from autoflip_secure.sums.manifest import Manifest

__all__ = [
    "Tally",
    "budget_lies",
    "join_lies",
    "masked",
    "model_lies",
    "rounds_beyond",
    "second_models",
    "set_up_lies",
    "size_lies",
]

Draw = Callable[[Manifest, np.random.Generator], Manifest]


@dataclass
class Tally:
    """Lies that were told, and how many a silo answered."""

    told: int = 0
    accepted: int = 0

    def count(self, accepted: bool) -> None:
        """One more."""
        self.told += 1
        self.accepted += accepted


def masked(
    lying: LyingCoordinator, epoch: KeyedEpoch, silo: int, manifest: Manifest, model: ModelPayload
) -> tuple[Manifest, bytes | None]:
    """Ask a silo for its masked vector under a manifest, in the epoch's next slot.

    Returns
    -------
    The manifest as it was sent, and the reply; None where the silo refused.
    """
    bound = manifest.with_slot(
        epoch=epoch.number, slot=epoch.take_slot(), epoch_hash=epoch.epoch_hash, attempt=manifest.attempt
    )
    return bound, send_masked(lying, epoch, silo, bound, model.to_bytes())


def send_masked(
    lying: LyingCoordinator, epoch: KeyedEpoch, silo: int, manifest: Manifest, model: bytes
) -> bytes | None:
    """The same for a manifest that has a slot, and a model that need not be the one it names."""
    head = epoch.desk.head(epoch.number)
    request = MaskedRequest(head.session, head.roster_hash, head.epoch, manifest.to_bytes(), epoch.delivery(silo))
    reply = lying.ask(silo, "masked", epoch.desk.signed(request), model, round=manifest.round, attempt=manifest.attempt)
    if reply.status != "ok":
        return None
    epoch.has_delivery([silo])
    return reply.reply


# Sizes


def _small_cohort(manifest: Manifest, random: np.random.Generator) -> Manifest:
    """The silo asked, 1, alone or with too few others."""
    everybody, least = manifest.cohorts[0], manifest.minimum[0]
    size = int(random.integers(1, least))
    others = random.choice([silo for silo in everybody if silo != 1], size - 1, replace=False)
    cohort = tuple(sorted([1, *map(int, others)]))
    return replace(manifest, cohorts=(cohort,), minimum=(int(random.integers(1, size + 1)),))


def _split_cohort(manifest: Manifest, random: np.random.Generator) -> Manifest:
    """Two sums in place of one."""
    everybody = random.permutation(manifest.cohorts[0])
    cut = int(random.integers(1, len(everybody)))
    parts = tuple(tuple(sorted(map(int, part))) for part in (everybody[:cut], everybody[cut:]))
    return replace(manifest, cohorts=parts, minimum=tuple(int(random.integers(1, len(p) + 1)) for p in parts))


def _low_minimum(manifest: Manifest, random: np.random.Generator) -> Manifest:
    return replace(manifest, minimum=(int(random.integers(1, manifest.minimum[0])),))


def _low_threshold(manifest: Manifest, random: np.random.Generator) -> Manifest:
    return replace(manifest, threshold=int(random.integers(1, manifest.threshold)))


SIZES: tuple[Draw, ...] = (_small_cohort, _split_cohort, _low_minimum, _low_threshold)


def size_lies(lying: LyingCoordinator, attempts: int, random: np.random.Generator, *, round: int) -> Tally:
    """Small cohorts, lowered minimums and thresholds, each told to silo 1 in a fresh slot."""
    return _told(lying, SIZES, attempts, random, round)


def set_up_lies(lying: LyingCoordinator, attempts: int, random: np.random.Generator) -> Tally:
    """Key set-ups among fewer silos than the threshold, or with another threshold or graph than the roster's."""
    tally = Tally()
    for _ in range(attempts):
        opened = lying.begin_epoch(1)
        known = opened.advertise(lying.exchange(lambda silo: b"", round=0)).advertisers
        head, threshold = opened.desk.head(opened.number), opened.desk.threshold
        shown, holders, shares = len(known), 0, threshold
        if random.random() < 0.5:
            shown = int(random.integers(1, threshold))
        else:
            shares = int(random.integers(1, threshold))
            holders = int(random.choice([0, shares, shares + 1]))
        others = random.choice([silo for silo in known if silo != 1], shown - 1, replace=False)
        signed = tuple(known[silo].signed for silo in sorted([1, *map(int, others)]))
        request = ShareRequest(head.session, head.roster_hash, head.epoch, holders, shares, signed)
        tally.count(lying.ask(1, "share", opened.desk.signed(request)).status == "ok")
    return tally


# Budgets


def _terms(**draws: Callable[[Any, np.random.Generator], Any]) -> Draw:
    def lie(manifest: Manifest, random: np.random.Generator) -> Manifest:
        terms = manifest.privacy
        changed = {name: draw(getattr(terms, name), random) for name, draw in draws.items()}
        return replace(manifest, privacy=replace(terms, **changed))

    return lie


def _other_channels(manifest: Manifest, random: np.random.Generator) -> Manifest:
    """Squares beside the noised sum, or more bits than rounding is accounted for."""
    # A coarse grid is no lie: rounding is part of the sensitivity that noise is scaled to.
    update = manifest.channels[0]
    extra = [
        (update, deviation_channel(update.length)),
        (update, energy_channel(int(random.integers(1, 97)))),
        (replace(update, bits=int(random.integers(26, 32))),),
    ]
    return replace(manifest, channels=extra[random.integers(len(extra))])


def _counted_as_scores(manifest: Manifest, random: np.random.Generator) -> Manifest:
    """Training that is charged to the records held back, or scores charged to the training records."""
    phase = str(random.choice(["evaluate", "census"]))
    if random.random() < 0.5:
        return replace(manifest, privacy=replace(manifest.privacy, dataset="holdout"))
    return replace(manifest, phase=phase)


BUDGETS: tuple[Draw, ...] = (
    _terms(noise_multiplier=lambda was, random: was * float(random.uniform(0.01, 0.999))),
    _terms(sampling_rate=lambda was, random: float(random.uniform(was, 1.0))),
    _terms(steps=lambda was, random: int(random.integers(2, 100))),
    _terms(steps=lambda was, random: 0),
    _terms(delta=lambda was, random: min(0.99, was * float(random.uniform(1.01, 1e4)))),
    _terms(colluders=lambda was, random: int(random.integers(0, was))),
    _terms(
        trust=lambda was, random: str(random.choice(["none", "local"])),
        noise_multiplier=lambda was, random: was * float(random.uniform(0.5, 1.0)),
    ),
    _other_channels,
    _counted_as_scores,
)


def budget_lies(lying: LyingCoordinator, attempts: int, random: np.random.Generator, *, round: int) -> Tally:
    """Rounds of a run under DP that would use the records more than they charge, or more than was joined."""
    return _told(lying, BUDGETS, attempts, random, round)


def rounds_beyond(lying: LyingCoordinator, attempts: int, *, round: int) -> Tally:
    """Ask silo 1 honestly until its plan is used up, then `attempts` times more."""
    tally, model = Tally(), lying.first_model()
    planned = sum(m.count for m in lying.joined.planned["train"])
    epoch = lying.open_epoch(planned + attempts)
    answers = [
        masked(lying, epoch, 1, lying.manifest(model, round, attempt=n), model)[1] is not None
        for n in range(planned + attempts)
    ]
    for answered in answers[planned:]:
        tally.count(answered)
    return tally


def join_lies(lying: LyingCoordinator, attempts: int, random: np.random.Generator) -> Tally:
    """Runs that would cost more than the policy's epsilon: by less noise, more uses, or by their own words."""
    tally = Tally()
    for _ in range(attempts):
        lie = random.integers(3)
        planned, config = lying.joined.planned, lying.config
        if lie < 2:
            noise = float(random.uniform(0.1, 0.95)) if lie == 0 else 1.0
            uses = float(random.uniform(1.1, 20.0)) if lie == 1 else 1.0
            planned = {
                dataset: [
                    Mechanism(
                        m.sampling_rate, m.noise_multiplier * noise, max(m.count + (uses > 1), round(m.count * uses))
                    )
                    for m in mechanisms
                ]
                for dataset, mechanisms in planned.items()
            }
        else:
            assert config.dp_epsilon is not None
            more = config.dp_epsilon * float(random.uniform(1.01, 100))
            config = ResolvedConfig.create(**{**config.model_dump(), "dp_epsilon": more})
        request = JoinRequest(os.urandom(16), config, lying.joined.task, planned)
        tally.count(lying.join(request, silos=(1,))[1].status == "ok")
    return tally


# Models


def model_lies(lying: LyingCoordinator, attempts: int, random: np.random.Generator, *, round: int) -> Tally:
    """Another model than the manifest names, to silo 1 alone."""
    tally, model = Tally(), lying.first_model()
    epoch, manifest = lying.open_epoch(attempts), lying.manifest(model, round)
    for number in range(attempts):
        bound = manifest.with_slot(
            epoch=epoch.number, slot=epoch.take_slot(), epoch_hash=epoch.epoch_hash, attempt=number
        )
        other = moved(model, random).to_bytes()
        tally.count(send_masked(lying, epoch, 1, bound, other) is not None)
    return tally


def second_models(lying: LyingCoordinator, attempts: int, random: np.random.Generator, *, round: int) -> Tally:
    """Other models for a round that silo 1 has answered before, each named by its own manifest as a retry's is."""
    tally, model = Tally(), lying.first_model()
    epoch = lying.open_epoch(attempts + 1)
    if masked(lying, epoch, 1, lying.manifest(model, round), model)[1] is None:
        raise RuntimeError("silo 1 did not answer an honest round")
    for number in range(attempts):
        other = moved(model, random)
        manifest = lying.manifest(other, round, attempt=number + 1)
        tally.count(masked(lying, epoch, 1, manifest, other)[1] is not None)
    return tally


def moved(model: ModelPayload, random: np.random.Generator) -> ModelPayload:
    """A model with a weight moved, by anything from a millionth on."""
    weights = model.weights.copy()
    where = int(random.choice(np.flatnonzero(model.mask)))
    weights[where] += np.float32(10 ** random.uniform(-6, 3))
    return replace(model, weights=weights)


def _told(
    lying: LyingCoordinator, draws: tuple[Draw, ...], attempts: int, random: np.random.Generator, round: int
) -> Tally:
    """Lies over an honest manifest, in turn, each to silo 1 in a fresh slot."""
    tally, model = Tally(), lying.first_model()
    epoch, honest = lying.open_epoch(attempts), lying.manifest(model, round)
    for number, draw in enumerate(_in_turn(draws, attempts)):
        try:
            lie = replace(draw(honest, random), attempt=number)
        except AutoflipSecureError:
            continue  # no manifest at all: a silo would not read it
        tally.count(masked(lying, epoch, 1, lie, model)[1] is not None)
    return tally


def _in_turn(draws: tuple[Draw, ...], attempts: int) -> Iterator[Draw]:
    for number in range(attempts):
        yield draws[number % len(draws)]
