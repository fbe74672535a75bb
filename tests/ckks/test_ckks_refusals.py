"""What a dishonest coordinator asks for, and the rule by which every silo refuses."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import replace
from functools import reduce
from pathlib import Path

import msgpack
import numpy as np
import pytest

from autoflip_secure.ckks import parameters as parameters_module
from autoflip_secure.ckks.messages import EncryptRequest, KeyAdvertisement, KeyRequest, Opening, OpenRequest
from autoflip_secure.ckks.packing import words_of
from autoflip_secure.ckks.ring import ring
from autoflip_secure.ckks.silo import CkksSilo
from autoflip_secure.ckks.summation import read_sum
from autoflip_secure.errors import (
    Abort,
    ConfigError,
    EncodingError,
    InputError,
    PolicyRefusal,
    ProtocolError,
    Refusal,
)
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.rules import SiloRules
from autoflip_secure.parties.signing import Signed, open_signed, sign_message
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.words import ContributionWords, PackedWords, all_words

ROOT = Path(__file__).parents[2]
ALL = ((1, 2, 3, 4),)
WITHOUT_4 = ((1, 2, 3),)
STAGES = ["keys", "encrypt", "open"]


@pytest.fixture
def four(federation, dishonest):
    """Four silos that all sent ciphertexts."""
    attack = dishonest(federation(4))
    for silo in attack.fed.everyone:
        attack.encrypt(silo)
    return attack


def dump(fed, silo):
    return list(fed.connections[silo].iterdump())


def requests_of(fed, epoch, manifest, **changes):
    """A well-formed request for every stage."""
    session, roster_hash, epoch = (
        changes.get(name, value)
        for name, value in zip(("session", "roster_hash", "epoch"), fed.head(epoch), strict=True)
    )
    head = (session, roster_hash, epoch)
    return {
        "keys": KeyRequest(*head, fed.slots),
        "encrypt": EncryptRequest(*head, replace(manifest, session=session).to_bytes(), ()),
        "open": OpenRequest(*head, manifest.slot, manifest.digest(), manifest.cohorts),
    }


# Who asks


@pytest.mark.parametrize("stage", STAGES)
def test_request_signed_by_somebody_else(four, stage):
    """A stranger, another silo, a request altered after it was signed, or the signature of another stage."""
    fed = four.fed
    manifest = replace(four.manifest, slot=1)
    slot_of = {"keys": manifest, "encrypt": manifest, "open": four.manifest}
    request = requests_of(fed, four.epoch + (stage == "keys"), slot_of[stage])[stage]
    other_stage = "open" if stage == "encrypt" else "encrypt"
    honest = Signed.from_bytes(fed.signed(request))
    altered = bytearray(honest.payload)
    altered[-1] ^= 1
    wrong = fed.coordinator_identity.sign(requests_of(fed, 1, manifest)[other_stage].KIND.encode(), honest.payload)
    before = dump(fed, 1)
    for forged in (
        sign_message(Identity.generate(), request),
        sign_message(fed.identities[2], request),
        Signed(bytes(altered), honest.signature).to_bytes(),
        Signed(honest.payload, wrong).to_bytes(),
    ):
        with pytest.raises(Refusal, match="rule signature"):
            fed.answer(stage, 1, forged)
    assert dump(fed, 1) == before
    fed.answer(stage, 1, honest.to_bytes())


@pytest.mark.parametrize("stage", STAGES)
def test_another_roster(federation, four, stage):
    other = federation(5)
    before = dump(four.fed, 1)
    request = requests_of(four.fed, four.epoch + 1, four.manifest, roster_hash=other.roster.hash())[stage]
    with pytest.raises(Refusal, match="rule roster"):
        four.fed.answer(stage, 1, four.fed.signed(request))
    assert dump(four.fed, 1) == before


@pytest.mark.parametrize("stage", STAGES)
def test_requests_of_a_run_that_was_not_joined(four, stage):
    """Signed by the coordinator and well formed; nothing is kept of them, whatever their number."""
    before = dump(four.fed, 1)
    request = requests_of(four.fed, four.epoch + 1, four.manifest, session=bytes(16))[stage]
    with pytest.raises(Refusal, match="rule session"):
        four.fed.answer(stage, 1, four.fed.signed(request))
    assert dump(four.fed, 1) == before


def test_silo_that_does_not_fit_the_roster(federation):
    fed, connection = federation(4), federation(3).connections[1]
    with pytest.raises(InputError, match="not the one the roster has"):
        CkksSilo(connection, fed.identities[2], 1, fed.roster, SiloRules(0), fed.session)
    with pytest.raises(InputError, match="not in the roster"):
        CkksSilo(connection, fed.identities[1], 7, fed.roster, SiloRules(0), fed.session)
    with pytest.raises(ConfigError, match="colluders"):
        CkksSilo(connection, fed.identities[1], 1, fed.roster, SiloRules(2), fed.session)


# Keys


def make_keys(fed, epoch, slots=4):
    """Signed advertisements of all silos, by silo."""
    request = fed.signed(KeyRequest(*fed.head(epoch), slots))
    return {silo: fed.answer("keys", silo, request) for silo in fed.everyone}


def deliver(fed, epoch, shown, silo=1):
    """Show a silo keys; the manifest names other keys, so the refusal tells what came of them."""
    manifest = fed.manifest(epoch=epoch)
    return fed.answer("encrypt", silo, fed.signed(EncryptRequest(*fed.head(epoch), manifest.to_bytes(), tuple(shown))))


def test_epochs_only_grow(federation):
    fed = federation(3)
    first = make_keys(fed, 5)[1]
    keys = fed.secrets(1)
    assert len(keys) == 4
    for epoch in (5, 4, 0):
        with pytest.raises(Refusal, match="epoch-order"):
            make_keys(fed, epoch)
    assert fed.secrets(1) == keys
    fed.start(1, bytes(16)).forget_other_runs()
    assert not fed.secrets(1)
    with pytest.raises(Refusal, match="epoch-order"):
        make_keys(fed, 5)
    assert make_keys(fed, 6)[1] != first


KEY_FAULTS = {
    "own missing": "rule own-keys",
    "own altered": "rule own-keys",
    "twice": "rule known-silos",
    "not ascending": "rule known-silos",
    "substituted key": "rule signature",
    "name of another": "rule signature",
    "stranger": "silo 9 is not in the roster",
    "other epoch": "another session, roster or epoch",
    "other session": "another session, roster or epoch",
    "other roster": "another session, roster or epoch",
    "more slots": "made keys for 5 slots instead of 4",
    "fewer slots": "made keys for 3 slots instead of 4",
    "no message": "not a signed message",
}


@pytest.mark.parametrize(("fault", "words"), KEY_FAULTS.items())
def test_keys_that_do_not_hold(federation, fault, words):
    """Nothing is kept of them: the honest keys are taken afterwards."""
    fed = federation(4)
    signed = make_keys(fed, 1)
    own, other = (open_signed(KeyAdvertisement, fed.roster.public(silo), signed[silo]) for silo in (1, 2))
    by_two = lambda **changes: sign_message(fed.identities[2], replace(other, **changes))  # noqa: E731
    one, two, three, four = signed.values()
    altered = sign_message(fed.identities[1], replace(own, keys=own.keys[:-32] + other.keys[-32:]))
    shown = {
        "own missing": (two, three, four),
        "own altered": (altered, two, three, four),
        "twice": (one, two, two, four),
        "not ascending": (two, one, three, four),
        "substituted key": (one, fed.signed(replace(other, keys=own.keys)), three, four),
        "name of another": (one, by_two(silo=3), three, four),
        "stranger": (one, two, by_two(silo=9), four),
        "other epoch": (one, by_two(epoch=0), three, four),
        "other session": (one, by_two(session=bytes(16)), three, four),
        "other roster": (one, by_two(roster_hash=bytes(32)), three, four),
        "more slots": (one, by_two(slots=5, keys=other.keys + own.keys[:32]), three, four),
        "fewer slots": (one, by_two(slots=3, keys=other.keys[:-32]), three, four),
        "no message": (one, b"", three, four),
    }[fault]
    before = dump(fed, 1)
    with pytest.raises(ProtocolError, match=words):
        deliver(fed, 1, shown)
    assert dump(fed, 1) == before
    with pytest.raises(Refusal, match="rule epoch-keys"):
        deliver(fed, 1, signed.values())
    assert dump(fed, 1) != before


LOW_ORDER = [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255, 2**255 + 1]


@pytest.mark.parametrize("slot", [0, 3])
@pytest.mark.parametrize("point", LOW_ORDER)
def test_key_of_low_order(federation, point, slot):
    """Everybody would know what is agreed with it in that slot."""
    fed = federation(4)
    signed = make_keys(fed, 1)
    other = open_signed(KeyAdvertisement, fed.roster.public(2), signed[2])
    keys = other.keys[: 32 * slot] + point.to_bytes(32, "little") + other.keys[32 * (slot + 1) :]
    signed[2] = sign_message(fed.identities[2], replace(other, keys=keys))
    with pytest.raises(ProtocolError, match="silo 2 advertised a key of low order"):
        deliver(fed, 1, signed.values())


def test_keys_are_taken_once(four):
    """A second delivery is not even read: the first holds, for a new process as well."""
    fed, state = four.fed, four.fed.silos[1]._state
    ready = state.epoch(fed.session)
    for _ in range(2):
        with pytest.raises(Refusal, match="slot-once"):
            four.encrypt(1, advertisements=(four.first.advertisements[0],))
        assert state.epoch(fed.session) == ready
        fed.silos[1] = fed.start(1)


def test_keys_are_taken_once_by_two_processes(federation):
    """Both find the epoch without keys; the second one to record them is refused."""
    fed = federation(4)
    signed = make_keys(fed, 1)
    slow = fed.silos[1]._state
    waiting = slow.epoch(fed.session)
    fed.start(1)
    with pytest.raises(Refusal, match="epoch-keys"):
        deliver(fed, 1, signed.values())
    with pytest.raises(Refusal, match="keys-once"):
        slow.record_keys(waiting, bytes(32), {1: bytes(32)})
    assert slow.epoch(fed.session).epoch_hash != bytes(32)


def test_views_of_the_key_setup_that_differ(federation):
    """Silo 1 is shown keys without those of silo 4: its hash differs, so no manifest suits both."""
    fed = federation(4)
    requests = fed.caught_at("encrypt")
    honest = fed.read_request("encrypt", requests[1])
    partial = replace(honest, advertisements=honest.advertisements[:3])
    with pytest.raises(Refusal, match="epoch-keys"):
        fed.answer("encrypt", 1, fed.signed(partial))
    with pytest.raises(Refusal, match="epoch-keys"):
        fed.answer("encrypt", 1, requests[1])
    fed.answer("encrypt", 2, requests[2])


def test_silo_that_shows_two_silos_other_keys(federation):
    """Silo 4 signs two sets of keys; who was shown one and who the other have no manifest in common."""
    fed = federation(4)
    requests = fed.caught_at("encrypt")
    honest = fed.read_request("encrypt", requests[1])
    *others, own = honest.advertisements
    message = open_signed(KeyAdvertisement, fed.roster.public(4), own)
    second = sign_message(fed.identities[4], replace(message, keys=message.keys[32:] + message.keys[:32]))
    assert second != own
    with pytest.raises(Refusal, match="epoch-keys"):
        fed.answer("encrypt", 1, fed.signed(replace(honest, advertisements=(*others, second))))
    fed.answer("encrypt", 2, requests[2])


def test_process_whose_twin_made_new_keys(federation):
    """It has the keys of an epoch at hand that is over, and answers by those of the one that is on."""
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    before = dict(fed.silos)
    fed.coordinator.rekey()
    requests = fed.caught_at("encrypt", restart=True)
    for silo in fed.everyone:
        reply = before[silo].answer("encrypt", requests[silo], fed.contribute(silo))
        bound = Manifest.from_bytes(fed.read_request("encrypt", requests[silo]).manifest)
        assert fed.split("encrypt", reply, bound)[1].silo == silo
        assert before[silo]._ready.epoch == 2


# Manifests


def deliver_keys(attack, silo):
    """The silo takes the epoch's keys with a request that it cannot answer."""
    request = EncryptRequest(*attack.head, b"", attack.first.advertisements)
    with pytest.raises(ProtocolError, match="not a manifest"):
        attack.fed.answer("encrypt", silo, attack.fed.signed(request))


