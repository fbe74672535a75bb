"""What a dishonest coordinator asks for, and the rule by which every silo refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.errors import PolicyRefusal, ProtocolError, Refusal
from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.parties.rules import share_threshold
from autoflip_secure.parties.signing import Signed, digest_of, open_signed, sign_message, sign_statement
from autoflip_secure.secagg import Identity, SiloRules
from autoflip_secure.secagg.coordinator_setup import OpenEpoch
from autoflip_secure.secagg.dealing import parcels
from autoflip_secure.secagg.keys import pair_mask_key, self_mask_key
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.secagg.round_messages import (
    Confirmation,
    ConfirmRequest,
    MaskedRequest,
    UnmaskReply,
    UnmaskRequest,
)
from autoflip_secure.secagg.setup_messages import (
    Advertisement,
    AdvertiseReply,
    AdvertiseRequest,
    Dealing,
    Delivered,
    Delivery,
    ShareReply,
    ShareRequest,
)
from autoflip_secure.sums.channels import ChannelSpec


@pytest.fixture
def four(federation, dishonest):
    attack = dishonest(federation(4))
    for silo in (1, 2, 3, 4):
        attack.masked(silo)
    return attack


ALL = ((1, 2, 3, 4),)
WITHOUT_4 = ((1, 2, 3),)


def test_two_survivor_lists_for_one_slot(four):
    signature = four.confirm(1, ALL)
    with pytest.raises(Refusal, match="confirm-once"):
        four.confirm(1, WITHOUT_4)
    assert four.confirm(1, ALL) == signature, "the identical request gets the recorded answer"


def test_both_shares_of_one_silo(four):
    """The coordinator wants silo 4's mask key from some and its seed from others."""
    lists = {1: ALL, 2: ALL, 3: WITHOUT_4, 4: WITHOUT_4}
    signatures = {silo: four.confirm(silo, survivors) for silo, survivors in lists.items()}
    for silo, survivors in lists.items():
        with pytest.raises(Refusal, match="confirmations"):
            four.unmask(silo, survivors, [signatures[s] for s in lists if lists[s] == survivors])
    for silo in (1, 2, 3, 4):
        assert four.slot_is_closed(silo)


def test_unmask_of_lists_that_others_confirmed(four):
    """Three confirmations are enough for any silo, but not for one that signed something else."""
    four.confirm(1, ALL)
    confirmations = [four.confirm(silo, WITHOUT_4) for silo in (2, 3, 4)]
    with pytest.raises(Refusal, match="confirmed for another manifest or other survivors"):
        four.unmask(1, WITHOUT_4, confirmations)
    four.unmask(2, WITHOUT_4, confirmations)


def test_second_unmask_with_other_survivors(four):
    confirmations = [four.confirm(silo, ALL) for silo in (1, 2, 3)]
    reply = four.unmask(1, ALL, confirmations)
    with pytest.raises(Refusal, match="unmask-once"):
        four.unmask(1, WITHOUT_4, confirmations)
    with pytest.raises(Refusal, match="unmask-once"):
        four.unmask(1, ALL, [*confirmations, four.confirm(4, ALL)])
    assert four.unmask(1, ALL, confirmations) == reply, "the identical request gets the recorded answer"


def test_answer_holds_one_kind_of_share_for_each_silo(four):
    confirmations = [four.confirm(silo, WITHOUT_4) for silo in (1, 2, 3)]
    fed = four.fed
    reply = open_signed(UnmaskReply, fed.roster.public(2), four.unmask(2, WITHOUT_4, confirmations))
    assert (len(reply.seed_shares), len(reply.key_shares)) == (3, 1)
    assert len({*reply.seed_shares, *reply.key_shares}) == 4


def test_unmask_before_confirm_reveals_nothing(four):
    confirmations = [four.confirm(silo, ALL) for silo in (1, 2, 3)]
    with pytest.raises(ProtocolError, match="not confirmed by this silo"):
        four.unmask(4, ALL, confirmations)
    four.confirm(4, ALL)
    four.unmask(4, ALL, confirmations)


