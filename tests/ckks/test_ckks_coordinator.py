"""Epochs, slots and aborts: what the coordinator does when silos stay away or send garbage."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from autoflip_secure.ckks import coordinator as coordinator_module
from autoflip_secure.ckks import parameters as parameters_module
from autoflip_secure.ckks.coordinator import CkksCoordinator
from autoflip_secure.ckks.messages import Opening
from autoflip_secure.ckks.packing import polynomials_of
from autoflip_secure.ckks.parameters import DEGREE
from autoflip_secure.ckks.ring import ring
from autoflip_secure.errors import Abort, ConfigError, InputError
from autoflip_secure.parties.identity import Identity
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest

ROUND = ["encrypt", "open"]


def watched(fed, seen, **options):
    """An exchange that notes each stage and the epoch's number then."""
    inner = fed.exchange(**options)

    def exchange(stage, requests):
        seen.append((stage, fed.epochs[-1]))
        return inner(stage, requests)

    return exchange


def test_one_key_setup_serves_its_slots_then_another_is_made(federation):
    fed, seen = federation(3, slots=3), []
    for _ in range(4):
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), watched(fed, seen)), (1, 2, 3))
    assert [stage for stage, _ in seen] == ["keys", *ROUND * 3, "keys", *ROUND]
    assert [epoch for _, epoch in seen] == [1] * 7 + [2] * 3, "the number is handed over before the first message"
    assert fed.epochs == [1, 2]


def test_silos_of_an_epoch_that_were_asked(federation):
    """Keys of everybody in the roster, ciphertexts of the cohorts, parts of those who sent ciphertexts."""
    fed = federation(6)
    manifest = fed.manifest((1, 2, 3, 4))
    fed.coordinator.sum(manifest, fed.exchange(drop={"encrypt": {2}}))
    asked = {stage: {silo for now, silo in fed.requests if now == stage} for stage in ("keys", *ROUND)}
    assert asked == {"keys": {1, 2, 3, 4, 5, 6}, "encrypt": {1, 3, 4}, "open": {1, 3, 4}}


def test_contribute_gets_the_bound_manifest(federation):
    fed, seen = federation(3), []
    honest = fed.contribute

    def contribute(silo):
        def words(manifest):
            seen.append(manifest)
            return honest(silo)(manifest)

        return words

    fed.contribute = contribute
    fed.coordinator.sum(fed.manifest(attempt=2), fed.exchange())
    fed.coordinator.sum(fed.manifest(attempt=3), fed.exchange())
    assert [(m.epoch, m.slot, m.attempt) for m in seen] == [(1, 0, 2)] * 3 + [(1, 1, 3)] * 3
    assert len({m.epoch_hash for m in seen}) == 1
    assert seen[0].epoch_hash != bytes(32)


def test_keys_are_sent_until_a_silo_has_them(federation):
    """Also to one whose reply was lost; who has shown that it has them is not sent them again."""
    fed = federation(6)
    fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"encrypt": {6}}, lose={"encrypt": {5}}))
    fed.coordinator.sum(fed.manifest((1, 2, 3, 4, 5)), fed.exchange())
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), fed.everyone)
    sent = {
        silo: [len(fed.read_request("encrypt", request).advertisements) for request in fed.requests["encrypt", silo]]
        for silo in fed.everyone
    }
    assert sent == {**{silo: [6, 0, 0] for silo in (1, 2, 3, 4)}, 5: [6, 6, 0], 6: [6]}
    assert fed.epochs == [1]


def test_too_few_silos_make_keys(federation):
    fed = federation(4)
    with pytest.raises(Abort, match="2 of 4 silos made keys, 3 are needed") as caught:
        fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"keys": {3, 4}}))
    assert caught.value.stage == "keys"
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4))
    assert fed.epochs == [1, 2]