@pytest.fixture
def ready(federation, dishonest):
    """Five silos that have their keys, and nothing sent yet."""
    return dishonest(federation(5))


def test_manifest_of_other_keys_or_another_epoch(ready):
    """Refused before the slot is touched."""
    manifest = ready.manifest
    for rule, changes in (
        ("epoch-keys", {"epoch_hash": bytes(32)}),
        ("manifest", {"epoch": ready.epoch + 1}),
        ("manifest", {"session": bytes(16)}),
        ("slot-once", {"slot": 4}),
    ):
        with pytest.raises(Refusal, match=f"rule {rule}"):
            ready.encrypt(1, replace(manifest, **changes))
        assert ready.fed.stage_of(1) is None
    ready.encrypt(1)


CLOSING = {
    "threshold": ("threshold", {"threshold": 3}),
    "unknown silo": ("known-silos", {"cohorts": ((1, 2, 3, 99),)}),
    "minimum of two": ("size", {"minimum": (2,)}),
    "cohort of two": ("size", {"cohorts": ((1, 2),), "minimum": (2,)}),
    "not in a cohort": ("cohort", {"cohorts": ((2, 3, 4, 5),)}),
}


@pytest.mark.parametrize("fault", CLOSING)
def test_manifest_that_breaks_a_rule_closes_the_slot(ready, fault):
    rule, changes = CLOSING[fault]
    with pytest.raises(Refusal, match=f"rule {rule}"):
        ready.encrypt(1, replace(ready.manifest, **changes))
    assert ready.fed.stage_of(1) == "closed"
    assert not ready.fed.vectors, "the contribution was never computed"
    with pytest.raises(Refusal, match="slot-once"):
        ready.encrypt(1)
    with pytest.raises(Refusal, match="slot-once: slot 0 was closed"):
        ready.open(1, ((1, 2, 3, 4, 5),))


