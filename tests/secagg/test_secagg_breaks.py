"""Breaks known from other secure aggregation, one by one: each ends in a named refusal or in the one allowed sum.

The table says which test shows what; where replies were had, the tests remove every mask that these give away and
find no bare word.
"""

from __future__ import annotations

import ast
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.errors import ProtocolError, Refusal
from autoflip_secure.parties.agreement import fresh_key, public_key
from autoflip_secure.parties.signing import digest_of, open_signed, sign_message, sign_statement
from autoflip_secure.secagg import Identity, SecAggCoordinator, silo_delivery, silo_round, silo_setup
from autoflip_secure.secagg.coordinator_setup import OpenEpoch
from autoflip_secure.secagg.dealing import KEY, SEED
from autoflip_secure.secagg.round_messages import Confirmation, MaskedRequest
from autoflip_secure.secagg.setup_messages import (
    Advertisement,
    AdvertiseReply,
    AdvertiseRequest,
    Delivery,
    ShareReply,
    ShareRequest,
)

TESTS = Path(__file__).resolve().parents[1]
HERE, REFUSALS = "secagg/test_secagg_breaks.py", "secagg/test_secagg_refusals.py"
BLOCKS, DELAYED = "secagg/test_secagg_blocks.py", "secagg/test_secagg_delayed.py"
SPARSE, PEERS = "secagg/test_secagg_sparse.py", "secagg/test_peer_secagg.py"

BREAKS = {
    "both kinds of share for one silo": [
        (HERE, "test_every_way_to_ask_for_both_shares_leaves_every_vector_hidden"),
        (REFUSALS, "test_both_shares_of_one_silo"),
        (REFUSALS, "test_answer_holds_one_kind_of_share_for_each_silo"),
        (REFUSALS, "test_second_unmask_with_other_survivors"),
        (HERE, "test_twin_process_cannot_answer_otherwise"),
    ],
    "contradictory survivor lists to different silos": [
        (HERE, "test_every_way_to_ask_for_both_shares_leaves_every_vector_hidden"),
        (REFUSALS, "test_two_survivor_lists_for_one_slot"),
        (REFUSALS, "test_unmask_of_lists_that_others_confirmed"),
        (HERE, "test_twin_process_cannot_confirm_otherwise"),
    ],
    "a mask from a short seed": [
        (HERE, "test_secrets_are_the_operating_systems_256_bits"),
        (PEERS, "test_every_bit_of_a_secret_and_of_the_manifest_counts"),
    ],
    "two vectors under one mask": [
        (HERE, "test_masks_of_a_slot_asked_for_twice"),
        (REFUSALS, "test_slot_is_used_once"),
        (REFUSALS, "test_slot_stays_spent_when_the_contribution_fails"),
        (HERE, "test_twin_process_cannot_mask_again"),
    ],
    "a replayed manifest or slot": [
        (HERE, "test_replays_to_restarted_silos_give_nothing_new"),
        (HERE, "test_replays_across_epochs_and_sessions"),
        (REFUSALS, "test_epochs_only_grow"),
        (REFUSALS, "test_requests_of_a_run_that_was_not_joined"),
    ],
    "a write of an old epoch that comes after the new one began": [
        (DELAYED, "test_confirmation_written_late_opens_nothing_in_the_new_epoch"),
        (DELAYED, "test_half_read_answer_of_an_old_epoch_leaves_the_new_one_alone"),
        (DELAYED, "test_no_write_of_an_old_epoch_changes_the_new_one"),
    ],
    "a late vector of a silo declared dropped": [
        (HERE, "test_late_vector_is_not_bared_by_what_was_revealed"),
        (HERE, "test_silo_that_confirmed_being_dropped_sends_no_vector_later"),
        (REFUSALS, "test_late_vector_of_a_silo_declared_dropped_stays_hidden"),
        (BLOCKS, "test_vectors_that_are_left_out_stay_masked"),
    ],
    "substituted keys": [
        (HERE, "test_keys_of_the_coordinators_own"),
        (HERE, "test_silo_that_advertises_two_ways"),
        (REFUSALS, "test_advertisements_that_do_not_hold"),
        (REFUSALS, "test_deliveries_with_other_peers"),
        (REFUSALS, "test_advertised_key_of_low_order"),
    ],
    "sybil ids": [
        (HERE, "test_ids_that_the_coordinator_made_up"),
        (HERE, "test_silo_outside_the_epoch_does_not_confirm"),
        (REFUSALS, "test_unknown_silo_in_a_cohort"),
        (REFUSALS, "test_repeated_confirmation_counts_once"),
    ],
    "a threshold of the coordinator's choice": [
        (HERE, "test_share_threshold_of_the_coordinators_choice"),
        (REFUSALS, "test_coordinator_cannot_choose_the_threshold"),
        (SPARSE, "test_graph_that_is_not_safe_is_refused"),
        (SPARSE, "test_sparse_graph_is_refused_to_rosters_that_need_none"),
    ],
    "a cohort of one or two": [
        (REFUSALS, "test_cohort_of_two"),
        (REFUSALS, "test_sums_of_one_or_two"),
        (REFUSALS, "test_manifest_that_would_open_fewer_than_three"),
        (REFUSALS, "test_one_silo_shown_a_smaller_cohort"),
    ],
    "different models to different silos": [
        (REFUSALS, "test_different_models_to_different_silos"),
        (REFUSALS, "test_helper_shown_another_manifest"),
    ],
    "two sums that differ by one silo": [
        (HERE, "test_sums_that_differ_by_one_silo_are_all_that_is_learnt"),
        (BLOCKS, "test_two_attempts_do_not_differ_by_a_silo"),
        (BLOCKS, "test_no_sums_add_up_to_less_than_a_block"),
        ("federation/test_malicious_coordinator.py", "test_without_dp_a_second_cohort_for_one_round_is_refused"),
    ],
}