def test_minimum_not_reached(federation):
    fed = federation(5)
    seen = []
    with pytest.raises(Abort, match="3 of 5 silos of a cohort sent a ciphertext, 4 are needed") as caught:
        fed.coordinator.sum(fed.manifest(minimum=4), watched(fed, seen, drop={"encrypt": {1}}, lose={"encrypt": {2}}))
    assert caught.value.stage == "encrypt"
    assert [stage for stage, _ in seen] == ["keys", "encrypt"], "nobody was asked to open anything"
    assert fed.named("silo_dropped") == [{"silo": silo, "stage": "encrypt"} for silo in (1, 2)]
    fed.assert_exact(fed.coordinator.sum(fed.manifest(minimum=4), fed.exchange()), (1, 2, 3, 4, 5))


def test_minimum_of_one_cohort_not_reached(federation):
    """No cohort is opened then: they share the slot."""
    fed = federation(7)
    with pytest.raises(Abort, match="2 of 3 silos of a cohort") as caught:
        fed.coordinator.sum(fed.manifest((1, 2, 3, 4), (5, 6, 7)), fed.exchange(drop={"encrypt": {6}}))
    assert caught.value.stage == "encrypt"
    assert not any(stage == "open" for stage, _ in fed.requests)


@pytest.mark.parametrize("how", ["drop", "lose"])
def test_silo_missing_at_open(federation, how):
    """No sum; the next attempt has new keys and a slot of its own, and everything is as if nothing had been."""
    fed, seen = federation(4), []
    with pytest.raises(Abort, match=r"silos \[3\] did not help to open") as caught:
        fed.coordinator.sum(fed.manifest(), watched(fed, seen, **{how: {"open": {3}}}))
    assert caught.value.stage == "open"
    assert caught.value.blamed == ()
    old = {silo: fed.secrets(silo) for silo in fed.everyone}
    fed.assert_exact(fed.coordinator.sum(fed.manifest(attempt=1), watched(fed, seen)), (1, 2, 3, 4))
    assert seen == [("keys", 1), ("encrypt", 1), ("open", 1), ("keys", 2), ("encrypt", 2), ("open", 2)]
    for silo in fed.everyone:
        assert not set(old[silo]) & set(fed.secrets(silo))
        assert not fed.on_disk(silo, old[silo])
    assert fed.named("silo_dropped") == [{"silo": 3, "stage": "open"}]


def test_silo_that_cannot_open_is_left_behind(federation):
    """It encrypts and vanishes at open, again and again: without it the others have their sum."""
    fed = federation(4)
    for _ in range(2):
        with pytest.raises(Abort):
            fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"open": {3}}))
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"encrypt": {3}})), (1, 2, 4))
    assert fed.epochs == [1, 2, 3]


def test_every_silo_of_every_cohort_has_to_open(federation):
    fed = federation(7)
    with pytest.raises(Abort, match=r"silos \[2, 6\] did not help"):
        fed.coordinator.sum(fed.manifest((1, 2, 3, 4), (5, 6, 7)), fed.exchange(drop={"open": {2, 6}}))


def garbage(fed, manifest, silo, random):
    """A part of uniform polynomials that a silo signed."""
    q = ring(fed.parameters(manifest).modulus_bits).modulus
    count = polynomials_of(manifest.channels, len(manifest.cohorts[0]))
    coefficients = random.integers(0, q, (count, DEGREE), np.uint64)
    return fed.join(silo, coefficients, manifest, Opening(manifest.digest(), 0, manifest.cohorts[0]))


