from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from autoflip_secure.data.partition import MINIMUM_RECORDS, PartitionSpec, parse_partition, partition
from autoflip_secure.data.records import Records
from autoflip_secure.errors import ConfigError

FORMS = st.one_of(
    st.just("iid"),
    st.floats(0.05, 100).map(lambda alpha: f"dirichlet:{alpha:g}"),
    st.integers(1, 4).map(lambda classes: f"pathological:{classes}"),
)


def numbered(n, classes):
    x = np.arange(n, dtype=np.float32).reshape(-1, 1)
    return Records(x, np.sort(np.arange(n) % classes).astype(np.int64))


def numbers_of(parts):
    return [part.x[:, 0].astype(int).tolist() for part in parts]


@settings(max_examples=40, deadline=None)
@given(FORMS, st.integers(1, 12), st.integers(2, 6), st.integers(40, 120), st.integers(0, 2**32))
def test_partition_is_disjoint_complete_and_deterministic(how, silos, classes, n, seed):
    records = numbered(n, classes)
    try:
        parts = partition(records, how, silos, seed)
    except ConfigError:
        assert how != "iid"
        reject()
    assert len(parts) == silos
    assert min(map(len, parts)) >= MINIMUM_RECORDS
    assert sorted(itertools.chain(*numbers_of(parts))) == list(range(n))
    for part in parts:
        assert np.array_equal(part.y, records.y[part.x[:, 0].astype(int)])
    assert numbers_of(partition(records, how, silos, seed)) == numbers_of(parts)


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "pathological:2"])
def test_other_seed_other_partition(how):
    records = numbered(200, 5)
    assert numbers_of(partition(records, how, 6, 1)) != numbers_of(partition(records, how, 6, 2))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32))
def test_pathological_deals_exactly_so_many_classes(each, silos, seed):
    records = numbered(300, 5)
    if silos * each < 5:
        with pytest.raises(ConfigError, match="leave out"):
            partition(records, f"pathological:{each}", silos, seed)
        return
    parts = partition(records, f"pathological:{each}", silos, seed)
    assert {len(set(part.y.tolist())) for part in parts} == {each}
    holders = np.bincount(np.concatenate([np.unique(part.y) for part in parts]))
    assert holders.max() - holders.min() <= 1


def label_skew(parts, classes):
    """Mean total-variation distance between a silo's labels and everybody's, weighted by size."""
    counts = np.array([np.bincount(part.y, minlength=classes) for part in parts], float)
    everybody = counts.sum(axis=0) / counts.sum()
    distance = np.abs(counts / counts.sum(axis=1, keepdims=True) - everybody).sum(axis=1) / 2
    return float((distance * counts.sum(axis=1)).sum() / counts.sum())


def test_label_skew_rises_as_alpha_falls():
    records = numbered(2000, 10)
    skew = [
        np.mean([label_skew(partition(records, how, 10, seed), 10) for seed in range(3)])
        for how in ("iid", "dirichlet:100", "dirichlet:1", "dirichlet:0.1")
    ]
    assert skew[0] < 0.12
    assert skew[1] < 0.15 < skew[2] < skew[3] - 0.15


def test_iid_mixes_sorted_classes_into_equal_sizes():
    parts = partition(numbered(1000, 10), "iid", 9, 0)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(len(set(part.y.tolist())) == 10 for part in parts)


def test_partition_prints_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):  # so few records for so small an ALPHA need several draws
            partition(numbered(60, 5), "dirichlet:0.3", 12, seed)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("iid", PartitionSpec("iid")),
        ("natural", PartitionSpec("natural")),
        ("dirichlet:0.5", PartitionSpec("dirichlet", 0.5)),
        ("dirichlet:1e-2", PartitionSpec("dirichlet", 0.01)),
        ("pathological:2", PartitionSpec("pathological", 2)),
    ],
)
def test_parse(text, spec):
    assert parse_partition(text) == spec
    assert parse_partition(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    [
        "", "idd", "iid:3", "natural:4", "dirichlet", "dirichlet:", "dirichlet:x", "dirichlet:0", "dirichlet:-1",
        "dirichlet:nan", "dirichlet:inf", "dirichlet:1e9", "dirichlet:1_0", "pathological", "pathological:0",
        "pathological:1.5", "pathological:two", "IID",
    ],
)  # fmt: skip
def test_parse_refuses_and_shows_what_is_right(text):
    with pytest.raises(ConfigError, match=r"^--partition .*(dirichlet:0\.5|pathological:2)") as caught:
        parse_partition(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "silos", "said"),
    [
        ("iid", 0, "--silos 0: not a positive"),
        ("iid", 21, "--silos 21: 40 records are enough for at most 20 silos"),
        ("natural", 2, "--partition natural: these records do not come by silo"),
        ("pathological:5", 4, "--partition pathological:5: the records have 4 classes"),
        ("pathological:1", 3, "use pathological:2 or at least --silos 4"),
        ("pathological:4", 20, "--partition pathological:4: a class of 10 records"),
        ("dirichlet:0.001", 20, "--partition dirichlet:0.001: no draw gave each of 20 silos"),
    ],
)
def test_impossible_partitions(how, silos, said):
    with pytest.raises(ConfigError) as caught:
        partition(numbered(40, 4), how, silos, 0)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silo_of_one_record_is_refused():
    labels = np.array([0, 0] + [1] * 10)
    records = Records(np.zeros((12, 1), np.float32), labels)
    with pytest.raises(ConfigError, match="--partition pathological:1: a silo gets 1 records, 2 are needed"):
        partition(records, "pathological:1", 4, 0)


def test_smallest_possible_silos():
    assert [len(part) for part in partition(numbered(40, 4), "iid", 20, 0)] == [2] * 20
