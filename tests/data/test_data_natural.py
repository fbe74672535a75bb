"""Whole natural silos dealt to fewer simulated ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.data.federation_data import LoadedData, NamedRecords, split_into_silos
from autoflip_secure.data.named_records import cut_by_silo, deal_whole_silos
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError

TASK = Task("clinics", "binary", (1,), 2, ("no", "yes"), "mlp")


def clinics(sizes, holdout=True):
    """Each clinic's records are numbered by its own number; its holdout by the negative of it."""
    return tuple(
        NamedRecords(
            f"clinic {number}",
            Records(np.full((size, 1), number, np.float32), np.zeros(size, np.int64)),
            Records(np.full((1, 1), -number, np.float32), np.ones(1, np.int64)) if holdout else None,
        )
        for number, size in enumerate(sizes, start=1)
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.data(), st.integers(0, 2**32))
def test_none_is_divided_and_none_is_lost(sizes, data, seed):
    silos = data.draw(st.integers(1, len(sizes) - 1))
    dealt = deal_whole_silos(clinics(sizes), silos, seed)
    assert len(dealt) == silos
    members = [np.unique(silo.records.x).astype(int).tolist() for silo in dealt]
    assert sorted(number for group in members for number in group) == list(range(1, len(sizes) + 1))
    for silo, group in zip(dealt, members, strict=True):
        assert len(silo.records) == sum(sizes[number - 1] for number in group)
        assert sorted((-silo.holdout.x[:, 0]).astype(int).tolist()) == group
    held = [len(silo.records) for silo in dealt]
    # Whoever is largest was the smallest before the last clinic came.
    assert max(held) - min(held) <= max(sizes)
    again = deal_whole_silos(clinics(sizes), silos, seed)
    assert all(np.array_equal(a.records.x, b.records.x) for a, b in zip(dealt, again, strict=True))


def test_many_small_ones_make_nearly_equal_silos():
    sizes = np.random.default_rng(0).integers(19, 132, 539).tolist()
    dealt = deal_whole_silos(clinics(sizes, holdout=False), 20, seed=1)
    held = [len(silo.records) for silo in dealt]
    assert max(held) - min(held) <= 0.02 * np.mean(held)
    assert [silo.name for silo in dealt[:2]] == ["silo-01", "silo-02"]
    assert all(silo.holdout is None for silo in dealt)
    other = deal_whole_silos(clinics(sizes, holdout=False), 20, seed=2)
    assert any(not np.array_equal(a.records.x, b.records.x) for a, b in zip(dealt, other, strict=True))


def test_through_the_option():
    data = LoadedData(TASK, None, None, clinics((5, 4, 3, 2)))
    assert split_into_silos(data, None, 4, seed=0) == data.natural
    two = split_into_silos(data, "natural", 2, seed=0)
    assert [(silo.name, len(silo.records)) for silo in two] == [("silo-1", 7), ("silo-2", 7)]
    with pytest.raises(ConfigError, match=r"--silos 5: clinics has 4 natural silos; .* at most 4"):
        split_into_silos(data, "natural", 5, seed=0)


def test_silos_with_and_without_test_records_stay_apart():
    mixed = (*clinics((5, 4)), *clinics((3,), holdout=False))
    with pytest.raises(ConfigError, match="--silos 2: only some of the 3 natural silos bring test records"):
        split_into_silos(LoadedData(TASK, None, None, mixed), None, 2, seed=0)


@pytest.mark.parametrize("how", ["iid", "dirichlet:1", "pathological:1"])
def test_other_partitions_spread_the_records_of_all(how):
    silos = clinics((30, 20, 10))
    whole = Records.concatenate([silo.records for silo in silos])
    whole = Records(whole.x, np.arange(60) % 2)
    parts = split_into_silos(LoadedData(TASK, whole, None, silos), how, 4, seed=0)
    assert sorted(np.concatenate([part.records.x[:, 0] for part in parts]).tolist()) == whole.x[:, 0].tolist()
    assert [part.name for part in parts] == [f"silo-{number}" for number in range(1, 5)]


def test_cutting_keeps_patients_and_times_and_copies_nothing():
    whole = Records(
        np.arange(6, dtype=np.float32).reshape(6, 1),
        np.zeros(6, np.int64),
        np.arange(6),
        np.arange(6, dtype=np.float32),
    )
    parts = cut_by_silo(whole, [1, 3, 2])
    assert [part.x[:, 0].tolist() for part in parts] == [[0], [1, 2, 3], [4, 5]]
    assert [part.group.tolist() for part in parts] == [[0], [1, 2, 3], [4, 5]]
    assert [part.time.tolist() for part in parts] == [[0], [1, 2, 3], [4, 5]]
    assert all(np.shares_memory(part.x, whole.x) for part in parts)