def test_cohort_with_too_few_keys(federation):
    """Two of the cohort's four silos took part in the key set-up, three are needed."""
    fed = federation(9)
    requests = fed.caught_at("encrypt", drop={"keys": {8, 9}})
    honest = fed.read_request("encrypt", requests[1])
    bound = replace(type(fed.manifest()).from_bytes(honest.manifest), cohorts=((1, 2, 8, 9),))
    with pytest.raises(PolicyRefusal, match="2 silos could take part, this silo's rules need 3"):
        fed.answer("encrypt", 1, fed.signed(replace(honest, manifest=bound.to_bytes())))
    assert fed.stage_of(1) == "closed"
    assert not fed.vectors


def test_counter_of_another_type(ready):
    """Equal to the honest manifest, with other bytes."""
    fields = msgpack.unpackb(ready.manifest.to_bytes())
    for position, value in ((3, 0.0), (6, False), (8, [[1.0, 2.0, 3.0, 4.0, 5.0]]), (9, [3.0]), (10, 4.0)):
        changed = [*fields[:position], value, *fields[position + 1 :]]
        request = EncryptRequest(*ready.head, msgpack.packb(changed), ready.first.advertisements)
        with pytest.raises(ProtocolError):
            ready.fed.answer("encrypt", 1, ready.fed.signed(request))
    assert ready.fed.stage_of(1) is None
    ready.encrypt(1)


