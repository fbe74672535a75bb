"""Words, values and bytes: three forms of one contribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.ckks.packing import from_bytes, polynomials_of, rows_of, to_bytes, words_of
from autoflip_secure.ckks.parameters import DEGREE, value_widths
from autoflip_secure.errors import ProtocolError
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import field_width, fields_per_word, unpack_integers, word_count
from autoflip_secure.sums.words import ContributionWords, all_words

NAMES = ("update", "count", "deviation")
sizes = st.integers(1, 60) | st.sampled_from([DEGREE - 1, DEGREE, DEGREE + 1, 2 * DEGREE + 5])
widths = st.integers(2, 32)
WIDEST, CUT = 30, 2**16
"""Bits of a field that is encrypted whole, and what the upper part of a wider one counts."""


@st.composite
def cases(draw):
    """Channels, a cohort's size, and a seed."""
    count = draw(st.integers(1, 3))
    channels = tuple(ChannelSpec(name, draw(sizes), draw(widths), 1.0) for name in NAMES[:count])
    return channels, draw(st.integers(3, 40)), draw(st.integers(0, 2**32))


def packed(values, channels, silos):
    return all_words(ContributionWords(values, channels, silos))


def drawn(random, channels, most):
    return {spec.name: random.integers(-most(spec), most(spec), spec.length, endpoint=True) for spec in channels}


