"""The coordinator's side of a round: MaskedStage -> ConfirmStage -> UnmaskStage -> sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.parties.agreement import Agreement, pair_sign
from autoflip_secure.parties.rules import Survivors, dropped_silos
from autoflip_secure.parties.signing import digest_of, open_signed, statement_holds
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch
from autoflip_secure.secagg.graph import too_few_holders
from autoflip_secure.secagg.keys import pair_mask_key, self_mask_key
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
from autoflip_secure.sums.block_totals import BlockTotals, add_words
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum, Exchange
from autoflip_secure.sums.words import RANGE_WORDS

__all__ = ["ConfirmStage", "MaskedStage", "UnmaskStage"]

Receipts = tuple[tuple[int, bytes, bytes], ...]
Revealed = dict[int, dict[int, bytes]]
"""By owner and responder, `nonce | share`."""


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
        # Of a block with a silo that has no keys nobody could be summed: no records are used for it.
        asked = [silo for cohort in self.manifest.each_whole(epoch.dealers) for silo in cohort]
        bare = desk.signed(MaskedRequest(head.session, head.roster_hash, head.epoch, data, b""))
        requests = {
            silo: bare
            if silo in epoch.delivered
            else desk.signed(MaskedRequest(head.session, head.roster_hash, head.epoch, data, epoch.delivery(silo)))
            for silo in asked
        }
        totals = BlockTotals(self.manifest, self._empty, add_words)

        def read(silo: int, reply: bytes) -> tuple[bytes, bytes]:
            total = totals.of(silo)
            end = reply[total.nbytes :]
            if not end:
                raise ProtocolError(f"silo {silo} sent {len(reply)} bytes, too few for {total.nbytes} of words")
            message, words = MaskedReply.from_bytes(end), np.frombuffer(reply, "<u8", total.size)
            words_hash = _add_and_hash(total, words)
            receipt = Receipt(digest, words_hash)
            if message.silo != silo or not statement_holds(desk.roster.public(silo), receipt, message.signature):
                np.subtract(total, words, out=total)
                raise ProtocolError(f"silo {silo} did not sign its masked vector")
            totals.has(silo)
            return words_hash, message.signature

        receipts = desk.ask(exchange, "masked", requests, read)
        epoch.has_delivery(receipts)
        survivors = totals.survivors("masked", "masked vector")
        if totals.left_out:
            desk.events("block_incomplete", {"silos": list(totals.left_out)})
        _require_neighbours(epoch, survivors)
        summed = {silo: receipts[silo] for silos in survivors for silo in silos}
        return ConfirmStage(epoch, self.manifest, digest, survivors, summed, tuple(totals.cohorts))

    def _empty(self, cohort: int) -> NDArray[np.uint64]:
        return np.zeros(word_count(self.manifest.channels, len(self.manifest.cohorts[cohort])), np.uint64)


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

        def request(receipts: Receipts, delivery: bytes) -> bytes:
            return desk.signed(
                ConfirmRequest(head.session, head.roster_hash, head.epoch, data, self.survivors, receipts, delivery)
            )

        def read(silo: int, reply: bytes) -> bytes:
            message = ConfirmReply.from_bytes(reply)
            if message.silo != silo or not statement_holds(desk.roster.public(silo), statement, message.signature):
                raise ProtocolError(f"silo {silo} did not sign the survivor lists it was sent")
            return message.signature

        requests = self._requests(request)
        confirmations = desk.ask(exchange, "confirm", requests, read)
        epoch.has_delivery(confirmations)
        desk.require(len(confirmations), "confirmed", "confirm")
        return UnmaskStage(epoch, self.manifest, self.digest, self.survivors, confirmations, self.sums)

    def _requests(self, request: Callable[[Receipts, bytes], bytes]) -> dict[int, bytes]:
        epoch = self.epoch
        receipts = {silo: (silo, *receipt) for silo, receipt in self.receipts.items()}
        if epoch.graph.holders == 0:
            everything = tuple(receipts[silo] for silo in sorted(receipts))
            bare = request(everything, b"")
            return {
                silo: bare if silo in epoch.delivered else request(everything, epoch.delivery(silo))
                for silo in epoch.members
            }
        return {
            silo: request(
                tuple(receipts[owner] for owner in sorted(receipts.keys() & epoch.owners(silo))),
                epoch.delivery(silo),
            )
            for silo in epoch.members
        }


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

        seeds: Revealed = {silo: {} for silo in present}
        mask_keys: Revealed = {silo: {} for silo in dropped}
        links: dict[int, bytes] = {}

        def read(silo: int, reply: bytes) -> None:
            message = open_signed(UnmaskReply, desk.roster.public(silo), reply)
            if message.silo != silo or message.digest != self.digest:
                raise ProtocolError(f"silo {silo} answered for another silo or manifest")
            held = epoch.owners(silo)
            seed_owners = [owner for owner in present if owner in held]
            key_owners = [owner for owner in dropped if owner in held]
            if (len(message.seed_shares), len(message.key_shares)) != (len(seed_owners), len(key_owners)):
                raise ProtocolError(f"silo {silo} did not answer for every silo")
            if message.link:
                if not self._has_excess(silo):
                    raise ProtocolError(f"silo {silo} revealed a link, but has no noise to be removed")
                links[silo] = message.link
            for owner, share in zip(seed_owners, message.seed_shares, strict=True):
                seeds[owner][silo] = share
            for owner, share in zip(key_owners, message.key_shares, strict=True):
                mask_keys[owner][silo] = share

        answers = desk.ask(exchange, "unmask", dict.fromkeys(self.confirmations, request), read)
        desk.require(len(answers), "revealed their shares", "unmask", epoch.graph.threshold)
        recovery = Recovery(epoch, slot, self._opened(seeds), self._opened(mask_keys))
        return tuple(self._open(index, recovery, links) for index in range(len(self.survivors)))

    def _has_excess(self, silo: int) -> bool:
        """Whether a silo has a vector in a sum for which more silos might have been missing."""
        for index, present in enumerate(self.survivors):
            if silo in present:
                return len(self.manifest.cohorts[index]) - len(present) < self.manifest.most_missing(index)
        return False

    def _opened(self, revealed: Revealed) -> Revealed:
        """Only the shares that there are; who could not open a dealer's box is reported."""
        for owner, shares in revealed.items():
            silent = sorted(silo for silo, share in shares.items() if not share)
            if silent:
                self.epoch.desk.events("dealing_rejected", {"dealer": owner, "by": silent})
        return {owner: {silo: share for silo, share in shares.items() if share} for owner, shares in revealed.items()}

    def _open(self, index: int, recovery: Recovery, links: Mapping[int, bytes]) -> CohortSum:
        slot, present = self.manifest.slot, self.survivors[index]
        words = self.sums[index]
        keys = [self_mask_key(recovery.seed(silo), self.digest, silo, slot) for silo in present]
        signs = [-1] * len(keys)
        for silo in self.manifest.cohorts[index]:
            if silo in self.epoch.dealers and silo not in present:
                agreement, peers = Agreement(recovery.mask_key(silo)), self.epoch.peers(silo)
                for peer in filter(peers.__contains__, present):
                    shared = agreement.with_peer(self.epoch.advertisers[peer].mask_key(slot))
                    keys.append(pair_mask_key(shared, self.digest, silo, peer, slot, index))
                    signs.append(-pair_sign(peer, silo))
        apply_masks(words, keys, signs)
        return CohortSum(index, present, words, {silo: links[silo] for silo in present if silo in links})


def _add_and_hash(total: NDArray[np.uint64], words: NDArray[np.uint64]) -> bytes:
    """Add `words` to `total` and return their BLAKE3 hash, in one walk through memory."""
    words_hash = blake3()
    for start in range(0, words.size, RANGE_WORDS):
        part = words[start : start + RANGE_WORDS]
        words_hash.update(part.view(np.uint8).data)
        total[start : start + RANGE_WORDS] += part
    return words_hash.digest()


def _require_neighbours(epoch: KeyedEpoch, survivors: Survivors) -> None:
    """On a sparse graph silos refuse a sum in which a survivor has too few of its share holders: do not ask for it."""
    holders = {silo: epoch.holders(silo) for silo in epoch.members}
    alone = too_few_holders(epoch.graph, holders, survivors)
    if alone is not None:
        raise Abort(
            f"fewer than {epoch.graph.threshold} of silo {alone}'s share holders sent a masked vector; "
            "the model is unchanged, try again with a fresh slot",
            stage="masked",
        )