@pytest.mark.parametrize("length", [1, DEGREE, 2 * DEGREE + 1])
def test_garbage_that_a_silo_signed_is_never_a_sum(federation, length):
    """In the place of its part, many times over; then an honest attempt goes through."""
    fed = federation(3, slots=2, channels=(ChannelSpec("update", length, 16, 1.0),))
    random = np.random.default_rng(length)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("open", 2):
            return reply
        bound = Manifest.from_bytes(fed.read_request("encrypt", fed.requests["encrypt", 2][-1]).manifest)
        return garbage(fed, bound, silo, random)

    for _ in range(4):
        with pytest.raises(Abort, match="do not fit the ciphertexts") as caught:
            fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))
        assert caught.value.stage == "open"
    assert not fed.named("silo_misbehaved"), "nobody can say whose part it was"
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("polynomial", [0, 1])
def test_one_wrong_polynomial_is_enough(federation, polynomial):
    fed = federation(3, channels=(ChannelSpec("update", 2 * DEGREE, 16, 1.0),))

    def tamper(stage, silo, reply):
        if (stage, silo) != ("open", 2):
            return reply
        bound = Manifest.from_bytes(fed.read_request("encrypt", fed.requests["encrypt", 2][-1]).manifest)
        coefficients, _ = fed.split("open", reply, bound)
        coefficients = coefficients.copy()
        coefficients[polynomial, 77] = (int(coefficients[polynomial, 77]) + 1) % ring(40).modulus
        return fed.join(2, coefficients, bound, Opening(bound.digest(), 0, (1, 2, 3)))

    with pytest.raises(Abort, match="do not fit the ciphertexts"):
        fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))


def test_garbage_in_one_cohort_stops_the_whole_attempt(federation):
    fed = federation(6)
    random = np.random.default_rng(1)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("open", 5):
            return reply
        bound = Manifest.from_bytes(fed.read_request("encrypt", fed.requests["encrypt", 5][-1]).manifest)
        wrong = random.integers(0, ring(40).modulus, (1, DEGREE), np.uint64)
        return fed.join(5, wrong, bound, Opening(bound.digest(), 1, (4, 5, 6)))

    with pytest.raises(Abort, match="do not fit"):
        fed.coordinator.sum(fed.manifest((1, 2, 3), (4, 5, 6)), fed.exchange(tamper=tamper))


@pytest.mark.parametrize("length", [1, 2 * DEGREE, 4 * DEGREE + 1])
def test_sums_are_added_slice_by_slice(federation, monkeypatch, length):
    monkeypatch.setattr(coordinator_module, "SLICE", 2 * DEGREE)
    fed = federation(3, channels=(ChannelSpec("update", length, 16, 1.0),))
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))


@pytest.mark.parametrize("polynomial", [0, 4])
def test_nothing_is_added_of_ciphertexts_with_one_bad_coefficient(federation, monkeypatch, polynomial):
    """Whatever slice it is in: the others' sum is exact without that silo."""
    monkeypatch.setattr(coordinator_module, "SLICE", 2 * DEGREE)
    fed = federation(4, channels=(ChannelSpec("update", 4 * DEGREE + 1, 16, 1.0),))

    def tamper(stage, silo, reply):
        if (stage, silo) != ("encrypt", 2):
            return reply
        bound = Manifest.from_bytes(fed.read_request("encrypt", fed.requests["encrypt", 2][-1]).manifest)
        coefficients, _ = fed.split("encrypt", reply, bound)
        coefficients = coefficients.copy()
        coefficients[polynomial, 77] = ring(40).modulus
        return fed.join(2, coefficients, bound)

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 3, 4))
    (event,) = fed.named("silo_misbehaved")
    assert (event["silo"], event["reason"]) == (2, "a coefficient is not below the modulus")


def test_silo_that_missed_the_key_setup_gets_in_after_some_rounds(federation):
    fed = federation(4, slots=64)
    present = []
    for round_ in range(10):
        exchange = fed.exchange(drop={"keys": {4}} if round_ == 0 else None)
        present.append(fed.coordinator.sum(fed.manifest(), exchange)[0].silos)
    assert present == [(1, 2, 3)] * 8 + [(1, 2, 3, 4)] * 2
    assert fed.epochs == [1, 2]


def test_rekey_on_request(federation):
    fed = federation(4)
    fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"keys": {4}}))
    fed.coordinator.rekey()
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4))