@pytest.mark.parametrize("fault", ["too few", "forged", "stranger", "other statement"])
def test_confirmations_that_do_not_hold(four, fault):
    confirmations = [four.confirm(silo, ALL) for silo in (1, 2, 3)]
    if fault == "too few":
        confirmations.pop()
    elif fault == "forged":
        confirmations[2] = (3, confirmations[1][1])
    elif fault == "stranger":
        confirmations[2] = (9, confirmations[2][1])
    else:
        other = Confirmation(four.manifest.digest(), WITHOUT_4)
        confirmations[2] = (3, sign_statement(four.fed.identities[3], other))
    with pytest.raises(Refusal, match=r"confirmations|known-silos"):
        four.unmask(1, ALL, confirmations)
    assert four.slot_is_closed(1)


def test_repeated_confirmation_counts_once(four):
    one = four.confirm(1, ALL)
    with pytest.raises(ProtocolError, match="ascending"):
        four.unmask_request(ALL, [one, one, one])


@pytest.mark.parametrize("survivors", [((1, 2),), ((1,),), ((),)])
def test_sums_of_one_or_two(four, survivors):
    with pytest.raises(PolicyRefusal, match="minimum"):
        four.confirm(1, survivors)
    assert four.slot_is_closed(1)
    with pytest.raises(Refusal, match="closed"):
        four.confirm(1, ALL)


@pytest.mark.parametrize("minimum", [1, 2])
def test_manifest_that_would_open_fewer_than_three(federation, dishonest, minimum):
    attack = dishonest(federation(4), minimum=minimum)
    with pytest.raises(PolicyRefusal, match="size"):
        attack.masked(1)
    assert attack.slot_is_closed(1)
    assert not attack.fed.vectors, "the contribution was never computed"


def test_cohort_of_two(federation, dishonest):
    attack = dishonest(federation(4), (1, 2), minimum=2)
    with pytest.raises(PolicyRefusal, match="size"):
        attack.masked(1)


def test_coordinator_cannot_lower_a_silos_minimum(federation, dishonest):
    attack = dishonest(federation(5, rules=SiloRules(0, minimum=5)))
    for silo in attack.everyone():
        attack.masked(silo)
    with pytest.raises(PolicyRefusal, match="4 silos are to be summed, this silo's rules need 5"):
        attack.confirm(1, ((1, 2, 3, 4),))


def test_coordinator_can_raise_a_silos_minimum(federation, dishonest):
    attack = dishonest(federation(5), minimum=5)
    for silo in attack.everyone():
        attack.masked(silo)
    with pytest.raises(PolicyRefusal, match="need 5"):
        attack.confirm(1, ((1, 2, 3, 4),))


def test_colluders_and_moments_raise_the_minimum(federation, dishonest):
    """n = 7, c = 2: five silos for one moment, six for two."""
    energy = ChannelSpec("unit_energy", 2, 16, 1.0)
    for channels, least in (
        ((ChannelSpec("update", 7, 16, 1.0),), 5),
        ((ChannelSpec("update", 7, 16, 1.0), energy), 6),
    ):
        attack = dishonest(federation(7, rules=SiloRules(2), channels=channels))
        for silo in attack.everyone():
            attack.masked(silo)
        with pytest.raises(PolicyRefusal, match=f"need {least}"):
            attack.confirm(1, (tuple(range(1, least)),))
        attack.confirm(2, (tuple(range(1, least + 1)),))


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_coordinator_cannot_choose_the_threshold(federation, dishonest, threshold):
    attack = dishonest(federation(4), threshold=threshold)
    assert share_threshold(4) == 3
    with pytest.raises(Refusal, match="threshold"):
        attack.masked(1)
    assert attack.slot_is_closed(1)


def test_slot_is_used_once(four):
    before = dict(four.fed.vectors)
    with pytest.raises(Refusal, match="slot-once"):
        four.masked(1)
    with pytest.raises(Refusal, match="slot-once"):
        four.masked(1, replace(four.manifest, attempt=1))
    assert four.fed.vectors == before, "no second vector under one mask"
    four.confirm(1, ALL)


