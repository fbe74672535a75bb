"""Tags of sums: what silos sent holds, whatever the ranges, and nothing else does."""

from __future__ import annotations

import hmac
import os
import pickle
import struct
import tracemalloc
from collections.abc import Sequence
from operator import mul

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from autoflip_secure.errors import EncodingError
from autoflip_secure.sums import sum_tag
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.randomness import ReproducibleRandomness
from autoflip_secure.sums.sum_tag import TAG_CHANNEL, TAG_WORDS, TaggedWords, tag_holds, tag_spec
from autoflip_secure.sums.words import RANGE_WORDS, ContributionWords, FloatChannel, PackedWords, all_words

Words = NDArray[np.uint64]

KEY, DIGEST = bytes(range(32)), bytes(range(100, 132))
TOP = np.uint64(1 << 63)

any_word = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))


def keystream(info: bytes, count: int, key: bytes = KEY, digest: bytes = DIGEST) -> list[int]:
    """One block of RFC 5869 from HMAC alone, and AES-256-CTR under it, as little-endian integers."""
    extracted = hmac.digest(digest, key, "sha256")
    cipher_key = hmac.digest(extracted, b"autoflip-secure/tag/1|" + info + b"\1", "sha256")
    stream = Cipher(algorithms.AES(cipher_key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * count))
    return list(struct.unpack(f"<{count}Q", stream))


def reference_tag(words: Sequence[int], cohort: int, silo: int) -> list[int]:
    """The formula of the module, one row at a time."""
    a = keystream(b"tag hash", len(words) + 63)
    pad = keystream(b"tag pad|" + struct.pack(">II", cohort, silo), 64)
    return [(sum(map(mul, a[j:], words)) + pad[j]) % 2**64 for j in range(64)]


def tagged(words: Words, silo: int, *, cohort: int = 0, key: bytes = KEY, digest: bytes = DIGEST) -> Words:
    return all_words(TaggedWords(PackedWords(words), key, digest, cohort, silo))


def opened(size: int, silos: Sequence[int], *, seed: int = 0, digest: bytes = DIGEST) -> Words:
    """The sum of random contributions of `silos` to cohort 0, its tag at the end."""
    rng = np.random.default_rng(seed)
    contributions = [tagged(rng.integers(0, 2**64, size, np.uint64), silo, digest=digest) for silo in silos]
    return np.sum(contributions, axis=0, dtype=np.uint64)


def in_cuts(source: TaggedWords, cuts: Sequence[int]) -> Words:
    """All words, asked for in ranges that end at `cuts`."""
    words = np.empty(source.size, np.uint64)
    start = 0
    for end in [*sorted(cut % (source.size + 1) for cut in cuts), source.size]:
        source.fill(start, words[start:end])
        start = end
    return words


@given(st.lists(any_word, max_size=40), st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1))
def test_a_tag_is_that_of_integers_written_out(words, cohort, silo):
    vector = np.array(words, np.uint64)
    result = tagged(vector, silo, cohort=cohort)
    assert result.tolist() == words + reference_tag(words, cohort, silo)


def test_a_tag_of_many_ranges_is_that_of_integers_written_out():
    words = np.random.default_rng(1).integers(0, 2**64, 2 * RANGE_WORDS + 5, np.uint64)
    assert tagged(words, 7)[-TAG_WORDS:].tolist() == reference_tag(words.tolist(), 0, 7)


@given(st.data())
def test_sums_hold_for_any_words_silos_and_cuts(data):
    """Also across ranges of the hash, here of 8 words."""
    size = data.draw(st.integers(0, 50))
    silos = data.draw(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=6, unique=True))
    cohort = data.draw(st.integers(0, 9))
    total, clear = np.zeros(size + TAG_WORDS, np.uint64), np.zeros(size, np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_tag, "RANGE_WORDS", 8)
        for silo in silos:
            words = data.draw(npst.arrays(np.uint64, size, elements=any_word))
            before = words.copy()
            source = TaggedWords(PackedWords(words), KEY, DIGEST, cohort, silo)
            total += in_cuts(source, data.draw(st.lists(st.integers(0, 200), max_size=6)))
            clear += words
            np.testing.assert_array_equal(words, before)
    np.testing.assert_array_equal(total[:size], clear)
    assert tag_holds(total, KEY, DIGEST, cohort, data.draw(st.permutations(silos)))


