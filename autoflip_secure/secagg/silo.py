"""The silo half of the SecAgg-S secure sum."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from io import BytesIO
from typing import TypeVar

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.requests import open_request
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import SiloRules
from autoflip_secure.secagg import silo_round, silo_setup
from autoflip_secure.secagg.round_messages import ConfirmRequest, MaskedRequest, UnmaskRequest
from autoflip_secure.secagg.setup_messages import AdvertiseRequest, ShareRequest
from autoflip_secure.secagg.silo_delivery import take_delivery
from autoflip_secure.secagg.silo_states import Dealt, Ready
from autoflip_secure.sums.secure_sum import Contribute

__all__ = ["STAGES", "SecAggSilo"]

STAGES = ("advertise", "share", "masked", "confirm", "unmask")

H = TypeVar("H", bound=Head)


class SecAggSilo:
    """Answers the coordinator's requests, as far as this silo's own rules allow.

    All state is in the database, so each request may be answered by a new process.

    Parameters
    ----------
    connection : sqlite3.Connection
        From `storage.open_silo_database`; no transaction may be open on it.
    identity : Identity
    silo_id : int
    roster : Roster
    rules : SiloRules
    session : bytes, 16
        The run this silo joined; requests of other runs are not answered.

    Raises
    ------
    InputError
        Identity, id, roster and rules do not fit together.
    StorageError
        The database cannot be written.
    """

    stages = STAGES

    def __init__(
        self,
        connection: sqlite3.Connection,
        identity: Identity,
        silo_id: int,
        roster: Roster,
        rules: SiloRules,
        session: bytes,
    ) -> None:
        self._party = silo_setup.Party.enrol(connection, identity, silo_id, roster, rules)
        self._session = session
        self._ready: Ready | None = None

    def answer(self, stage: str, request: bytes, contribute: Contribute) -> bytes:
        """Answer one request.

        Parameters
        ----------
        stage : str
            One of `stages`.
        request : bytes
        contribute : callable
            Called in stage masked only, after the slot was durably spent; what it raises is passed on.

        Raises
        ------
        Refusal
            A rule would be broken; the message names it.
        ProtocolError
            The request is malformed or out of order; nothing was changed.
        EncodingError
            `contribute` returned words that do not fit the manifest; the slot is spent.
        """
        if stage == "masked":
            reply = BytesIO()
            for part in self.answer_in_parts(request, contribute):
                reply.write(part)
            return reply.getvalue()
        party = self._party
        if stage == "advertise":
            return silo_setup.advertise(party, self._open(AdvertiseRequest, request))
        if stage == "share":
            return silo_setup.share(party, self._open(ShareRequest, request))
        if stage == "confirm":
            confirm = self._open(ConfirmRequest, request)
            return silo_round.confirm(party, self._epoch(confirm, confirm.delivery), confirm, request)
        if stage == "unmask":
            unmask = self._open(UnmaskRequest, request)
            return silo_round.unmask(party, self._epoch(unmask, b""), unmask, request)
        raise ProtocolError(f"secure aggregation has no stage {stage!r}; stages are {', '.join(STAGES)}")

    def answer_in_parts(self, request: bytes, contribute: Contribute) -> Iterator[bytes | memoryview]:
        """The answer to stage masked, part by part, for vectors that should not be in memory twice.

        A part is only good until the next one is asked for. Raises as `answer`.
        """
        message = self._open(MaskedRequest, request)
        return silo_round.masked(self._party, self._epoch(message, message.delivery), message, contribute)

    def forget_other_runs(self) -> None:
        """Delete the keys and shares of former sessions; their epoch numbers stay used."""
        self._party.state.forget_others(self._session)

    def __repr__(self) -> str:
        return f"SecAggSilo(silo {self._party.silo})"

    def _open(self, kind: type[H], data: bytes) -> H:
        return open_request(kind, self._party.roster, self._session, data)

    def _epoch(self, head: Head, delivery: bytes) -> Ready:
        state = self._party.state
        if state.epoch_number(head.session) != head.epoch:
            raise ProtocolError(f"epoch {head.epoch} is not the one this silo has keys for; nothing was changed")
        cached = self._ready
        if cached is not None and (cached.session, cached.epoch) == (head.session, head.epoch):
            return cached
        current = state.epoch(head.session)
        if isinstance(current, Dealt) and delivery:
            current = take_delivery(self._party, current, head, delivery)
        if not isinstance(current, Ready):
            raise ProtocolError(f"the key set-up of epoch {head.epoch} is not complete; nothing was changed")
        self._ready = current
        return current