def defined_tests(file):
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", BREAKS)
def test_table_names_tests_that_exist(name):
    assert not [(file, test) for file, test in BREAKS[name] if test not in defined_tests(file)]


ALL = ((1, 2, 3, 4),)
WITHOUT_4 = ((1, 2, 3),)


@pytest.fixture
def four(federation, dishonest):
    attack = dishonest(federation(4))
    for silo in (1, 2, 3, 4):
        attack.masked(silo)
    return attack


# Two lists, one slot


@pytest.mark.parametrize("told_other", range(16))
def test_every_way_to_ask_for_both_shares_leaves_every_vector_hidden(four, told_other):
    """Some silos hear that silo 4 is there, others that it dropped; everybody is then asked for both."""
    lists = {silo: WITHOUT_4 if told_other >> (silo - 1) & 1 else ALL for silo in (1, 2, 3, 4)}
    signatures = {silo: four.confirm(silo, survivors) for silo, survivors in lists.items()}
    for survivors in (ALL, WITHOUT_4):
        signers = [signatures[silo] for silo in lists if lists[silo] == survivors]
        for silo in lists:
            with suppress(ProtocolError):
                four.unmask(silo, survivors, signers)
    four.assert_hidden(1, 2, 3, 4)
    slot, vectors = four.manifest.slot, four.fed.vectors
    assert None in [four.spoils.secret(slot, kind, 4) for kind in (SEED, KEY)]
    sums = {
        survivors: sum(four.spoils.residue(slot, silo) - vectors[silo] for silo in survivors[0])
        for survivors in (ALL, WITHOUT_4)
    }
    assert sum(not left.any() for left in sums.values()) <= 1, "at most one of the two sums is bare"


# Masks


def test_secrets_are_the_operating_systems_256_bits(federation, monkeypatch):
    """Every seed and private key is 32 bytes as the operating system gave them: nothing shorter is stretched."""
    fed, drawn, urandom = federation(3), [], os.urandom

    def recorded(size):
        drawn.append(urandom(size))
        return drawn[-1]

    monkeypatch.setattr(os, "urandom", recorded)
    fed.answer("advertise", 1, fed.signed(AdvertiseRequest(fed.session, fed.roster.hash(), 1, 8)))
    rows = fed.connections[1].execute("SELECT seed, mask_key FROM secagg_secret").fetchall()
    kept = [secret for row in rows for secret in row]
    (box_key,) = fed.connections[1].execute("SELECT box_key FROM secagg_epoch").fetchone()
    assert len(rows) == 8
    assert {len(secret) for secret in (*kept, box_key)} == {32}
    assert len(set(kept)) == 16
    assert {*kept, box_key} <= set(drawn)


def test_masks_of_a_slot_asked_for_twice(four):
    """Under the same manifest, under another, and by a new process: one contribution was computed, one vector left."""
    before = dict(four.fed.vectors)
    for manifest in (four.manifest, replace(four.manifest, round=6), replace(four.manifest, model_hash=b"\1" * 32)):
        for silo in four.everyone():
            four.fed.silos[silo] = four.fed.start(silo)
            with pytest.raises(Refusal, match="slot-once"):
                four.masked(silo, manifest)
    assert four.fed.vectors == before
    four.assert_hidden(1, 2, 3, 4)


