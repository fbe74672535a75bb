"""A silo's side of a round: masked, confirm, unmask, with every rule it enforces by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgpack
from blake3 import blake3

from autoflip_secure.errors import ProtocolError, Refusal
from autoflip_secure.parties.agreement import Agreement, pair_sign
from autoflip_secure.parties.requests import checked_source, own_cohort, read_manifest
from autoflip_secure.parties.rules import (
    Survivors,
    check_manifest,
    check_survivors,
    dropped_silos,
    refusal,
)
from autoflip_secure.parties.signing import digest_of, sign_message, sign_statement, statement_holds
from autoflip_secure.secagg.dealing import REVEALED_BYTES
from autoflip_secure.secagg.graph import too_few_holders
from autoflip_secure.secagg.keys import SlotSecret, pair_mask_key, self_mask_key
from autoflip_secure.secagg.masking import masked_words
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
from autoflip_secure.secagg.silo_setup import Party
from autoflip_secure.secagg.silo_states import Answered, Closed, Confirmed, Masked, Ready, SlotState, Spent
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import link_to_reveal
from autoflip_secure.sums.secure_sum import Contribute

__all__ = ["confirm", "masked", "unmask"]


def masked(party: Party, ready: Ready, request: MaskedRequest, contribute: Contribute) -> Iterator[bytes | memoryview]:
    """Spend the slot, compute the contribution, and send it masked, part by part.

    A part is only good until the next one is asked for. The receipt comes last, after the state is on disk; words
    without it are masked and belong to a spent slot.
    """
    manifest = read_manifest(ready, request.manifest)
    _require_unused(party, ready, manifest.slot)
    with _spend_on_refusal(party, ready, manifest.slot, request.manifest):
        check_manifest(manifest, party.rules, party.roster, ready.members)
        cohort = own_cohort(party.silo, manifest)
    secret = party.state.spend(ready, manifest.slot, request.manifest)
    digest = digest_of(request.manifest)
    source = checked_source(contribute(manifest), manifest, cohort)
    keys, signs = _masks(party.silo, ready, manifest, digest, cohort, secret)
    words_hash = blake3()
    for part in masked_words(source, keys, signs):
        words_hash.update(part)
        yield part
    signature = sign_statement(party.identity, Receipt(digest, words_hash.digest()))
    party.state.record_masked(ready, manifest.slot, source.removable)
    yield MaskedReply(party.silo, signature).to_bytes()


def confirm(party: Party, ready: Ready, request: ConfirmRequest, raw: bytes) -> bytes:
    """Sign, once a slot, whose vectors are to be summed; also for a silo that has no vector in the sum."""
    manifest = read_manifest(ready, request.manifest)
    digest, slot = digest_of(request.manifest), manifest.slot
    state = party.state.slot(ready, slot) or _help_only(party, ready, manifest, request.manifest)
    if isinstance(state, Closed):
        raise refusal("slot-once", f"slot {slot} was closed after a broken rule")
    if isinstance(state, Confirmed | Answered):
        if state.request_hash != digest_of(raw):
            raise refusal("confirm-once", f"slot {slot} was confirmed before, for a request that differs from this one")
        return state.reply
    if state.manifest != request.manifest:
        raise refusal("manifest", f"slot {slot} is bound to another manifest")
    with _close_on_refusal(party, ready, slot):
        check_survivors(manifest, request.survivors, party.rules, ready.members)
        if any(party.silo in silos for silos in request.survivors) and not isinstance(state, Masked):
            raise refusal("survivors", "this silo is listed, but sent no masked vector")
        _check_neighbours(ready, request.survivors)
        _check_receipts(party, ready, digest, request)
    statement = Confirmation(digest, request.survivors)
    reply = ConfirmReply(party.silo, sign_statement(party.identity, statement)).to_bytes()
    confirmed = Confirmed(slot, state.manifest, statement.to_bytes(), digest_of(raw), reply)
    party.state.record_confirmation(ready, confirmed)
    return reply


def unmask(party: Party, ready: Ready, request: UnmaskRequest, raw: bytes) -> bytes:
    """Reveal, once a slot, the share of every survivor's seed and of every dropped silo's mask key.

    With them goes the link of this silo's own noise chain that the number of missing silos of its cohort leaves over.
    Only here is that number sure: enough silos signed these very lists that no other lists can be opened.
    """
    slot = request.slot
    state = party.state.slot(ready, slot)
    if isinstance(state, Answered):
        if state.unmask_hash != digest_of(raw):
            raise refusal(
                "unmask-once", f"shares of slot {slot} were revealed before, for a request that differs from this"
            )
        party.state.settle()
        return state.unmask_reply
    if not isinstance(state, Confirmed):
        raise ProtocolError(f"slot {slot} was not confirmed by this silo; nothing was revealed")
    statement = Confirmation(request.digest, request.survivors)
    if statement.to_bytes() != state.statement:
        raise refusal("confirm-once", f"slot {slot} was confirmed for another manifest or other survivors")
    with _close_on_refusal(party, ready, slot):
        _check_confirmations(party, ready, request, statement)
    manifest = Manifest.from_bytes(state.manifest)
    survivors = [silo for silos in request.survivors for silo in silos]
    dropped = dropped_silos(manifest, request.survivors, ready.members)
    shares: Mapping[int, bytes] = msgpack.unpackb(party.state.shares(ready, slot), strict_map_key=False)
    reply = UnmaskReply(
        party.silo,
        request.digest,
        tuple(shares[silo][:REVEALED_BYTES] for silo in survivors if silo in shares),
        tuple(shares[silo][REVEALED_BYTES:] for silo in dropped if silo in shares),
        _link(party, ready, manifest, request.survivors),
    )
    data = sign_message(party.identity, reply)
    party.state.record_answer(ready, slot, digest_of(raw), data)
    return data


def _require_unused(party: Party, ready: Ready, slot: int) -> None:
    if party.state.slot(ready, slot) is not None:
        raise refusal("slot-once", f"slot {slot} of epoch {ready.epoch} was used before; take the next one")


def _help_only(party: Party, ready: Ready, manifest: Manifest, data: bytes) -> SlotState:
    with _spend_on_refusal(party, ready, manifest.slot, data):
        check_manifest(manifest, party.rules, party.roster, ready.members)
    party.state.spend(ready, manifest.slot, data)
    return Spent(manifest.slot, data)


@contextmanager
def _spend_on_refusal(party: Party, ready: Ready, slot: int, manifest: bytes) -> Iterator[None]:
    try:
        yield
    except Refusal:
        party.state.spend(ready, slot, manifest, closed=True)
        raise


@contextmanager
def _close_on_refusal(party: Party, ready: Ready, slot: int) -> Iterator[None]:
    try:
        yield
    except Refusal:
        party.state.close(ready, slot)
        raise


def _masks(
    silo: int, ready: Ready, manifest: Manifest, digest: bytes, cohort: int, secret: SlotSecret
) -> tuple[list[bytes], list[int]]:
    slot, agreement = manifest.slot, Agreement(secret.mask_key)
    keys, signs = [self_mask_key(secret.seed, digest, silo, slot)], [1]
    for peer in manifest.cohorts[cohort]:
        if peer != silo and peer in ready.mask_keys:
            shared = agreement.with_peer(ready.mask_key(peer, slot))
            keys.append(pair_mask_key(shared, digest, silo, peer, slot, cohort))
            signs.append(pair_sign(silo, peer))
    return keys, signs


def _link(party: Party, ready: Ready, manifest: Manifest, survivors: Survivors) -> bytes:
    root = party.state.root(ready, manifest.slot)
    if root is None:
        return b""
    cohort = manifest.cohort_of(party.silo)
    present = survivors[cohort]
    if party.silo not in present:
        return b""
    return link_to_reveal(root, len(manifest.cohorts[cohort]) - len(present), manifest.most_missing(cohort))


def _check_receipts(party: Party, ready: Ready, digest: bytes, request: ConfirmRequest) -> None:
    """Every survivor whose shares this silo holds must have signed a masked vector under this very manifest.

    Without this the coordinator could show one silo another manifest, with a cohort of silos it then declares dropped
    to everybody else, and recover all masks of that silo.
    """
    held = sorted(silo for silos in request.survivors for silo in silos if silo in ready.holdings)
    if held != [silo for silo, _, _ in request.receipts]:
        raise refusal("receipts", "receipts are not those of the survivors whose shares this silo holds")
    for silo, words_hash, signature in request.receipts:
        if not statement_holds(party.roster.public(silo), Receipt(digest, words_hash), signature):
            raise refusal("receipts", f"silo {silo} did not sign a masked vector under this manifest")


def _check_neighbours(ready: Ready, survivors: Survivors) -> None:
    """On a sparse graph enough of every survivor's own share holders must be in its sum.

    The coordinator sees the graph and says who dropped. Without this it could declare all honest peers of one silo
    dropped and recover all masks of that silo; see protocols/secagg/graph.md.
    """
    alone = too_few_holders(ready.graph, ready.holders, survivors)
    if alone is not None:
        raise refusal(
            "neighbours", f"fewer than {ready.graph.threshold} share holders of silo {alone} are in the sum with it"
        )


def _check_confirmations(party: Party, ready: Ready, request: UnmaskRequest, statement: Confirmation) -> None:
    if len(request.confirmations) < party.threshold:
        raise refusal("confirmations", f"{len(request.confirmations)} silos confirmed, {party.threshold} are needed")
    members = set(ready.members)
    for silo, signature in request.confirmations:
        if silo not in members:
            raise refusal("known-silos", f"silo {silo} confirmed, but is not of this epoch")
        if not statement_holds(party.roster.public(silo), statement, signature):
            raise refusal("confirmations", f"silo {silo} did not sign this manifest and these survivors")
