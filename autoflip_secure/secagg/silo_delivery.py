"""A silo's last step of an epoch's key set-up: check and keep the shares and mask keys its peers sent."""

from __future__ import annotations

from collections.abc import Mapping

import msgpack

from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.rules import refusal
from autoflip_secure.parties.signing import Signed, digest_of
from autoflip_secure.parties.wire import is_ascending
from autoflip_secure.secagg.dealing import DealingContext, open_box, parcel_at, share_at
from autoflip_secure.secagg.epoch import check_mask_keys, epoch_hash, read_dealing
from autoflip_secure.secagg.setup_messages import Advertisement, Dealing, Delivered, Delivery
from autoflip_secure.secagg.silo_setup import Party
from autoflip_secure.secagg.silo_states import Dealt, Ready

__all__ = ["take_delivery"]


def take_delivery(party: Party, state: Dealt, head: Head, data: bytes) -> Ready:
    """Open the boxes dealt to this silo, keep the shares, and fix who belongs to the epoch.

    A dealer whose box does not hold what it signed for is kept as a member without a share: this silo cannot help to
    recover its secrets and says so at unmask, while others can.
    """
    delivery = Delivery.from_bytes(data)
    advertisements = _stored_advertisements(state)
    dealings = _read_dealings(party, state, head, delivery, tuple(advertisements))
    peers = _read_peers(party.silo, delivery, dealings)
    context = DealingContext(head.session, head.roster_hash, head.epoch, state.keys_hash)
    agreement = Agreement(state.box_key)
    plaintexts: dict[int, bytes | None] = {}
    for silo, peer in peers.items():
        dealer, dealing = advertisements[silo], dealings[silo]
        check_mask_keys(dealer, peer.mask_keys)
        if party.silo in dealing.recipients:
            box_hash, row_hash = parcel_at(dealing, peer.parcels, party.silo)
            if digest_of(peer.box) != box_hash:
                raise refusal("delivery", f"the box from silo {silo} is not the one it signed for")
            plaintexts[silo] = open_box(context, agreement, dealer, party.silo, peer.box, row_hash)
    ready = Ready(
        state.session,
        state.epoch,
        state.slots,
        state.graph,
        epoch_hash(state.keys_hash, delivery.dealings),
        tuple(dealings),
        {silo: peer.mask_keys for silo, peer in peers.items()},
        tuple(plaintexts),
        {silo: dealing.recipients for silo, dealing in dealings.items()} if state.graph.holders else {},
    )
    party.state.record_delivery(state, ready, [_slot_blob(plaintexts, slot) for slot in range(state.slots)])
    return ready


def _stored_advertisements(state: Dealt) -> dict[int, Advertisement]:
    # Stored by this silo after it checked the signatures, hence not checked again.
    messages = (Advertisement.from_bytes(Signed.from_bytes(data).payload) for data in state.advertisements)
    return {message.silo: message for message in messages}


def _read_dealings(
    party: Party, state: Dealt, head: Head, delivery: Delivery, advertisers: tuple[int, ...]
) -> dict[int, Dealing]:
    read = [
        read_dealing(item, party.roster, head, state.keys_hash, advertisers, state.graph) for item in delivery.dealings
    ]
    if not is_ascending([dealing.silo for dealing in read]):
        raise refusal("known-silos", "dealings are not in ascending order, one a silo")
    if state.dealing not in delivery.dealings:
        raise refusal("own-keys", "this silo's own dealing is missing or altered")
    if len(read) < party.threshold:
        raise refusal("threshold", f"{len(read)} silos dealt shares, {party.threshold} are needed")
    return {dealing.silo: dealing for dealing in read}


def _read_peers(silo: int, delivery: Delivery, dealings: Mapping[int, Dealing]) -> dict[int, Delivered]:
    """What came from each peer: from all of them, and from nobody else."""
    read = [Delivered.from_bytes(item) for item in delivery.peers]
    dealt_to = dealings[silo].recipients
    peers = [peer for peer, dealing in dealings.items() if peer in dealt_to or silo in dealing.recipients]
    if [peer.silo for peer in read] != peers:
        raise refusal("delivery", "the delivery is not from the peers that the dealings give this silo")
    return {peer.silo: peer for peer in read}


def _slot_blob(plaintexts: Mapping[int, bytes | None], slot: int) -> bytes:
    shares = {dealer: b"" if text is None else share_at(text, slot) for dealer, text in plaintexts.items()}
    return msgpack.packb(shares)