def test_slot_stays_spent_when_the_contribution_fails(federation, dishonest):
    attack = dishonest(federation(4))

    def diverged(manifest):
        raise ArithmeticError("training diverged")

    request = MaskedRequest(*attack.head, attack.manifest.to_bytes(), attack.epoch.delivery(1))
    with pytest.raises(ArithmeticError):
        attack.fed.silos[1].answer("masked", attack.fed.signed(request), diverged)
    with pytest.raises(Refusal, match="slot-once"):
        attack.masked(1)
    for silo in (2, 3, 4):
        attack.masked(silo)
    attack.confirm(1, ((2, 3, 4),))


def test_slot_out_of_range(federation, dishonest):
    attack = dishonest(federation(4))
    with pytest.raises(Refusal, match="slot-once: the epoch has 4 slots, the manifest names slot 4"):
        attack.masked(1, replace(attack.manifest, slot=4))


def test_listed_silo_that_sent_nothing(federation, dishonest):
    attack = dishonest(federation(4))
    for silo in (1, 2, 3):
        attack.masked(silo)
    attack.receipts[4] = (4, *attack.receipts[1][1:])
    with pytest.raises(Refusal, match="sent no masked vector"):
        attack.confirm(4, ALL)
    with pytest.raises(Refusal, match="receipts"):
        attack.confirm(1, ALL)


def test_late_vector_of_a_silo_declared_dropped_stays_hidden(four):
    """Silo 4's vector arrives after the others gave up its mask key: its own mask still covers it."""
    manifest, epoch, words = four.manifest, four.epoch, four.words[4].copy()
    agreement = Agreement(four.mask_keys[4])
    shared = {peer: agreement.with_peer(epoch.advertisers[peer].mask_key(manifest.slot)) for peer in (1, 2, 3)}
    keys = [pair_mask_key(secret, manifest.digest(), 4, peer, manifest.slot, 0) for peer, secret in shared.items()]
    apply_masks(words, keys, [1, 1, 1])
    assert not (words == four.fed.vectors[4]).any()
    apply_masks(words, [self_mask_key(four.seeds[4], manifest.digest(), 4, manifest.slot)], [-1])
    assert (words == four.fed.vectors[4]).all(), "the self mask is all that was left"
    confirmations = [four.confirm(silo, WITHOUT_4) for silo in (1, 2, 3, 4)]
    four.unmask(4, WITHOUT_4, confirmations[:3])
    with pytest.raises(Refusal, match="unmask-once"):
        four.unmask(4, ALL, confirmations[:3])
    with pytest.raises(Refusal, match="confirm-once"):
        four.confirm(4, ALL)


def test_one_silo_shown_a_smaller_cohort(federation, dishonest):
    """Silo 1 masks with three decoys only; the decoys are then declared dropped to everybody else."""
    attack = dishonest(federation(9))
    survivors = ((1, 5, 6, 7, 8, 9),)
    attack.masked(1, replace(attack.manifest, cohorts=((1, 2, 3, 4),)))
    for silo in (5, 6, 7, 8, 9):
        attack.masked(silo)
    for silo in (2, 3, 4, 5, 6, 7, 8, 9):
        with pytest.raises(Refusal, match="receipts"):
            attack.confirm(silo, survivors)
    with pytest.raises(Refusal, match="bound to another manifest"):
        attack.confirm(1, survivors)


def test_different_models_to_different_silos(federation, dishonest):
    """The masks do not cancel: what is left after all self masks are gone is noise, and no silo helps that far."""
    fed = federation(3, channels=(ChannelSpec("update", 3000, 16, 1.0),))
    for models in ([bytes(32)] * 3, [b"\1" * 32, bytes(32), bytes(32)]):
        attack = dishonest(fed)
        total = np.zeros(0, np.uint64)
        for silo, model in zip((1, 2, 3), models, strict=True):
            manifest = replace(attack.manifest, model_hash=model)
            attack.masked(silo, manifest)
            words = attack.words[silo].copy()
            apply_masks(words, [self_mask_key(attack.seeds[silo], manifest.digest(), silo, manifest.slot)], [-1])
            total = words if total.size == 0 else total + words
        agreement = np.mean(total == fed.plain_sum((1, 2, 3)))
        if len(set(models)) == 1:
            assert agreement == 1
            continue
        assert agreement == 0
        for silo in (1, 2, 3):
            with pytest.raises(Refusal, match=r"receipts|manifest"):
                attack.confirm(silo, ((1, 2, 3),))