def layout(values, channels, silos):
    """Values in the order they are encrypted in: fields of more than 30 bits give two, all lower ones first."""
    parts = []
    for spec in channels:
        integers = values[spec.name]
        if field_width(spec.bits, silos) > WIDEST:
            lower = (integers + CUT // 2) % CUT - CUT // 2
            parts += [lower, (integers - lower) // CUT]
        else:
            parts.append(integers)
    return np.concatenate(parts)


def bounds(channels, silos):
    """What no sum of the cohort may exceed, value by value: half of the width it was given."""
    widths = [(width, spec.length) for spec in channels for width in value_widths(spec.bits, silos)]
    return np.concatenate([np.full(length, 2 ** (width - 1)) for width, length in widths])


@settings(max_examples=150, deadline=None)
@given(cases())
def test_rows_hold_the_fields_in_order_and_then_zeros(case):
    channels, silos, seed = case
    values = drawn(np.random.default_rng(seed), channels, lambda spec: spec.levels)
    rows = rows_of(packed(values, channels, silos), channels, silos)
    expected = layout(values, channels, silos)
    assert rows.shape == (polynomials_of(channels, silos), DEGREE) == (-(-expected.size // DEGREE), DEGREE)
    np.testing.assert_array_equal(rows.reshape(-1)[: expected.size], expected)
    assert not rows.reshape(-1)[expected.size :].any()


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_words_of_summed_rows_are_the_summed_words(case, data):
    """Of a whole cohort, however many of it are at either end of the grid; no value is larger than its width says."""
    channels, silos, seed = case
    values = drawn(np.random.default_rng(seed), channels, lambda spec: spec.levels)
    top, bottom = ({spec.name: np.full(spec.length, sign * spec.levels) for spec in channels} for sign in (1, -1))
    at_the_top = data.draw(st.integers(0, silos) | st.sampled_from([0, silos]))
    at_the_bottom = data.draw(st.integers(0, silos - at_the_top) | st.just(silos - at_the_top))
    counts = at_the_top, at_the_bottom, silos - at_the_top - at_the_bottom
    words = [packed(item, channels, silos) for item in (top, bottom, values)]
    rows = sum(count * rows_of(item, channels, silos) for count, item in zip(counts, words, strict=True)).reshape(-1)
    most = bounds(channels, silos)
    assert (np.abs(rows[: most.size]) <= most).all()
    again = words_of(rows.astype(np.int64), channels, silos)
    assert again.shape == (word_count(channels, silos),)
    expected = sum(np.uint64(count) * item for count, item in zip(counts, words, strict=True))
    np.testing.assert_array_equal(again, expected)


EDGES = [0, 1, CUT // 2 - 1, CUT // 2, CUT // 2 + 1, CUT - 1, CUT, 3 * CUT // 2, 2**30, 2**31 - CUT // 2, 2**31 - 1]


@pytest.mark.parametrize("silos", [17, 33, 100, 2000])
def test_wide_fields_are_cut_and_put_together_again(silos):
    """Channels of 32 bits: where the cut borrows, and at the ends of the grid, alone and all silos together."""
    edges = np.array([sign * edge for edge in EDGES for sign in (1, -1)])
    wide, narrow = ChannelSpec("count", edges.size, 32, 1.0), ChannelSpec("update", 5, 16, 1.0)
    channels = (narrow, wide, ChannelSpec("deviation", 3, 32, 1.0))
    assert len(value_widths(32, silos)) == 2
    assert len(value_widths(16, silos)) == 1
    values = {"update": np.array([-32767, -1, 0, 1, 32767]), "count": edges, "deviation": np.array([-5, 70_000, -7])}
    words = packed(values, channels, silos)
    rows = rows_of(words, channels, silos)
    total = layout(values, channels, silos)
    assert total.size == 5 + 2 * edges.size + 2 * 3
    np.testing.assert_array_equal(rows.reshape(-1)[: total.size], total)
    for count in (1, 2, silos):
        again = words_of(count * rows.reshape(-1).astype(np.int64), channels, silos)
        np.testing.assert_array_equal(again, np.uint64(count) * words)
        for name, integers in unpack_integers(again, channels, silos).items():
            np.testing.assert_array_equal(integers, count * values[name])
        assert (count * np.abs(total) <= bounds(channels, silos)).all()


@pytest.mark.parametrize(("bits", "silos", "widths"), [
    (16, 3, (18,)), (28, 4, (30,)), (28, 5, (19, 15)), (32, 3, (18, 18)), (32, 17, (21, 21)),
    (19, 2000, (30,)), (20, 2000, (27, 15)), (32, 2000, (27, 27)),
])  # fmt: skip
def test_widths_of_values(bits, silos, widths):
    assert value_widths(bits, silos) == widths


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_fields_that_overflow_give_the_same_integers(case, noisy):
    """A field may carry into the next one, as in a sum of words; what is beyond the last field is read by nobody."""
    channels, silos, seed = case
    random = np.random.default_rng(seed)
    if noisy:
        words = [random.integers(0, 2**64, word_count(channels, silos), np.uint64) for _ in range(3)]
    else:
        most = {spec.name: 3 << (field_width(spec.bits, silos) - 1) for spec in channels}
        words = [packed(drawn(random, channels, lambda spec: most[spec.name]), channels, silos) for _ in range(3)]
    rows = sum(rows_of(item, channels, silos) for item in words)
    again = words_of(rows.reshape(-1).astype(np.int64), channels, silos)
    expected = unpack_integers(np.sum(words, 0, np.uint64), channels, silos)
    for name, integers in unpack_integers(again, channels, silos).items():
        np.testing.assert_array_equal(integers, expected[name])


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([(6, 4), (14, 4), (30, 4), (13, 8), (27, 32)]), st.integers(1, 300), st.integers(0, 2**32))
def test_words_without_a_spare_bit_come_back_whatever_they_are(bits_and_silos, count, seed):
    bits, silos = bits_and_silos
    spec = ChannelSpec("update", 1, bits, 1.0)
    spec = ChannelSpec("update", count * fields_per_word(spec, silos), bits, 1.0)
    assert 64 % field_width(bits, silos) == 0
    words = np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
    rows = rows_of(words, [spec], silos)
    np.testing.assert_array_equal(words_of(rows.reshape(-1).astype(np.int64), [spec], silos), words)


@given(st.integers(5, 8), st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_coefficients_on_the_wire(width, numbers):
    numbers = [number % 2 ** (8 * width) for number in numbers]
    coefficients = np.array(numbers, np.uint64)
    data = to_bytes(coefficients, width)
    assert data == b"".join(number.to_bytes(width, "little") for number in numbers)
    for form in (data, memoryview(data)):
        again = from_bytes(form, width)
        assert again.dtype == np.uint64
        np.testing.assert_array_equal(again, coefficients)


def test_polynomials_follow_one_another_on_the_wire():
    coefficients = np.arange(3 * DEGREE, dtype=np.uint64).reshape(3, DEGREE)
    assert to_bytes(coefficients, 5) == to_bytes(coefficients.reshape(-1), 5)
    strided = np.stack([coefficients, coefficients], 1)[:, 0]
    assert to_bytes(strided, 5) == to_bytes(coefficients, 5)


@pytest.mark.parametrize(("size", "width"), [(1, 5), (4, 5), (6, 5), (8, 7), (20481, 5)])
def test_bytes_that_are_no_whole_coefficients(size, width):
    with pytest.raises(ProtocolError, match="no whole number of coefficients"):
        from_bytes(bytes(size), width)
