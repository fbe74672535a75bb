"""What a dishonest coordinator asks for, and the rule by which every silo refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.errors import PolicyRefusal, ProtocolError, Refusal
from autoflip_secure.secagg import Identity, SiloRules
from autoflip_secure.secagg.keys import Agreement, pair_mask_key, self_mask_key
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.secagg.round_messages import (
    Confirmation,
    ConfirmReply,
    ConfirmRequest,
    MaskedReply,
    MaskedRequest,
    UnmaskReply,
    UnmaskRequest,
)
from autoflip_secure.secagg.rules import share_threshold
from autoflip_secure.secagg.setup_messages import Advertisement, AdvertiseRequest, Delivery, ShareRequest
from autoflip_secure.secagg.signing import Signed, digest_of, open_signed, sign_message, sign_statement
from autoflip_secure.sums.channels import ChannelSpec


class Dishonest:
    """A coordinator that signs whatever a test wants, over one honest key set-up."""

    def __init__(self, fed, *cohorts, **changes):
        self.fed = fed
        self.epoch = fed.open_epoch(4)
        self.manifest = fed.bind(self.epoch, fed.manifest(*cohorts, **changes))
        self.head = (self.manifest.session, fed.roster.hash(), self.epoch.number)
        self.receipts = {}
        self.words = {}
        self.seeds, self.mask_keys = {}, {}

    def masked(self, silo, manifest=None):
        data = (manifest or self.manifest).to_bytes()
        request = MaskedRequest(*self.head, data, self.epoch.delivery(silo))
        query = "SELECT seed, mask_key FROM secagg_secret WHERE slot = ?"
        secrets = self.fed.connections[silo].execute(query, (self.manifest.slot,)).fetchone()
        if secrets is not None:
            self.seeds[silo], self.mask_keys[silo] = secrets
        reply = MaskedReply.from_bytes(self.fed.answer("masked", silo, self.fed.signed(request)))
        self.receipts[silo] = (digest_of(reply.words), reply.signature)
        self.words[silo] = np.frombuffer(reply.words, np.uint64)
        return reply

    def confirm_request(self, silo, survivors, manifest=None):
        data = (manifest or self.manifest).to_bytes()
        receipts = tuple(self.receipts.get(s, (bytes(32), bytes(64))) for silos in survivors for s in silos)
        request = ConfirmRequest(*self.head, data, survivors, receipts, self.epoch.delivery(silo))
        return self.fed.signed(request)

    def confirm(self, silo, survivors, manifest=None):
        reply = self.fed.answer("confirm", silo, self.confirm_request(silo, survivors, manifest))
        return silo, ConfirmReply.from_bytes(reply).signature

    def unmask_request(self, survivors, confirmations, manifest=None):
        digest = (manifest or self.manifest).digest()
        request = UnmaskRequest(*self.head, self.manifest.slot, digest, survivors, tuple(confirmations))
        return self.fed.signed(request)

    def unmask(self, silo, survivors, confirmations):
        return self.fed.answer("unmask", silo, self.unmask_request(survivors, confirmations))

    def everyone(self):
        return tuple(self.fed.identities)

    def slot_is_closed(self, silo):
        row = self.fed.connections[silo].execute("SELECT stage FROM secagg_slot").fetchone()
        shares = self.fed.connections[silo].execute(
            "SELECT count(*) FROM secagg_share WHERE slot = ?", (self.manifest.slot,)
        )
        return row == ("closed",) and shares.fetchone() == (0,)


@pytest.fixture
def four(federation):
    attack = Dishonest(federation(4))
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
def test_manifest_that_would_open_fewer_than_three(federation, minimum):
    attack = Dishonest(federation(4), minimum=minimum)
    with pytest.raises(PolicyRefusal, match="size"):
        attack.masked(1)
    assert attack.slot_is_closed(1)
    assert not attack.fed.vectors, "the contribution was never computed"


def test_cohort_of_two(federation):
    attack = Dishonest(federation(4), (1, 2), minimum=2)
    with pytest.raises(PolicyRefusal, match="size"):
        attack.masked(1)


def test_coordinator_cannot_lower_a_silos_minimum(federation):
    attack = Dishonest(federation(5, rules=SiloRules(0, minimum=5)))
    for silo in attack.everyone():
        attack.masked(silo)
    with pytest.raises(PolicyRefusal, match="4 silos are to be summed, this silo's rules need 5"):
        attack.confirm(1, ((1, 2, 3, 4),))


def test_coordinator_can_raise_a_silos_minimum(federation):
    attack = Dishonest(federation(5), minimum=5)
    for silo in attack.everyone():
        attack.masked(silo)
    with pytest.raises(PolicyRefusal, match="need 5"):
        attack.confirm(1, ((1, 2, 3, 4),))


def test_colluders_and_moments_raise_the_minimum(federation):
    """n = 7, c = 2: five silos for one moment, six for two."""
    energy = ChannelSpec("unit_energy", 2, 16, 1.0)
    for channels, least in (
        ((ChannelSpec("update", 7, 16, 1.0),), 5),
        ((ChannelSpec("update", 7, 16, 1.0), energy), 6),
    ):
        attack = Dishonest(federation(7, rules=SiloRules(2), channels=channels))
        for silo in attack.everyone():
            attack.masked(silo)
        with pytest.raises(PolicyRefusal, match=f"need {least}"):
            attack.confirm(1, (tuple(range(1, least)),))
        attack.confirm(2, (tuple(range(1, least + 1)),))


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_coordinator_cannot_choose_the_threshold(federation, threshold):
    attack = Dishonest(federation(4), threshold=threshold)
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


def test_slot_stays_spent_when_the_contribution_fails(federation):
    attack = Dishonest(federation(4))

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


def test_slot_out_of_range(federation):
    attack = Dishonest(federation(4))
    with pytest.raises(Refusal, match="slot"):
        attack.masked(1, replace(attack.manifest, slot=4))


def test_listed_silo_that_sent_nothing(federation):
    attack = Dishonest(federation(4))
    for silo in (1, 2, 3):
        attack.masked(silo)
    attack.receipts[4] = attack.receipts[1]
    with pytest.raises(Refusal, match="sent no masked vector"):
        attack.confirm(4, ALL)
    with pytest.raises(Refusal, match="receipts"):
        attack.confirm(1, ALL)


def test_late_vector_of_a_silo_declared_dropped_stays_hidden(four):
    """Silo 4's vector arrives after the others gave up its mask key: its own mask still covers it."""
    manifest, epoch, words = four.manifest, four.epoch, four.words[4].copy()
    agreement = Agreement(four.mask_keys[4])
    shared = {peer: agreement.with_peer(epoch.advertisements[peer].mask_key(manifest.slot)) for peer in (1, 2, 3)}
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


