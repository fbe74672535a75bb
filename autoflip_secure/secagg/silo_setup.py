"""A silo's side of an epoch's key set-up: advertise and deal. The third step, taking delivery, has its own file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.agreement import fresh_key, public_key
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import SiloRules, check_enrolled_silo, refusal, share_threshold
from autoflip_secure.parties.signing import digest_of, sign_message
from autoflip_secure.parties.wire import is_ascending
from autoflip_secure.secagg.dealing import DealingContext, deal
from autoflip_secure.secagg.epoch import keys_hash, read_advertisement
from autoflip_secure.secagg.graph import (
    EPOCH_BITS,
    MAX_COMPLETE,
    SAFE_BITS,
    ShareGraph,
    complete_graph,
    draw_holders,
    is_safe,
)
from autoflip_secure.secagg.keys import fresh_slot_secrets, seed_commitment
from autoflip_secure.secagg.setup_messages import Advertisement, AdvertiseReply, AdvertiseRequest, ShareRequest
from autoflip_secure.secagg.silo_states import Advertised, Dealt
from autoflip_secure.secagg.state import SiloState

__all__ = ["Party", "advertise", "share"]


@dataclass(frozen=True)
class Party:
    """Who a silo is and what it insists on."""

    identity: Identity
    silo: int
    roster: Roster
    rules: SiloRules
    state: SiloState

    @classmethod
    def enrol(
        cls, connection: sqlite3.Connection, identity: Identity, silo: int, roster: Roster, rules: SiloRules
    ) -> Party:
        """Check that the pieces fit together.

        Raises
        ------
        InputError
            The silo is not in the roster, or with another identity, or the roster cannot keep the rules.
        """
        check_enrolled_silo(identity, silo, roster, rules)
        return cls(identity, silo, roster, rules, SiloState(connection))

    @property
    def threshold(self) -> int:
        """Silos that must take part in every step of a sum, from the roster and nothing else."""
        return share_threshold(len(self.roster.entries))


def advertise(party: Party, request: AdvertiseRequest) -> bytes:
    """Fresh keys for a new epoch; those of older epochs are deleted."""
    secrets, box_private = fresh_slot_secrets(request.slots), fresh_key()
    mask_keys = b"".join(public_key(secret.mask_key) for secret in secrets)
    commitments = b"".join(
        seed_commitment(secret.seed, request.session, request.epoch, party.silo, slot)
        for slot, secret in enumerate(secrets)
    )
    advertisement = Advertisement(
        request.session,
        request.roster_hash,
        request.epoch,
        party.silo,
        request.slots,
        public_key(box_private),
        digest_of(mask_keys),
        digest_of(commitments),
    )
    signed = sign_message(party.identity, advertisement)
    party.state.open_epoch(request.session, request.epoch, signed, box_private, secrets)
    return AdvertiseReply(signed, mask_keys, commitments).to_bytes()


def share(party: Party, request: ShareRequest) -> bytes:
    """Deal this silo's secrets to its share holders, once."""
    state = party.state.epoch(request.session)
    if not isinstance(state, Advertised) or state.epoch != request.epoch:
        raise ProtocolError(f"epoch {request.epoch} is not waiting to deal shares; nothing was changed")
    advertisements = _read_all(party.roster, request, state.slots, request.advertisements)
    if state.advertisement not in request.advertisements:
        raise refusal("own-keys", "this silo's own advertisement is missing or altered")
    if len(advertisements) < party.threshold:
        raise refusal("threshold", f"{len(advertisements)} silos advertised keys, {party.threshold} are needed")
    graph = _share_graph(party, request)
    box_private, secrets = party.state.secrets(state)
    context = DealingContext(
        request.session, request.roster_hash, request.epoch, keys_hash(graph, request.advertisements)
    )
    by_silo = {message.silo: message for message in advertisements}
    # Drawn by this silo alone, after the advertisers were fixed: nobody else can have a say in who they are.
    recipients = {silo: by_silo[silo] for silo in draw_holders(party.silo, tuple(by_silo), graph.holders)}
    dealing, reply = deal(context, party.silo, box_private, recipients, secrets, graph.threshold)
    signed = sign_message(party.identity, dealing)
    dealt = Dealt(
        state.session, state.epoch, state.slots, graph, box_private, context.keys_hash, signed, request.advertisements
    )
    party.state.record_dealing(state, dealt)
    return replace(reply, dealing=signed).to_bytes()


def _share_graph(party: Party, request: ShareRequest) -> ShareGraph:
    """The share graph asked for, where it is the complete one or safe by this silo's own count of colluders."""
    silos, graph = len(party.roster.entries), ShareGraph(request.holders, request.threshold)
    if graph == complete_graph(silos):
        return graph
    if silos <= MAX_COMPLETE:
        raise refusal("graph", f"up to {MAX_COMPLETE} silos everybody holds shares of everybody")
    if request.epoch >= 1 << EPOCH_BITS:
        raise refusal("graph", f"a sparse share graph is drawn for {1 << EPOCH_BITS} epochs of a session, no more")
    if graph.holders == 0 or not is_safe(len(request.advertisements), party.rules.colluders, graph, SAFE_BITS):
        raise refusal(
            "graph",
            f"{graph.threshold} shares of {graph.holders or 'all'} holders are not enough against "
            f"{party.rules.colluders} colluders among {silos} silos",
        )
    return graph


def _read_all(roster: Roster, head: Head, slots: int, signed: Sequence[bytes]) -> list[Advertisement]:
    messages = [read_advertisement(data, roster, head, slots) for data in signed]
    silos = [message.silo for message in messages]
    if not is_ascending(silos):
        raise refusal("known-silos", "advertisements are not in ascending order, one a silo")
    return messages
