"""Opened sums as bytes: they come back as they were, and nothing else is read as opened sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation import sum_proof
from autoflip_secure.federation.sum_proof import (
    Position,
    SumProof,
    is_tagged,
    untagged,
    untagged_sums,
    with_tag,
)
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.sum_tag import TAG_WORDS, tag_spec

LINK = b"l" * 32
COHORTS = ((1, 2, 3, 4), (5, 6, 9))
PLAIN = Manifest(
    session=b"s" * 16, epoch=1, slot=2, epoch_hash=b"e" * 32, round=3, attempt=1, phase="train", cohorts=COHORTS,
    minimum=(3, 3), threshold=4, model_hash=b"m" * 32, mask_hash=b"k" * 32, config_hash=b"c" * 32,
    channels=(ChannelSpec("update", 7, 12, 0.5), ChannelSpec("unit_energy", 2, 16, 1.0)),
    privacy=PrivacyTerms("none", "train", 1.0, 3, 0.0, 0.0, 1, 1e-5), heads_hash=b"h" * 32,
)  # fmt: skip
MANIFEST = with_tag(PLAIN)


def opened(cohort: int, silos: tuple[int, ...], seed: int = 0, links: dict[int, bytes] | None = None) -> CohortSum:
    words = np.random.default_rng(seed).integers(
        0, 2**64, word_count(MANIFEST.channels, len(COHORTS[cohort])), np.uint64
    )
    return CohortSum(cohort, silos, words, links or {})


PROOF = SumProof(MANIFEST, (opened(0, (1, 2, 4), links={2: LINK}), opened(1, (5, 6, 9), 1)))


def same(one: SumProof, other: SumProof) -> bool:
    pairs = zip(one.sums, other.sums, strict=True)
    return (one.manifest, one.start) == (other.manifest, other.start) and all(
        (a.cohort, a.silos, dict(a.links)) == (b.cohort, b.silos, dict(b.links))
        and a.words.dtype == b.words.dtype == np.uint64
        and np.array_equal(a.words, b.words)
        for a, b in pairs
    )


@st.composite
def proofs(draw: st.DrawFn) -> SumProof:
    sums = []
    for cohort, members in enumerate(COHORTS):
        silos = tuple(sorted(draw(st.sets(st.sampled_from(members), min_size=3))))
        links = draw(st.dictionaries(st.sampled_from(silos), st.binary(min_size=32, max_size=32)))
        sums.append(opened(cohort, silos, draw(st.integers(0, 99)), links))
    manifest = MANIFEST if draw(st.booleans()) else replace(MANIFEST, round=7)
    return SumProof(manifest, tuple(sums), draw(st.binary(max_size=12)))


@settings(deadline=None)
@given(proofs())
def test_what_was_written_is_read(proof: SumProof) -> None:
    data = proof.to_bytes()
    found = SumProof.from_bytes(data)
    assert same(found, proof)
    assert found.to_bytes() == data, "so that a silo knows the last one again by its hash"


def test_words_can_be_written_to_after_they_were_read() -> None:
    """Tags are cut off and noise is taken away in place."""
    assert all(each.words.flags.writeable for each in SumProof.from_bytes(PROOF.to_bytes()).sums)


# What is malformed


def packed(change: Callable[[list[Any]], None]) -> bytes:
    """The proof with changed fields: [manifest, [[silos, words, links], ...], start]."""
    fields = msgpack.unpackb(PROOF.to_bytes(), strict_map_key=False)
    change(fields)
    return msgpack.packb(fields)


def put(value: Any, *path: int) -> Callable[[list[Any]], None]:
    def change(fields: list[Any]) -> None:
        for index in path[:-1]:
            fields = fields[index]
        fields[path[-1]] = value

    return change


JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1.5, float("nan"), "", "x", b"", b"x" * 16, [], [[]], {}, {1: 2}, {b"": []}, [1, 2, 3, 4],
    [None] * 3, [[1, 2], [3]], msgpack.Timestamp(1), msgpack.ExtType(5, b"x"),
)  # fmt: skip
PLACES = (
    (0,), (1,), (2,), (1, 0), (1, 1), (1, 0, 0), (1, 0, 1), (1, 0, 2),
    (1, 0, 0, 0), (1, 0, 2, 0), (1, 0, 2, 0, 0), (1, 0, 2, 0, 1),
)  # fmt: skip
STANDS: list[Any] = [((1, 0, 2), []), ((1, 0, 0), [1, 2, 3, 4]), ((2,), b""), ((2,), b"x" * 16)]
"""A sum without links is one, and so is one of the whole cohort; how long a start is, only the run says."""


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_field_of_another_kind_is_malformed(place: tuple[int, ...]) -> None:
    for junk in JUNK:
        if (place, junk) in STANDS:
            continue
        with pytest.raises(ProtocolError):
            SumProof.from_bytes(packed(put(junk, *place)))


WRONG: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "a sum too few": (lambda fields: fields[1].pop(), "not one opened sum a cohort"),
    "a sum too many": (lambda fields: fields[1].append(fields[1][0]), "not one opened sum a cohort"),
    "no sum": (put([], 1), "not one opened sum a cohort"),
    "a field too many": (lambda fields: fields.append(0), "not opened sums"),
    "a field too few": (lambda fields: fields.pop(), "not opened sums"),
    "a part too many": (lambda fields: fields[1][0].append(0), "not opened sums"),
    "a part too few": (lambda fields: fields[1][0].pop(), "not opened sums"),
    "a silo of the other cohort": (put([1, 2, 5], 1, 0, 0), "not enough of it, ascending"),
    "a silo of none": (put([1, 2, 7], 1, 0, 0), "not enough of it, ascending"),
    "a silo twice": (put([1, 2, 2, 4], 1, 0, 0), "not enough of it, ascending"),
    "silos in another order": (put([2, 1, 4], 1, 0, 0), "not enough of it, ascending"),
    "too few silos": (put([1, 2], 1, 0, 0), "not enough of it, ascending"),
    "no silos": (put([], 1, 0, 0), "not enough of it, ascending"),
    "a silo that is no number": (put([1.0, 2, 4], 1, 0, 0), "does not say whose it is"),
    "a silo that is true": (put([True, 2, 4], 1, 0, 0), "does not say whose it is"),
    "a word too few": (lambda fields: put(fields[1][0][1][:-8], 1, 0, 1)(fields), "an opened sum is not"),
    "a word too many": (lambda fields: put(fields[1][0][1] + bytes(8), 1, 0, 1)(fields), "an opened sum is not"),
    "a byte too few": (lambda fields: put(fields[1][0][1][:-1], 1, 0, 1)(fields), "an opened sum is not"),
    "words as text": (lambda fields: put("x" * len(fields[1][0][1]), 1, 0, 1)(fields), "an opened sum is not"),
    "a link of nobody": (put([[3, LINK]], 1, 0, 2), "not one of a silo of the sum"),
    "a link of true": (put([[True, LINK]], 1, 0, 2), "not one of a silo of the sum"),
    "two links of one": (put([[2, LINK], [2, LINK]], 1, 0, 2), "not one of a silo of the sum"),
    "a long link": (put([[2, LINK + b"l"]], 1, 0, 2), "not one of a silo of the sum"),
    "a short link": (put([[2, LINK[:-1]]], 1, 0, 2), "not one of a silo of the sum"),
    "links as a map": (put({2: LINK}, 1, 0, 2), "are not a list"),
    "a manifest of none": (put(b"", 0), "not a manifest"),
    "half a manifest": (lambda fields: put(fields[0][:-1], 0)(fields), "not a manifest"),
    "a manifest as text": (put("x" * 200, 0), "not a manifest"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "why"), WRONG.values(), ids=WRONG.keys())
def test_what_contradicts_the_manifest_is_malformed(change: Callable[[list[Any]], None], why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        SumProof.from_bytes(packed(change))


def test_longer_ones_than_any_run_has_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = PROOF.to_bytes()
    monkeypatch.setattr(sum_proof, "MAX_PROOF_BYTES", len(data))
    SumProof.from_bytes(data)
    monkeypatch.setattr(sum_proof, "MAX_PROOF_BYTES", len(data) - 1)
    with pytest.raises(ProtocolError, match="longer than"):
        SumProof.from_bytes(data)


def test_a_manifest_that_claims_a_huge_sum_allocates_none() -> None:
    huge = replace(MANIFEST, channels=(ChannelSpec("update", 1 << 50, 12, 0.5), tag_spec()))
    with pytest.raises(ProtocolError, match="an opened sum is not"):
        SumProof.from_bytes(packed(put(huge.to_bytes(), 0)))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_damage_is_a_protocol_error_or_another_proof(data: st.DataObject) -> None:
    honest = PROOF.to_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "random", "nested"]))
    if kind == "flip":
        # Most bytes are words, of which any are well-formed: the ends hold all other fields.
        place = data.draw(st.one_of(st.integers(0, 400), st.integers(-60, -1)))
        damaged = bytearray(honest)
        damaged[place] ^= data.draw(st.integers(1, 255))
        message = bytes(damaged)
    elif kind == "cut":
        message = honest[: data.draw(st.integers(0, len(honest) - 1))]
    elif kind == "random":
        message = data.draw(st.binary(max_size=80))
    else:
        message = b"\x91" * data.draw(st.integers(1, 5000)) + honest
    try:
        found = SumProof.from_bytes(message)
    except ProtocolError:
        return
    assert not same(found, PROOF)
    assert kind == "flip"


@settings(deadline=None)
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.binary(), st.text()),
                    lambda inner: st.lists(inner) | st.dictionaries(st.integers(0, 9), inner)))  # fmt: skip
def test_any_rows_beside_an_honest_manifest_are_malformed(rows: Any) -> None:
    with pytest.raises(ProtocolError):
        SumProof.from_bytes(packed(put(rows, 1)))


# Tags of manifests and sums


def test_a_tag_comes_last_and_goes_without_a_trace() -> None:
    assert is_tagged(MANIFEST)
    assert not is_tagged(PLAIN)
    assert MANIFEST.channels == (*PLAIN.channels, tag_spec())
    assert untagged(MANIFEST) == PLAIN == untagged(PLAIN)


def test_what_only_looks_like_a_tag_is_none() -> None:
    for other in (
        replace(tag_spec(), length=TAG_WORDS + 1),
        replace(tag_spec(), bits=31),
        replace(tag_spec(), limit=2.0),
    ):
        assert not is_tagged(replace(PLAIN, channels=(*PLAIN.channels, other)))
    assert not is_tagged(replace(PLAIN, channels=(tag_spec(), *PLAIN.channels)))


def test_sums_lose_their_tags_and_nothing_else() -> None:
    for each, plain in zip(PROOF.sums, untagged_sums(MANIFEST, PROOF.sums), strict=True):
        assert plain.words.size == word_count(PLAIN.channels, len(COHORTS[each.cohort]))
        assert np.array_equal(plain.words, each.words[: plain.words.size])
        assert (plain.cohort, plain.silos, plain.links) == (each.cohort, each.silos, each.links)


# Where silos are


NOWHERE = Position(-1)


HASHES = st.binary(min_size=32, max_size=32)


@given(st.builds(Position, st.integers(0, 1 << 32), HASHES, HASHES))
def test_a_position_is_read_as_it_was_written(position: Position) -> None:
    assert Position.read(position.to_bytes()) == position


@pytest.mark.parametrize("value", [True, -1, (1 << 32) + 1, 1.0, "1", None, [1], {1: 1}])
def test_what_is_no_position_is_read_as_none(value: Any) -> None:
    assert Position.read(msgpack.packb(value)) == NOWHERE
    assert Position.read(msgpack.packb([value, bytes(32), bytes(32)])) == NOWHERE
    assert Position.read(msgpack.packb([1, value, bytes(32)])) == NOWHERE
    assert Position.read(msgpack.packb([1, bytes(32), bytes(31)])) == NOWHERE
    assert Position.read(msgpack.packb([1, bytes(32)])) == NOWHERE


@given(st.binary(max_size=60))
def test_any_bytes_are_a_position_or_none(reply: bytes) -> None:
    found = Position.read(reply)
    assert found == NOWHERE or msgpack.unpackb(reply) == [found.taken, found.model_hash, found.last]