def test_late_vector_is_not_bared_by_what_was_revealed(four):
    """The others give up silo 4's mask key; its vector, in hand since long, keeps its own mask."""
    confirmations = [four.confirm(silo, WITHOUT_4) for silo in (1, 2, 3, 4)][:3]
    for silo in (1, 2, 3, 4):
        four.unmask(silo, WITHOUT_4, confirmations)
    slot = four.manifest.slot
    assert four.spoils.secret(slot, KEY, 4) == four.mask_keys[4]
    assert four.spoils.secret(slot, SEED, 4) is None
    four.assert_hidden(1, 2, 3, 4)
    left = sum(four.spoils.residue(slot, silo) - four.fed.vectors[silo] for silo in (1, 2, 3))
    assert not left.any(), "the allowed sum, and this alone, is open"


def test_silo_that_confirmed_being_dropped_sends_no_vector_later(federation, dishonest):
    attack = dishonest(federation(4))
    for silo in (1, 2, 3):
        attack.masked(silo)
    attack.confirm(4, WITHOUT_4)
    with pytest.raises(Refusal, match="slot-once"):
        attack.masked(4)
    assert 4 not in attack.fed.vectors


# Replays


def record(fed):
    """A whole round, with every request that was sent."""
    sent = []

    def exchange(stage, requests):
        sent.extend((stage, silo, request) for silo, request in requests.items())
        return fed.exchange()(stage, requests)

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3, 4))
    return sent


def test_replays_to_restarted_silos_give_nothing_new(federation, tmp_path):
    fed = federation(4, folder=tmp_path)
    sent = record(fed)
    replies = {(stage, silo): fed.answer(stage, silo, request) for stage, silo, request in sent[-8:]}
    before = dict(fed.vectors)
    expected = {"advertise": "epoch-order", "share": "not waiting to deal", "masked": "slot-once"}
    for stage, _, request in sent:
        for reader in (1, 2, 3, 4):
            fed.connections[reader].close()
            fed.silos[reader] = fed.start(reader)
            if stage in expected:
                with pytest.raises(ProtocolError, match=expected[stage]):
                    fed.answer(stage, reader, request)
            else:
                assert fed.answer(stage, reader, request) == replies[stage, reader], "recorded bytes, for all"
    assert fed.vectors == before


def test_replays_across_epochs_and_sessions(federation):
    """Old requests as they were, and old manifests wrapped anew, after new keys and in another session."""
    fed = federation(4)
    sent = record(fed)
    old = [(stage, silo, request) for stage, silo, request in sent if stage in ("masked", "confirm", "unmask")]
    epoch_hash = fed.coordinator._epoch.epoch_hash
    manifest = fed.manifest().with_slot(epoch=1, slot=0, epoch_hash=epoch_hash, attempt=0)
    fed.coordinator.rekey()
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    other = SecAggCoordinator(
        fed.coordinator_identity, fed.roster, bytes(16), slots=2, first_epoch=1,
        on_epoch=lambda number: None, events=lambda name, details: None,
    )  # fmt: skip
    other.sum(fed.manifest(session=bytes(16)), fed.exchange())
    before = dict(fed.vectors)
    for stage, silo, request in old:
        with pytest.raises(ProtocolError, match="epoch 1 is not the one"):
            fed.answer(stage, silo, request)
    for session, epoch in ((fed.manifest().session, 2), (bytes(16), 1)):
        request = MaskedRequest(session, fed.roster.hash(), epoch, manifest.to_bytes(), b"")
        with pytest.raises(Refusal, match="rule manifest"):
            fed.answer("masked", 1, fed.signed(request))
        renamed = replace(manifest, session=session, epoch=epoch, slot=1)
        request = MaskedRequest(session, fed.roster.hash(), epoch, renamed.to_bytes(), b"")
        with pytest.raises(Refusal, match="epoch-keys"):
            fed.answer("masked", 1, fed.signed(request))
    assert fed.vectors == before


# Two processes of one silo, one overtaking the other between its reading and its writing


def overtake(monkeypatch, module, name, action):
    """`action` happens just before the next call of `module.name`."""
    honest = getattr(module, name)

    def overtaken(*args, **options):
        monkeypatch.setattr(module, name, honest)
        action()
        return honest(*args, **options)

    monkeypatch.setattr(module, name, overtaken)


@pytest.fixture
def on_disk(federation, dishonest, tmp_path):
    return dishonest(federation(4, folder=tmp_path))