def test_a_rounded_contribution_is_tagged_on_its_way():
    specs = [ChannelSpec("count", 2, 20, 1000.0), ChannelSpec("update", 4 * RANGE_WORDS, 16, 1.0)]
    update = np.random.default_rng(0).uniform(-1, 1, specs[1].length).astype(np.float32)

    def words():
        channels = {"count": np.array([3, -4]), "update": FloatChannel(update, ReproducibleRandomness(1))}
        return ContributionWords(channels, specs, 10)

    source = TaggedWords(words(), KEY, DIGEST, 0, 1)
    assert source.size == word_count([*specs, tag_spec()], 10)
    cut = in_cuts(source, [RANGE_WORDS, 2 * RANGE_WORDS - 1])
    np.testing.assert_array_equal(cut[:-TAG_WORDS], all_words(words()))
    assert tag_holds(cut, KEY, DIGEST, 0, [1])


SILOS = (1, 2, 5)


@given(st.integers(1, 60), st.data())
def test_any_change_of_a_word_or_of_the_tag_fails(size, data):
    total = opened(size, SILOS)
    assert tag_holds(total, KEY, DIGEST, 0, SILOS)
    places = data.draw(st.lists(st.integers(0, total.size - 1), min_size=1, max_size=5, unique=True))
    change = st.one_of(st.integers(1, 2**64 - 1), st.just(2**63))
    total[places] += data.draw(npst.arrays(np.uint64, len(places), elements=change))
    assert not tag_holds(total, KEY, DIGEST, 0, SILOS)


@settings(max_examples=30)
@given(st.integers(1, 60), st.lists(any_word, min_size=64, max_size=64))
def test_no_change_of_words_is_made_up_for_by_one_of_the_tag(size, change):
    total = opened(size, SILOS)
    total[0] ^= TOP
    total[-TAG_WORDS:] += np.array(change, np.uint64)
    assert not tag_holds(total, KEY, DIGEST, 0, SILOS)


@pytest.mark.parametrize("silos", [(1, 2), (1, 2, 4), (1, 2, 5, 6), (2, 3, 5), (1, 1, 5), (1, 2, 2, 5), ()])
def test_other_survivors_fail(silos):
    assert not tag_holds(opened(20, SILOS), KEY, DIGEST, 0, silos)


def test_another_cohort_digest_or_key_fails():
    total = opened(20, SILOS)
    assert not tag_holds(total, KEY, DIGEST, 1, SILOS)
    for place in (0, 31):
        changed = bytearray(DIGEST)
        changed[place] ^= 1
        assert not tag_holds(total, KEY, bytes(changed), 0, SILOS)
        changed = bytearray(KEY)
        changed[place] ^= 1
        assert not tag_holds(total, bytes(changed), DIGEST, 0, SILOS)


@pytest.mark.parametrize("what", ["a cohort", "a digest", "a key"])
def test_one_contribution_made_for_something_else_spoils_the_sum(what):
    words = np.arange(20, dtype=np.uint64)
    other = {"a cohort": {"cohort": 1}, "a digest": {"digest": bytes(32)}, "a key": {"key": bytes(32)}}[what]
    assert tag_holds(opened(20, [1, 2]) + tagged(words, 5), KEY, DIGEST, 0, SILOS)
    assert not tag_holds(opened(20, [1, 2]) + tagged(words, 5, **other), KEY, DIGEST, 0, SILOS)


