"""Who takes a silo's state opens nothing of the sums before: a slot's keys are gone once it is opened or closed."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.ckks.messages import EncryptRequest, KeyAdvertisement, Opening, OpenRequest, key_of
from autoflip_secure.ckks.packing import words_of
from autoflip_secure.ckks.parameters import DEGREE
from autoflip_secure.ckks.reference import masked_key
from autoflip_secure.ckks.ring import ring
from autoflip_secure.ckks.summation import read_sum
from autoflip_secure.errors import Abort, ProtocolError, Refusal
from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.parties.signing import Signed
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest

VICTIM = 2


def keys_of_slot(fed, silo, slot):
    """X25519 key, lattice key where ciphertexts were sent, and root."""
    return [*fed.secrets(silo, slot), *fed.chains(silo)]


# On the disk


def test_keys_of_an_opened_slot_are_gone(federation):
    """From the tables, the database file and its log, for every silo of the sum; those of later slots are there."""
    fed, kept = federation(4), {}

    def exchange(stage, requests):
        if stage == "open":
            kept.update({silo: keys_of_slot(fed, silo, 0) for silo in requests})
            for silo, secrets in kept.items():
                assert list(map(len, secrets)) == [32, 8 * DEGREE, 32]
                assert fed.on_disk(silo, secrets) == secrets, "else there is nothing to delete"
        yield from fed.exchange()(stage, requests)

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3, 4))
    for silo in fed.everyone:
        assert not keys_of_slot(fed, silo, 0)
        assert not fed.on_disk(silo, kept[silo])
        later = fed.secrets(silo)
        assert len(later) == 3
        assert fed.on_disk(silo, later) == later
        fed.connections[silo].close()
        assert not fed.on_disk(silo, kept[silo])


def test_a_later_slot_closes_those_before_it(federation, dishonest):
    """A ciphertext that nobody asked to open: its keys do not wait for the next key set-up."""
    attack = dishonest(federation(4))
    fed, first = attack.fed, attack.manifest
    attack.encrypt(VICTIM)
    secrets = keys_of_slot(fed, VICTIM, 0)
    assert len(secrets) == 3
    second = replace(first, slot=1, attempt=1)
    attack.encrypt(VICTIM, second)
    assert (fed.stage_of(VICTIM, 0), fed.stage_of(VICTIM, 1)) == ("closed", "encrypted")
    assert not fed.secrets(VICTIM, 0)
    assert not fed.on_disk(VICTIM, secrets)
    with pytest.raises(Refusal, match="slot-once"):
        attack.open(VICTIM, (fed.everyone,), first)
    attack.open(VICTIM, (fed.everyone,), second)
    attack.encrypt(VICTIM, replace(first, slot=2, attempt=2))
    assert fed.stage_of(VICTIM, 1) == "opened"


@pytest.mark.parametrize("how", ["open", "manifest"])
def test_keys_of_a_closed_slot_are_gone(federation, dishonest, how):
    """Closed by what it was asked to open, or by a manifest before anything was sent."""
    attack = dishonest(federation(4))
    fed = attack.fed
    if how == "open":
        attack.encrypt(VICTIM)
    else:
        shown = EncryptRequest(*attack.head, b"", attack.first.advertisements)
        with pytest.raises(ProtocolError, match="not a manifest"):
            fed.answer("encrypt", VICTIM, fed.signed(shown))
    secrets = keys_of_slot(fed, VICTIM, 0)
    assert len(secrets) == (3 if how == "open" else 1)
    assert fed.on_disk(VICTIM, secrets) == secrets
    broken = {
        "open": lambda: attack.open(VICTIM, ((1, 3, 4),)),
        "manifest": lambda: attack.encrypt(VICTIM, replace(attack.manifest, threshold=2)),
    }[how]
    with pytest.raises(Refusal, match=r"rule (survivors|threshold)"):
        broken()
    assert fed.stage_of(VICTIM) == "closed"
    assert not keys_of_slot(fed, VICTIM, 0)
    assert not fed.on_disk(VICTIM, secrets)
    assert len(fed.secrets(VICTIM)) == 3


# What a thief can do


class Listener:
    """Has all that travelled in a federation's sums of one cohort: keys, requests, ciphertexts and parts."""

    def __init__(self, fed):
        self.fed = fed

    def sums(self):
        """Of each opened sum the manifest, the survivors, and the victim's ciphertext and part."""
        fed = self.fed
        for number, request in enumerate(fed.requests["open", VICTIM]):
            survivors = OpenRequest.from_bytes(Signed.from_bytes(request).payload).survivors[0]
            asked = Signed.from_bytes(fed.requests["encrypt", VICTIM][number]).payload
            manifest = Manifest.from_bytes(EncryptRequest.from_bytes(asked).manifest)
            cipher, part = (
                fed.split(stage, fed.replies[stage, VICTIM][number], manifest)[0] for stage in ("encrypt", "open")
            )
            yield manifest, survivors, cipher, part

    def publics(self, slot):
        """Advertised keys of a slot by silo."""
        signed = {silo: Signed.from_bytes(self.fed.replies["keys", silo][0]) for silo in self.fed.everyone}
        return {
            silo: key_of(KeyAdvertisement.from_bytes(message.payload).keys, slot) for silo, message in signed.items()
        }

    def read(self, manifest, polynomials):
        """The words that polynomials encode; None where they are uniform."""
        parameters = self.fed.parameters(manifest)
        try:
            whole = read_sum(ring(parameters.modulus_bits), parameters, polynomials)
        except Abort:
            return None
        return words_of(whole, manifest.channels, len(manifest.cohorts[0]))

    def with_lattice_key(self, manifest, survivors, cipher, part, secret):
        """c + a s."""
        lattice, key = ring(self.fed.parameters(manifest).modulus_bits), np.frombuffer(secret, np.uint64)
        product = lattice.multiply(self.fed.reference(manifest), key)
        return self.read(manifest, lattice.add(cipher, product))

    def with_agreement_key(self, manifest, survivors, cipher, part, secret):
        """c + p less a times the masks: a part opens its silo's own ciphertext once its masks are known."""
        lattice, zeros = ring(self.fed.parameters(manifest).modulus_bits), np.zeros(DEGREE, np.uint64)
        publics = self.publics(manifest.slot)
        others = {silo: publics[silo] for silo in survivors if silo != VICTIM}
        opening = Opening(manifest.digest(), 0, survivors).hash()
        masks = masked_key(lattice, zeros, Agreement(secret), others, opening, VICTIM)
        product = lattice.multiply(self.fed.reference(manifest), masks)
        return self.read(manifest, lattice.subtract(lattice.add(cipher, part), product))

    def attack(self, secrets):
        """What can be read of the victim in each sum, with any of some secrets, tried as either key."""
        found = []
        for item in self.sums():
            tries = [self.with_agreement_key(*item, secret) for secret in secrets if len(secret) == 32]
            tries += [self.with_lattice_key(*item, secret) for secret in secrets if len(secret) == 8 * DEGREE]
            found.append([words for words in tries if words is not None])
        return found