def test_manifest_that_no_modulus_holds(federation, dishonest, monkeypatch):
    """Nobody could answer it, so nothing is spent."""
    attack = dishonest(federation(5))
    monkeypatch.setattr(parameters_module, "MODULUS_BITS", (40,))
    wide = replace(attack.manifest, channels=(ChannelSpec("update", 7, 24, 1.0),))
    with pytest.raises(ConfigError, match="holds no sums of 27 bits over 5 silos"):
        attack.encrypt(1, wide)
    assert attack.fed.stage_of(1) is None
    attack.encrypt(1)


# Slots


def test_slot_is_used_once(four):
    before = dict(four.fed.vectors)
    for manifest in (four.manifest, replace(four.manifest, attempt=1), replace(four.manifest, round=6)):
        with pytest.raises(Refusal, match="slot-once"):
            four.encrypt(1, manifest)
    four.fed.silos[1] = four.fed.start(1)
    with pytest.raises(Refusal, match="slot-once"):
        four.encrypt(1)
    assert four.fed.vectors == before, "no second vector under one reference"
    four.open(1, ALL)


def test_slot_is_used_once_by_two_processes(ready):
    """The second process spends it while the first one looks at it."""
    fed = ready.fed
    state, manifest = fed.silos[1]._state, ready.manifest
    deliver_keys(ready, 1)
    keys = state.epoch(fed.session)
    assert state.slot(keys, 0) is None
    fed.start(1)._state.spend(keys, 0, manifest.to_bytes())
    with pytest.raises(Refusal, match="slot-once"):
        state.spend(keys, 0, manifest.to_bytes())