def test_one_silo_shown_a_smaller_cohort(federation):
    """Silo 1 masks with three decoys only; the decoys are then declared dropped to everybody else."""
    attack = Dishonest(federation(9))
    survivors = ((1, 5, 6, 7, 8, 9),)
    attack.masked(1, replace(attack.manifest, cohorts=((1, 2, 3, 4),)))
    for silo in (5, 6, 7, 8, 9):
        attack.masked(silo)
    for silo in (2, 3, 4, 5, 6, 7, 8, 9):
        with pytest.raises(Refusal, match="receipts"):
            attack.confirm(silo, survivors)
    with pytest.raises(Refusal, match="bound to another manifest"):
        attack.confirm(1, survivors)


def test_different_models_to_different_silos(federation):
    """The masks do not cancel: what is left after all self masks are gone is noise, and no silo helps that far."""
    fed = federation(3, channels=(ChannelSpec("update", 3000, 16, 1.0),))
    for models in ([bytes(32)] * 3, [b"\1" * 32, bytes(32), bytes(32)]):
        attack = Dishonest(fed)
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


def test_helper_shown_another_manifest(federation):
    attack = Dishonest(federation(5), (1, 2, 3))
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
def test_survivors_that_are_not_of_the_cohort(federation, survivors, rule):
    attack = Dishonest(federation(6), (1, 2, 3, 4))
    for silo in (1, 2, 3, 4):
        attack.masked(silo)
    with pytest.raises(Refusal, match=rule):
        attack.confirm(1, survivors)
    assert attack.slot_is_closed(1)


def test_unknown_silo_in_a_cohort(federation):
    attack = Dishonest(federation(4), (1, 2, 3, 99))
    with pytest.raises(Refusal, match="known-silos"):
        attack.masked(1)


def test_silo_outside_the_cohorts_sends_no_vector(federation):
    attack = Dishonest(federation(4), (1, 2, 3))
    with pytest.raises(Refusal, match="cohort"):
        attack.masked(4)
    assert 4 not in attack.fed.vectors


def test_manifest_of_other_keys(federation):
    attack = Dishonest(federation(4))
    with pytest.raises(Refusal, match="epoch-keys"):
        attack.masked(1, replace(attack.manifest, epoch_hash=bytes(32)))
    with pytest.raises(Refusal, match="manifest"):
        attack.masked(1, replace(attack.manifest, epoch=attack.manifest.epoch + 1))
    with pytest.raises(Refusal, match="manifest"):
        attack.masked(1, replace(attack.manifest, session=bytes(16)))
    attack.masked(1)