def test_helper_shown_another_manifest(federation, dishonest):
    attack = dishonest(federation(5), (1, 2, 3))
    for silo in (1, 2, 3):
        attack.masked(silo)
    other = replace(attack.manifest, round=6)
    with pytest.raises(Refusal, match="receipts"):
        attack.confirm(4, ((1, 2, 3),), other)
    attack.confirm(5, ((1, 2, 3),))


@pytest.mark.parametrize(
    ("survivors", "rule"),
    [
        (((1, 2, 3, 5),), "survivors"),
        (((1, 2, 3, 77),), "survivors"),
        (((1, 2, 3), (4, 5, 6)), "survivors"),
        ((), "survivors"),
    ],
)
def test_survivors_that_are_not_of_the_cohort(federation, dishonest, survivors, rule):
    attack = dishonest(federation(6), (1, 2, 3, 4))
    for silo in (1, 2, 3, 4):
        attack.masked(silo)
    with pytest.raises(Refusal, match=rule):
        attack.confirm(1, survivors)
    assert attack.slot_is_closed(1)


def test_cohort_with_too_few_keys(federation, dishonest):
    """Two of the cohort's four silos took part in the key set-up, three are needed: not even a vector is computed."""
    fed = federation(9)
    present = fed.exchange(absent=lambda stage, silo: silo in (8, 9))
    epoch = OpenEpoch(fed.desk, 1, 1).advertise(present).share(present)
    attack = dishonest(fed, (1, 2, 8, 9), epoch=epoch)
    with pytest.raises(PolicyRefusal, match="2 silos could take part, this silo's rules need 3"):
        attack.masked(1)
    assert attack.slot_is_closed(1)
    assert not fed.vectors


def test_fraction_of_the_cohort_is_a_minimum(federation, dishonest):
    attack = dishonest(federation(7, rules=SiloRules(0, minimum_fraction=0.6)))
    for silo in attack.everyone():
        attack.masked(silo)
    with pytest.raises(PolicyRefusal, match="4 silos are to be summed, this silo's rules need 5"):
        attack.confirm(1, ((1, 2, 3, 4),))
    attack.confirm(2, ((1, 2, 3, 4, 5),))


def test_receipts_are_those_of_all_survivors(four):
    """None, one too few, and one of a silo that is not listed."""
    data, listed = four.manifest.to_bytes(), tuple(four.receipts[silo] for silo in (1, 2, 3))
    for silo, receipts in {1: (), 2: listed[1:], 3: (*listed, four.receipts[4])}.items():
        request = ConfirmRequest(*four.head, data, WITHOUT_4, receipts, b"")
        with pytest.raises(Refusal, match="receipts"):
            four.fed.answer("confirm", silo, four.fed.signed(request))
        assert four.slot_is_closed(silo)


def test_unknown_silo_in_a_cohort(federation, dishonest):
    attack = dishonest(federation(4), (1, 2, 3, 99))
    with pytest.raises(Refusal, match="known-silos"):
        attack.masked(1)


def test_silo_outside_the_cohorts_sends_no_vector(federation, dishonest):
    attack = dishonest(federation(4), (1, 2, 3))
    with pytest.raises(Refusal, match="cohort"):
        attack.masked(4)
    assert 4 not in attack.fed.vectors


def test_manifest_of_other_keys(federation, dishonest):
    attack = dishonest(federation(4))
    with pytest.raises(Refusal, match="epoch-keys"):
        attack.masked(1, replace(attack.manifest, epoch_hash=bytes(32)))
    with pytest.raises(Refusal, match="manifest"):
        attack.masked(1, replace(attack.manifest, epoch=attack.manifest.epoch + 1))
    with pytest.raises(Refusal, match="manifest"):
        attack.masked(1, replace(attack.manifest, session=bytes(16)))
    attack.masked(1)


