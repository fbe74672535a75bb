"""The manifest has one encoding, and its digest names every field."""

from __future__ import annotations

from dataclasses import fields, replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import ProtocolError
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from tests.sums.partitions import partitions

PRIVACY = PrivacyTerms("distributed", "train", 0.1, 1, 1.1, 0.5, 2, 1e-5)
MANIFEST = Manifest(
    bytes(16), 1, 2, b"e" * 32, 3, 0, "train", ((1, 2, 3), (4, 6, 9)), (3, 3), 7, b"m" * 32, b"k" * 32, b"c" * 32,
    (ChannelSpec("update", 100, 16, 0.5), ChannelSpec("count", 1, 20, 1000.0)), PRIVACY,
)  # fmt: skip

CHANGES = {
    "session": b"s" * 16, "epoch": 2, "slot": 3, "epoch_hash": b"f" * 32, "round": 4, "attempt": 1, "phase": "explore",
    "cohorts": ((1, 2, 3), (4, 6, 8)), "minimum": (3, 2), "threshold": 6, "model_hash": b"M" * 32,
    "mask_hash": b"K" * 32, "config_hash": b"C" * 32, "channels": (ChannelSpec("update", 100, 16, 0.5),),
    "privacy": replace(PRIVACY, noise_multiplier=1.0), "heads_hash": b"h" * 32,
    "blocks": ((1, 2, 3), (4, 6), (9,)),
}  # fmt: skip

unit = st.floats(0, 0.99)
terms = st.builds(
    PrivacyTerms, st.sampled_from(["local", "distributed"]), st.sampled_from(["train", "holdout"]), unit,
    st.integers(0, 10), st.floats(0.1, 9), unit, st.integers(0, 5), unit,
)  # fmt: skip


@st.composite
def manifests(draw):
    silos = draw(st.permutations(range(1, 13)))
    cut = draw(st.integers(1, 11))
    cohorts = tuple(tuple(sorted(part)) for part in (silos[:cut], silos[cut:]))
    counters = [draw(st.integers(0, 2**40)) for _ in range(4)]
    hashes = [draw(st.binary(min_size=32, max_size=32)) for _ in range(5)]
    channels = tuple(
        ChannelSpec(name, draw(st.integers(1, 10**9)), draw(st.integers(2, 32)), draw(st.floats(1e-6, 1e6)))
        for name in draw(st.lists(st.sampled_from(["update", "count", "metric"]), min_size=1, unique=True))
    )
    blocks = draw(st.one_of(st.just(()), st.tuples(*map(partitions, cohorts)).map(lambda parts: sum(parts, ()))))
    return Manifest(
        draw(st.binary(min_size=16, max_size=16)), counters[0], counters[1], hashes[0], counters[2], counters[3],
        draw(st.sampled_from(["census", "explore", "train", "evaluate"])), cohorts,
        tuple(draw(st.integers(1, len(cohort))) for cohort in cohorts), draw(st.integers(1, 100)), *hashes[1:4],
        channels, draw(terms), hashes[4], blocks,
    )  # fmt: skip


@given(manifests())
def test_round_trip(manifest):
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.digest() == manifest.digest()


def test_digest_depends_on_every_field():
    assert set(CHANGES) == {field.name for field in fields(Manifest)}
    digests = {replace(MANIFEST, **{name: value}).digest() for name, value in CHANGES.items()}
    assert len(digests | {MANIFEST.digest()}) == len(CHANGES) + 1


def test_digest_depends_on_every_privacy_term():
    changes = {
        "trust": "local", "dataset": "holdout", "sampling_rate": 0.2, "steps": 2, "noise_multiplier": 1.2, "clip": 0.6,
        "colluders": 1, "delta": 1e-6,
    }  # fmt: skip
    assert set(changes) == {field.name for field in fields(PrivacyTerms)}
    digests = {replace(MANIFEST, privacy=replace(PRIVACY, **{n: v})).digest() for n, v in changes.items()}
    assert len(digests | {MANIFEST.digest()}) == len(changes) + 1


@settings(max_examples=300)
@given(manifests(), st.data())
def test_changed_bytes_are_another_manifest_or_none(manifest, data):
    original = manifest.to_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    flipped = bytearray(original)
    flipped[position] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), original[:position], original + b"\0"):
        try:
            again = Manifest.from_bytes(damaged)
        except ProtocolError:
            continue
        assert again.to_bytes() == damaged
        assert again.digest() != manifest.digest()


@given(st.binary(max_size=300))
def test_noise_is_no_manifest(data):
    with pytest.raises(ProtocolError):
        Manifest.from_bytes(data)


