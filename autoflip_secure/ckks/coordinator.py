"""The coordinator half of a CKKS sum: it adds ciphertexts, and reads what all silos of the sum opened together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from autoflip_secure.ckks.keys import keys_hash, read_advertisement
from autoflip_secure.ckks.messages import (
    Ciphertext,
    EncryptReply,
    EncryptRequest,
    KeyRequest,
    Opening,
    OpenReply,
    OpenRequest,
    Part,
)
from autoflip_secure.ckks.packing import from_bytes, polynomials_of, words_of
from autoflip_secure.ckks.parameters import DEGREE, parameters_for
from autoflip_secure.ckks.ring import ring
from autoflip_secure.ckks.summation import read_sum
from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.parties.desk import Desk, Events
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.keyed_sums import DEFAULT_SLOTS, KeyedSums, check_enrolled
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import Survivors
from autoflip_secure.parties.signing import digest_of, statement_holds
from autoflip_secure.parties.wire import Message
from autoflip_secure.sums.block_totals import BlockTotals
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum, Exchange

__all__ = ["CkksCoordinator", "CkksEpoch"]

ABORTS_BEFORE_NEW_KEYS = 1
SLICE = 64 * DEGREE
"""Coefficients added at a time."""


@dataclass
class CkksEpoch:
    """An epoch ready for rounds; it hands out each slot once and remembers who has its keys."""

    number: int
    slots: int
    advertisements: dict[int, bytes]
    delivered: set[int] = field(default_factory=set)
    used: int = 0

    def __post_init__(self) -> None:
        self.members = tuple(self.advertisements)
        self.epoch_hash = keys_hash(tuple(self.advertisements.values()))

    def take_slot(self) -> int:
        """The next unused slot."""
        slot = self.used
        if slot >= self.slots:
            raise ProtocolError(f"epoch {self.number} has no slot left")
        self.used += 1
        return slot


class _Total:
    """The sum of what the silos of one cohort sent, and the sizes it was encrypted with."""

    def __init__(self, manifest: Manifest, cohort: int) -> None:
        silos = len(manifest.cohorts[cohort])
        self.parameters = parameters_for(manifest.channels, silos)
        self.ring = ring(self.parameters.modulus_bits)
        self._count = polynomials_of(manifest.channels, silos) * DEGREE
        self.words: NDArray[np.uint64] = np.zeros(self._count, np.uint64)

    @property
    def nbytes(self) -> int:
        """Bytes of the coefficients of one reply."""
        return self._count * self.parameters.coefficient_bytes

    def split(self, silo: int, reply: bytes) -> tuple[memoryview, bytes]:
        """Coefficients and the message behind them."""
        if len(reply) <= self.nbytes:
            raise ProtocolError(f"silo {silo} sent {len(reply)} bytes, too few for {self.nbytes} of coefficients")
        return memoryview(reply)[: self.nbytes], reply[self.nbytes :]

    def add(self, data: memoryview) -> None:
        """Add the coefficients of a reply whose signature holds, a slice at a time.

        Raises
        ------
        ProtocolError
            One is not below the modulus; nothing was added.
        """
        width = self.parameters.coefficient_bytes
        slices = [slice(start, start + SLICE) for start in range(0, self._count, SLICE)]

        def coefficients(part: slice) -> NDArray[np.uint64]:
            return from_bytes(data[width * part.start : width * part.stop], width)

        for part in slices:
            self.ring.checked(coefficients(part))
        for part in slices:
            self.words[part] = self.ring.add(self.words[part], coefficients(part))

    def merge(self, other: _Total) -> None:
        """Add what another total of the cohort holds."""
        for start in range(0, self._count, SLICE):
            part = slice(start, start + SLICE)
            self.words[part] = self.ring.add(self.words[part], other.words[part])


class CkksCoordinator(KeyedSums[CkksEpoch]):
    """Runs CKKS sums; sees ciphertexts, and parts of openings that only together open a cohort's sum.

    Parameters
    ----------
    identity : Identity
    roster : Roster
    session : bytes, 16
    slots, first_epoch, on_epoch
        See `KeyedSums`.
    events : callable
        events(name, details), see `parties.desk.Desk`.

    Raises
    ------
    InputError
        The identity is not the roster's coordinator, or a number is out of range.
    """

    set_up_stage = "keys"

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        session: bytes,
        *,
        slots: int = DEFAULT_SLOTS,
        first_epoch: int,
        on_epoch: Callable[[int], None],
        events: Events,
    ) -> None:
        check_enrolled(identity, roster, session)
        super().__init__(
            Desk(identity, roster, session, events),
            slots=slots,
            first_epoch=first_epoch,
            on_epoch=on_epoch,
            aborts_before_new_keys=ABORTS_BEFORE_NEW_KEYS,
        )

    def _set_up(self, number: int, exchange: Exchange, invited: Sequence[int]) -> CkksEpoch:
        desk, head = self._desk, self._desk.head(number)

        def read(silo: int, reply: bytes) -> bytes:
            if read_advertisement(reply, desk.roster, head, self._slots).silo != silo:
                raise ProtocolError(f"silo {silo} sent the key of another silo")
            return reply

        request = desk.signed(KeyRequest(head.session, head.roster_hash, head.epoch, self._slots))
        advertisements = desk.ask(exchange, "keys", dict.fromkeys(invited, request), read)
        desk.require(len(advertisements), "made keys", "keys")
        epoch = CkksEpoch(number, self._slots, advertisements)
        desk.events("epoch_opened", {"epoch": number, "silos": list(epoch.members), "slots": self._slots})
        return epoch

    def _attempt(self, epoch: CkksEpoch, manifest: Manifest, exchange: Exchange) -> tuple[CohortSum, ...]:
        data = manifest.to_bytes()
        digest = digest_of(data)
        survivors, totals = self._collect_ciphertexts(epoch, manifest, data, digest, exchange)
        links = self._collect_parts(epoch, manifest, digest, survivors, totals, exchange)
        return tuple(
            CohortSum(
                index,
                present,
                self._read(manifest, index, total),
                {silo: links[silo] for silo in present if links[silo]},
            )
            for index, (present, total) in enumerate(zip(survivors, totals, strict=True))
        )

    def _collect_ciphertexts(
        self,
        epoch: CkksEpoch,
        manifest: Manifest,
        data: bytes,
        digest: bytes,
        exchange: Exchange,
    ) -> tuple[Survivors, Sequence[_Total]]:
        totals = BlockTotals(manifest, partial(_Total, manifest), _Total.merge)
        desk, head = self._desk, self._desk.head(epoch.number)
        everyone = tuple(epoch.advertisements.values())
        first, later = (
            desk.signed(EncryptRequest(head.session, head.roster_hash, head.epoch, data, advertisements))
            for advertisements in (everyone, ())
        )
        # Of a block with a silo that has no keys nobody could be summed: no records are used for it.
        asked = [silo for cohort in manifest.each_whole(epoch.advertisements) for silo in cohort]

        def read(silo: int, reply: bytes) -> None:
            total = totals.of(silo)
            coefficients, end = total.split(silo, reply)
            message = EncryptReply.from_bytes(end)
            statement = Ciphertext(digest, blake3(coefficients).digest())
            self._check_signed(silo, message.silo, statement, message.signature, "ciphertext")
            total.add(coefficients)
            totals.has(silo)

        requests = {silo: later if silo in epoch.delivered else first for silo in asked}
        answered = desk.ask(exchange, "encrypt", requests, read)
        epoch.delivered.update(answered)
        survivors = totals.survivors("encrypt", "ciphertext")
        if totals.left_out:
            desk.events("block_incomplete", {"silos": list(totals.left_out)})
        return survivors, totals.cohorts

    def _collect_parts(
        self,
        epoch: CkksEpoch,
        manifest: Manifest,
        digest: bytes,
        survivors: Survivors,
        totals: Sequence[_Total],
        exchange: Exchange,
    ) -> dict[int, bytes]:
        desk, head = self._desk, self._desk.head(epoch.number)
        request = desk.signed(OpenRequest(head.session, head.roster_hash, head.epoch, manifest.slot, digest, survivors))
        openings = [Opening(digest, index, present).hash() for index, present in enumerate(survivors)]

        def read(silo: int, reply: bytes) -> bytes:
            cohort = manifest.cohort_of(silo)
            coefficients, end = totals[cohort].split(silo, reply)
            message = OpenReply.from_bytes(end)
            statement = Part(openings[cohort], blake3(coefficients).digest(), message.link)
            self._check_signed(silo, message.silo, statement, message.signature, "part")
            missing = len(manifest.cohorts[cohort]) - len(survivors[cohort])
            if message.link and missing >= manifest.most_missing(cohort):
                raise ProtocolError(f"silo {silo} revealed a link, but has no noise to be removed")
            totals[cohort].add(coefficients)
            return message.link

        asked = [silo for present in survivors for silo in present]
        links = desk.ask(exchange, "open", dict.fromkeys(asked, request), read)
        missing = sorted(set(asked) - set(links))
        if missing:
            raise Abort(
                f"silos {missing} did not help to open the sum they are in, and every one of them has to; "
                "the model is unchanged, try again with new keys",
                stage="open",
            )
        return links

    def _check_signed(self, silo: int, named: int, statement: Message, signature: bytes, what: str) -> None:
        if named != silo or not statement_holds(self._desk.roster.public(silo), statement, signature):
            raise ProtocolError(f"silo {silo} did not sign its {what}")

    def _read(self, manifest: Manifest, index: int, total: _Total) -> NDArray[np.uint64]:
        whole = read_sum(total.ring, total.parameters, total.words.reshape(-1, DEGREE))
        return words_of(whole, manifest.channels, len(manifest.cohorts[index]))
