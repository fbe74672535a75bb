"""Whatever a file holds, what goes to a page is short, flat and JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.dashboard.values import DEEPEST, LONGEST_TEXT, MOST_ITEMS, plain

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
anything = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(anything)
def test_everything_becomes_json(value: Any) -> None:
    json.dumps(plain(value), allow_nan=False)


@given(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=LONGEST_TEXT)
    | st.floats(allow_nan=False, allow_infinity=False)
)
def test_what_is_short_and_flat_stays_as_it_is(value: Any) -> None:
    assert plain([value]) == [value]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_deep_is_cut() -> None:
    assert plain(nested(DEEPEST)) == nested(DEEPEST)
    assert "1" not in json.dumps(plain(nested(DEEPEST + 1)))
    assert len(json.dumps(plain(nested(900)))) < 30


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("x" * LONGEST_TEXT, "x" * LONGEST_TEXT),
        ("x" * (LONGEST_TEXT + 1), "x" * LONGEST_TEXT + "…"),
        (list(range(MOST_ITEMS + 3)), [*range(MOST_ITEMS), "… 3 more"]),
        ((1, 2), [1, 2]),
        ({"a": float("inf")}, {"a": None}),
    ],
)
def test_what_is_long_is_cut(value: Any, found: Any) -> None:
    assert plain(value) == found


def test_of_many_names_some_are_kept() -> None:
    assert len(plain({str(number): number for number in range(500)})) == MOST_ITEMS