def stolen(fed, silo):
    """Every value of bytes in a copy of a silo's files, whatever table it is in."""
    copy = fed.folder / "stolen"
    copy.mkdir()
    for path in fed.folder.glob(f"{silo}.db*"):
        (copy / path.name).write_bytes(path.read_bytes())
    with sqlite3.connect(copy / f"{silo}.db") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert "ckks_secret" in tables
        rows = [row for table in tables for row in database.execute(f"SELECT * FROM {table}")]
    database.close()
    return [value for row in rows for value in row if isinstance(value, bytes)]


def test_a_thief_who_recorded_everything_reads_no_earlier_update(federation):
    """Three opened sums, then silo 2's whole database; either of a slot's keys would have given its update away."""
    fed = federation(4, slots=5, channels=(ChannelSpec("update", DEGREE + 3, 16, 1.0),))
    captured, updates = [], []

    def watched(exchange):
        def run(stage, requests):
            if stage == "open":
                captured.append(fed.secrets(VICTIM, slot=len(captured)))
                updates.append(fed.vectors[VICTIM].copy())
            yield from exchange(stage, requests)

        return run

    for absent in ((), (4,), ()):
        fed.coordinator.sum(fed.manifest(), watched(fed.exchange(drop={"encrypt": absent})))
    assert len({update.tobytes() for update in updates}) == 3
    listener = Listener(fed)

    values = stolen(fed, VICTIM)
    assert len([value for value in values if len(value) == 32]) >= 2, "keys of slots to come are there"
    assert listener.attack(values) == [[], [], []]
    assert not fed.on_disk(VICTIM, [secret for secrets in captured for secret in secrets])

    # The same attack with the keys as they were before the slots were opened: each alone opens its own slot.
    for secret_of in (lambda secrets: secrets[0], lambda secrets: secrets[1]):
        for slot, secrets in enumerate(captured):
            found = listener.attack([secret_of(secrets)])
            assert [len(words) for words in found] == [int(slot == number) for number in range(3)]
            np.testing.assert_array_equal(found[slot][0], updates[slot])
