"""A silo's side of an epoch's key set-up: advertise, deal, take delivery."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgpack

from autoflip_secure.errors import InputError, ProtocolError
from autoflip_secure.secagg.dealing import DealingContext, deal, open_box, share_at
from autoflip_secure.secagg.epoch import epoch_hash, keys_hash, read_advertisement, read_dealing
from autoflip_secure.secagg.identity import Identity
from autoflip_secure.secagg.keys import Agreement, fresh_key, fresh_slot_secrets, public_key, seed_commitment
from autoflip_secure.secagg.roster import Roster
from autoflip_secure.secagg.rules import SiloRules, refusal, share_threshold
from autoflip_secure.secagg.setup_messages import Advertisement, AdvertiseRequest, Delivery, Head, ShareRequest
from autoflip_secure.secagg.signing import Signed, digest_of, sign_message
from autoflip_secure.secagg.silo_states import Advertised, Dealt, Ready
from autoflip_secure.secagg.state import SiloState
from autoflip_secure.secagg.wire import is_ascending

__all__ = ["Party", "advertise", "share", "take_delivery"]


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
        if silo not in roster:
            raise InputError(f"silo {silo} is not in the roster; ids are {', '.join(map(str, roster.silos))}")
        if roster.public(silo) != identity.public:
            raise InputError(f"the identity given is not the one the roster has for silo {silo}")
        rules.check_roster(roster)
        return cls(identity, silo, roster, rules, SiloState(connection))

    @property
    def threshold(self) -> int:
        """Shares that recover a secret, from the roster and nothing else."""
        return share_threshold(len(self.roster.entries))


def advertise(party: Party, request: AdvertiseRequest) -> bytes:
    """Fresh keys for a new epoch; those of older epochs are deleted."""
    secrets, box_private = fresh_slot_secrets(request.slots), fresh_key()
    advertisement = Advertisement(
        request.session,
        request.roster_hash,
        request.epoch,
        party.silo,
        public_key(box_private),
        b"".join(public_key(secret.mask_key) for secret in secrets),
        b"".join(
            seed_commitment(secret.seed, request.session, request.epoch, party.silo, slot)
            for slot, secret in enumerate(secrets)
        ),
    )
    reply = sign_message(party.identity, advertisement)
    party.state.open_epoch(request.session, request.epoch, reply, box_private, secrets)
    return reply


def share(party: Party, request: ShareRequest) -> bytes:
    """Deal this silo's secrets to all advertisers, once."""
    state = party.state.epoch(request.session)
    if not isinstance(state, Advertised) or state.epoch != request.epoch:
        raise ProtocolError(f"epoch {request.epoch} is not waiting to deal shares; nothing was changed")
    advertisements = _read_all(party.roster, request, state.slots, request.advertisements)
    if state.advertisement not in request.advertisements:
        raise refusal("own-keys", "this silo's own advertisement is missing or altered")
    if len(advertisements) < party.threshold:
        raise refusal("threshold", f"{len(advertisements)} silos advertised keys, {party.threshold} are needed")
    box_private, secrets = party.state.secrets(state)
    context = _context(request, keys_hash(request.advertisements))
    by_silo = {message.silo: message for message in advertisements}
    dealing, reply = deal(context, party.silo, box_private, by_silo, secrets, party.threshold)
    reply = replace(reply, dealing=sign_message(party.identity, dealing))
    party.state.record_dealing(state, context.keys_hash, request.advertisements)
    return reply.to_bytes()


def _read_all(roster: Roster, head: Head, slots: int, signed: Sequence[bytes]) -> list[Advertisement]:
    messages = [read_advertisement(data, roster, head, slots) for data in signed]
    silos = [message.silo for message in messages]
    if not is_ascending(silos):
        raise refusal("known-silos", "advertisements are not in ascending order, one a silo")
    return messages


def _context(head: Head, keys: bytes) -> DealingContext:
    return DealingContext(head.session, head.roster_hash, head.epoch, keys)


def take_delivery(party: Party, state: Dealt, head: Head, data: bytes) -> Ready:
    """Open the boxes dealt to this silo, keep the shares, and fix who belongs to the epoch.

    A dealer whose box does not hold what it signed for is kept as a member without a share: this silo cannot help to
    recover its secrets and says so at unmask, while others can.
    """
    delivery = Delivery.from_bytes(data)
    # Stored by this silo after it checked the signatures, hence not checked again.
    advertisements = _stored_advertisements(state)
    recipients = tuple(sorted(advertisements))
    dealings = [read_dealing(item, party.roster, head, state.keys_hash, recipients) for item in delivery.dealings]
    members = [dealing.silo for dealing in dealings]
    if not is_ascending(members):
        raise refusal("known-silos", "dealings are not in ascending order, one a silo")
    if party.silo not in members:
        raise refusal("own-keys", "this silo's own dealing is missing")
    if len(members) < party.threshold:
        raise refusal("threshold", f"{len(members)} silos dealt shares, {party.threshold} are needed")
    index, agreement, context = recipients.index(party.silo), Agreement(state.box_key), _context(head, state.keys_hash)
    plaintexts = []
    for dealing, box in zip(dealings, delivery.boxes, strict=True):
        if digest_of(box) != dealing.box_hash(index):
            raise refusal("delivery", f"the box from silo {dealing.silo} is not the one it signed for")
        dealer = advertisements[dealing.silo]
        plaintexts.append(open_box(context, agreement, dealer, party.silo, box, dealing.row_hash(index)))
    mask_keys = {silo: advertisements[silo].mask_keys for silo in members}
    ready = Ready(state.session, state.epoch, state.slots, epoch_hash(state.keys_hash, delivery.dealings), mask_keys)
    blobs = [_slot_blob(members, plaintexts, slot) for slot in range(state.slots)]
    party.state.record_delivery(state, ready.epoch_hash, mask_keys, blobs)
    return ready


def _stored_advertisements(state: Dealt) -> dict[int, Advertisement]:
    messages = (Advertisement.from_bytes(Signed.from_bytes(data).payload) for data in state.advertisements)
    return {message.silo: message for message in messages}


def _slot_blob(members: Sequence[int], plaintexts: Sequence[bytes | None], slot: int) -> bytes:
    shares = (b"" if plaintext is None else share_at(plaintext, slot) for plaintext in plaintexts)
    return msgpack.packb(dict(zip(members, shares, strict=True)))