def test_slot_of_an_epoch_that_is_over(ready):
    fed = ready.fed
    ready.encrypt(1)
    keys = fed.silos[1]._state.epoch(fed.session)
    make_keys(fed, ready.epoch + 1)
    with pytest.raises(Refusal, match="slot-once"):
        fed.silos[1]._state.spend(keys, 1, b"")
    with pytest.raises(ProtocolError, match="epoch 1 is not the one"):
        ready.encrypt(1, replace(ready.manifest, slot=1))
    with pytest.raises(ProtocolError, match="epoch 1 is not the one"):
        ready.open(1, ((1, 2, 3, 4, 5),))


def test_slot_closed_while_the_contribution_was_computed(ready):
    fed, honest = ready.fed, ready.fed.contribute

    def contribute(silo):
        def words(manifest):
            state = fed.silos[silo]._state
            state.close(state.epoch(fed.session), manifest.slot)
            return honest(silo)(manifest)

        return words

    fed.contribute = contribute
    with pytest.raises(Refusal, match="slot-once: slot 0 of epoch 1 was closed meanwhile"):
        ready.encrypt(1)
    assert fed.stage_of(1) == "closed"


def test_contribution_that_fails_leaves_the_slot_spent(ready):
    def diverged(manifest):
        raise ArithmeticError("training diverged")

    with pytest.raises(ArithmeticError):
        ready.fed.silos[1].answer("encrypt", ready.encrypt_request(), diverged)
    assert ready.fed.stage_of(1) == "spent"
    with pytest.raises(Refusal, match="slot-once"):
        ready.encrypt(1)
    with pytest.raises(Refusal, match="opened-unsent"):
        ready.open(1, ((1, 2, 3, 4, 5),))


# Openings


def test_second_opening(four):
    """Of the same list, of another one, by a new process."""
    four.open(1, ALL)
    for restarted in (False, True):
        if restarted:
            four.fed.silos[1] = four.fed.start(1)
        for survivors in (ALL, WITHOUT_4):
            with pytest.raises(Refusal, match="open-once"):
                four.open(1, survivors)
    assert four.fed.stage_of(1) == "opened"


def test_second_opening_by_two_processes(four):
    state = four.fed.silos[1]._state
    keys = state.epoch(four.fed.session)
    assert state.slot(keys, 0).stage == "encrypted"
    assert four.fed.start(1)._state.take_keys(keys, 0).lattice
    with pytest.raises(Refusal, match="open-once"):
        state.take_keys(keys, 0)


def test_opening_without_ciphertexts(ready):
    deliver_keys(ready, 1)
    for slot in (0, 1):
        with pytest.raises(Refusal, match=f"opened-unsent: this silo has no ciphertext in slot {slot}"):
            ready.open(1, ((1, 2, 3, 4, 5),), slot=slot)
    ready.encrypt(1)
    with pytest.raises(Refusal, match="opened-unsent"):
        ready.open(1, ((1, 2, 3, 4, 5),), slot=1)
    ready.open(1, ((1, 2, 3, 4, 5),))


def test_opening_while_the_contribution_is_computed(ready):
    """The slot is spent, and there is no ciphertext yet."""
    fed, honest, caught = ready.fed, ready.fed.contribute, []

    def contribute(silo):
        def words(manifest):
            with pytest.raises(Refusal, match="opened-unsent") as refused:
                fed.start(silo).answer("open", ready.open_request((fed.everyone,)), None)
            caught.append(refused)
            return honest(silo)(manifest)

        return words

    fed.contribute = contribute
    ready.encrypt(1)
    assert len(caught) == 1
    fed.contribute = honest
    ready.open(1, (fed.everyone,))


def test_opening_under_another_manifest(four):
    """The slot is bound to the manifest it was used for; asked for another, the silo gives it up."""
    with pytest.raises(Refusal, match="rule manifest: slot 0 is bound to another manifest"):
        four.open(1, ALL, replace(four.manifest, attempt=1))
    assert four.fed.stage_of(1) == "closed"
    with pytest.raises(Refusal, match="closed after a broken rule"):
        four.open(1, ALL)


