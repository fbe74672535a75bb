from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.data.names import DATASETS, dataset_names
from autoflip_secure.data.registry import ON_DISK, PACKAGED
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, DataError

TASK = Task("toy", "binary", (4,), 2, ("no", "yes"), "mlp", 12, "a note")


@given(
    st.text(min_size=1),
    st.integers(2, 9),
    st.one_of(st.tuples(st.integers(1, 9)), st.tuples(*[st.integers(1, 9)] * 3)),
    st.one_of(st.none(), st.integers(1, 10**9)),
    st.text(),
)
def test_task_json_round_trip(name, classes, shape, records, note):
    names = tuple(f"class {index}" for index in range(classes))
    kind = "binary" if classes == 2 else "multiclass"
    task = Task(name, kind, shape, classes, names, "cnn6" if len(shape) == 3 else "mlp", records, note)
    assert Task.from_json(task.to_json()) == task
    assert "\n" not in task.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"kind": "regression"},
        {"kind": "multiclass"},
        {"input_shape": []},
        {"input_shape": [0]},
        {"input_shape": [2.0]},
        {"input_shape": 4},
        {"classes": 3},
        {"classes": True},
        {"class_names": ["one"]},
        {"class_names": [1, 2]},
        {"default_model": "resnet"},
        {"default_model": "cnn6"},
        {"default_model": "femnist-cnn"},
        {"nominal_records": 0},
        {"nominal_records": "12"},
        {"note": None},
        {"surplus": 1},
    ],
)
def test_task_refuses_nonsense(change):
    with pytest.raises(ConfigError, match=r"^task") as caught:
        Task.from_json(json.dumps(asdict(TASK) | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"name": "toy"}'])
def test_task_refuses_other_json(text):
    with pytest.raises(ConfigError, match=r"^task"):
        Task.from_json(text)


def test_task_checks_records(make_records):
    assert TASK.check(make_records(4, classes=2), "here") is not None
    with pytest.raises(DataError, match=r"^here: .*shape"):
        TASK.check(make_records(4, classes=2, shape=(5,)), "here")
    with pytest.raises(DataError, match=r"^here: record 3 .*beyond the 2 classes"):
        TASK.check(make_records(4, classes=3).take([0, 0, 2, 3]), "here")


def test_names_cost_nothing():
    program = (
        "import sys, autoflip_secure.data.names;"
        "print([m for m in ('numpy', 'torch', 'sklearn', 'flwr_datasets') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_names_and_loaders_agree():
    assert set(dataset_names()) == set(PACKAGED) | set(ON_DISK)
    assert {name for name, info in DATASETS.items() if info.subfolders} == set(ON_DISK)