def test_counter_of_another_type(federation, dishonest):
    attack = dishonest(federation(4))
    for changes in ({"slot": 0.0}, {"attempt": False}, {"cohorts": ((1.0, 2.0, 3.0, 4.0),)}):
        with pytest.raises(ProtocolError):
            attack.masked(1, replace(attack.manifest, **changes))
    attack.masked(1)


def test_request_signed_by_somebody_else(federation, dishonest):
    fed = federation(4)
    attack = dishonest(fed)
    request = MaskedRequest(*attack.head, attack.manifest.to_bytes(), attack.epoch.delivery(1))
    for stranger in (Identity.generate(), fed.identities[2]):
        with pytest.raises(Refusal, match="signature"):
            fed.answer("masked", 1, sign_message(stranger, request))
    signed = Signed.from_bytes(fed.signed(request))
    with pytest.raises(ProtocolError):
        fed.answer("confirm", 1, signed.to_bytes())
    altered = bytearray(signed.payload)
    altered[-1] ^= 1
    with pytest.raises(Refusal, match="signature"):
        fed.answer("masked", 1, Signed(bytes(altered), signed.signature).to_bytes())
    attack.masked(1)


def test_another_roster(federation):
    fed, other = federation(4), federation(5)
    request = AdvertiseRequest(fed.session, other.roster.hash(), 1, 4)
    with pytest.raises(Refusal, match="roster"):
        fed.answer("advertise", 1, fed.signed(request))


@pytest.mark.parametrize("stage", ["advertise", "share", "masked", "confirm", "unmask"])
def test_requests_of_a_run_that_was_not_joined(federation, dishonest, stage):
    """Signed by the coordinator and well formed; nothing is kept of them, whatever their number."""
    attack = dishonest(federation(4))
    fed, head = attack.fed, (bytes(16), attack.fed.roster.hash(), attack.epoch.number)
    manifest, delivery = replace(attack.manifest, session=bytes(16)).to_bytes(), attack.epoch.delivery(1)
    request = {
        "advertise": AdvertiseRequest(*head, 1024),
        "share": ShareRequest(*head, 0, 3, ()),
        "masked": MaskedRequest(*head, manifest, delivery),
        "confirm": ConfirmRequest(*head, manifest, ALL, (), delivery),
        "unmask": UnmaskRequest(*head, 0, attack.manifest.digest(), ALL, ()),
    }[stage]
    before = list(fed.connections[1].iterdump())
    with pytest.raises(Refusal, match="rule session"):
        fed.silos[1].answer(stage, fed.signed(request), fed.contribute(1))
    assert list(fed.connections[1].iterdump()) == before
    attack.masked(1)


def test_epochs_only_grow(federation):
    fed = federation(3)

    def advertise(epoch):
        return fed.answer("advertise", 1, fed.signed(AdvertiseRequest(fed.session, fed.roster.hash(), epoch, 2)))

    first = advertise(5)
    for epoch in (5, 4, 0):
        with pytest.raises(Refusal, match="epoch-order"):
            advertise(epoch)
    fed.start(1, bytes(16)).forget_other_runs()
    with pytest.raises(Refusal, match="epoch-order"):
        advertise(5)
    assert advertise(6) != first


def advertise(fed, head, slots):
    """Signed advertisements of all silos."""
    request = fed.signed(AdvertiseRequest(*head, slots))
    replies = {silo: AdvertiseReply.from_bytes(fed.answer("advertise", silo, request)) for silo in fed.identities}
    return {silo: reply.advertisement for silo, reply in replies.items()}


ADVERTISEMENT_FAULTS = {
    "own missing": "own-keys",
    "own altered": "own-keys",
    "too few": "2 silos advertised keys, 3 are needed",
    "twice": "known-silos",
    "substituted key": "signature",
    "other epoch": "another session, roster or epoch",
}


