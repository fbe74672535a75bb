from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.data.records import Records
from autoflip_secure.data.splits import hold_out, hold_out_by_record, public_fifth
from autoflip_secure.errors import ConfigError, DataError


def numbered(labels):
    y = np.array(labels, np.int64)
    return Records(np.arange(len(y), dtype=np.float32).reshape(-1, 1), y)


def numbers_of(records):
    return set(records.x[:, 0].astype(int).tolist())


LABELS = st.lists(st.integers(0, 3), min_size=2, max_size=80)


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_hold_out_is_disjoint_complete_and_stratified(labels, fraction, seed):
    records = numbered(labels)
    train, holdout = hold_out(records, fraction, seed, "silo")
    assert not numbers_of(train) & numbers_of(holdout)
    assert numbers_of(train) | numbers_of(holdout) == set(range(len(labels)))
    total = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    assert len(holdout) == total
    ideal = np.bincount(records.y, minlength=4) * total / len(records)
    assert (np.abs(np.bincount(holdout.y, minlength=4) - ideal) < 1).all()


def test_hold_out_depends_on_seed_and_name_only():
    records = numbered([0, 1] * 50)
    same = [numbers_of(hold_out(records, 0.2, 7, "north")[1]) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != numbers_of(hold_out(records, 0.2, 8, "north")[1])
    assert same[0] != numbers_of(hold_out(records, 0.2, 7, "south")[1])


@given(st.integers(0, 199), st.integers(0, 2**32))
def test_hold_out_by_record_leaves_all_others_where_they_were(removed, seed):
    records = numbered([0, 1, 2, 3] * 50)
    keep = np.arange(200) != removed
    train, holdout = hold_out_by_record(records, 0.2, seed, "silo")
    fewer_train, fewer_holdout = hold_out_by_record(records.take(keep), 0.2, seed, "silo")
    assert numbers_of(fewer_train) == numbers_of(train) - {removed}
    assert numbers_of(fewer_holdout) == numbers_of(holdout) - {removed}


def test_hold_out_by_record_takes_its_fraction():
    held = hold_out_by_record(numbered([0, 1] * 2000), 0.2, 0)[1]
    assert abs(len(held) - 800) < 5 * np.sqrt(4000 * 0.2 * 0.8)


@pytest.mark.parametrize("split", [hold_out, hold_out_by_record])
def test_splits_refuse(split):
    with pytest.raises(DataError, match="at least two"):
        split(numbered([0]), 0.2, 0)
    for fraction in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            split(numbered([0, 1, 0]), fraction, 0)


def test_hold_out_by_record_refuses_an_empty_part():
    with pytest.raises(DataError, match="too few"):
        hold_out_by_record(numbered([0, 1]), 1e-9, 0)


@given(LABELS)
def test_public_fifth_takes_every_fifth_of_each_class(labels):
    y = np.array(labels, np.int64)
    chosen = public_fifth(y)
    for label in range(4):
        assert np.array_equal(np.flatnonzero(chosen[y == label]), np.arange(4, (y == label).sum(), 5))
