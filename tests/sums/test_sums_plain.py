"""Sums in clear: the seam without protection."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from itertools import combinations

import msgpack
import numpy as np
import pytest

from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.noise_chain import LINK_BYTES
from autoflip_secure.sums.plain import PlainCoordinator, PlainSilo
from autoflip_secure.sums.words import PackedWords

SPECS = (ChannelSpec("update", 10, 16, 1.0),)
MANIFEST = Manifest(
    bytes(16), 0, 0, bytes(32), 1, 0, "train", ((1, 2, 4), (3, 5)), (2, 1), 1, bytes(32), bytes(32), bytes(32), SPECS,
    PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
)  # fmt: skip


def new_silo():
    return PlainSilo(sqlite3.connect(":memory:", isolation_level=None))


@pytest.fixture
def vectors():
    rng = np.random.default_rng(3)
    sizes = {silo: word_count(SPECS, len(cohort)) for cohort in MANIFEST.cohorts for silo in cohort}
    return {silo: rng.integers(0, 2**64, size, np.uint64) for silo, size in sizes.items()}


def exchange_of(vectors, absent=(), seen=None):
    def exchange(stage, requests):
        if seen is not None:
            seen.extend(Manifest.from_bytes(request) for request in requests.values())
        silo = new_silo()
        for i, request in requests.items():
            if i not in absent:
                yield i, silo.answer(stage, request, lambda m, i=i: PackedWords(vectors[i]))

    return exchange


@pytest.mark.parametrize("absent", [(), (1,), (3,), (2, 5)])
def test_sum_is_exact(vectors, absent):
    sums = PlainCoordinator().sum(MANIFEST, exchange_of(vectors, absent))
    assert [item.cohort for item in sums] == [0, 1]
    for item, cohort in zip(sums, MANIFEST.cohorts, strict=True):
        assert item.silos == tuple(silo for silo in cohort if silo not in absent)
        np.testing.assert_array_equal(item.words, sum(vectors[silo] for silo in item.silos))


@pytest.mark.parametrize("absent", [gone for size in range(6) for gone in combinations((1, 2, 3, 4, 5), size)])
def test_sum_is_of_whole_blocks(vectors, absent):
    """Whoever is absent, of all who may be."""
    manifest = replace(MANIFEST, blocks=((1, 4), (2,), (3, 5)), minimum=(2, 1))
    present = [tuple(i for b in part if not set(b) & set(absent) for i in b) for part in (((1, 4), (2,)), ((3, 5),))]
    exchange = exchange_of(vectors, absent)
    if len(present[0]) < 2 or not present[1]:
        with pytest.raises(Abort):
            PlainCoordinator().sum(manifest, exchange)
        return
    for item, silos in zip(PlainCoordinator().sum(manifest, exchange), present, strict=True):
        assert item.silos == tuple(sorted(silos))
        np.testing.assert_array_equal(item.words, sum(vectors[silo] for silo in silos))


def test_too_few_silos(vectors):
    with pytest.raises(Abort, match="1 of 3 silos of a cohort sent a vector, 2 are needed") as caught:
        PlainCoordinator().sum(MANIFEST, exchange_of(vectors, (1, 4)))
    assert (caught.value.stage, caught.value.blamed) == ("clear", ())


def test_each_attempt_has_its_own_slot(vectors):
    seen: list[Manifest] = []
    coordinator = PlainCoordinator()
    for attempt in (0, 1):
        coordinator.sum(replace(MANIFEST, attempt=attempt), exchange_of(vectors, seen=seen))
    assert [(m.slot, m.attempt) for m in seen] == [(1, 0)] * 5 + [(2, 1)] * 5


def test_reply_of_the_wrong_length(vectors):
    with pytest.raises(Abort) as caught:
        PlainCoordinator().sum(MANIFEST, exchange_of({**vectors, 2: vectors[2][:-1]}))
    assert caught.value.blamed == (2,)


NOISED = replace(MANIFEST, minimum=(2, 2), privacy=PrivacyTerms("distributed", "train", 1.0, 1, 1.0, 1.0, 0, 1e-5))
ROOTS = {silo: bytes([silo]) * LINK_BYTES for cohort in MANIFEST.cohorts for silo in cohort}


def revealing(vectors, absent=(), tamper=lambda silo, reply: reply):
    """An exchange with the stages asked and the silos that keep their chains on disk from one to the next."""
    connections = {i: sqlite3.connect(":memory:", isolation_level=None) for i in vectors}
    stages = []

    def exchange(stage, requests):
        stages.append((stage, sorted(requests)))
        for i, request in requests.items():
            if (stage, i) not in absent:
                # A new process for every stage.
                silo = PlainSilo(connections[i])
                reply = silo.answer(stage, request, lambda m, i=i: PackedWords(vectors[i], ROOTS[i]))
                yield i, tamper(i, reply) if stage == "reveal" else reply

    return exchange, stages, connections


@pytest.mark.parametrize("late", [(), (("reveal", 4),)])
def test_silos_reveal_what_their_own_cohort_leaves_over(vectors, late):
    exchange, stages, connections = revealing(vectors, late)
    first, second = PlainCoordinator().sum(NOISED, exchange)
    assert stages == [("clear", [1, 2, 3, 4, 5]), ("reveal", [1, 2, 4])], "of two silos none may be missing"
    assert first.links == {silo: ROOTS[silo] for silo in (1, 2, 4) if ("reveal", silo) not in late}
    assert second.links == {}
    left = {i: c.execute("SELECT root FROM plain_chain").fetchall() for i, c in connections.items()}
    assert all(bool(left[i]) == (i in (3, 5) or ("reveal", i) in late) for i in left), "deleted with the answer"


def test_nothing_is_revealed_where_all_noise_is_needed(vectors):
    exchange, stages, _ = revealing(vectors, (("clear", 2),))
    first, second = PlainCoordinator().sum(NOISED, exchange)
    assert (first.links, second.links) == ({}, {})
    assert [stage for stage, _ in stages] == ["clear"]


@pytest.mark.parametrize("reply", [b"", bytes(31), bytes(33)])
def test_link_of_another_length(vectors, reply):
    exchange, _, _ = revealing(vectors, tamper=lambda silo, link: reply if silo == 2 else link)
    with pytest.raises(Abort, match="silo 2 revealed") as caught:
        PlainCoordinator().sum(NOISED, exchange)
    assert (caught.value.stage, caught.value.blamed) == ("reveal", (2,))


@pytest.mark.parametrize(
    "request_of",
    [
        lambda data: b"",
        lambda data: b"\xc1",
        lambda data: msgpack.packb([data, 0]),
        lambda data: msgpack.packb([data, 7, [1, 2]]),
        lambda data: msgpack.packb([data, -3, [1, 2]]),
        lambda data: msgpack.packb([data, 0, [1]]),
        lambda data: msgpack.packb([data, 0, [2, 1]]),
        lambda data: msgpack.packb([data, 0, [1, 2, 3]]),
        lambda data: msgpack.packb([data, 0, [1, 1, 2]]),
        lambda data: msgpack.packb([data, 0, 5]),
        lambda data: msgpack.packb([data, "0", [1, 2]]),
        lambda data: msgpack.packb([b"", 0, [1, 2]]),
        lambda data: msgpack.packb([replace(NOISED, round=2).to_bytes(), 0, [1, 2]]),
    ],
)
def test_reveal_requests_that_do_not_hold_leave_the_chain_alone(vectors, request_of):
    connection = sqlite3.connect(":memory:", isolation_level=None)
    silo = PlainSilo(connection)
    data = NOISED.to_bytes()
    silo.answer("clear", data, lambda manifest: PackedWords(vectors[1], ROOTS[1]))
    with pytest.raises(ProtocolError):
        silo.answer("reveal", request_of(data), lambda manifest: None)
    assert silo.answer("reveal", msgpack.packb([data, 0, [1, 2, 4]]), lambda manifest: None) == ROOTS[1]
    with pytest.raises(ProtocolError, match="no noise to remove"):
        silo.answer("reveal", msgpack.packb([data, 0, [1, 2, 4]]), lambda manifest: None)


def test_nothing_is_revealed_for_a_part_of_a_block():
    silo, data = new_silo(), replace(NOISED, blocks=((1,), (2, 4), (3, 5)), minimum=(1, 2)).to_bytes()
    silo.answer("clear", data, lambda manifest: PackedWords(np.zeros(word_count(SPECS, 3), np.uint64), ROOTS[1]))
    for part in ([1, 2], [1, 4]):
        with pytest.raises(ProtocolError, match="in whole blocks"):
            silo.answer("reveal", msgpack.packb([data, 0, part]), lambda manifest: None)
    assert silo.answer("reveal", msgpack.packb([data, 0, [1, 2, 4]]), lambda manifest: None) == ROOTS[1]


def test_unknown_stage_and_noise():
    with pytest.raises(ProtocolError, match="no stage"):
        new_silo().answer("masked", MANIFEST.to_bytes(), lambda manifest: np.zeros(1, np.uint64))
    with pytest.raises(ProtocolError, match="not a manifest"):
        new_silo().answer("clear", b"", lambda manifest: np.zeros(1, np.uint64))
    assert PlainSilo.stages == ("clear", "reveal")
