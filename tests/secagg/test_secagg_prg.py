"""Masks in any cut, from any offset, by any number of processes, are the same keystream."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.errors import ConfigError
from autoflip_secure.secagg import mask_workers, prg
from autoflip_secure.secagg.mask_workers import WorkerMaskStream, mask_processes, start_workers, use_workers
from autoflip_secure.secagg.prg import CHUNK_WORDS, MaskStream, apply_masks

KEYS = [bytes([number] * 32) for number in range(1, 6)]
SIGNS = [1, -1, 1, 1, -1]


def masked(size: int) -> np.ndarray:
    """Five masks on 0, 1, 2, ..., in one process and one piece."""
    words = np.arange(size, dtype=np.uint64)
    MaskStream(KEYS, SIGNS).apply(words)
    return words


def test_keystream_is_that_of_nist_sp_800_38a():
    """F.5.5, CTR-AES256.Encrypt: keystream = plaintext xor ciphertext, from the counter f0f1...ff on."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    counter = int.from_bytes(bytes(range(0xF0, 0x100)), "big")
    words = np.zeros(8, np.uint64)
    MaskStream([key], [1], 2 * counter).apply(words)
    expected = np.frombuffer(plain, "<u8") ^ np.frombuffer(cipher, "<u8")
    np.testing.assert_array_equal(words, expected)


@given(st.lists(st.integers(0, 40), max_size=8))
def test_any_cut_gives_the_masks_of_the_whole(cuts):
    size = sum(cuts)
    words = np.arange(size, dtype=np.uint64)
    stream, start = MaskStream(KEYS, SIGNS), 0
    for cut in cuts:
        stream.apply(words[start : start + cut])
        start += cut
    np.testing.assert_array_equal(words, masked(size))


@pytest.mark.parametrize("cut", [1, CHUNK_WORDS - 1, CHUNK_WORDS, CHUNK_WORDS + 1])
def test_cuts_around_a_chunk(cut):
    words = np.arange(2 * CHUNK_WORDS + 5, dtype=np.uint64)
    stream = MaskStream(KEYS, SIGNS)
    stream.apply(words[:cut])
    stream.apply(words[cut:])
    np.testing.assert_array_equal(words, masked(words.size))


@given(st.integers(0, 30), st.integers(0, 30))
def test_a_stream_may_start_at_any_block(block, size):
    words = np.arange(2 * block, 2 * block + size, dtype=np.uint64)
    MaskStream(KEYS, SIGNS, 2 * block).apply(words)
    np.testing.assert_array_equal(words, masked(2 * block + size)[2 * block :])


def test_streams_that_cannot_be():
    for start in (1, 3, -2):
        with pytest.raises(ValueError, match="cipher blocks"):
            MaskStream(KEYS, SIGNS, start)
    with pytest.raises(ValueError, match="32 bytes"):
        MaskStream([bytes(16)], [1])
    with pytest.raises(ValueError, match="zip"):
        MaskStream(KEYS, SIGNS[1:])


@pytest.fixture
def workers(monkeypatch):
    """Workers of this test's own, one besides this process, whatever the machine has."""
    monkeypatch.setenv("AUTOFLIP_MASK_WORKERS", "2")
    own = mask_workers._Workers()
    monkeypatch.setattr(mask_workers, "_workers", own)
    yield own
    if own._pool is not None:
        own._pool.shutdown()


@pytest.fixture
def blocks(monkeypatch):
    """What the shared blocks held when they were given back, by name."""
    held: dict[str, bytes] = {}

    class Watched(SharedMemory):
        def close(self):
            if self.buf is not None:
                held[self.name] = bytes(self.buf)
            super().close()

    monkeypatch.setattr(mask_workers, "SharedMemory", Watched)
    yield held
    for name in held:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


