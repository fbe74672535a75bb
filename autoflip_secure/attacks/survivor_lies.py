"""Lies about models and survivors: other statements to different silos in one slot, and what can be opened then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from autoflip_secure.attacks.lying_coordinator import LyingCoordinator
from autoflip_secure.attacks.protocol_lies import Tally, send_masked
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.parties.rules import Survivors, dropped_silos
from autoflip_secure.parties.signing import open_signed
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch
from autoflip_secure.secagg.round_messages import ConfirmReply, ConfirmRequest, MaskedReply, UnmaskReply, UnmaskRequest
from autoflip_secure.sums.encoding import unpack_sum
from autoflip_secure.sums.manifest import Manifest

__all__ = ["Slot", "SurvivorTally", "all_masked", "split_view", "survivor_lies"]

SIGNATURE_BYTES = 64
RECEIPT = len(MaskedReply(1, bytes(SIGNATURE_BYTES)).to_bytes())
"""Bytes of the receipt behind the masked words; the same for ids below 128."""


@dataclass
class Slot:
    """All that the coordinator was told in one slot.

    Attributes
    ----------
    receipts : dict of silo to (silo, hash of its words, its signature)
    words : dict of silo to its masked words
    signed : dict of silo to (lists it confirmed, signature)
    seeds, keys : dict of owner to the silos that revealed a share of its self-mask seed, and of its mask key
    """

    epoch: KeyedEpoch
    manifest: Manifest
    receipts: dict[int, tuple[int, bytes, bytes]] = field(default_factory=dict)
    words: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    signed: dict[int, tuple[Survivors, bytes]] = field(default_factory=dict)
    seeds: dict[int, set[int]] = field(default_factory=dict)
    keys: dict[int, set[int]] = field(default_factory=dict)
    opened: dict[Survivors, set[int]] = field(default_factory=dict)

    def take_masked(self, silo: int, reply: bytes) -> None:
        """File a masked vector and its receipt."""
        content, receipt = reply[:-RECEIPT], MaskedReply.from_bytes(reply[-RECEIPT:])
        self.receipts[silo] = (silo, blake3(content).digest(), receipt.signature)
        self.words[silo] = np.frombuffer(content, np.uint64)

    def confirm(self, lying: LyingCoordinator, silo: int, survivors: Survivors) -> bool:
        """Have a silo sign survivor lists; whether it did."""
        head = self.epoch.desk.head(self.epoch.number)
        receipts = tuple(self.receipts[each] for each in sorted(each for part in survivors for each in part))
        request = ConfirmRequest(
            head.session, head.roster_hash, head.epoch, self.manifest.to_bytes(), survivors, receipts,
            self.epoch.delivery(silo),
        )  # fmt: skip
        reply = lying.ask(silo, "confirm", self.epoch.desk.signed(request), round=self.manifest.round)
        if reply.status != "ok":
            return False
        self.signed[silo] = (survivors, ConfirmReply.from_bytes(reply.reply).signature)
        return True

    def unmask(
        self, lying: LyingCoordinator, silo: int, survivors: Survivors, confirmations: Iterable[tuple[int, bytes]]
    ) -> bool:
        """Have a silo reveal its shares for survivor lists; whether it did."""
        head, digest = self.epoch.desk.head(self.epoch.number), self.manifest.digest()
        request = UnmaskRequest(
            head.session, head.roster_hash, head.epoch, self.manifest.slot, digest, survivors,
            tuple(sorted(confirmations)),
        )  # fmt: skip
        reply = lying.ask(silo, "unmask", self.epoch.desk.signed(request), round=self.manifest.round)
        if reply.status != "ok":
            return False
        message = open_signed(UnmaskReply, lying.roster.public(silo), reply.reply)
        present = [each for part in survivors for each in part]
        dropped = dropped_silos(self.manifest, survivors, self.epoch.members)
        for owners, shares, table in (
            (present, message.seed_shares, self.seeds),
            (dropped, message.key_shares, self.keys),
        ):
            for owner, share in zip(owners, shares, strict=True):
                if share:
                    table.setdefault(owner, set()).add(silo)
        self.opened.setdefault(survivors, set()).add(silo)
        return True

    def breaks(self) -> list[str]:
        """What can be opened beside one sum of enough silos; empty where nothing can."""
        threshold = self.epoch.graph.threshold
        seeds = {owner for owner, silos in self.seeds.items() if len(silos) >= threshold}
        keys = {owner for owner, silos in self.keys.items() if len(silos) >= threshold}
        found = [f"both secrets of silo {owner}" for owner in sorted(seeds & keys)]
        sums = {
            survivors
            for survivors in self.opened
            if {each for part in survivors for each in part} <= seeds
            and set(dropped_silos(self.manifest, survivors, self.epoch.members)) <= keys
        }
        if len(sums) > 1:
            found.append(f"{len(sums)} sums of one slot")
        for part in (part for survivors in sums for part in survivors):
            if len(part) < self.manifest.minimum[0]:
                found.append(f"a sum of {len(part)}")
        return found


@dataclass
class SurvivorTally:
    """Requests that lied, and slots in which more could be opened than one sum."""

    requests: Tally = field(default_factory=Tally)
    slots: Tally = field(default_factory=Tally)


def survivor_lies(lying: LyingCoordinator, slots: int, random: np.random.Generator, *, round: int) -> SurvivorTally:
    """In each slot all silos mask one vector honestly; then they hear different lists, and are asked for both kinds of
    shares.

    A request is a lie where its lists are too short, are others than the silo has confirmed, or come with signatures of
    other lists or too few.
    """
    tally, model = SurvivorTally(), lying.first_model()
    epoch = lying.open_epoch(slots)
    for attempt in range(slots):
        slot = all_masked(lying, epoch, model, round, attempt)
        manifest, everybody = slot.manifest, slot.manifest.cohorts[0]
        lists = [_some(everybody, manifest.minimum[0], random) for _ in range(2)]
        for silo in everybody:
            told = lists[int(random.integers(2))]
            accepted = slot.confirm(lying, silo, told)
            if len(told[0]) < manifest.minimum[0]:
                tally.requests.count(accepted)
        for silo in map(int, random.permutation(everybody)):
            for told in (lists[i] for i in random.permutation(2)):
                signers = _signers(slot, told, random)
                honest = sum(slot.signed[each][0] == told for each, _ in signers)
                lie = (
                    slot.signed.get(silo, (None,))[0] != told or honest < epoch.graph.threshold or honest < len(signers)
                )
                accepted = slot.unmask(lying, silo, told, signers)
                if lie:
                    tally.requests.count(accepted)
        tally.slots.count(bool(slot.breaks()))
    return tally


def all_masked(lying: LyingCoordinator, epoch: KeyedEpoch, model: ModelPayload, round: int, attempt: int) -> Slot:
    """The epoch's next slot, after an honest round's first stage: all silos of the first cohort have sent their vector.

    Raises
    ------
    RuntimeError
        A silo did not.
    """
    manifest = lying.manifest(model, round, attempt=attempt)
    manifest = manifest.with_slot(
        epoch=epoch.number, slot=epoch.take_slot(), epoch_hash=epoch.epoch_hash, attempt=attempt
    )
    slot, content = Slot(epoch, manifest), model.to_bytes()
    for silo in manifest.cohorts[0]:
        reply = send_masked(lying, epoch, silo, manifest, content)
        if reply is None:
            raise RuntimeError(f"silo {silo} did not answer an honest round")
        slot.take_masked(silo, reply)
    return slot


def _some(everybody: tuple[int, ...], least: int, random: np.random.Generator) -> Survivors:
    """Survivor lists, mostly long enough to be confirmed."""
    size = int(random.integers(least, len(everybody) + 1)) if random.random() < 0.7 else int(random.integers(1, least))
    return (tuple(sorted(map(int, random.choice(everybody, size, replace=False)))),)


def _signers(slot: Slot, told: Survivors, random: np.random.Generator) -> list[tuple[int, bytes]]:
    """Confirmations to show: those of these lists, and often those of the others beside them."""
    mixed = random.random() < 0.5
    return [(silo, signature) for silo, (lists, signature) in slot.signed.items() if mixed or lists == told]


def split_view(
    lying: LyingCoordinator, victim: int, good: ModelPayload, dead: ModelPayload, *, round: int
) -> tuple[NDArray[np.float64], bool]:
    """Send `good` to one silo and `dead` to all others, each named by a manifest of its own, and add up what comes.

    The others share a manifest, so that their masks cancel among each other.

    Returns
    -------
    The sum of what arrived as a coordinator decodes it, shape (live,), and whether silos help to open it.
    """
    epoch = None if lying.config.aggregation == "none" else lying.open_epoch(1)
    place = (0, 1, bytes(32)) if epoch is None else (epoch.number, epoch.take_slot(), epoch.epoch_hash)
    heads = lying.manifest(good, round).heads_hash

    def manifest_of(model: ModelPayload) -> Manifest:
        made = replace(lying.manifest(model, round), heads_hash=heads)
        return made.with_slot(epoch=place[0], slot=place[1], epoch_hash=place[2], attempt=0)

    shown = {silo: manifest_of(good if silo == victim else dead) for silo in lying.roster.silos}
    words, slots = {}, {}
    for silo, manifest in shown.items():
        content = (good if silo == victim else dead).to_bytes()
        if epoch is None:
            answer = lying.ask(silo, "clear", manifest.to_bytes(), content, round=round).reply
            words[silo] = np.frombuffer(answer, np.uint64)
            continue
        reply = send_masked(lying, epoch, silo, manifest, content)
        if reply is None:
            raise RuntimeError(f"silo {silo} did not answer")
        slots[silo] = Slot(epoch, manifest)
        slots[silo].take_masked(silo, reply)
        words |= slots[silo].words
    receipts = {silo: slot.receipts[silo] for silo, slot in slots.items()}
    survivors: Survivors = (tuple(sorted(shown)),)
    # Each is asked under its own manifest: it knows no other.
    helped = [replace(slot, receipts=receipts).confirm(lying, silo, survivors) for silo, slot in slots.items()]
    total = np.zeros_like(words[victim])
    for part in words.values():
        total += part
    channels = unpack_sum(total, shown[victim].channels, len(shown))
    return channels["update"], epoch is None or any(helped)