BAD_SURVIVORS = {
    "stranger": ("survivors", ((1, 2, 3, 77),)),
    "of no cohort": ("survivors", ((1, 2, 3, 5),)),
    "a list too many": ("survivors", ((1, 2, 3), (4, 5))),
    "no list": ("survivors", ()),
    "without the silo": ("survivors", ((2, 3, 4),)),
    "two": ("minimum", ((1, 2),)),
    "one": ("minimum", ((1,),)),
    "none": ("minimum", ((),)),
}


@pytest.mark.parametrize("fault", BAD_SURVIVORS)
def test_survivors_that_break_a_rule_close_the_slot(federation, dishonest, fault):
    rule, survivors = BAD_SURVIVORS[fault]
    attack = dishonest(federation(5), (1, 2, 3, 4))
    attack.encrypt(1)
    with pytest.raises(Refusal, match=f"rule {rule}"):
        attack.open(1, survivors)
    assert attack.fed.stage_of(1) == "closed"
    for again in (ALL, survivors):
        with pytest.raises(Refusal, match="closed after a broken rule"):
            attack.open(1, again)


@pytest.mark.parametrize("survivors", [((2, 1, 3),), ((1, 1, 2, 3),), ((0, 1, 2),), (1, 2), ((1, 2, 3.0),)])
def test_survivors_that_are_no_lists_of_ascending_ids(four, survivors):
    fields = msgpack.unpackb(Signed.from_bytes(four.open_request(ALL)).payload)
    payload = msgpack.packb([*fields[:-1], survivors])
    signature = four.fed.coordinator_identity.sign(OpenRequest.KIND.encode(), payload)
    with pytest.raises(ProtocolError):
        four.fed.answer("open", 1, Signed(payload, signature).to_bytes())
    with pytest.raises(ProtocolError):
        OpenRequest(*four.head, 0, bytes(32), survivors)
    four.open(1, ALL)


def test_survivor_without_keys(federation, dishonest):
    """Of the cohort, but with it no mask was agreed."""
    fed = federation(5)
    requests = fed.caught_at("encrypt", drop={"keys": {5}})
    honest = fed.read_request("encrypt", requests[1])
    fed.answer("encrypt", 1, requests[1])
    manifest = type(fed.manifest()).from_bytes(honest.manifest)
    request = OpenRequest(*fed.head(1), 0, manifest.digest(), ((1, 2, 3, 5),))
    with pytest.raises(Refusal, match="rule survivors"):
        fed.answer("open", 1, fed.signed(request))


def test_other_cohort_has_to_be_large_enough_too(federation, dishonest):
    attack = dishonest(federation(8), (1, 2, 3, 4), (5, 6, 7, 8))
    attack.encrypt(1)
    with pytest.raises(PolicyRefusal, match="2 silos are to be summed, this silo's rules need 3"):
        attack.open(1, ((1, 2, 3, 4), (5, 6)))


def test_coordinator_cannot_lower_a_silos_minimum_but_raise_it(federation, dishonest):
    five = (1, 2, 3, 4, 5)
    for rules, minimum in ((SiloRules(0, minimum=5), 3), (SiloRules(0), 5), (SiloRules(0, minimum_fraction=0.9), 3)):
        attack = dishonest(federation(5, rules=rules), minimum=minimum)
        attack.encrypt(1)
        with pytest.raises(PolicyRefusal, match="4 silos are to be summed, this silo's rules need 5"):
            attack.open(1, (five[:4],))
        attack.encrypt(2)
        attack.open(2, (five,))


def test_colluders_and_moments_raise_the_minimum(federation, dishonest):
    """n = 7, c = 2: five silos for one moment, six for two."""
    update, energy = ChannelSpec("update", 7, 16, 1.0), ChannelSpec("unit_energy", 2, 16, 1.0)
    for channels, least in (((update,), 5), ((update, energy), 6)):
        attack = dishonest(federation(7, rules=SiloRules(2), channels=channels))
        for silo in (1, 2):
            attack.encrypt(silo)
        with pytest.raises(PolicyRefusal, match=f"need {least}"):
            attack.open(1, (tuple(range(1, least)),))
        attack.open(2, (tuple(range(1, least + 1)),))


