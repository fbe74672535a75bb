"""The coordinator's side of a round: MaskedStage -> ConfirmStage -> UnmaskStage -> sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch
from autoflip_secure.secagg.keys import Agreement, pair_mask_key, pair_sign, self_mask_key
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.secagg.recovery import Recovery
from autoflip_secure.secagg.round_messages import (
    Confirmation,
    ConfirmReply,
    ConfirmRequest,
    MaskedReply,
    MaskedRequest,
    Receipt,
    UnmaskReply,
    UnmaskRequest,
)
from autoflip_secure.secagg.rules import Survivors, dropped_silos
from autoflip_secure.secagg.signing import digest_of, open_signed, statement_holds
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum, Exchange

__all__ = ["ConfirmStage", "MaskedStage", "UnmaskStage"]


@dataclass(frozen=True)
class MaskedStage:
    """A manifest bound to a fresh slot."""

    epoch: KeyedEpoch
    manifest: Manifest

    def collect(self, exchange: Exchange) -> ConfirmStage:
        """Ask the cohorts for their masked vectors and add up what arrives.

        Raises
        ------
        Abort
            A cohort fell below its minimum.
        """
        epoch, data = self.epoch, self.manifest.to_bytes()
        digest, desk = digest_of(data), epoch.desk
        head = desk.head(epoch.number)
        asked = [silo for cohort in self.manifest.cohorts for silo in cohort if silo in epoch.replies]
        bare = desk.signed(MaskedRequest(head.session, head.roster_hash, head.epoch, data, b""))
        requests = {
            silo: bare
            if silo in epoch.delivered
            else desk.signed(MaskedRequest(head.session, head.roster_hash, head.epoch, data, epoch.delivery(silo)))
            for silo in asked
        }
        sums = [np.zeros(word_count(self.manifest.channels, len(c)), np.uint64) for c in self.manifest.cohorts]

        def read(silo: int, reply: bytes) -> tuple[bytes, bytes]:
            message, total = MaskedReply.from_bytes(reply), sums[self.manifest.cohort_of(silo)]
            if message.silo != silo or len(message.words) != total.nbytes:
                raise ProtocolError(f"silo {silo} sent {len(message.words)} bytes of words instead of {total.nbytes}")
            words_hash = digest_of(message.words)
            if not statement_holds(desk.roster.public(silo), Receipt(digest, words_hash), message.signature):
                raise ProtocolError(f"silo {silo} did not sign its masked vector")
            total += np.frombuffer(message.words, "<u8")
            return words_hash, message.signature

        receipts = desk.ask(exchange, "masked", requests, read)
        epoch.delivered.update(receipts)
        survivors = tuple(tuple(silo for silo in cohort if silo in receipts) for cohort in self.manifest.cohorts)
        for present, cohort, least in zip(survivors, self.manifest.cohorts, self.manifest.minimum, strict=True):
            if len(present) < least:
                raise Abort(
                    f"{len(present)} of {len(cohort)} silos of a cohort sent a masked vector, {least} are needed; "
                    "the model is unchanged, try again with a fresh slot",
                    stage="masked",
                )
        return ConfirmStage(epoch, self.manifest, digest, survivors, receipts, tuple(sums))


@dataclass(frozen=True)
class ConfirmStage:
    """The masked sums, and who is in them."""

    epoch: KeyedEpoch
    manifest: Manifest
    digest: bytes
    survivors: Survivors
    receipts: Mapping[int, tuple[bytes, bytes]]
    sums: tuple[NDArray[np.uint64], ...]

    def collect(self, exchange: Exchange) -> UnmaskStage:
        """Ask every silo of the epoch to sign the survivor lists.

        Raises
        ------
        Abort
            Fewer than t silos did.
        """
        epoch, desk, data = self.epoch, self.epoch.desk, self.manifest.to_bytes()
        head, statement = desk.head(epoch.number), Confirmation(self.digest, self.survivors)
        receipts = tuple(self.receipts[silo] for silos in self.survivors for silo in silos)

        def request(delivery: bytes) -> bytes:
            return desk.signed(
                ConfirmRequest(head.session, head.roster_hash, head.epoch, data, self.survivors, receipts, delivery)
            )

        def read(silo: int, reply: bytes) -> bytes:
            message = ConfirmReply.from_bytes(reply)
            if message.silo != silo or not statement_holds(desk.roster.public(silo), statement, message.signature):
                raise ProtocolError(f"silo {silo} did not sign the survivor lists it was sent")
            return message.signature

        bare = request(b"")
        requests = {silo: bare if silo in epoch.delivered else request(epoch.delivery(silo)) for silo in epoch.members}
        confirmations = desk.ask(exchange, "confirm", requests, read)
        epoch.delivered.update(confirmations)
        desk.require(len(confirmations), "confirmed", "confirm")
        return UnmaskStage(epoch, self.manifest, self.digest, self.survivors, confirmations, self.sums)


@dataclass(frozen=True)
class UnmaskStage:
    """Masked sums whose survivor lists at least t silos signed."""

    epoch: KeyedEpoch
    manifest: Manifest
    digest: bytes
    survivors: Survivors
    confirmations: Mapping[int, bytes]
    sums: tuple[NDArray[np.uint64], ...]

    def collect(self, exchange: Exchange) -> tuple[CohortSum, ...]:
        """Ask those silos for their shares, and open the sums.

        Raises
        ------
        Abort
            Fewer than t silos answered, or a secret cannot be recovered; `blamed` names who is provably at fault.
        """
        epoch, desk, slot = self.epoch, self.epoch.desk, self.manifest.slot
        head = desk.head(epoch.number)
        enough = tuple(sorted(self.confirmations.items())[: desk.threshold])
        request = desk.signed(
            UnmaskRequest(head.session, head.roster_hash, head.epoch, slot, self.digest, self.survivors, enough)
        )
        present = [silo for silos in self.survivors for silo in silos]
        dropped = dropped_silos(self.manifest, self.survivors, epoch.members)

        def read(silo: int, reply: bytes) -> UnmaskReply:
            message = open_signed(UnmaskReply, desk.roster.public(silo), reply)
            if message.silo != silo or message.digest != self.digest:
                raise ProtocolError(f"silo {silo} answered for another silo or manifest")
            if len(message.seed_shares) != len(present) or len(message.key_shares) != len(dropped):
                raise ProtocolError(f"silo {silo} did not answer for every silo")
            return message

        answers = desk.ask(exchange, "unmask", dict.fromkeys(self.confirmations, request), read)
        desk.require(len(answers), "revealed their shares", "unmask")
        seeds = {silo: reply.seed_shares for silo, reply in answers.items()}
        mask_keys = {silo: reply.key_shares for silo, reply in answers.items()}
        recovery = Recovery(epoch, slot, self._by_owner(present, seeds), self._by_owner(dropped, mask_keys))
        return tuple(self._open(index, recovery) for index in range(len(self.survivors)))

    def _by_owner(
        self, owners: list[int] | tuple[int, ...], answers: Mapping[int, tuple[bytes, ...]]
    ) -> dict[int, dict[int, bytes]]:
        by_owner: dict[int, dict[int, bytes]] = {}
        for index, owner in enumerate(owners):
            by_owner[owner] = {silo: shares[index] for silo, shares in answers.items() if shares[index]}
            silent = [silo for silo, shares in answers.items() if not shares[index]]
            if silent:
                self.epoch.desk.events("dealing_rejected", {"dealer": owner, "by": silent})
        return by_owner

    def _open(self, index: int, recovery: Recovery) -> CohortSum:
        slot, present = self.manifest.slot, self.survivors[index]
        words = self.sums[index].copy()
        keys = [self_mask_key(recovery.seed(silo), self.digest, silo, slot) for silo in present]
        signs = [-1] * len(keys)
        for silo in self.manifest.cohorts[index]:
            if silo in self.epoch.replies and silo not in present:
                agreement = Agreement(recovery.mask_key(silo))
                for peer in present:
                    shared = agreement.with_peer(self.epoch.advertisements[peer].mask_key(slot))
                    keys.append(pair_mask_key(shared, self.digest, silo, peer, slot, index))
                    signs.append(-pair_sign(peer, silo))
        apply_masks(words, keys, signs)
        return CohortSum(index, present, words)
