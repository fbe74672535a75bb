"""Several threads of one process use one ring at once."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from autoflip_secure.ckks import seal_bytes
from autoflip_secure.ckks.parameters import DEGREE, MODULUS_BITS
from autoflip_secure.ckks.ring import Ring, ring
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.words import PackedWords

THREADS = 4
SCALE = 2.0**20


@pytest.fixture
def interleaved(monkeypatch):
    """Whenever memory was written and is about to be read, by SEAL or by us, other threads have their turn."""
    pread, pwrite = os.pread, os.pwrite

    def slow_read(*arguments):
        time.sleep(1e-3)
        return pread(*arguments)

    def slow_write(*arguments):
        written = pwrite(*arguments)
        time.sleep(1e-3)
        return written

    monkeypatch.setattr(seal_bytes.os, "pread", slow_read)
    monkeypatch.setattr(seal_bytes.os, "pwrite", slow_write)


def at_once(work):
    """What each of several threads returns that start together; what one raises is raised."""
    barrier = threading.Barrier(THREADS)

    def run(number):
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_threads_do_not_read_each_others_words(interleaved, bits):
    """Fresh keys, keys kept before, encryption and decoding, many times over with values of each thread's own."""
    lattice = ring(bits)

    def work(number):
        random, keys = np.random.default_rng(number), []
        for _ in range(6):
            key = lattice.fresh_key()
            keys.append(key.words.tobytes())
            rows = random.integers(-1000, 1000, (2, DEGREE)).astype(float)
            cipher, own = lattice.encrypted(lattice.key_from(key.words), rows, SCALE)
            opened = lattice.add(cipher, lattice.multiply(own, key.words))
            np.testing.assert_array_equal(np.rint(lattice.decoded(opened, SCALE)), rows)
        return keys

    keys = [key for keys in at_once(work) for key in keys]
    assert len(set(keys)) == THREADS * 6


def test_each_thread_has_memory_of_its_own_while_it_lives():
    lattice = Ring(MODULUS_BITS[0])
    before = len(os.listdir("/proc/self/fd"))
    barrier = threading.Barrier(THREADS)

    def work(number):
        memory = lattice._memory()
        assert lattice._memory() is memory
        barrier.wait(30)
        return id(memory), len(os.listdir("/proc/self/fd"))

    found = at_once(work)
    assert len({*(memory for memory, _ in found), id(lattice._memory())}) == THREADS + 1
    assert max(opened for _, opened in found) >= before + THREADS - 1
    assert len(os.listdir("/proc/self/fd")) <= before, "what ended threads had is closed"


def test_silos_in_threads(federation, interleaved):
    """All silos of a sum answer at once, as where one process runs several."""
    fed = federation(THREADS, channels=(ChannelSpec("update", DEGREE + 1, 16, 1.0),))
    size = word_count(fed.channels, THREADS)
    fed.vectors = {silo: np.random.default_rng(silo).integers(0, 2**14, size, np.uint64) for silo in fed.everyone}
    fed.contribute = lambda silo: lambda manifest: PackedWords(fed.vectors[silo])

    def exchange(stage, requests):
        silos = list(requests)
        replies = at_once(lambda number: fed.answer(stage, silos[number], requests[silos[number]]))
        return zip(silos, replies, strict=True)

    for _ in range(2):
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), fed.everyone)