def test_words_in_another_order_or_number_fail():
    total = opened(20, SILOS)
    words, tag = total[:-TAG_WORDS], total[-TAG_WORDS:]
    for other in (words[::-1], np.roll(words, 1), words[:-1], words[1:], np.append(words, TOP), np.insert(words, 0, 7)):
        assert not tag_holds(np.concatenate([other, tag]), KEY, DIGEST, 0, SILOS)
    assert not tag_holds(np.concatenate([words, np.roll(tag, 1)]), KEY, DIGEST, 0, SILOS)


def test_a_tag_is_that_of_the_sum_however_silos_share_it_out():
    draws, tags = np.random.default_rng(3), set()
    total = draws.integers(0, 2**64, 20, np.uint64)
    for _ in range(5):
        one, two = (draws.integers(0, 2**64, 20, np.uint64) for _ in range(2))
        parts = zip(SILOS, (one, two, total - one - two), strict=True)
        opened_sum = np.sum([tagged(words, silo) for silo, words in parts], axis=0, dtype=np.uint64)
        np.testing.assert_array_equal(opened_sum[:-TAG_WORDS], total)
        tags.add(opened_sum[-TAG_WORDS:].tobytes())
    assert len(tags) == 1, "it tells nothing of single silos that the sum does not"


@pytest.mark.parametrize("drawn", ["key", "digest"])
@pytest.mark.parametrize("word", [0, 1, 2**64 - 1])
def test_without_the_key_a_tag_is_random_words(drawn, word):
    """Over keys, and over contributions under one key: of words that are all alike, too."""
    draws, words, tries = np.random.default_rng(4), np.full(20, word, np.uint64), 400
    tags = np.stack([tagged(words, 1, **{drawn: draws.bytes(32)})[-TAG_WORDS:] for _ in range(tries)])
    assert np.unique(tags).size == tags.size
    ones = np.unpackbits(tags.view(np.uint8), axis=1).mean(axis=0)
    assert ones.size == 64 * TAG_WORDS
    assert np.abs(ones - 0.5).max() < 6 * 0.5 / tries**0.5


@pytest.mark.parametrize("size", [0, 1, TAG_WORDS - 1])
def test_what_is_too_short_for_a_tag_fails(size):
    assert not tag_holds(np.zeros(size, np.uint64), KEY, DIGEST, 0, SILOS)