def test_two_lists_for_one_slot(four):
    """Some silos are told that nobody is missing, some that silo 4 is: each answers once."""
    four.open(1, ALL)
    four.open(2, WITHOUT_4)
    for silo in (1, 2):
        for survivors in (ALL, WITHOUT_4):
            with pytest.raises(Refusal, match="open-once"):
                four.open(silo, survivors)


def all_parts(attack, lists):
    """The sum of all silos' ciphertexts and parts, each told a list of its own."""
    fed, manifest = attack.fed, attack.manifest
    lattice = ring(fed.parameters(manifest).modulus_bits)
    sent = [fed.split("encrypt", attack.encrypt(silo), manifest)[0] for silo in fed.everyone]
    sent += [fed.split("open", attack.open(silo, (lists[silo],)), manifest)[0] for silo in fed.everyone]
    return lattice, reduce(lattice.add, sent)


EACH_ITS_OWN = {1: (1, 2, 3), 2: (1, 2, 4), 3: (1, 3, 5), 4: (2, 4, 5), 5: (3, 4, 5)}
"""Who is on whose list is on the other's too."""


def test_lists_of_each_silos_own_that_name_each_other(federation, dishonest):
    """All parts together open nothing: each silo's masks are of its own list."""
    attack = dishonest(federation(5))
    lattice, total = all_parts(attack, EACH_ITS_OWN)
    with pytest.raises(Abort, match="do not fit"):
        read_sum(lattice, attack.fed.parameters(attack.manifest), total)


def test_masks_that_are_not_bound_to_the_list_would_cancel_then(federation, dishonest, monkeypatch):
    monkeypatch.setattr(Opening, "hash", lambda self: bytes(32))
    attack = dishonest(federation(5))
    lattice, total = all_parts(attack, EACH_ITS_OWN)
    whole = read_sum(lattice, attack.fed.parameters(attack.manifest), total)
    expected = attack.fed.plain_sum(attack.fed.everyone)
    np.testing.assert_array_equal(words_of(whole, attack.manifest.channels, 5), expected)


ONE_LIST = [  # silos of the cohort, colluders, survivors of whom a silo helps to open the sum, and one fewer
    (6, 0, 4),
    (7, 1, 5),
    (8, 0, 5),
    (10, 2, 7),
]


@pytest.mark.parametrize(("n", "colluders", "enough"), ONE_LIST)
def test_lists_of_which_a_slot_could_have_two(federation, dishonest, n, colluders, enough):
    attack = dishonest(federation(n, rules=SiloRules(colluders)))
    for silo in (1, 2):
        attack.encrypt(silo)
    few = tuple(range(1, enough))
    with pytest.raises(Refusal, match=f"rule one-list: {enough - 1} of {n} silos are so few"):
        attack.open(1, (few,))
    assert attack.fed.stage_of(1) == "closed"
    attack.open(2, ((*few, enough),))


def test_two_lists_of_one_slot_with_only_colluders_in_common(federation, dishonest):
    """Ten silos, of which 9 and 10 work with the coordinator: no honest silo of either list opens it."""
    lists = (1, 2, 3, 9, 10), (4, 5, 6, 9, 10)
    attack = dishonest(federation(10, rules=SiloRules(2)), minimum=5)
    for survivors in lists:
        for silo in survivors[:3]:
            attack.encrypt(silo)
            with pytest.raises(Refusal, match="rule one-list: 5 of 10 silos"):
                attack.open(silo, (survivors,))
            assert attack.fed.stage_of(silo) == "closed"
            assert not attack.fed.secrets(silo, slot=0)


def test_without_that_rule_both_lists_are_opened(federation, dishonest, monkeypatch):
    """The coordinator has two sums over three honest silos each, where six silos were to hide each other."""
    lists = (1, 2, 3, 9, 10), (4, 5, 6, 9, 10)
    monkeypatch.setattr(CkksSilo, "_check_only_list", lambda self, survivors, cohort: None)
    attack = dishonest(federation(10, rules=SiloRules(2)), minimum=5)
    fed, manifest, lattice = attack.fed, attack.manifest, ring(attack.fed.parameters(attack.manifest).modulus_bits)
    ciphertexts = {silo: fed.split("encrypt", attack.encrypt(silo), manifest)[0] for silo in fed.everyone}
    before = {}
    for silo in (9, 10):
        before[silo] = sqlite3.connect(":memory:", isolation_level=None)
        fed.connections[silo].backup(before[silo])
    for survivors in lists:
        total = np.zeros_like(ciphertexts[1])
        for silo in survivors:
            part = fed.split("open", attack.open(silo, (survivors,)), manifest)[0]
            total = lattice.add(lattice.add(total, ciphertexts[silo]), part)
        whole = read_sum(lattice, fed.parameters(manifest), total)
        np.testing.assert_array_equal(words_of(whole, manifest.channels, 10), fed.plain_sum(survivors))
        # Colluders answer again from the state that they kept.
        fed.silos.update({silo: fed.on(connection, silo) for silo, connection in before.items()})
    for connection in before.values():
        connection.close()


