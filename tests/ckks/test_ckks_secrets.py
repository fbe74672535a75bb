"""Private keys do not show, do not leave the process by accident, and are of fresh randomness after a fork."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import traceback

import numpy as np
import pytest

from autoflip_secure.ckks.parameters import DEGREE, MODULUS_BITS
from autoflip_secure.ckks.ring import Ring, ring
from autoflip_secure.ckks.seal_bytes import SealMemory
from autoflip_secure.ckks.state import Advertised, Ready
from autoflip_secure.errors import NotAvailable, ProtocolError
from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.words import PackedWords

HOLDERS = ["SecretKey", "SlotKeys", "Ready", "Advertised", "CkksSilo", "SiloState", "Slot", "Agreement", "Ring"]


@pytest.fixture
def holders(federation, dishonest):
    """Everything in a silo's process that holds keys, or held them, and the keys."""
    fed = federation(3)
    attack = dishonest(fed)
    advertised = fed.silos[1]._state.epoch(fed.session)
    attack.encrypt(1)
    silo = fed.silos[1]
    state, ready = silo._state, silo._ready
    lattice = ring(fed.parameters(attack.manifest).modulus_bits)
    secrets = [*fed.secrets(1), fed.roots[1]]
    assert len(secrets) == 4 + 1 + 1
    slot = state.slot(ready, 0)
    keys = state.take_keys(ready, 0)
    assert {keys.agreement, keys.lattice, keys.root} <= set(secrets)
    assert isinstance(advertised, Advertised)
    assert isinstance(ready, Ready)
    things = {
        "SecretKey": lattice.key_from(np.frombuffer(keys.lattice, np.uint64)),
        "SlotKeys": keys,
        "Ready": ready,
        "Advertised": advertised,
        "CkksSilo": silo,
        "SiloState": state,
        "Slot": slot,
        "Agreement": Agreement(keys.agreement),
        "Ring": lattice,
    }
    assert list(things) == HOLDERS
    return things, secrets


def traces(secret):
    """How bytes or words of a secret may show in text."""
    for start in range(0, len(secret), 1 << 10):
        piece = secret[start : start + 8]
        yield from (repr(piece)[2:-1], piece.hex(), piece.hex(" "), str(int.from_bytes(piece, "little")))


@pytest.mark.parametrize("name", HOLDERS)
def test_keys_are_not_in_texts(holders, name):
    things, secrets = holders
    thing = things[name]
    shown = "".join((repr(thing), str(thing), f"{thing}", f"{[thing]}", f"{thing!a}"))
    assert name in shown
    assert not [trace for secret in secrets for trace in traces(secret) if trace in shown]


@pytest.mark.parametrize("name", ["SecretKey", "SlotKeys", "CkksSilo", "Agreement", "Ring"])
def test_keys_are_not_pickled(holders, name):
    things, _ = holders
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises((TypeError, pickle.PicklingError)):
            pickle.dumps(things[name], protocol)


@pytest.mark.parametrize("name", ["SecretKey", "SlotKeys"])
def test_keys_are_not_copied(holders, name):
    things, _ = holders
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copied(things[name])


@pytest.mark.parametrize("name", ["Advertised", "Ready", "Slot"])
def test_what_is_pickled_holds_no_keys(holders, name):
    things, secrets = holders
    data = pickle.dumps(things[name])
    public = {"Advertised": "advertisement", "Ready": "epoch_hash", "Slot": "manifest"}[name]
    assert getattr(things[name], public) in data
    assert not [secret for secret in secrets if secret[:32] in data]


def test_keys_are_not_in_errors(holders, federation):
    """Neither in the message nor in what a traceback shows."""
    things, secrets = holders
    lattice, key = things["Ring"], things["SecretKey"]
    wrong = key.words.copy()
    wrong[5] = lattice.modulus
    texts = []
    for call in (
        lambda: lattice.key_from(wrong),
        lambda: pickle.dumps(key),
        lambda: pickle.dumps(things["SlotKeys"]),
        lambda: things["Agreement"].with_peer(bytes(32)),
    ):
        with pytest.raises((ProtocolError, TypeError)) as caught:
            call()
        texts.append("".join(traceback.format_exception(caught.value)))
    assert all(texts)
    assert not [trace for secret in secrets for trace in traces(secret) if any(trace in text for text in texts)]


def test_no_secret_stays_in_the_memory_file(monkeypatch):
    """SEAL wrote and read keys, and ciphertexts with its own a, through it; nothing is left for whoever can open it."""
    lattice, left = Ring(MODULUS_BITS[0]), []
    descriptor, clear = lattice._memory()._descriptor, SealMemory.clear

    def spy(memory):
        left.append(os.fstat(descriptor).st_size)
        clear(memory)

    monkeypatch.setattr(SealMemory, "clear", spy)
    fresh = lattice.fresh_key()
    assert os.fstat(descriptor).st_size == 0
    again = lattice.key_from(fresh.words)
    assert os.fstat(descriptor).st_size == 0
    lattice.encrypted(again, np.zeros((2, DEGREE)), 2.0**20)
    assert os.fstat(descriptor).st_size == 0
    assert len(left) == 3
    assert min(left) > 1000, "there was something to forget each time"


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_secret_keys_are_ternary_and_new_every_time(bits):
    """-1, 0 and 1, each a third of the coefficients, as SEAL draws them."""
    lattice = ring(bits)
    keys = [coefficients(lattice, lattice.fresh_key().words) for _ in range(3)]
    for key in keys:
        assert set(key.tolist()) == {-1, 0, 1}
        counts = np.array([np.count_nonzero(key == value) for value in (-1, 0, 1)])
        assert ((counts - DEGREE / 3) ** 2 / (DEGREE / 3)).sum() < 30
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.mean(keys[one] == keys[other]) - 1 / 3) < 5 * np.sqrt(2 / 9 / DEGREE)


