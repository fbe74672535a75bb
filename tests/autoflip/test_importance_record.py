"""What every parameter of the dense network was worth, through removals, a checkpoint and the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, load_file, save_file

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.importance import ImportanceRecord
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.models.spec import ModelSpec

DeadDraw = Callable[[UnitMap, int, float], np.ndarray]


@pytest.fixture
def played(tanh_spec: ModelSpec, some_dead: DeadDraw) -> tuple[ImportanceRecord, dict[str, np.ndarray]]:
    """A record after three decisions, and what a bookkeeping by names says: dense vectors and a set of living places.

    The bookkeeping numbers the dense parameters and lets those numbers be compacted as weights would be.
    """
    generator = np.random.default_rng(0)
    spec, size = tanh_spec, UnitMap.of(tanh_spec).size
    numbers = np.arange(size)
    guidance = generator.random(size).astype(np.float32)
    record = ImportanceRecord.start(np.full(size, 0.5)).explored(guidance)
    expected = {"first_map": guidance.copy(), "guidance": np.full(size, np.nan), "last_score": np.full(size, np.nan)}
    for step in range(3):
        here = generator.random(numbers.size).astype(np.float32)
        scores = 40.0 * generator.random(numbers.size)
        record = record.decided(here, scores)
        for name, values in (("guidance", here), ("last_score", scores / scores.max())):
            expected[name][numbers] = values
        if step == 0:
            expected["first_score"] = expected["last_score"].copy()
        compaction = compact(spec, some_dead(UnitMap.of(spec), step, 0.3))
        record, spec, numbers = record.compact(compaction), compaction.spec, numbers[compaction.kept]
    expected["numbers"] = numbers
    return record, expected


def test_values_stay_with_their_parameter_through_removals(played, tanh_spec: ModelSpec) -> None:
    record, expected = played
    np.testing.assert_array_equal(record.places, expected["numbers"])
    np.testing.assert_array_equal(record.first_here, expected["first_map"][expected["numbers"]])
    layout = UnitMap.of(tanh_spec).layout
    mask = np.arange(record.places.size) % 3 > 0
    now = np.linspace(0, 1, record.places.size)
    written = load(record.to_bytes(layout, now, mask))
    assert set(written) == {"first_map", "guidance", "first_score", "last_score", "mask"}
    for name in ("first_map", "first_score", "last_score"):
        np.testing.assert_array_equal(written[name], expected[name].astype(np.float16))
    # Living parameters have today's guidance, removed ones that of the last decision they lived to see.
    expected["guidance"][expected["numbers"]] = now
    np.testing.assert_array_equal(written["guidance"], expected["guidance"].astype(np.float16))
    assert set(np.flatnonzero(written["mask"])) == set(expected["numbers"][mask])


def test_the_file_names_the_dense_tensors(played, tanh_spec: ModelSpec, tmp_path: Path) -> None:
    record, _ = played
    layout = UnitMap.of(tanh_spec).layout
    (tmp_path / "file").write_bytes(record.to_bytes(layout, None, np.ones(record.places.size, np.bool_)))
    with safe_open(tmp_path / "file", "numpy") as file:
        names = json.loads(file.metadata()["layout"])
        assert "guidance" not in set(file.keys()), "nothing was learnt of it"
    assert [name for name, _ in names] == list(layout.names)
    assert sum(size for _, size in names) == layout.size


def test_a_checkpoint_keeps_the_record(played, tmp_path: Path) -> None:
    record, _ = played
    save_file(record.arrays(), tmp_path / "arrays")
    again = ImportanceRecord.restored(load_file(tmp_path / "arrays"))
    for name, values in record.arrays().items():
        assert again.arrays()[name].tobytes() == values.tobytes()
        assert again.arrays()[name].dtype == values.dtype


def test_it_holds_something_once_a_map_or_a_decision_came() -> None:
    start = ImportanceRecord.start(np.full(4, 0.5))
    assert not start.holds_anything
    assert start.explored(np.ones(4, np.float32)).holds_anything
    nothing = start.decided(np.full(4, 0.5), np.zeros(4))
    assert nothing.holds_anything
    assert not nothing.last_score.any()