def advertise(fed, number=1, slots=2):
    """Head of a new epoch, and signed advertisements of all silos in it, by silo."""
    head = (fed.session, fed.roster.hash(), number)
    request = fed.signed(AdvertiseRequest(*head, slots))
    replies = {silo: AdvertiseReply.from_bytes(fed.answer("advertise", silo, request)) for silo in fed.identities}
    return head, {silo: reply.advertisement for silo, reply in replies.items()}


def test_twin_process_cannot_deal_again(federation, tmp_path, monkeypatch):
    """Shares of two polynomials of one secret would halve the threshold."""
    fed = federation(4, folder=tmp_path)
    head, signed = advertise(fed)
    request, twin = fed.signed(ShareRequest(*head, 0, 3, tuple(signed.values()))), fed.start(1)
    overtake(monkeypatch, silo_setup, "deal", lambda: twin.answer("share", request, None))
    with pytest.raises(Refusal, match="deal-once"):
        fed.answer("share", 1, request)


def test_twin_process_forgets_what_was_to_be_dealt(federation, tmp_path, monkeypatch):
    """It joined another run."""
    fed = federation(4, folder=tmp_path)
    head, signed = advertise(fed)
    request, twin = fed.signed(ShareRequest(*head, 0, 3, tuple(signed.values()))), fed.start(1, bytes(16))
    overtake(monkeypatch, silo_setup, "read_advertisement", twin.forget_other_runs)
    with pytest.raises(Refusal, match="epoch-keys"):
        fed.answer("share", 1, request)


def test_twin_process_cannot_take_delivery_again(on_disk, monkeypatch):
    fed, twin = on_disk.fed, on_disk.fed.start(1)
    request = fed.signed(MaskedRequest(*on_disk.head, on_disk.manifest.to_bytes(), on_disk.epoch.delivery(1)))
    only_delivery = fed.signed(MaskedRequest(*on_disk.head, b"", on_disk.epoch.delivery(1)))

    def take():
        with pytest.raises(ProtocolError, match="not a manifest"):
            twin.answer("masked", only_delivery, None)

    overtake(monkeypatch, silo_delivery, "epoch_hash", take)
    with pytest.raises(Refusal, match="delivery-once"):
        fed.answer("masked", 1, request)


def test_twin_process_cannot_mask_again(on_disk, monkeypatch):
    fed, twin = on_disk.fed, on_disk.fed.start(1)
    other = replace(on_disk.manifest, attempt=1)
    request = fed.signed(MaskedRequest(*on_disk.head, other.to_bytes(), on_disk.epoch.delivery(1)))
    overtake(monkeypatch, silo_round, "check_manifest", lambda: twin.answer("masked", request, fed.contribute(1)))
    with pytest.raises(Refusal, match="slot-once"):
        on_disk.masked(1)
    assert 1 not in on_disk.words


def test_twin_process_cannot_confirm_otherwise(on_disk, monkeypatch):
    for silo in (1, 2, 3, 4):
        on_disk.masked(silo)
    twin, request = on_disk.fed.start(1), on_disk.confirm_request(1, WITHOUT_4)
    overtake(monkeypatch, silo_round, "check_survivors", lambda: twin.answer("confirm", request, None))
    with pytest.raises(Refusal, match="confirm-once"):
        on_disk.confirm(1, ALL)


@pytest.mark.parametrize("before", ["dropped_silos", "sign_message"])
def test_twin_process_cannot_answer_otherwise(on_disk, monkeypatch, before):
    for silo in (1, 2, 3, 4):
        on_disk.masked(silo)
    confirmations = [on_disk.confirm(silo, ALL) for silo in (1, 2, 3, 4)]
    twin, request = on_disk.fed.start(1), on_disk.unmask_request(ALL, confirmations[1:])
    overtake(monkeypatch, silo_round, before, lambda: twin.answer("unmask", request, None))
    with pytest.raises(Refusal, match="unmask-once"):
        on_disk.unmask(1, ALL, confirmations[:3])


# Keys and ids of the coordinator's own


def test_keys_of_the_coordinators_own(federation):
    """It would know every share and every mask with silo 2: box key, mask keys, and those of an earlier epoch."""
    fed = federation(4)
    _, earlier = advertise(fed, 1)
    head, signed = advertise(fed, 2)
    honest = open_signed(Advertisement, fed.roster.public(2), signed[2])
    own = public_key(fresh_key())
    for changes in ({"box_key": own}, {"mask_keys_hash": digest_of(own * 2)}):
        for signer in (fed.coordinator_identity, Identity.generate(), fed.identities[3]):
            shown = {**signed, 2: sign_message(signer, replace(honest, **changes))}
            with pytest.raises(Refusal, match="signature"):
                fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(shown.values()))))
    shown = {**signed, 2: earlier[2]}
    with pytest.raises(ProtocolError, match="another session, roster or epoch"):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(shown.values()))))
    fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(signed.values()))))