def test_workers_give_the_same_words(workers, blocks, monkeypatch):
    assert start_workers()
    lent = []
    submit = workers.submit
    monkeypatch.setattr(workers, "submit", lambda *arguments: lent.append(arguments[2]) or submit(*arguments))
    for size in (0, 1, 40_001, 700_001):
        words = np.arange(size, dtype=np.uint64)
        with WorkerMaskStream(KEYS, SIGNS) as stream:
            stream.apply(words[: size // 4 * 2])
            stream.apply(words[size // 4 * 2 :])
        np.testing.assert_array_equal(words, masked(size))
    assert sum(lent) > 10_000
    assert blocks
    assert not workers.lost


def test_shared_memory_holds_words_and_no_keys(workers, blocks):
    """Random words and keys: a key's bytes are nowhere in the block, the masked words lent last are."""
    assert start_workers()
    keys = [os.urandom(32) for _ in range(5)]
    words = np.frombuffer(os.urandom(8 * 300_000), np.uint64).copy()
    with WorkerMaskStream(keys, SIGNS) as stream:
        stream.apply(words)
    (held,) = blocks.values()
    assert any(words[start : start + 100].tobytes() in held for start in range(0, words.size, 2000))
    for key in keys:
        assert key[:8] not in held


def test_work_goes_on_here_while_workers_start(workers):
    words = np.arange(200_001, dtype=np.uint64)
    with WorkerMaskStream(KEYS, SIGNS) as stream:
        stream.apply(words)
    np.testing.assert_array_equal(words, masked(words.size))
    assert start_workers()


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_killed_worker_loses_nothing(workers, blocks, monkeypatch, caplog, when):
    assert start_workers()
    (worker,) = workers._pool._processes

    def kill(*_):
        os.kill(worker, signal.SIGKILL)

    words = np.arange(700_001, dtype=np.uint64)
    with WorkerMaskStream(KEYS, SIGNS) as stream, caplog.at_level(logging.WARNING):
        if when == "before":
            kill()
        else:
            os.kill(worker, signal.SIGSTOP)  # so that it holds pieces it has not finished
            monkeypatch.setattr(mask_workers, "wait", lambda *a, wait=mask_workers.wait, **k: kill() or wait(*a, **k))
        stream.apply(words)
    np.testing.assert_array_equal(words, masked(words.size))
    assert workers.lost
    assert "worker ended early" in caplog.text
    assert not use_workers(10**9, 10**3)
    apply_masks(words, KEYS, [-sign for sign in SIGNS])
    np.testing.assert_array_equal(words, np.arange(words.size))


def test_without_shared_memory_one_process_does_it(workers, monkeypatch):
    def none_left(*_, **__):
        raise OSError("no space left on device")

    assert start_workers()
    for name in ("SharedMemory", "_claim"):
        with monkeypatch.context() as patch:
            patch.setattr(mask_workers, name, none_left)
            words = np.arange(100_001, dtype=np.uint64)
            with WorkerMaskStream(KEYS, SIGNS) as stream:
                stream.apply(words)
        np.testing.assert_array_equal(words, masked(words.size))
    assert not workers.lost


def test_shared_memory_is_given_back_after_an_error(workers, blocks, monkeypatch):
    assert start_workers()

    class Stopped(MaskStream):
        def apply(self, chunk):
            raise KeyboardInterrupt

    monkeypatch.setattr(mask_workers, "MaskStream", Stopped)
    with pytest.raises(KeyboardInterrupt), WorkerMaskStream(KEYS, SIGNS) as stream:
        stream.apply(np.zeros(100_000, np.uint64))
    assert blocks


def test_masks_are_shared_out_by_size(workers, monkeypatch):
    assert start_workers()
    used = []
    monkeypatch.setattr(mask_workers, "WorkerMaskStream", lambda *a: used.append(True) or WorkerMaskStream(*a))
    monkeypatch.setattr(mask_workers, "LEAST_WORK", 500_000)
    for size, expected in ((99_999, []), (100_000, [True])):
        words = np.arange(size, dtype=np.uint64)
        prg.apply_masks(words, KEYS, SIGNS)
        np.testing.assert_array_equal(words, masked(size))
        assert used == expected


def test_who_may_have_workers(monkeypatch):
    monkeypatch.delenv("AUTOFLIP_MASK_WORKERS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert mask_processes() == 3
    assert use_workers(10**9, 10)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert mask_processes() == 1
    assert not use_workers(10**9, 10)
    monkeypatch.setenv("AUTOFLIP_MASK_WORKERS", "4")
    assert mask_processes() == 4
    for bad in ("0", "-1", "two", "", "1.5"):
        monkeypatch.setenv("AUTOFLIP_MASK_WORKERS", bad)
        with pytest.raises(ConfigError, match="AUTOFLIP_MASK_WORKERS"):
            mask_processes()


def test_a_worker_of_others_has_no_workers(monkeypatch):
    """Its siblings use the other cores already; it may still be told to."""
    monkeypatch.delenv("AUTOFLIP_MASK_WORKERS", raising=False)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(mask_processes).result() == 1
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    monkeypatch.setenv("AUTOFLIP_MASK_WORKERS", "2")
    assert mask_processes() == 1


def test_promised_memory_is_claimed():
    folder = mask_workers.SHARED_FOLDER
    if not folder.is_dir():
        pytest.skip("no folder of shared memory here")
    memory = SharedMemory(create=True, size=1 << 20)
    try:
        assert Path(folder, memory.name).stat().st_blocks == 0
        mask_workers._claim(memory.name, 1 << 20)
        assert Path(folder, memory.name).stat().st_blocks * 512 >= 1 << 20
        assert Path(folder, memory.name).stat().st_mode & 0o077 == 0
    finally:
        memory.unlink()
        memory.close()