@pytest.mark.parametrize(("fault", "words"), ADVERTISEMENT_FAULTS.items())
def test_advertisements_that_do_not_hold(federation, fault, words):
    fed = federation(4)
    head = (fed.session, fed.roster.hash(), 1)
    signed = advertise(fed, head, 2)
    shown = [signed[silo] for silo in (1, 2, 3, 4)]
    if fault == "own missing":
        shown = shown[1:]
    elif fault == "own altered":
        own = open_signed(Advertisement, fed.roster.public(1), shown[0])
        shown[0] = sign_message(fed.identities[1], replace(own, box_key=own.mask_keys_hash))
    elif fault == "too few":
        shown = shown[:2]
    elif fault == "twice":
        shown[2] = shown[1]
    elif fault == "substituted key":
        other = open_signed(Advertisement, fed.roster.public(2), shown[1])
        shown[1] = fed.signed(replace(other, box_key=fed.coordinator_identity.public))
    else:
        other = open_signed(Advertisement, fed.roster.public(2), shown[1])
        shown[1] = sign_message(fed.identities[2], replace(other, epoch=0))
    with pytest.raises(ProtocolError, match=words):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(shown))))
    fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(signed.values()))))
    with pytest.raises(ProtocolError, match="not waiting to deal"):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(signed.values()))))


def test_advertised_key_of_low_order(federation):
    fed = federation(4)
    head = (fed.session, fed.roster.hash(), 1)
    signed = list(advertise(fed, head, 2).values())
    other = open_signed(Advertisement, fed.roster.public(2), signed[1])
    shown = [signed[0], sign_message(fed.identities[2], replace(other, box_key=bytes(32))), *signed[2:]]
    with pytest.raises(ProtocolError, match="silo 2 advertised a key of low order"):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, 3, tuple(shown))))


def test_views_of_the_key_setup_that_differ(federation, dishonest):
    """Silo 1 is shown a set-up without silo 5: its epoch hash differs, so no manifest suits both."""
    fed = federation(5)
    attack = dishonest(fed)
    full = attack.epoch
    partial = replace(full, dealers={silo: dealer for silo, dealer in full.dealers.items() if silo != 5})
    request = MaskedRequest(*attack.head, attack.manifest.to_bytes(), partial.delivery(1))
    with pytest.raises(Refusal, match="epoch-keys"):
        fed.answer("masked", 1, fed.signed(request))
    with pytest.raises(Refusal, match="epoch-keys"):
        attack.masked(1)


def delivered(attack, silo):
    """A delivery to `silo` as the coordinator would honestly make it, and its peers by id."""
    honest = Delivery.from_bytes(attack.epoch.delivery(silo))
    return honest, {peer.silo: peer for peer in map(Delivered.from_bytes, honest.peers)}


def deliver(attack, silo, delivery, peers):
    data = replace(delivery, peers=tuple(peer.to_bytes() for peer in peers)).to_bytes()
    request = MaskedRequest(*attack.head, attack.manifest.to_bytes(), data)
    return attack.fed.answer("masked", silo, attack.fed.signed(request))


def test_deliveries_of_other_dealings(federation, dishonest):
    attack = dishonest(federation(5))
    honest, peers = delivered(attack, 5)
    one, two, three, four, five = honest.dealings
    other = open_signed(Dealing, attack.fed.roster.public(5), five)
    altered = sign_message(attack.fed.identities[5], replace(other, parcels_hash=bytes(32)))
    faults = {
        "own-keys": [(one, two, three, four), (one, two, three, four, altered)],
        "threshold": [(four, five)],
        "known-silos": [(one, two, three, three, five), (two, one, three, four, five)],
        "signature": [(one, two, three, attack.fed.signed(replace(other, silo=4)), five)],
    }
    for rule, shown in faults.items():
        for dealings in shown:
            with pytest.raises(Refusal, match=rule):
                deliver(attack, 5, replace(honest, dealings=dealings), peers.values())
    deliver(attack, 5, honest, peers.values())


def test_deliveries_with_other_peers(federation, dishonest):
    attack = dishonest(federation(5))
    honest, peers = delivered(attack, 5)
    one, two, *rest = peers.values()
    wrong_order = [[two, one, *rest], [one, one, two, *rest], [one, two, *rest, replace(one, silo=9)], [two, *rest]]
    for shown in [*wrong_order, [replace(one, box=two.box), two, *rest]]:
        with pytest.raises(Refusal, match="delivery"):
            deliver(attack, 5, honest, shown)
    for changes in ({"mask_keys": two.mask_keys}, {"parcels": b"", "box": b""}, {"parcels": two.parcels}):
        with pytest.raises(ProtocolError, match="not those it signed for"):
            deliver(attack, 5, honest, [replace(one, **changes), two, *rest])
    deliver(attack, 5, honest, peers.values())