def test_cohort_without_enough_keys_gets_new_keys_at_once(federation):
    fed = federation(5)
    fed.coordinator.sum(fed.manifest((1, 2, 3, 4)), fed.exchange(drop={"keys": {5}}))
    fed.assert_exact(fed.coordinator.sum(fed.manifest((3, 4, 5)), fed.exchange()), (3, 4, 5))
    fed.coordinator.rekey()
    with pytest.raises(Abort, match="too few silos with keys") as caught:
        fed.coordinator.sum(fed.manifest((3, 4, 5)), fed.exchange(drop={"keys": {5}}))
    assert caught.value.stage == "keys", "a set-up of secure aggregation ends with another stage"


def test_silo_that_lost_its_state_costs_one_sum(federation):
    fed = federation(4)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    fed.start(2, bytes(16)).forget_other_runs()
    fed.silos[2] = fed.start(2)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 3, 4))
    fed.coordinator.rekey()
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4))


def test_every_request_answered_by_a_new_process(federation):
    fed = federation(4, channels=(ChannelSpec("update", DEGREE + 1, 24, 1.0),))
    for drop in ({}, {"encrypt": {2}}):
        expected = tuple(silo for silo in fed.everyone if silo not in drop.get("encrypt", ()))
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(drop=drop, restart=True)), expected)
    assert fed.epochs == [1]


def test_restarted_coordinator(federation):
    """A new object with a later epoch; the silos make new keys for it."""
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    fed.coordinator = fed.new_coordinator(first_epoch=2)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    fed.coordinator = fed.new_coordinator(first_epoch=2)
    with pytest.raises(Abort, match="0 of 3 silos made keys"):
        fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert "epoch-order" in str(fed.failures["keys", 1])


def test_events_name_who_dropped_where(federation):
    fed = federation(4)
    fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"encrypt": {2}}))
    assert fed.events == [
        ("epoch_opened", {"epoch": 1, "silos": [1, 2, 3, 4], "slots": 4}),
        ("silo_dropped", {"silo": 2, "stage": "encrypt"}),
    ]


@pytest.mark.parametrize(
    ("cohorts", "changes", "words"),
    [
        ((), {"threshold": 2}, "threshold of 2, the roster has 3"),
        ((), {"session": bytes(16)}, "another session"),
        (((1, 2, 9),), {}, "not in the roster"),
        ((), {"minimum": 2}, "minimum of 2"),
    ],
)
def test_manifest_that_cannot_work_is_refused_before_anything_is_sent(federation, cohorts, changes, words):
    fed = federation(4)
    with pytest.raises(ConfigError, match=words):
        fed.coordinator.sum(fed.manifest(*cohorts, **changes), fed.exchange())
    assert not fed.requests


def test_fields_that_no_modulus_holds(federation, monkeypatch):
    """No silo is asked to train for it."""
    monkeypatch.setattr(parameters_module, "MODULUS_BITS", (40,))
    fed = federation(5, channels=(ChannelSpec("update", 7, 24, 1.0),))
    with pytest.raises(ConfigError, match="--aggregation ckks holds no sums of 27 bits over 5 silos"):
        fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert not any(stage == "encrypt" for stage, _ in fed.requests)


def test_coordinator_that_does_not_fit_the_roster(federation):
    fed = federation(3)
    options = {"first_epoch": 0, "on_epoch": lambda number: None, "events": lambda name, details: None}
    with pytest.raises(InputError, match="not the coordinator's"):
        CkksCoordinator(Identity.generate(), fed.roster, bytes(16), **options)
    with pytest.raises(InputError, match="16 bytes"):
        CkksCoordinator(fed.coordinator_identity, fed.roster, bytes(3), **options)
    for wrong in ({"slots": 0}, {"slots": 1025}, {"first_epoch": -1}):
        with pytest.raises(ConfigError):
            fed.new_coordinator(**{"first_epoch": 0, **wrong})


def test_importing_the_package_loads_nothing_heavy():
    heavy = (
        "import sys, autoflip_secure.ckks.coordinator, autoflip_secure.ckks.silo;"
        "print({'torch', 'flwr', 'opacus', 'tenseal'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