def test_one_list_is_asked_of_a_silos_own_cohort(federation, dishonest):
    """That of another cohort is for its own silos to look at."""
    attack = dishonest(federation(10), (1, 2, 3, 4), (5, 6, 7, 8, 9, 10))
    survivors = (1, 2, 3), (5, 6, 7)
    for silo in (1, 5):
        attack.encrypt(silo)
    attack.open(1, survivors)
    with pytest.raises(Refusal, match="rule one-list: 3 of 6 silos"):
        attack.open(5, survivors)


# Order


def test_stages_out_of_order(federation):
    fed = federation(4)
    manifest = fed.manifest().to_bytes()
    encrypt, open_ = EncryptRequest(*fed.head(1), manifest, ()), OpenRequest(*fed.head(1), 0, bytes(32), ALL)
    for stage, request in (("encrypt", encrypt), ("open", open_)):
        with pytest.raises(ProtocolError, match="has no keys in the session"):
            fed.answer(stage, 1, fed.signed(request))
    make_keys(fed, 1)
    for stage, request in (("encrypt", encrypt), ("open", open_)):
        with pytest.raises(ProtocolError, match="not complete"):
            fed.answer(stage, 1, fed.signed(request))
        with pytest.raises(ProtocolError, match="epoch 2 is not the one"):
            fed.answer(stage, 1, fed.signed(replace(request, epoch=2)))
    with pytest.raises(ProtocolError, match="no stage 'train'"):
        fed.answer("train", 1, b"")
    assert tuple(fed.silos[1].stages) == ("keys", "encrypt", "open")


@pytest.mark.parametrize("words", ["too many", "too few", "none"])
def test_contribution_of_the_wrong_size(ready, words):
    size = word_count(ready.manifest.channels, 5)
    wrong = np.zeros({"too many": size + 1, "too few": size - 1, "none": 0}[words], np.uint64)
    ready.fed.contribute = lambda silo: lambda manifest: PackedWords(wrong)
    with pytest.raises(EncodingError, match="slot is spent"):
        ready.encrypt(1)
    assert ready.fed.stage_of(1) == "spent"


@pytest.mark.parametrize("end", [-1, 1])
def test_contribution_that_seal_cannot_encode(federation, dishonest, end):
    """Every value at the end of the whole sum's field: far more than a silo's share of it."""
    attack = dishonest(federation(4, channels=(ChannelSpec("update", 4096, 16, 1.0),)))

    def words(manifest):
        values = {"update": np.full(4096, end * (2**17 - 1))}
        return PackedWords(all_words(ContributionWords(values, manifest.channels, 4)))

    attack.fed.contribute = lambda silo: words
    with pytest.raises(EncodingError, match="too large for the modulus"):
        attack.encrypt(1)
    assert attack.fed.stage_of(1) == "spent"
    with pytest.raises(Refusal, match="opened-unsent"):
        attack.open(1, ALL)


def test_rules_of_the_code_and_of_the_specification_are_the_same():
    package = ROOT / "autoflip_secure"
    shared = [path for path in package.glob("parties/*.py") if not path.name.startswith("run_key")]
    code = "\n".join(path.read_text() for path in sorted([*package.glob("ckks/*.py"), *shared]))
    used = set(re.findall(r'refusal\(\s*"([a-z-]+)"', code)) | set(re.findall(r"refused by rule ([a-z-]+):", code))
    stated = set(re.findall(r"\[([a-z-]+)\](?!\()", (ROOT / "protocols" / "ckks" / "README.md").read_text()))
    assert used == stated
    assert len(used) > 12