def test_other_encodings_of_the_same_values_are_refused():
    data = MANIFEST.to_bytes()
    values = msgpack.unpackb(data)
    longer = msgpack.Packer(use_single_float=True).pack(values)
    assert longer != data
    with pytest.raises(ProtocolError, match="canonical"):
        Manifest.from_bytes(longer)
    with pytest.raises(ProtocolError, match="version"):
        Manifest.from_bytes(msgpack.packb([99, *values[1:]]))
    with pytest.raises(ProtocolError, match="longer"):
        Manifest.from_bytes(bytes((1 << 20) + 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"session": bytes(15)},
        {"model_hash": bytes(31)},
        {"heads_hash": bytes(33)},
        {"phase": "cheat"},
        {"slot": -1},
        {"threshold": 0},
        {"cohorts": ()},
        {"cohorts": ((1, 2, 3),)},
        {"cohorts": ((1, 2, 3), (3, 4, 5))},
        {"cohorts": ((2, 1, 3), (4, 6, 9))},
        {"cohorts": ((1, 1, 3), (4, 6, 9))},
        {"cohorts": ((0, 1, 3), (4, 6, 9))},
        {"cohorts": ((), (4, 6, 9))},
        {"minimum": (3, 4)},
        {"minimum": (0, 3)},
        {"channels": ()},
        {"channels": (ChannelSpec("update", 1, 8, 1.0), ChannelSpec("update", 2, 8, 1.0))},
        {"blocks": ((1, 2, 3), (4, 6))},
        {"blocks": ((1, 2, 3), (4, 6), (9, 10))},
        {"blocks": ((1, 2, 3), (4, 6, 9), (9,))},
        {"blocks": ((1, 2, 3), (4, 4, 6, 9))},
        {"blocks": ((1, 2), (3, 4), (6, 9))},
        {"blocks": ((2, 1, 3), (4, 6, 9))},
        {"blocks": ((1, 2, 3), (4, 6, 9), ())},
        {"blocks": ((),)},
        {"blocks": ((1, 2, 3), (4, 6, 9.0))},
    ],
)
def test_manifest_that_cannot_be(changes):
    with pytest.raises(ProtocolError):
        replace(MANIFEST, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"trust": "blind"}, {"dataset": "test"}, {"sampling_rate": 1.1}, {"steps": -1}, {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")}, {"clip": float("inf")}, {"delta": 1.0}, {"colluders": -1},
    ],
)  # fmt: skip
def test_privacy_terms_that_cannot_be(changes):
    with pytest.raises(ProtocolError):
        replace(PRIVACY, **changes)


def test_cohort_of():
    assert [MANIFEST.cohort_of(silo) for silo in (1, 3, 9)] == [0, 0, 1]
    with pytest.raises(ProtocolError, match="in no cohort"):
        MANIFEST.cohort_of(5)


@given(manifests(), st.sets(st.integers(1, 13)))
def test_silos_in_whole_blocks(manifest, present):
    expected = present if not manifest.blocks else {s for b in manifest.blocks if present >= set(b) for s in b}
    found = manifest.each_whole(present)
    assert found == tuple(tuple(silo for silo in cohort if silo in expected) for cohort in manifest.cohorts)
    assert found == tuple(manifest.whole(index, present) for index in range(len(manifest.cohorts)))


def test_with_slot_changes_nothing_else():
    other = MANIFEST.with_slot(epoch=8, slot=9, epoch_hash=b"x" * 32, attempt=4)
    assert (other.epoch, other.slot, other.epoch_hash, other.attempt) == (8, 9, b"x" * 32, 4)
    assert replace(other, epoch=1, slot=2, epoch_hash=b"e" * 32, attempt=0) == MANIFEST


@pytest.mark.parametrize("field", [2, 3, 5, 6, 10])
def test_counters_are_whole_numbers(field: int) -> None:
    """1.0 and true compare equal to 1, but their bytes differ: a second spelling of one manifest is refused."""
    values = msgpack.unpackb(MANIFEST.to_bytes())
    for impostor in (float(values[field]), bool(values[field])):
        forged = [*values[:field], impostor, *values[field + 1 :]]
        with pytest.raises(ProtocolError):
            Manifest.from_bytes(msgpack.packb(forged))


@pytest.mark.parametrize("impostor", [1.0, True])
@pytest.mark.parametrize("field", [8, 17])
def test_silo_ids_are_whole_numbers(field: int, impostor: float) -> None:
    """Of cohorts and of blocks."""
    values = msgpack.unpackb(replace(MANIFEST, blocks=MANIFEST.cohorts).to_bytes())
    assert values[field][0][0] == impostor
    values[field][0][0] = impostor
    with pytest.raises(ProtocolError):
        Manifest.from_bytes(msgpack.packb(values))