def coefficients(lattice, words):
    """Coefficients within +-1000 of a polynomial given by its NTT words: decoding followed by the inverse embedding."""
    values = lattice.decoded(words[None], 1.0)[0].view(np.complex128)
    powers = np.array([pow(3, j, 2 * DEGREE) for j in range(DEGREE // 2)])
    points = np.zeros(2 * DEGREE, np.complex128)
    points[powers] = values
    points[-powers % (2 * DEGREE)] = values.conj()
    found = np.fft.fft(points)[:DEGREE] / DEGREE
    assert np.abs(found.imag).max() < 1e-6
    whole = np.rint(found.real)
    assert np.abs(found.real - whole).max() < 1e-3
    return whole.astype(int)


def test_key_kept_before_is_the_same_key():
    lattice = ring(48)
    fresh = lattice.fresh_key()
    again = lattice.key_from(fresh.words)
    rows = np.random.default_rng(1).integers(-1000, 1000, (2, DEGREE)).astype(float)
    cipher, own = lattice.encrypted(again, rows, 2.0**25)
    opened = lattice.decoded(lattice.add(cipher, lattice.multiply(own, fresh.words)), 2.0**25)
    np.testing.assert_array_equal(np.rint(opened), rows)


# After a fork


def in_child(work):
    """What `work` returns in a forked process, as bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = work()
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(result)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return result


def test_ring_works_in_a_forked_process_and_stays_apart():
    """Parent and children share the ring of before, none sees what another one writes, and each has its own memory."""
    lattice = ring(40)
    key = lattice.fresh_key()
    rows = np.arange(DEGREE, dtype=float)[None]
    memory = lattice._memory()

    def work():
        cipher, own = lattice.encrypted(key, rows, 2.0**20)
        assert lattice._memory() is not memory
        return np.concatenate([cipher, own]).tobytes()

    replies = [np.frombuffer(in_child(work), np.uint64).reshape(2, DEGREE) for _ in range(2)]
    replies.append(np.concatenate(lattice.encrypted(key, rows, 2.0**20)))
    assert lattice._memory() is memory
    for cipher, own in replies:
        opened = lattice.decoded(lattice.add(cipher, lattice.multiply(own, key.words))[None], 2.0**20)
        np.testing.assert_array_equal(np.rint(opened), rows)


def test_forked_processes_draw_other_keys_and_other_noise():
    lattice = ring(40)
    key = lattice.fresh_key()
    zeros = np.zeros((1, DEGREE))

    def work():
        cipher, own = lattice.encrypted(key, zeros, 2.0**20)
        noise = lattice.add(cipher, lattice.multiply(own, key.words))
        return np.concatenate([lattice.fresh_key().words, own[0], noise[0]]).tobytes()

    drawn = [np.frombuffer(data, np.uint64).reshape(3, DEGREE) for data in (in_child(work), in_child(work), work())]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.mean(drawn[one] == drawn[other], 1) < 0.01).all()


def test_silos_in_forked_processes(federation):
    """A federation whose silos answer in a fork each: as workers of a server do that loaded the package before."""
    fed = federation(3)
    honest, size = fed.answer, word_count(fed.channels, 3)
    fed.vectors = {silo: np.full(size, 10**silo, np.uint64) for silo in fed.everyone}
    fed.contribute = lambda silo: lambda manifest: PackedWords(fed.vectors[silo])

    def answer(stage, silo, request):
        def work():
            fed.silos[silo] = fed.start(silo)
            return honest(stage, silo, request)

        return in_child(work)

    fed.answer = answer
    ring(40)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.silos[1]._ready is None, "nothing was answered here"


# What SEAL's objects look like


class Saved:
    """A SEAL object that saves what it is told."""

    def __init__(self, data):
        self.data = data

    def save(self, path):
        with open(path, "wb") as file:
            file.write(self.data)


def test_bytes_of_another_serialisation():
    memory = SealMemory()
    body = bytes(16)

    def saved(magic=b"\x5e\xa1\x10", mode=0, size=None):
        return Saved(magic + b"\4\1" + bytes([mode, 0, 0]) + (size or 16 + len(body)).to_bytes(8, "little") + body)

    assert memory.dump(saved())[1] == body
    assert memory.words(saved(), 2).tolist() == [0, 0]
    for wrong in (saved(magic=b"\0\0\0"), saved(size=15), saved(size=33), Saved(b""), Saved(b"\x5e\xa1")):
        with pytest.raises(NotAvailable, match="unknown form"):
            memory.dump(wrong)
    with pytest.raises(NotAvailable, match="compresses SEAL objects in an unknown way"):
        memory.dump(saved(mode=3))


def test_memory_that_outlives_all_modules_is_closed_in_silence():
    """As what threads and caches hold may do when a process ends."""
    late = "import _io; from autoflip_secure.ckks.seal_bytes import SealMemory; _io.kept = SealMemory()"
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_layout_that_differs_is_noticed_before_anything_depends_on_it(monkeypatch):
    """Words in another place than the accessors of SEAL say."""
    honest = SealMemory.dump

    def shifted(self, value):
        header, body = honest(self, value)
        return header, body[8:] + body[:8]

    monkeypatch.setattr(SealMemory, "dump", shifted)
    with pytest.raises((NotAvailable, RuntimeError, ValueError)):
        Ring(40)


@pytest.mark.parametrize("bits", [57, 58, 59, 60])
def test_moduli_that_are_too_large(bits):
    with pytest.raises(NotAvailable, match="secure"):
        Ring(bits)
