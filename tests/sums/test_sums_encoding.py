"""Rounding to the grid and packing into words."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from autoflip_secure.errors import EncodingError
from autoflip_secure.sums.channels import Aggregate, ChannelSpec, Contribution
from autoflip_secure.sums.encoding import (
    BLOCK,
    Rounding,
    dequantise,
    field_width,
    quantise,
    recentre,
    unpack,
    unpack_sum,
    word_count,
)
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness, dither
from autoflip_secure.sums.words import ContributionWords, all_words

specs = st.builds(ChannelSpec, st.just("update"), st.integers(1, 40), st.integers(2, 32), st.floats(1e-3, 1e3))
any_int64 = st.integers(-(2**63), 2**63 - 1)


def pack(integers, spec, silos):
    return all_words(ContributionWords({spec.name: integers}, [spec], silos))


@given(st.data(), specs, st.integers(1, 100))
def test_packing_is_linear_for_any_integers(data, spec, silos):
    """Also far outside the field: the sum of words is a function of the sum of integers alone."""
    one, other = (data.draw(npst.arrays(np.int64, spec.length, elements=any_int64)) for _ in range(2))
    together = (one.view(np.uint64) + other.view(np.uint64)).view(np.int64)
    np.testing.assert_array_equal(pack(one, spec, silos) + pack(other, spec, silos), pack(together, spec, silos))


@given(st.data(), specs, st.integers(1, 100))
def test_unpacking_a_sum_is_exact(data, spec, silos):
    vectors = data.draw(
        npst.arrays(
            np.int64, (silos, spec.length), elements=st.integers(-spec.levels, spec.levels), fill=st.just(spec.levels)
        )
    )
    words = np.sum([pack(vector, spec, silos) for vector in vectors], axis=0, dtype=np.uint64)
    np.testing.assert_array_equal(unpack(words, spec, silos), vectors.sum(axis=0))


@given(specs, st.integers(1, 100), st.sampled_from([-1, 1]))
def test_extreme_sums_fit_their_field(spec, silos, sign):
    vector = np.full(spec.length, sign * spec.levels)
    np.testing.assert_array_equal(unpack(pack(vector * silos, spec, silos), spec, silos), vector * silos)


def test_excess_of_one_silo_cancels():
    spec = ChannelSpec("update", 9, 8, 1.0)
    over = np.full(9, 5000)
    words = pack(over, spec, 3) + pack(-over, spec, 3) + pack(np.arange(9), spec, 3)
    np.testing.assert_array_equal(unpack(words, spec, 3), np.arange(9))


@given(specs, st.integers(1, 100))
def test_field_and_word_counts(spec, silos):
    width = field_width(spec.bits, silos)
    assert 2 ** (width - 1) > silos * spec.levels
    assert width == spec.bits + math.ceil(math.log2(silos))
    assert (
        word_count([spec], silos)
        == math.ceil(spec.length / (64 // width))
        == pack(np.zeros(spec.length, np.int64), spec, silos).size
    )


def test_three_16_bit_fields_a_word_up_to_32_silos():
    spec = ChannelSpec("update", 3000, 16, 1.0)
    assert [word_count([spec], silos) for silos in (3, 10, 32, 33)] == [1000, 1000, 1000, 1500]


def test_planar_layout():
    """With m words, field j of word i holds coordinate j * m + i."""
    spec = ChannelSpec("update", 5, 16, 1.0)
    words = pack(np.array([1, 2, 3, 4, 5]), spec, 10)
    assert words.tolist() == [1 + (3 << 20) + (5 << 40), 2 + (4 << 20)]


@given(st.floats(-2, 2), st.integers(2, 12))
def test_rounding_is_unbiased_and_within_one_step(value, bits):
    """Over all dithers of an even grid the mean is the value itself, up to the grid of the dither."""
    points = 1 << 10
    spec = ChannelSpec("update", points, bits, 1.0)
    even = (np.arange(points, dtype=np.uint64) * (2**32 // points)).astype(np.uint32)
    rounded = dequantise(quantise(np.full(points, value), spec, even), spec)
    clipped = min(1.0, max(-1.0, value))
    assert np.abs(rounded - clipped).max() < spec.step * (1 + 1e-9)
    assert abs(rounded.mean() - clipped) <= spec.step / points + 1e-12
    assert np.unique(rounded).size <= 2


@given(st.integers(0, 2**32 - 1), specs)
def test_grid_points_and_ends_are_kept_within_a_level(word, spec):
    levels = np.resize([-spec.levels, 0, spec.levels, 1, -1], spec.length)
    fixed = np.full(spec.length, word, np.uint32)
    ends = np.resize([-spec.limit, spec.limit, -3 * spec.limit, 1e300], spec.length)
    expected = np.resize([-spec.levels, spec.levels, -spec.levels, spec.levels], spec.length)
    assert np.abs(quantise(levels * spec.step, spec, fixed) - levels).max() <= 1
    # limit / step may fall short of the last level by one rounding of a double.
    clipped = quantise(ends, spec, fixed)
    assert np.abs(clipped - expected).max() <= 1
    assert np.abs(clipped).max() <= spec.levels


def test_rounding_of_what_is_no_number():
    spec = ChannelSpec("update", 2, 8, 1.0)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(EncodingError, match="not finite"):
            quantise(np.array([0.0, bad]), spec, np.zeros(2, np.uint32))
    with pytest.raises(EncodingError, match="expected 2 values"):
        quantise(np.zeros(3), spec, np.zeros(3, np.uint32))


def bits_for(coarse):
    return st.integers(2, 16 if coarse else 32)


@settings(max_examples=60)
@given(st.data(), st.booleans(), st.floats(1e-6, 1e6))
def test_bias_of_rounding_is_within_its_bound(data, coarse, limit):
    """The mean over every 16-bit dither (coarse), or over an even grid of them (fine), is the value."""
    spec = ChannelSpec("update", BLOCK, data.draw(bits_for(coarse)), limit)
    x = data.draw(st.floats(-limit, limit))
    rounding, values = Rounding(spec, coarse=coarse), np.full(BLOCK, x, np.float32 if coarse else np.float64)
    words = np.arange(1 << 16, dtype=rounding.dither_type) << (0 if coarse else 16)
    total = sum(int(rounding.round(values, words[start : start + BLOCK]).sum()) for start in (0, BLOCK))
    exact = Fraction(min(limit, max(-limit, float(values[0])))) * spec.levels / Fraction(limit)
    bias = abs(Fraction(total, 1 << 16) - exact)
    # Half the grid of the dither; the even grid of fine words has 2^16 points too, but does not hit every fraction.
    bound = Fraction(2) ** (-17 if coarse else -16)
    assert bias <= bound + abs(exact) * Fraction(2) ** -51


@settings(max_examples=200)
@given(st.data(), st.booleans(), st.floats(1e-3, 1e3))
def test_rounding_is_a_monotone_function_within_one_step(data, coarse, limit):
    """With the dither fixed, also at both ends of the dither and of the range."""
    spec = ChannelSpec("update", 50, data.draw(bits_for(coarse)), limit)
    rounding = Rounding(spec, coarse=coarse)
    most = np.iinfo(rounding.dither_type).max
    word = data.draw(st.sampled_from([0, 1, most]) | st.integers(0, most))
    near = st.integers(-spec.levels, spec.levels).map(lambda k: k * spec.step)
    drawn = data.draw(st.lists(st.floats(-2 * limit, 2 * limit) | near | st.sampled_from([-limit, limit]), min_size=1))
    values = np.sort(np.array(drawn[:50], np.float32 if coarse else np.float64))
    rounded = rounding.round(values, np.full(values.size, word, rounding.dither_type)).astype(np.int64)
    assert (np.diff(rounded) >= 0).all()
    assert np.abs(rounded).max() <= spec.levels
    alone = [
        int(rounding.round(values[i : i + 1], np.array([word], rounding.dither_type))[0]) for i in range(len(values))
    ]
    assert alone == rounded.tolist()
    for x, k in zip(values.tolist(), rounded.tolist(), strict=True):
        exact = Fraction(min(limit, max(-limit, x))) * spec.levels / Fraction(limit)
        # Doubles tell 2^53 values apart: of 32 bits they leave 2^-21 of a step.
        assert abs(k - exact) < 1 + abs(exact) * Fraction(2) ** -51


@given(st.floats(1e-3, 1e3), st.integers(2, 25), st.integers(0, 2**32 - 1), st.data())
def test_fine_rounding_moves_a_difference_by_less_than_the_stated_slack(limit, bits, word, data):
    """What rounded_sensitivity rests on: floor(y + u) for a y within 2^-27 step of the exact one."""
    spec = ChannelSpec("update", 1, bits, limit)
    x = data.draw(st.floats(-limit, limit))
    rounded = int(quantise(np.array([x]), spec, np.array([word], np.uint32))[0])
    exact = Fraction(x) * spec.levels / Fraction(limit) + Fraction(word, 2**32)
    slack = Fraction(2) ** -27
    assert math.floor(exact - slack) <= rounded <= math.floor(exact + slack)


@pytest.mark.parametrize(("coarse", "bits"), [(True, 16), (False, 16), (False, 32)])
def test_the_ends_of_the_range_never_leave_it(coarse, bits):
    """For about one limit in eight, limit / step comes out above the last level."""
    for limit in np.random.default_rng(0).uniform(1e-3, 1e3, 300):
        spec = ChannelSpec("update", 2, bits, float(limit))
        rounding = Rounding(spec, coarse=coarse)
        for word in (0, np.iinfo(rounding.dither_type).max):
            low, high = rounding.round(np.array([-limit, limit]), np.full(2, word, rounding.dither_type))
            assert -spec.levels <= low <= 1 - spec.levels
            assert spec.levels - 1 <= high <= spec.levels


def test_whole_vectors_are_rounded_across_blocks():
    spec = ChannelSpec("update", 2 * BLOCK + 7, 16, 1.0)
    values = np.random.default_rng(0).uniform(-1.1, 1.1, spec.length)
    u = dither(ReproducibleRandomness(1), spec.length)
    exact = np.clip(np.floor(np.clip(values, -1, 1) / spec.step + u * 2.0**-32), -spec.levels, spec.levels)
    np.testing.assert_array_equal(quantise(values, spec, u), exact)


def test_coarse_rounding_is_for_small_fields():
    with pytest.raises(EncodingError, match="the most is 16"):
        Rounding(ChannelSpec("update", 1, 17, 1.0), coarse=True)


def test_a_limit_that_doubles_cannot_divide_by():
    with pytest.raises(EncodingError, match="too small"):
        Rounding(ChannelSpec("update", 1, 16, 1e-300))


def test_channels_are_one_stream_in_the_manifests_order():
    layout = (ChannelSpec("count", 1, 20, 1e4), ChannelSpec("update", 7, 16, 0.5))
    rng = np.random.default_rng(1)
    silos = [{s.name: rng.integers(-s.levels, s.levels + 1, s.length) for s in layout} for _ in range(4)]
    packed = [all_words(ContributionWords(values, layout, 4)) for values in silos]
    words = np.sum(packed, axis=0, dtype=np.uint64)
    decoded = unpack_sum(words, layout, 4)
    assert list(decoded) == ["count", "update"]
    for spec in layout:
        np.testing.assert_allclose(decoded[spec.name], sum(v[spec.name] for v in silos) * spec.step, rtol=1e-15)
    with pytest.raises(EncodingError, match="manifest asks"):
        ContributionWords({"update": np.zeros(7, np.int64)}, layout, 4)
    with pytest.raises(EncodingError, match="does not fit"):
        unpack_sum(words[:-1], layout, 4)


@pytest.mark.parametrize(
    "arguments",
    [("weights", 1, 8, 1.0), ("update", 0, 8, 1.0), ("update", 1, 1, 1.0), ("update", 1, 33, 1.0),
     ("update", 1, 8, 0.0),
     ("update", 1, 8, math.nan), ("update", 1, 8, math.inf)],
)  # fmt: skip
def test_channels_that_cannot_be(arguments):
    with pytest.raises(EncodingError):
        ChannelSpec(*arguments)


def test_wrong_shapes_are_refused():
    spec = ChannelSpec("update", 7, 16, 1.0)
    with pytest.raises(EncodingError, match="expected 7 integers"):
        pack(np.zeros(8, np.int64), spec, 3)
    with pytest.raises(EncodingError, match="words, got"):
        unpack(np.zeros(9, np.uint64), spec, 3)
    with pytest.raises(EncodingError, match="0 silos"):
        field_width(16, 0)


def test_aggregate_of_too_few_silos():
    values = {"update": np.array([6.0, 3.0])}
    with pytest.raises(EncodingError, match="too much of one"):
        Aggregate(0, 0, 2, values)
    aggregate = Aggregate(0, 0, 3, values, {"update": 1.5})
    np.testing.assert_array_equal(aggregate.mean("update"), [2.0, 1.0])
    assert aggregate.mean_noise_std("update") == 0.5
    assert aggregate.mean_noise_std("count") == 0


def test_contribution_does_not_show_its_numbers():
    assert "4242" not in repr(Contribution({"update": np.full(3, 4242)}))


@given(st.integers(0, 65))
def test_dither_has_the_length_asked(count):
    assert dither(SecretRandomness(), count).shape == (count,)
    assert dither(SecretRandomness(), count).dtype == np.uint32


def test_words_and_fill_are_the_same_stream():
    for size in (0, 1, 5, 70_000):
        out = np.empty(size, np.uint64)
        ReproducibleRandomness(3, "x").fill(out)
        np.testing.assert_array_equal(out, ReproducibleRandomness(3, "x").words(size))


def test_secret_words_do_not_repeat_across_buffers():
    secret, out = SecretRandomness(), np.zeros(100_000, np.uint64)
    secret.fill(out)
    drawn = np.concatenate([out, secret.words(100_000)])
    assert np.unique(drawn).size == drawn.size
    bits = np.unpackbits(drawn.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / math.sqrt(bits.size)


def test_randomness_is_secret_or_reproducible():
    one, other = SecretRandomness(), SecretRandomness()
    drawn = [one.words(4), one.words(4), other.words(4)]
    assert len(set(np.concatenate(drawn).tolist())) == 12
    named = [ReproducibleRandomness(7, "dither", silo).words(4).tolist() for silo in (1, 1, 2)]
    assert named[0] == named[1] != named[2]
    assert repr(one) == "SecretRandomness()"
    import pickle

    with pytest.raises(TypeError):
        pickle.dumps(one)


@given(st.data(), specs, st.integers(2, 100))
def test_a_sum_that_wrapped_round_is_whole_again_once_its_excess_is_gone(data, spec, silos):
    """But for a step that a coordinate that wrapped carries into its neighbour in the word."""
    half = 2 ** (field_width(spec.bits, silos) - 1)
    kept = data.draw(npst.arrays(np.int64, spec.length, elements=st.integers(-half // 2, half // 2)))
    excess = data.draw(npst.arrays(np.int64, spec.length, elements=st.integers(-half, half - 1)))
    left = unpack(pack(kept + excess, spec, silos), spec, silos) - excess
    recentre(left, spec, silos)
    assert np.abs(left - kept).max() <= 1
