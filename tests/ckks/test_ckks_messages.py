"""Malformed, damaged and foreign messages: a named error at the silo; a silo counted as missing at the coordinator."""

from __future__ import annotations

import sqlite3
from dataclasses import fields, replace

import msgpack
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.ckks import messages as ckks
from autoflip_secure.ckks.packing import to_bytes
from autoflip_secure.ckks.parameters import DEGREE
from autoflip_secure.ckks.ring import ring
from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.parties import wire
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.signing import Signed, open_signed, sign_message, sign_statement
from autoflip_secure.secagg import round_messages, setup_messages
from autoflip_secure.sums.manifest import Manifest
from tests.damaged_messages import check_damaged

STAGES = ["keys", "encrypt", "open"]


def fixed(size):
    return st.binary(min_size=size, max_size=size)


head = (fixed(16), fixed(32), st.integers(0, 2**32 - 1))
silo = st.integers(1, 65_535)
slots = st.integers(1, 1024)
blob = st.binary(max_size=40)
ids = st.lists(silo, max_size=5, unique=True).map(lambda found: tuple(sorted(found)))
messages = st.one_of(
    st.builds(ckks.KeyRequest, *head, slots),
    st.integers(1, 5).flatmap(
        lambda slots: st.builds(ckks.KeyAdvertisement, *head, silo, st.just(slots), fixed(32 * slots))
    ),
    st.builds(ckks.EncryptRequest, *head, blob, st.lists(blob, max_size=4).map(tuple)),
    st.builds(ckks.EncryptReply, silo, fixed(64)),
    st.builds(ckks.Ciphertext, fixed(32), fixed(32)),
    st.builds(ckks.OpenRequest, *head, st.integers(0, 1023), fixed(32), st.lists(ids, max_size=3).map(tuple)),
    st.builds(ckks.Opening, fixed(32), st.integers(0, 100), ids),
    st.builds(ckks.OpenReply, silo, st.sampled_from([b"", bytes(32)]), fixed(64)),
    st.builds(ckks.Part, fixed(32), fixed(32), st.sampled_from([b"", bytes(32)])),
)


@settings(max_examples=200)
@given(messages, st.data())
def test_one_message_has_one_encoding(message, data):
    """It is read back, and a flipped, missing or added byte never reads as the same message."""
    original = message.to_bytes()
    assert type(message).from_bytes(original) == message
    check_damaged(message, data)


def test_every_kind_has_its_own_name():
    """Also among those of secure aggregation: a kind is a signature domain, and identities are the same."""
    own = [getattr(ckks, name).KIND for name in ckks.__all__ if hasattr(getattr(ckks, name), "KIND")]
    others = [
        kind.KIND
        for module in (round_messages, setup_messages)
        for kind in (getattr(module, name) for name in module.__all__)
        if hasattr(kind, "KIND")
    ]
    assert len(set(own)) == len(own) == 9
    assert not set(own) & {*others, Signed.KIND}
    assert len(others) > 10


GOOD = {
    "key request": ckks.KeyRequest(bytes(16), bytes(32), 1, 4),
    "key": ckks.KeyAdvertisement(bytes(16), bytes(32), 1, 2, 4, bytes(4 * 32)),
    "encrypt request": ckks.EncryptRequest(bytes(16), bytes(32), 1, b"manifest", (b"one",)),
    "encrypt reply": ckks.EncryptReply(3, bytes(64)),
    "open request": ckks.OpenRequest(bytes(16), bytes(32), 1, 0, bytes(32), ((1, 2, 3),)),
    "open reply": ckks.OpenReply(3, b"", bytes(64)),
}
BAD_FIELDS = [
    ("key request", "slots", [0, 1025, -1, 4.0, True, "4", None]),
    ("key request", "epoch", [-1, 2**32, 1.0, None]),
    ("key request", "session", [bytes(15), bytes(17), "x" * 16, None]),
    ("key request", "roster_hash", [bytes(31), b"", 7]),
    ("key", "silo", [0, 65_536, True, 2.0, None]),
    ("key", "slots", [0, 1025, 4.0, 3, 5]),
    ("key", "keys", [bytes(127), bytes(129), bytes(32), bytes(3 * 32), b"", "k" * 128]),
    ("encrypt request", "manifest", ["text", 1, None, (b"m",)]),
    ("encrypt request", "advertisements", [b"", (1,), ("one",), ((b"one",),), {}]),
    ("encrypt reply", "silo", [0, 65_536, True, 3.0, None]),
    ("encrypt reply", "signature", [bytes(63), bytes(65), b"", "s" * 64]),
    ("open request", "slot", [-1, 1024, 0.0, False, None]),
    ("open request", "digest", [bytes(31), b"", None]),
    ("open request", "survivors", [(1, 2, 3), ((2, 1),), ((1, 1),), ((0, 1),), ((65_536,),), ((1.0,),), b""]),
    ("open reply", "silo", [0, 65_536, "3"]),
    ("open reply", "link", [bytes(31), bytes(33), b"x", "", None]),
    ("open reply", "signature", [bytes(63), bytes(65), None]),
]


