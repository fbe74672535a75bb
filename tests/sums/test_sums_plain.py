"""Sums in clear: the seam without protection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.plain import PlainCoordinator, PlainSilo
from autoflip_secure.sums.words import PackedWords

SPECS = (ChannelSpec("update", 10, 16, 1.0),)
MANIFEST = Manifest(
    bytes(16), 0, 0, bytes(32), 1, 0, "train", ((1, 2, 4), (3, 5)), (2, 1), 1, bytes(32), bytes(32), bytes(32), SPECS,
    PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
)  # fmt: skip


@pytest.fixture
def vectors():
    rng = np.random.default_rng(3)
    sizes = {silo: word_count(SPECS, len(cohort)) for cohort in MANIFEST.cohorts for silo in cohort}
    return {silo: rng.integers(0, 2**64, size, np.uint64) for silo, size in sizes.items()}


def exchange_of(vectors, absent=(), seen=None):
    def exchange(stage, requests):
        if seen is not None:
            seen.extend(Manifest.from_bytes(request) for request in requests.values())
        silo = PlainSilo()
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


def test_too_few_silos(vectors):
    with pytest.raises(Abort, match="1 of 3 silos answered, 2 are needed") as caught:
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


def test_unknown_stage_and_noise():
    with pytest.raises(ProtocolError, match="no stage"):
        PlainSilo().answer("masked", MANIFEST.to_bytes(), lambda manifest: np.zeros(1, np.uint64))
    with pytest.raises(ProtocolError, match="not a manifest"):
        PlainSilo().answer("clear", b"", lambda manifest: np.zeros(1, np.uint64))
    assert PlainSilo.stages == ("clear",)
