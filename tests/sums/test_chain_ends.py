"""Ends of noise chains in a sum: each silo's in a place of its own, and only its own links lead there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.sums.chain_ends import END_WORDS, WithChainEnd, link_holds
from autoflip_secure.sums.noise_chain import fresh_root, link_to_reveal, noise_stream
from autoflip_secure.sums.words import PackedWords, all_words


def words_of(root: bytes | None, place: int, places: int, most: int, size: int = 5) -> np.ndarray:
    return all_words(WithChainEnd(PackedWords(np.arange(size, dtype=np.uint64), root), place, places, most))


@given(places=st.integers(2, 9), most=st.integers(1, 5), data=st.data())
def test_links_lead_to_their_silos_ends_in_the_sum_and_nowhere_else(
    places: int, most: int, data: st.DataObject
) -> None:
    roots = [fresh_root() for _ in range(places)]
    with np.errstate(over="ignore"):
        total = np.sum([words_of(root, place, places, most) for place, root in enumerate(roots)], axis=0)
    ends, missing = total[5:], data.draw(st.integers(0, most - 1))
    assert ends.size == places * END_WORDS
    for place, root in enumerate(roots):
        link = link_to_reveal(root, missing, most)
        assert link_holds(link, ends, place, missing, most)
        assert not link_holds(link, ends, (place + 1) % places, missing, most)
        assert not link_holds(fresh_root(), ends, place, missing, most)
        for other in {*range(most)} - {missing}:
            assert not link_holds(link, ends, place, other, most), "a link for another number of missing silos"


def test_words_before_the_ends_are_the_source_s_in_any_ranges() -> None:
    source = np.arange(7, dtype=np.uint64)
    made = WithChainEnd(PackedWords(source, fresh_root()), 1, 3, 2)
    assert made.size == 7 + 3 * END_WORDS
    pieces = [np.empty(size, np.uint64) for size in (3, 6, 1, 9)]
    start = 0
    for piece in pieces:
        made.fill(start, piece)
        start += piece.size
    whole = np.concatenate(pieces)
    assert np.array_equal(whole[:7], source)
    assert not whole[7 : 7 + END_WORDS].any()
    assert whole[7 + END_WORDS : 7 + 2 * END_WORDS].all()
    assert not whole[7 + 2 * END_WORDS :].any()


def test_a_range_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="0 is next"):
        WithChainEnd(PackedWords(np.zeros(4, np.uint64)), 0, 1, 1).fill(2, np.empty(2, np.uint64))


def test_without_removable_noise_all_places_are_empty() -> None:
    assert not words_of(None, 0, 3, 2)[5:].any()


def test_no_noise_comes_from_an_end() -> None:
    """With all but one of `most` silos missing the last link is revealed; the end is one step further."""
    root, most = fresh_root(), 4
    end = words_of(root, 0, 1, most)[5:].astype("<u8").tobytes()
    links = [link_to_reveal(root, missing, most) for missing in range(most)]
    assert end not in links
    streams = {noise_stream(link, "update").words(2).tobytes() for link in links}
    assert noise_stream(end, "update").words(2).tobytes() not in streams


@pytest.mark.parametrize(
    ("link", "place", "missing"), [(b"", 0, 0), (b"x" * 32, 3, 0), (b"x" * 32, 0, 2), (b"x" * 32, 0, -1)]
)
def test_what_cannot_be_a_link_does_not_hold(link: bytes, place: int, missing: int) -> None:
    assert not link_holds(link, np.zeros(3 * END_WORDS, np.uint64), place, missing, 2)