def digests(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


TOP_BITS = [[0], [17], [99], [98, 99], list(range(100)), list(range(0, 100, 2))]


@pytest.mark.parametrize("places", TOP_BITS)
def test_changes_of_top_bits_alone_fail(places):
    for digest in digests(30):
        total = opened(100, SILOS, digest=digest)
        total[places] ^= TOP
        assert not tag_holds(total, KEY, digest, 0, SILOS)


@pytest.mark.parametrize("places", TOP_BITS)
def test_one_row_would_miss_half_the_changes_of_top_bits(places, monkeypatch):
    """Why there are 64: the product of a top bit with a word is its lowest bit."""
    monkeypatch.setattr(sum_tag, "TAG_WORDS", 1)
    missed = 0
    for digest in digests(200):
        total = opened(100, [1], digest=digest)
        assert tag_holds(total, KEY, digest, 0, [1])
        total[places] ^= TOP
        missed += tag_holds(total, KEY, digest, 0, [1])
    assert 65 <= missed <= 135  # five standard deviations


FACTORS = [0, 2, 3, 2**63 + 1, 2**64 - 1]


@pytest.mark.parametrize("factor", FACTORS)
def test_multiples_of_a_sum_and_its_tag_fail(factor):
    assert not tag_holds(opened(20, SILOS) * np.uint64(factor), KEY, DIGEST, 0, SILOS)


@pytest.mark.parametrize("factor", FACTORS)
def test_without_pads_multiples_would_hold(factor, monkeypatch):
    monkeypatch.setattr(sum_tag, "_pad", lambda key, digest, cohort, silo: np.zeros(TAG_WORDS, np.uint64))
    assert tag_holds(opened(20, SILOS) * np.uint64(factor), KEY, DIGEST, 0, SILOS)


def test_a_sum_counted_twice_fails_with_its_silos_named_twice():
    """Its pads add up, so only the list shows it. The sum of no silos is 0, and so is its tag."""
    total = opened(20, SILOS)
    assert not tag_holds(total + total, KEY, DIGEST, 0, SILOS + SILOS)
    assert not tag_holds(np.zeros_like(total), KEY, DIGEST, 0, ())


@pytest.mark.parametrize("silos", [2, 3, 10, 2000])
def test_a_manifest_gives_every_word_of_the_tag_a_word(silos):
    assert word_count([tag_spec()], silos) == TAG_WORDS
    assert tag_spec().name == TAG_CHANNEL


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_keys_of_another_length_are_refused(length):
    key = os.urandom(length)
    for use in (
        lambda: TaggedWords(PackedWords(np.zeros(3, np.uint64)), key, DIGEST, 0, 1),
        lambda: tag_holds(np.zeros(70, np.uint64), key, DIGEST, 0, [1]),
        lambda: tag_holds(np.zeros(3, np.uint64), key, DIGEST, 0, [1]),
    ):
        with pytest.raises(ValueError, match=f"a run key is 32 bytes, not {length}"):
            use()


def test_ranges_are_ascending_and_gapless():
    source = TaggedWords(PackedWords(np.arange(10, dtype=np.uint64)), KEY, DIGEST, 0, 1)
    part = np.empty(8, np.uint64)
    for start in (1, 10, 66):
        with pytest.raises(ValueError, match="0 is next"):
            source.fill(start, part)
    source.fill(0, part)
    for start in (0, 10):
        with pytest.raises(ValueError, match="8 is next"):
            source.fill(start, part)
    source.fill(8, np.empty(60, np.uint64))
    with pytest.raises(ValueError, match="of 74"):
        source.fill(68, part)
    source.fill(68, part[:6])
    assert part[:6].tolist() == reference_tag(range(10), 0, 1)[-6:]


def test_errors_and_the_noise_chain_of_the_source_pass_through():
    root = os.urandom(32)
    assert TaggedWords(PackedWords(np.zeros(3, np.uint64), root), KEY, DIGEST, 0, 1).removable == root
    assert TaggedWords(PackedWords(np.zeros(3, np.uint64)), KEY, DIGEST, 0, 1).removable is None
    spec = ChannelSpec("update", 6, 16, 1.0)
    values = np.full(6, np.nan, np.float32)
    words = ContributionWords({"update": FloatChannel(values, ReproducibleRandomness(1))}, [spec], 10)
    with pytest.raises(EncodingError, match="update: a value is not finite"):
        all_words(TaggedWords(words, KEY, DIGEST, 0, 1))


def test_the_key_is_not_shown():
    key = b"0123456789abcdef" * 2
    source = TaggedWords(PackedWords(np.zeros(3, np.uint64)), key, DIGEST, 0, 1)
    assert repr(source) == "TaggedWords(67)"
    assert key not in repr(vars(source)).encode()
    with pytest.raises(TypeError, match="cannot be copied or stored"):
        pickle.dumps(source)


def test_memory_does_not_grow_with_the_vector():
    peaks = []
    for length in (5 * RANGE_WORDS, 15 * RANGE_WORDS):
        words, part = np.zeros(length, np.uint64), np.empty(RANGE_WORDS, np.uint64)
        tracemalloc.start()
        source = TaggedWords(PackedWords(words), KEY, DIGEST, 0, 1)
        for start in range(0, source.size, RANGE_WORDS):
            source.fill(start, part[: min(RANGE_WORDS, source.size - start)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert abs(peaks[1] - peaks[0]) < 10_000
    assert peaks[1] < 1 << 20