def test_counter_of_another_type(federation):
    attack = Dishonest(federation(4))
    for changes in ({"slot": 0.0}, {"attempt": False}, {"cohorts": ((1.0, 2.0, 3.0, 4.0),)}):
        with pytest.raises(ProtocolError):
            attack.masked(1, replace(attack.manifest, **changes))
    attack.masked(1)


def test_request_signed_by_somebody_else(federation):
    fed = federation(4)
    attack = Dishonest(fed)
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
    request = AdvertiseRequest(bytes(16), other.roster.hash(), 1, 4)
    with pytest.raises(Refusal, match="roster"):
        fed.answer("advertise", 1, fed.signed(request))


def test_epochs_only_grow(federation):
    fed = federation(3)

    def advertise(epoch):
        return fed.answer("advertise", 1, fed.signed(AdvertiseRequest(bytes(16), fed.roster.hash(), epoch, 2)))

    first = advertise(5)
    for epoch in (5, 4, 0):
        with pytest.raises(Refusal, match="epoch-order"):
            advertise(epoch)
    fed.silos[1].forget(bytes(16))
    with pytest.raises(Refusal, match="epoch-order"):
        advertise(5)
    assert advertise(6) != first


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
    head = (bytes(16), fed.roster.hash(), 1)
    signed = {silo: fed.answer("advertise", silo, fed.signed(AdvertiseRequest(*head, 2))) for silo in fed.identities}
    shown = [signed[silo] for silo in (1, 2, 3, 4)]
    if fault == "own missing":
        shown = shown[1:]
    elif fault == "own altered":
        own = open_signed(Advertisement, fed.roster.public(1), shown[0])
        shown[0] = sign_message(fed.identities[1], replace(own, box_key=own.mask_key(0)))
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
        fed.answer("share", 1, fed.signed(ShareRequest(*head, tuple(shown))))
    fed.answer("share", 1, fed.signed(ShareRequest(*head, tuple(signed.values()))))
    with pytest.raises(ProtocolError, match="not waiting to deal"):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, tuple(signed.values()))))


def test_advertised_key_of_low_order(federation):
    fed = federation(4)
    head = (bytes(16), fed.roster.hash(), 1)
    signed = [fed.answer("advertise", silo, fed.signed(AdvertiseRequest(*head, 2))) for silo in fed.identities]
    other = open_signed(Advertisement, fed.roster.public(2), signed[1])
    for changes in ({"box_key": bytes(32)}, {"mask_keys": other.mask_key(0) + (1).to_bytes(32, "little")}):
        shown = [signed[0], sign_message(fed.identities[2], replace(other, **changes)), *signed[2:]]
        with pytest.raises(ProtocolError, match="low order"):
            fed.answer("share", 1, fed.signed(ShareRequest(*head, tuple(shown))))


def test_views_of_the_key_setup_that_differ(federation):
    """Silo 1 is shown a set-up without silo 5: its epoch hash differs, so no manifest suits both."""
    fed = federation(5)
    attack = Dishonest(fed)
    full = attack.epoch
    partial = type(full)(
        full.desk, full.context, full.slots, full.advertisements, {s: r for s, r in full.replies.items() if s != 5}
    )
    request = MaskedRequest(*attack.head, attack.manifest.to_bytes(), partial.delivery(1))
    with pytest.raises(Refusal, match="epoch-keys"):
        fed.answer("masked", 1, fed.signed(request))
    with pytest.raises(Refusal, match="epoch-keys"):
        attack.masked(1)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ((1, 2, 3, 4), "own-keys"),
        ((4, 5), "threshold"),
        ((1, 2, 3, 3, 5), "known-silos"),
        ((2, 1, 3, 5), "known-silos"),
    ],
)
def test_deliveries_that_do_not_hold(federation, shown, words):
    attack = Dishonest(federation(5))
    replies = attack.epoch.replies
    partial = Delivery(
        tuple(replies[silo].dealing for silo in shown), tuple(replies[silo].boxes[4] for silo in shown)
    ).to_bytes()
    request = MaskedRequest(*attack.head, attack.manifest.to_bytes(), partial)
    with pytest.raises(Refusal, match=words):
        attack.fed.answer("masked", 5, attack.fed.signed(request))
    attack.masked(5)


def test_delivery_with_an_exchanged_box(federation):
    fed = federation(4)
    attack = Dishonest(fed)
    box = attack.epoch.replies[2].boxes
    swapped = (*box[:1], *box[:1], *box[2:])
    honest = dict(attack.epoch.replies)
    attack.epoch.replies = {**honest, 2: replace(honest[2], boxes=swapped)}
    with pytest.raises(Refusal, match="delivery"):
        attack.masked(2)
    attack.epoch.replies = honest
    attack.masked(2)


def test_stages_out_of_order(federation):
    fed = federation(4)
    head = (bytes(16), fed.roster.hash(), 1)
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
