"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.report import units


@given(st.floats(min_value=0, max_value=1e4, allow_nan=False))
def test_epsilon_is_never_shown_smaller_than_it_is(value: float) -> None:
    shown = float(units.epsilon(value))
    assert value - 2e-9 <= shown < value + 0.001


@pytest.mark.parametrize(
    ("value", "shown"), [(8.0, "8"), (7.9, "7.900"), (7.9991, "8"), (7.9201, "7.921"), (math.inf, "not bounded")]
)
def test_epsilon_words(value: float, shown: str) -> None:
    assert units.epsilon(value) == shown


@pytest.mark.parametrize("value", [None, math.nan, "7", True, [1]])
@pytest.mark.parametrize(
    "words", [units.epsilon, units.score, units.percent, units.count, units.bytes_text, units.duration]
)
def test_what_is_not_a_number_is_a_dash(words: object, value: object) -> None:
    assert words(value) == units.MISSING  # type: ignore[operator]


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345, "12.3 kB"), (999_999, "1000 kB"), (20.8e6, "20.8 MB")],
)
def test_bytes(size: float, shown: str) -> None:
    assert units.bytes_text(size) == shown


@given(st.floats(min_value=1, max_value=1e15))
def test_bytes_are_within_half_a_percent(size: float) -> None:
    value, unit = units.bytes_text(size).split()
    power = units.BYTE_UNITS.index(unit)
    assert float(value) * 1000.0**power == pytest.approx(size, rel=5.1e-3, abs=0.51)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "under 1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (130, "2 min 10 s"),
        (3599.7, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert units.duration(seconds) == shown


@pytest.mark.parametrize(("ratio", "shown"), [(0.531, "53.1 %"), (0, "0.0 %"), (0.00123, "0.12 %"), (1, "100.0 %")])
def test_percent(ratio: float, shown: str) -> None:
    assert units.percent(ratio) == shown


def test_count_of() -> None:
    assert (units.count_of(1, "silo"), units.count_of([1, 2], "silo")) == ("1 silo", "2 silos")


def test_a_task_is_judged_by_its_own_score() -> None:
    scores = {"accuracy": 0.9, "c_index": None}
    assert units.main_score({"task": "binary", **scores}) == ("accuracy", "0.900")
    assert units.main_score({"task": "survival", "accuracy": None, "c_index": 0.8}) == ("C-index", "0.800")
    assert units.main_score({"task": "survival", "accuracy": None, "c_index": None}) == ("C-index", units.MISSING)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1", None])
def test_what_is_no_finite_number_is_missing(value: object) -> None:
    assert units.number(value) is None