def test_stages_out_of_order(federation):
    fed = federation(4)
    head = (fed.session, fed.roster.hash(), 1)
    with pytest.raises(ProtocolError, match="epoch 1 is not the one"):
        fed.answer("masked", 1, fed.signed(MaskedRequest(*head, fed.manifest().to_bytes(), b"")))
    fed.answer("advertise", 1, fed.signed(AdvertiseRequest(*head, 2)))
    with pytest.raises(ProtocolError, match="not complete"):
        fed.answer("masked", 1, fed.signed(MaskedRequest(*head, fed.manifest().to_bytes(), b"")))
    with pytest.raises(ProtocolError, match="no stage 'train'"):
        fed.answer("train", 1, b"")


@pytest.mark.parametrize("stage", ["advertise", "share", "masked", "confirm", "unmask"])
@pytest.mark.parametrize("request_bytes", [b"", b"\x90", b"\xc1", b"\x9f" * 50, b"\xdd\xff\xff\xff\xff", bytes(1000)])
def test_noise_instead_of_a_request(federation, stage, request_bytes):
    with pytest.raises(ProtocolError):
        federation(3).answer(stage, 1, request_bytes)


# The coordinator refuses too


def test_reply_that_arrives_twice_counts_once(federation):
    """Repeated replies, and those of silos that were not asked, change nothing."""
    fed = federation(4)

    def exchange(stage, requests):
        for silo, reply in fed.exchange()(stage, requests):
            yield silo, reply
            yield silo, reply
            yield 9, reply

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3, 4))
    assert not fed.named("silo_misbehaved")


def test_short_vector_is_reported_as_short(federation):
    fed = federation(4)
    exchange = fed.exchange(tamper=lambda stage, silo, reply: reply[:20] if (stage, silo) == ("masked", 4) else reply)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3))
    assert [event["reason"] for event in fed.named("silo_misbehaved")] == [
        "silo 4 sent 20 bytes, too few for 24 of words"
    ]


PARCEL_FAULTS = {
    "box": lambda reply: replace(reply, boxes=(reply.boxes[1], *reply.boxes[1:])),
    "row": lambda reply: replace(reply, rows=(reply.rows[1], *reply.rows[1:])),
    "one box fewer": lambda reply: replace(reply, boxes=reply.boxes[1:]),
    "one recipient fewer": lambda reply: replace(reply, boxes=reply.boxes[1:], rows=reply.rows[1:]),
}


@pytest.mark.parametrize("fault", PARCEL_FAULTS)
def test_coordinator_leaves_out_boxes_that_were_not_signed_for(federation, fault):
    fed = federation(4)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("share", 4):
            return reply
        return PARCEL_FAULTS[fault](ShareReply.from_bytes(reply)).to_bytes()

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 2, 3))
    assert [(event["silo"], event["stage"]) for event in fed.named("silo_misbehaved")] == [(4, "share")]


@pytest.mark.parametrize(
    "change", [lambda box: b"", lambda box: box[:-1], lambda box: box + b"x", lambda box: box * 1000]
)
def test_coordinator_leaves_out_boxes_of_another_size(federation, change):
    """Signed for as they are: every recipient would have to be sent them."""
    fed = federation(4)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("share", 4):
            return reply
        message = ShareReply.from_bytes(reply)
        boxes = (*message.boxes[:-1], change(message.boxes[-1]))
        dealing = open_signed(Dealing, fed.roster.public(4), message.dealing)
        again = replace(dealing, parcels_hash=digest_of(parcels(boxes, message.rows)))
        return replace(message, dealing=sign_message(fed.identities[4], again), boxes=boxes).to_bytes()

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 2, 3))
    (event,) = fed.named("silo_misbehaved")
    assert (event["silo"], event["stage"]) == (4, "share")
    assert "another size" in event["reason"]