def test_silo_that_advertises_two_ways(federation):
    """Silo 4 works with the coordinator and shows silo 1 another key: nobody shares an epoch with silo 1 then."""
    fed = federation(4)
    head, signed = advertise(fed)
    honest = open_signed(Advertisement, fed.roster.public(4), signed[4])
    other = {**signed, 4: sign_message(fed.identities[4], replace(honest, box_key=public_key(fresh_key())))}
    dealings = {
        silo: ShareReply.from_bytes(fed.answer("share", silo, fed.signed(ShareRequest(*head, 0, 3, shown)))).dealing
        for silo, shown in ((1, tuple(other.values())), (2, tuple(signed.values())), (3, tuple(signed.values())))
    }
    delivery = Delivery(tuple(dealings.values()), ()).to_bytes()
    for silo in dealings:
        with pytest.raises(ProtocolError, match="dealt for other advertisements"):
            fed.answer("masked", silo, fed.signed(MaskedRequest(*head, fed.manifest().to_bytes(), delivery)))


def test_ids_that_the_coordinator_made_up(federation):
    """An id outside the roster, with keys and signatures that fit each other, in the key set-up."""
    fed = federation(4)
    head, signed = advertise(fed)
    honest, stranger = open_signed(Advertisement, fed.roster.public(4), signed[4]), Identity.generate()
    for silo in (5, 9, 60000):
        shown = (*signed.values(), sign_message(stranger, replace(honest, silo=silo)))
        with pytest.raises(ProtocolError, match="not in the roster"):
            fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, shown)))
    shown = (*list(signed.values())[:3], sign_message(stranger, honest))
    with pytest.raises(Refusal, match="signature"):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, shown)))


def test_silo_outside_the_epoch_does_not_confirm(federation, dishonest):
    """Silo 5 is in the roster but missed the key set-up: its signature is no fourth confirmation."""
    fed = federation(5)
    present = fed.exchange(absent=lambda stage, silo: silo == 5)
    epoch = OpenEpoch(fed.desk, 1, 1).advertise(present).share(present)
    attack, survivors = dishonest(fed, (1, 2, 3, 4), epoch=epoch), ALL
    for silo in (1, 2, 3, 4):
        attack.masked(silo)
    confirmations = [attack.confirm(silo, survivors) for silo in (1, 2, 3, 4)]
    statement = Confirmation(attack.manifest.digest(), survivors)
    outside = (5, sign_statement(fed.identities[5], statement))
    with pytest.raises(Refusal, match="known-silos"):
        attack.unmask(1, survivors, [*confirmations[:3], outside])
    assert attack.slot_is_closed(1)
    attack.assert_hidden(1, 2, 3, 4)


@pytest.mark.parametrize("graph", [(0, 1), (0, 2), (0, 4), (1, 1), (2, 1), (3, 1)])
def test_share_threshold_of_the_coordinators_choice(federation, graph):
    """A threshold other than the roster's among all, or among so few that silos could be cut off."""
    fed = federation(4)
    head, signed = advertise(fed)
    with pytest.raises(Refusal, match="rule graph"):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, *graph, tuple(signed.values()))))
    fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(signed.values()))))


# Sums that differ by one silo


def test_sums_that_differ_by_one_silo_are_all_that_is_learnt(federation, dishonest):
    """Two rounds, one without silo 4, over the same contributions: their difference tells silo 4's.

    That is in the sums themselves: for blocks or differential privacy to hide. No vector is bare, in either round.
    """
    fed, sums = federation(4), []
    words = fed.contribute_the_same()
    for survivors in (ALL, WITHOUT_4):
        attack = dishonest(fed, *survivors)
        for silo in survivors[0]:
            attack.masked(silo)
        confirmations = [attack.confirm(silo, survivors) for silo in (1, 2, 3, 4)][:3]
        for silo in (1, 2, 3, 4):
            attack.unmask(silo, survivors, confirmations)
        attack.assert_hidden(*survivors[0])
        sums.append(sum(attack.spoils.residue(attack.manifest.slot, silo) for silo in survivors[0]))
    np.testing.assert_array_equal(sums[0] - sums[1], words[4])
