"""Mask bytes: round trip, canonical form, hash, and scattering."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoflip_secure.autoflip.masking import live_indices, mask_hash, pack_mask, scatter_live, unpack_mask
from autoflip_secure.errors import EncodingError, ProtocolError

MASKS = arrays(np.bool_, st.integers(1, 70))


@given(MASKS)
def test_round_trip(mask: np.ndarray) -> None:
    data = pack_mask(mask)
    assert len(data) == 8 + (mask.size + 7) // 8
    np.testing.assert_array_equal(unpack_mask(data, mask.size), mask)
    assert mask_hash(mask) == hashlib.sha256(data).digest()


@given(MASKS, MASKS)
def test_different_masks_have_different_bytes_and_hashes(first: np.ndarray, second: np.ndarray) -> None:
    same = first.shape == second.shape and bool((first == second).all())
    assert (mask_hash(first) == mask_hash(second)) == same


def test_padding_counts_for_nothing_and_must_be_zero() -> None:
    assert mask_hash(np.ones(3, np.bool_)) != mask_hash(np.array([True] * 3 + [False] * 5))
    data = bytearray(pack_mask(np.ones(3, np.bool_)))
    data[-1] |= 1
    with pytest.raises(ProtocolError, match="padding"):
        unpack_mask(bytes(data), 3)


@pytest.mark.parametrize("data", [b"", bytes(8), pack_mask(np.ones(9, np.bool_)), pack_mask(np.ones(16, np.bool_)) * 2])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a mask of 16 parameters"):
        unpack_mask(data, 16)


@given(MASKS)
def test_scatter_is_the_inverse_of_taking_live_coordinates(mask: np.ndarray) -> None:
    vector = np.arange(1.0, mask.size + 1)
    live = live_indices(mask)
    assert live.dtype == np.int64
    np.testing.assert_array_equal(scatter_live(vector[live], mask), np.where(mask, vector, 0.0))
    with pytest.raises(EncodingError, match="do not fit"):
        scatter_live(np.zeros(live.size + 1), mask)
