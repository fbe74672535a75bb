"""Words of a contribution, produced range by range."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from autoflip_secure.errors import EncodingError
from autoflip_secure.sums import words as words_module
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import field_width, unpack, unpack_sum, word_count
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness
from autoflip_secure.sums.words import RANGE_WORDS, ContributionWords, FloatChannel, PackedWords, all_words

any_int64 = st.integers(-(2**63), 2**63 - 1)


def packed(integers, spec, silos):
    """Planar packing written out: with m words, field j of word i holds coordinate j * m + i."""
    size, width = word_count([spec], silos), field_width(spec.bits, silos)
    words = [0] * size
    for index, value in enumerate(integers.tolist()):
        words[index % size] += value << (index // size * width)
    return np.array([word % 2**64 for word in words], np.uint64)


@st.composite
def layouts(draw):
    """One to three channels, and the size of a cohort."""
    names = draw(st.lists(st.sampled_from(["update", "deviation", "count"]), min_size=1, max_size=3, unique=True))
    specs = [
        ChannelSpec(name, draw(st.integers(1, 60)), draw(st.integers(2, 32)), draw(st.floats(1e-3, 1e3)))
        for name in names
    ]
    return specs, draw(st.integers(1, 100))


class Constant:
    """Dither whose every bit is the same; counts the words drawn."""

    def __init__(self, word: int) -> None:
        self.word, self.drawn = word, 0

    def fill(self, out):
        out[:] = self.word
        self.drawn += out.size


def in_cuts(source, cuts):
    """All words, asked for in ranges that end at `cuts`."""
    words = np.empty(source.size, np.uint64)
    ends = [*sorted(cut % (source.size + 1) for cut in cuts), source.size]
    start = 0
    for end in ends:
        source.fill(start, words[start:end])
        start = end
    return words


@given(st.data(), layouts(), st.lists(st.integers(0, 200), max_size=6))
def test_integers_in_any_cut_are_the_packed_contribution(data, layout, cuts):
    specs, silos = layout
    values = {spec.name: data.draw(npst.arrays(np.int64, spec.length, elements=any_int64)) for spec in specs}
    before = {name: vector.copy() for name, vector in values.items()}
    expected = np.concatenate([packed(values[spec.name], spec, silos) for spec in specs])
    source = ContributionWords(values, specs, silos)
    assert source.size == word_count(specs, silos)
    np.testing.assert_array_equal(in_cuts(source, cuts), expected)
    np.testing.assert_array_equal(all_words(ContributionWords(values, specs, silos)), expected)
    for name, vector in values.items():
        np.testing.assert_array_equal(vector, before[name])


@settings(max_examples=60)
@given(layouts(), st.lists(st.integers(0, 200), max_size=6), st.sampled_from([np.float32, np.float64]))
def test_any_cut_rounds_alike(layout, cuts, kind):
    """Also across blocks of dither, here of 8 words."""
    specs, silos = layout

    def source():
        rng = np.random.default_rng(3)
        channels = {
            spec.name: FloatChannel(
                (rng.normal(0, spec.limit, spec.length)).astype(kind), ReproducibleRandomness(5, spec.name)
            )
            for spec in specs
        }
        return ContributionWords(channels, specs, silos)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_module, "BLOCK", 8)
        np.testing.assert_array_equal(in_cuts(source(), cuts), all_words(source()))


def reference(values, spec, word):
    """floor(x / step + u), one coordinate at a time."""
    clipped = (min(spec.limit, max(-spec.limit, float(x))) for x in values)
    return np.array([min(spec.levels, max(-spec.levels, math.floor(x / spec.step + word))) for x in clipped])


@pytest.mark.parametrize(
    ("kind", "bits", "dither_bits"), [("f4", 16, 16), ("f4", 8, 16), ("f4", 17, 32), ("f8", 16, 32)]
)
@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_floats_are_rounded_as_said(kind, bits, dither_bits, word):
    spec = ChannelSpec("update", 1000, bits, 0.5)
    values = np.random.default_rng(1).normal(0, 0.4, spec.length).astype(kind)
    # Away from where the fraction's own rounding decides.
    values = (np.floor(values / spec.step) + 0.25) * spec.step
    channel = FloatChannel(values.astype(kind), Constant(word))
    rounded = unpack(all_words(ContributionWords({"update": channel}, [spec], 10)), spec, 10)
    u = (word % 2**dither_bits) * 2.0**-dither_bits
    np.testing.assert_array_equal(rounded, reference(values, spec, u))
    fields = 64 // (bits + 4)
    assert channel.randomness.drawn == math.ceil(math.ceil(1000 / fields) * fields * dither_bits / 64)


def test_every_coordinate_has_a_dither_of_its_own():
    """At half a step up and down are as frequent, whatever the neighbours do: no two coordinates share dither bits."""
    for kind in (np.float32, np.float64):
        spec = ChannelSpec("update", 60_000, 16, 32767.0)
        rounds = []
        for randomness in (SecretRandomness(), SecretRandomness()):
            half = FloatChannel(np.full(spec.length, 0.5, kind), randomness)
            rounds.append(unpack(all_words(ContributionWords({"update": half}, [spec], 10)), spec, 10))
        up = np.stack(rounds)
        assert set(np.unique(up)) == {0, 1}
        assert abs(up.mean() - 0.5) < 5 * 0.5 / math.sqrt(up.size)
        third = spec.length // 3
        planes = [up[0, :third], up[0, third : 2 * third], up[0, 2 * third :], up[1, :third], np.roll(up[0, :third], 1)]
        agree = [np.mean(a == b) for i, a in enumerate(planes) for b in planes[:i]]
        assert np.abs(np.array(agree) - 0.5).max() < 5 * 0.5 / math.sqrt(third)


def test_integers_and_floats_in_one_stream():
    specs = [ChannelSpec("count", 2, 20, 1000.0), ChannelSpec("update", 100_001, 16, 1.0)]
    update = np.random.default_rng(0).uniform(-1.2, 1.2, 100_001).astype(np.float32)
    channels = {"count": np.array([3, -4]), "update": FloatChannel(update, SecretRandomness())}
    decoded = unpack_sum(all_words(ContributionWords(channels, specs, 10)), specs, 10)
    np.testing.assert_allclose(decoded["count"], np.array([3, -4]) * specs[0].step)
    assert np.abs(decoded["update"] - np.clip(update, -1, 1)).max() < specs[1].step * (1 + 1e-6)


def test_values_may_be_a_file(tmp_path):
    path = tmp_path / "update.f4"
    values = np.random.default_rng(0).uniform(-1, 1, 5000).astype("<f4")
    values.tofile(path)
    spec = ChannelSpec("update", 5000, 16, 1.0)
    sources = (values, np.memmap(path, "<f4", "r"))
    one, other = (
        all_words(ContributionWords({"update": FloatChannel(v, ReproducibleRandomness(1))}, [spec], 3)) for v in sources
    )
    np.testing.assert_array_equal(one, other)


def test_what_is_no_number_is_found_where_it_is():
    spec = ChannelSpec("update", 3 * (RANGE_WORDS + 10), 16, 1.0)
    for bad in (np.nan, np.inf, -np.inf):
        values = np.zeros(spec.length, np.float32)
        values[RANGE_WORDS + 4] = bad
        source = ContributionWords({"update": FloatChannel(values, ReproducibleRandomness(1))}, [spec], 10)
        source.fill(0, np.empty(RANGE_WORDS, np.uint64))
        with pytest.raises(EncodingError, match="update: a value is not finite"):
            source.fill(RANGE_WORDS, np.empty(10, np.uint64))


def test_ranges_are_ascending_and_gapless():
    spec = ChannelSpec("update", 30, 16, 1.0)
    part = np.empty(4, np.uint64)
    for source in (
        PackedWords(np.arange(10, dtype=np.uint64)),
        ContributionWords({"update": np.arange(30)}, [spec], 10),
    ):
        assert source.size == 10
        source.fill(0, part)
        for start in (0, 3, 5):
            with pytest.raises(ValueError, match="4 is next"):
                source.fill(start, part)
        source.fill(4, part)
        with pytest.raises(ValueError, match="of 10"):
            source.fill(8, part)


def test_packed_words_are_copied():
    words = np.arange(10, dtype=np.uint64)
    copy = all_words(PackedWords(words))
    np.testing.assert_array_equal(copy, words)
    assert not np.shares_memory(copy, words)


def test_what_does_not_fit_is_refused():
    spec = ChannelSpec("update", 7, 16, 1.0)
    secret = SecretRandomness()
    with pytest.raises(EncodingError, match="manifest asks"):
        ContributionWords({"count": np.zeros(7, np.int64)}, [spec], 3)
    with pytest.raises(EncodingError, match="expected 7 integers"):
        ContributionWords({"update": np.zeros(8, np.int64)}, [spec], 3)
    with pytest.raises(EncodingError, match="expected 7 integers"):
        ContributionWords({"update": np.zeros(7, np.float64)}, [spec], 3)
    with pytest.raises(EncodingError, match="expected 7 values"):
        ContributionWords({"update": FloatChannel(np.zeros(8), secret)}, [spec], 3)
    with pytest.raises(EncodingError, match="float32 or float64"):
        ContributionWords({"update": FloatChannel(np.zeros(7, np.float16), secret)}, [spec], 3)
    with pytest.raises(EncodingError, match="vector of uint64"):
        PackedWords(np.zeros(7, np.int64))
    assert "4242" not in repr(FloatChannel(np.full(3, 4242.0), secret))


def test_memory_does_not_grow_with_the_vector():
    """Ranges are of one size; a million coordinates more take no memory more."""
    peaks = []
    for length in (500_000, 1_500_000):
        spec = ChannelSpec("update", length, 16, 1.0)
        values, part = np.zeros(length, np.float32), np.empty(RANGE_WORDS, np.uint64)
        tracemalloc.start()
        source = ContributionWords({"update": FloatChannel(values, SecretRandomness())}, [spec], 10)
        for start in range(0, source.size, RANGE_WORDS):
            source.fill(start, part[: min(RANGE_WORDS, source.size - start)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert abs(peaks[1] - peaks[0]) < 10_000
    assert peaks[1] < 2 << 20


@given(st.data(), layouts())
def test_words_add_up_as_integers_do(data, layout):
    """Linear: the sum of two silos' words is the packed sum."""
    specs, silos = layout
    spec = specs[0]
    one, other = (data.draw(npst.arrays(np.int64, spec.length, elements=any_int64)) for _ in range(2))
    total = sum(all_words(ContributionWords({spec.name: v}, [spec], silos)) for v in (one, other))
    together = (one.view(np.uint64) + other.view(np.uint64)).view(np.int64)
    np.testing.assert_array_equal(total, packed(together, spec, silos))