@pytest.mark.parametrize(("name", "changed", "values"), BAD_FIELDS)
def test_fields_of_the_wrong_kind(name, changed, values):
    good = GOOD[name]
    for value in values:
        packed = [value if item.name == changed else getattr(good, item.name) for item in fields(good)]
        with pytest.raises(ProtocolError):
            type(good).from_bytes(msgpack.packb([wire.VERSION, good.KIND, *packed]))
        with pytest.raises(ProtocolError):
            replace(good, **{changed: value})


@pytest.mark.parametrize("name", GOOD)
def test_other_version_kind_or_count_of_fields(name):
    good = GOOD[name]
    values = [getattr(good, item.name) for item in fields(good)]
    assert type(good).from_bytes(msgpack.packb([wire.VERSION, good.KIND, *values])) == good
    for array in (
        [wire.VERSION - 1, good.KIND, *values],
        [wire.VERSION + 1, good.KIND, *values],
        [float(wire.VERSION), good.KIND, *values],
        [wire.VERSION, "ckks", *values],
        [wire.VERSION, good.KIND, *values, 0],
        [wire.VERSION, good.KIND, *values[:-1]],
        [],
    ):
        with pytest.raises(ProtocolError, match="not a"):
            type(good).from_bytes(msgpack.packb(array))


def test_messages_do_not_show_what_they_carry():
    for message in GOOD.values():
        assert repr(message) == f"{type(message).__name__}(...)"


# What silos are sent


NOISE = [b"", b"\x90", b"\xc1", b"\x9f" * 50, b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, bytes(1000)]


@pytest.mark.parametrize("stage", STAGES)
def test_noise_instead_of_a_request(federation, stage):
    fed = federation(3)
    before = list(fed.connections[1].iterdump())
    for noise in NOISE:
        with pytest.raises(ProtocolError):
            fed.answer(stage, 1, noise)
    assert list(fed.connections[1].iterdump()) == before


@pytest.mark.parametrize("stage", STAGES)
def test_request_that_is_too_long(federation, stage, monkeypatch):
    fed = federation(3)
    request = fed.caught_at(stage)[1]
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", len(request) - 1)
    with pytest.raises(ProtocolError, match="expected at most"):
        fed.answer(stage, 1, request)
    monkeypatch.undo()
    fed.answer(stage, 1, request)


