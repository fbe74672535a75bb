"""What is handed out while a vector is encoded and masked, range by range."""

from __future__ import annotations

import numpy as np
import pytest

from autoflip_secure.secagg import masking
from autoflip_secure.secagg.masking import masked_words
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.sums.words import RANGE_WORDS

KEYS, SIGNS = [b"k" * 32, b"l" * 32], [1, -1]
CLEAR = np.arange(3 * RANGE_WORDS + 5, dtype=np.uint64)


class Source:
    """Clear words; calls `watch(start)` after it filled a range."""

    size = CLEAR.size
    removable = None

    def __init__(self, watch):
        self._watch = watch

    def fill(self, start, out):
        out[:] = CLEAR[start : start + out.size]
        self._watch(start)


def read(part):
    return np.frombuffer(part, "<u8")


def expected():
    words = CLEAR.copy()
    apply_masks(words, KEYS, SIGNS)
    return words


def test_parts_are_the_masked_words():
    parts = [bytes(part) for part in masked_words(Source(lambda start: None), KEYS, SIGNS)]
    assert len(parts) == 4
    np.testing.assert_array_equal(np.frombuffer(b"".join(parts), "<u8"), expected())


def test_part_kept_too_long_never_shows_clear_words():
    """Neither while the next range is encoded nor after its encoding failed."""
    held, shown = [], []

    def watch(start):
        shown.extend(read(part).copy() for part in held)
        if start == 2 * RANGE_WORDS:
            raise ValueError("the third range")

    with pytest.raises(ValueError, match="third range"):
        held.extend(masked_words(Source(watch), KEYS, SIGNS))
    shown.extend(read(part).copy() for part in held)
    masked = expected()
    assert len(shown) == 5
    for words in shown:
        where = [start for start in (0, RANGE_WORDS) if (words == masked[start : start + words.size]).all()]
        assert where, "a part is the masked words of some range, at any time"


def test_parts_are_the_same_where_workers_may_share_the_masking(monkeypatch):
    monkeypatch.setattr(masking, "FEWEST_SHARED_KEYS", 0)
    monkeypatch.setattr(masking, "SHARED_RANGE_WORDS", 2 * RANGE_WORDS)
    monkeypatch.setattr(masking, "use_workers", lambda size, keys: True)
    parts = [bytes(part) for part in masked_words(Source(lambda start: None), KEYS, SIGNS)]
    assert len(parts) == 2
    np.testing.assert_array_equal(np.frombuffer(b"".join(parts), "<u8"), expected())