class Waiting:
    """Silo 1 of five, with ciphertexts sent in slot 0 and a request for every stage that it would answer."""

    def __init__(self, attack):
        self.fed = attack.fed
        attack.encrypt(1)
        self.requests = {
            "keys": self.fed.signed(ckks.KeyRequest(*self.fed.head(attack.epoch + 1), 4)),
            "encrypt": attack.encrypt_request(replace(attack.manifest, slot=1)),
            "open": attack.open_request((self.fed.everyone,)),
        }

    def answer(self, stage, request):
        """By a process that finds the state as it was, whatever was asked before."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        self.fed.connections[1].backup(connection)
        try:
            return self.fed.on(connection, 1).answer(stage, request, self.fed.contribute(1))
        finally:
            connection.close()


@pytest.fixture(scope="module")
def waiting(federation, dishonest):
    return Waiting(dishonest(federation(5)))


@pytest.mark.parametrize("stage", STAGES)
def test_honest_requests_are_answered(waiting, stage):
    assert waiting.answer(stage, waiting.requests[stage])
    assert waiting.answer(stage, waiting.requests[stage]), "from the same state"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=70)
    | st.text(max_size=20) | st.sampled_from([0, 1, 2, 1023, bytes(16), bytes(32), bytes(64), (1, 2, 3)]),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(stage=st.sampled_from(STAGES), data=st.data())
def test_any_bytes_to_a_silo(waiting, stage, data):
    """Random bytes, damaged requests, and requests that the coordinator signed with any fields at all.

    Some of the latter may be answered, as they ask for something else rightly; all others end in a ProtocolError.
    """
    fed, requests = waiting.fed, waiting.requests
    kind = data.draw(st.sampled_from(["bytes", "flip", "cut", "signed bytes", "signed fields", "manifest"]))
    request = requests[stage]
    if kind == "bytes":
        request = data.draw(st.binary(max_size=300))
    elif kind == "flip":
        position = data.draw(st.integers(0, 8 * len(request) - 1))
        request = flipped(request, position)
    elif kind == "cut":
        request = request[: data.draw(st.integers(0, len(request) - 1))]
    else:
        message = fed.read_request(stage, request)
        payload = data.draw(st.binary(max_size=200))
        if kind == "signed fields":
            packed = [getattr(message, item.name) for item in fields(message)]
            for position in data.draw(st.sets(st.integers(0, len(packed) - 1), min_size=1, max_size=2)):
                packed[position] = data.draw(values)
            payload = msgpack.packb([wire.VERSION, message.KIND, *packed])
        elif kind == "manifest" and stage == "encrypt":
            parts = msgpack.unpackb(message.manifest)
            parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(values)
            payload = replace(message, manifest=msgpack.packb(parts)).to_bytes()
        request = Signed(payload, fed.coordinator_identity.sign(message.KIND.encode(), payload)).to_bytes()
    try:
        reply = waiting.answer(stage, request)
    except ProtocolError:
        return
    assert isinstance(reply, bytes)
    assert kind in ("signed fields", "manifest"), "nothing damaged is answered"


def flipped(data, position):
    changed = bytearray(data)
    changed[position // 8] ^= 1 << (position % 8)
    return bytes(changed)


# What the coordinator is sent


class Recorded:
    """An attempt of five silos whose replies can be played to the coordinator again, some of them changed."""

    def __init__(self, fed):
        self.fed = fed
        (self.sum,) = fed.coordinator.sum(fed.manifest(), fed.exchange())
        self.epoch = fed.coordinator._epoch
        self.manifest = Manifest.from_bytes(fed.read_request("encrypt", fed.requests["encrypt", 1][0]).manifest)
        self.replies = {key: replies[0] for key, replies in fed.replies.items()}

    def play(self, changes):
        """Outcome of keys, encrypt and open in turn, as far as the replies carry: who was left, or the Abort."""
        self.fed.events.clear()

        def exchange(stage, requests):
            for silo in requests:
                yield silo, changes.get((stage, silo), self.replies[stage, silo])

        epoch = self.fed.coordinator._set_up(self.epoch.number, exchange, self.epoch.members)
        if epoch.members != self.epoch.members:
            return epoch.members
        survivors = []

        def until_open(stage, requests):
            if stage == "open":
                survivors.extend(requests)
                if tuple(requests) != self.epoch.members:
                    return
            yield from exchange(stage, requests)

        try:
            (item,) = self.fed.coordinator._attempt(self.epoch, self.manifest, until_open)
        except Abort as abort:
            return abort if tuple(survivors) == self.epoch.members else tuple(survivors)
        return item

    def assert_noticed(self, stage, silo, reply):
        """The reply counts as none, and the silo is named as the one who sent it."""
        outcome = self.play({(stage, silo): reply})
        if stage == "open":
            assert isinstance(outcome, Abort), "no sum, rather than a wrong one"
            assert outcome.stage == "open"
        else:
            assert outcome == tuple(member for member in self.epoch.members if member != silo)
        assert [(event["silo"], event["stage"]) for event in self.fed.named("silo_misbehaved")] == [(silo, stage)]


@pytest.fixture(scope="module")
def recorded(federation):
    return Recorded(federation(5))


def test_recorded_replies_give_the_sum_again(recorded):
    np.testing.assert_array_equal(recorded.play({}).words, recorded.sum.words)


@settings(max_examples=200, deadline=None)
@given(stage=st.sampled_from(STAGES), silo=st.integers(1, 5), data=st.data())
def test_damaged_replies(recorded, stage, silo, data):
    """One bit flipped anywhere, cut short, longer, or any bytes at all."""
    reply = recorded.replies[stage, silo]
    size = len(reply)
    damaged = data.draw(
        st.integers(0, 8 * size - 1).map(lambda position: flipped(reply, position))
        # The message behind the coefficients is short: half of the flips are to hit it.
        | st.integers(8 * max(0, size - 150), 8 * size - 1).map(lambda position: flipped(reply, position))
        | st.integers(0, size - 1).map(lambda length: reply[:length])
        | st.binary(min_size=1, max_size=50).map(lambda more: reply + more)
        | st.binary(min_size=1, max_size=50).map(lambda more: more + reply)
        | st.binary(max_size=300)
    )
    recorded.assert_noticed(stage, silo, damaged)


@pytest.mark.parametrize("stage", STAGES)
def test_oversize_reply(recorded, stage):
    reply = recorded.replies[stage, 2]
    recorded.assert_noticed(stage, 2, reply + bytes(1 << 20))
    recorded.assert_noticed(stage, 2, bytes(1 << 20))


@pytest.mark.parametrize("stage", STAGES)
def test_reply_of_another_silo(recorded, stage):
    recorded.assert_noticed(stage, 2, recorded.replies[stage, 3])


@pytest.mark.parametrize("stage", STAGES)
def test_reply_of_another_stage(recorded, stage):
    other = {"keys": "encrypt", "encrypt": "open", "open": "encrypt"}[stage]
    recorded.assert_noticed(stage, 2, recorded.replies[other, 2])


@pytest.mark.parametrize("stage", ["encrypt", "open"])
@pytest.mark.parametrize("fault", ["a modulus", "the largest word", "one fewer", "a polynomial more", "none"])
def test_coefficients_that_are_none_though_signed(recorded, stage, fault):
    """The signature holds; what was signed is no polynomial of the ring, or too many."""
    fed, manifest = recorded.fed, recorded.manifest
    coefficients, message = fed.split(stage, recorded.replies[stage, 2], manifest)
    parameters = fed.parameters(manifest)
    coefficients = coefficients.reshape(-1).copy()
    if fault == "a modulus":
        coefficients[-1] = ring(parameters.modulus_bits).modulus
    elif fault == "the largest word":
        coefficients[0] = (1 << parameters.modulus_bits) - 1
    elif fault == "one fewer":
        coefficients = coefficients[:-1]
    elif fault == "a polynomial more":
        coefficients = np.concatenate([coefficients, coefficients[:DEGREE]])
    else:
        coefficients = coefficients[:0]
    opening = None if stage == "encrypt" else ckks.Opening(manifest.digest(), 0, recorded.sum.silos)
    recorded.assert_noticed(stage, 2, fed.join(2, coefficients, manifest, opening))
    assert message.silo == 2


@pytest.mark.parametrize("stage", ["encrypt", "open"])
def test_largest_coefficients_are_polynomials(recorded, stage):
    """Below the modulus everything is one: of a ciphertext the silo signed it is its word, of a part it is noticed."""
    fed, manifest = recorded.fed, recorded.manifest
    coefficients, _ = fed.split(stage, recorded.replies[stage, 2], manifest)
    largest = np.full_like(coefficients, ring(fed.parameters(manifest).modulus_bits).modulus - 1)
    opening = None if stage == "encrypt" else ckks.Opening(manifest.digest(), 0, recorded.sum.silos)
    outcome = recorded.play({(stage, 2): fed.join(2, largest, manifest, opening)})
    assert isinstance(outcome, Abort)
    assert "do not fit" in str(outcome)
    assert not fed.named("silo_misbehaved"), "nobody can say who it was"


@pytest.mark.parametrize("what", ["digest", "hash", "signer", "kind"])
def test_ciphertext_signed_for_something_else(recorded, what):
    fed, digest = recorded.fed, recorded.manifest.digest()
    reply = recorded.replies["encrypt", 2]
    size = len(reply) - len(ckks.EncryptReply(2, bytes(64)).to_bytes())
    hashed = blake3(reply[:size]).digest()
    statement = {
        "digest": ckks.Ciphertext(replace(recorded.manifest, slot=1).digest(), hashed),
        "hash": ckks.Ciphertext(digest, bytes(32)),
        "kind": ckks.Part(digest, hashed, b""),
    }.get(what, ckks.Ciphertext(digest, hashed))
    identity = fed.identities[3] if what == "signer" else fed.identities[2]
    end = ckks.EncryptReply(2, sign_statement(identity, statement))
    recorded.assert_noticed("encrypt", 2, reply[:size] + end.to_bytes())
    assert "did not sign its ciphertext" in fed.named("silo_misbehaved")[0]["reason"]


OPENINGS = {
    "fewer silos": {"survivors": (1, 2, 3, 4)},
    "more silos": {"survivors": (1, 2, 3, 4, 5, 6)},
    "another cohort": {"cohort": 1},
    "another manifest": {"digest": bytes(32)},
}


@pytest.mark.parametrize("what", [*OPENINGS, "hash", "link", "signer", "kind"])
def test_part_signed_for_something_else(recorded, what):
    fed = recorded.fed
    reply = recorded.replies["open", 2]
    coefficients, message = fed.split("open", reply, recorded.manifest)
    data = to_bytes(coefficients, fed.parameters(recorded.manifest).coefficient_bytes)
    opening = ckks.Opening(recorded.manifest.digest(), 0, recorded.sum.silos)
    named = replace(opening, **OPENINGS.get(what, {}))
    hashed = bytes(32) if what == "hash" else blake3(data).digest()
    statement = ckks.Part(named.hash(), hashed, bytes(32) if what == "link" else message.link)
    if what == "kind":
        statement = ckks.Ciphertext(named.hash(), hashed)
    identity = fed.identities[3] if what == "signer" else fed.identities[2]
    end = replace(message, signature=sign_statement(identity, statement))
    recorded.assert_noticed("open", 2, data + end.to_bytes())
    assert "did not sign its part" in fed.named("silo_misbehaved")[0]["reason"]


def test_reply_that_names_another_silo(recorded):
    """Signed by silo 2, who says that it is silo 3."""
    for stage in ("encrypt", "open"):
        reply = recorded.replies[stage, 2]
        _, message = recorded.fed.split(stage, reply, recorded.manifest)
        end = len(message.to_bytes())
        recorded.assert_noticed(stage, 2, reply[:-end] + replace(message, silo=3).to_bytes())


KEY_FAULTS = {
    "another silo": {"silo": 3},
    "stranger": {"silo": 9},
    "another epoch": {"epoch": 7},
    "another session": {"session": bytes(16)},
    "another roster": {"roster_hash": bytes(32)},
    "more slots": {"slots": 5, "keys": bytes(range(1, 161))},
    "fewer slots": {"slots": 3, "keys": bytes(range(1, 97))},
    "low order": {"keys": bytes(4 * 32)},
}


@pytest.mark.parametrize("fault", [*KEY_FAULTS, "signed by another"])
def test_key_that_does_not_hold_though_signed(recorded, fault):
    fed = recorded.fed
    honest = open_signed(ckks.KeyAdvertisement, fed.roster.public(2), recorded.replies["keys", 2])
    signer = Identity.generate() if fault == "signed by another" else fed.identities[2]
    recorded.assert_noticed("keys", 2, sign_message(signer, replace(honest, **KEY_FAULTS.get(fault, {}))))


@pytest.mark.parametrize("slot", range(4))
def test_key_of_low_order_in_any_slot(recorded, slot):
    fed = recorded.fed
    honest = open_signed(ckks.KeyAdvertisement, fed.roster.public(2), recorded.replies["keys", 2])
    keys = honest.keys[: 32 * slot] + bytes(32) + honest.keys[32 * (slot + 1) :]
    recorded.assert_noticed("keys", 2, sign_message(fed.identities[2], replace(honest, keys=keys)))


def test_keys_of_slots_are_32_bytes_one_after_another():
    keys = bytes(range(96))
    assert [ckks.key_of(keys, slot) for slot in range(3)] == [keys[:32], keys[32:64], keys[64:]]


def test_key_of_another_silo_as_ones_own(recorded):
    """A silo that passes another's key on as its own, rightly signed: the silos' masks would be known to both."""
    fed = recorded.fed
    other = open_signed(ckks.KeyAdvertisement, fed.roster.public(3), recorded.replies["keys", 3])
    recorded.assert_noticed("keys", 2, sign_message(fed.identities[3], other))


def test_reply_that_arrives_twice_or_unasked_counts_once(federation):
    fed = federation(4)

    def exchange(stage, requests):
        for silo, reply in fed.exchange()(stage, requests):
            yield silo, reply
            yield silo, reply
            yield silo, b"late"
            yield 9, reply

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3, 4))
    assert not fed.named("silo_misbehaved")


def test_silo_that_is_not_believed_at_encrypt_is_not_in_the_sum(federation):
    """The others go on without it, and it is not asked for a part."""
    fed = federation(4)
    exchange = fed.exchange(tamper=lambda stage, silo, reply: reply[:20] if (stage, silo) == ("encrypt", 4) else reply)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3))
    (event,) = fed.named("silo_misbehaved")
    assert event["reason"] == f"silo 4 sent 20 bytes, too few for {5 * DEGREE} of coefficients"
    assert ("open", 4) not in fed.requests
