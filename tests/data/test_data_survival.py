"""Survival tasks: the clock of expected events, records with times, tcga-brca, and a user's own tables."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from autoflip_secure.data.follow_up import FollowUp
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.data.splits import hold_out_by_record
from autoflip_secure.data.task import Task
from autoflip_secure.data.tcga_brca import REGIONS, load_tcga_brca
from autoflip_secure.errors import ConfigError, DataError

FOLLOW_UP = FollowUp((1.0, 3.0), (0.1, 0.4, 0.2))
TASK = Task("toy", "survival", (2,), 2, ("alive", "died"), "mlp", follow_up=FOLLOW_UP)
TIMES = np.array([0.0, 0.5, 3.0, 7.0], np.float32)


def some_records(time=TIMES):
    return Records(np.arange(8, dtype=np.float32).reshape(4, 2), np.array([0, 1, 0, 1]), time=time)


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=4, unique=True), st.data(), st.floats(0, 20))
def test_expected_events_are_the_integral_of_the_hazard(cuts, data, time):
    cuts = sorted(cuts)
    hazards = data.draw(st.lists(st.floats(0.01, 3), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    baseline = FollowUp(tuple(cuts), tuple(hazards))
    pieces = [0.0, *(cut for cut in cuts if cut < time), time]
    expected = sum(
        quad(lambda t: hazards[int(np.searchsorted(cuts, t, side="right"))], low, high)[0]
        for low, high in pairwise(pieces)
    )
    assert baseline.expected_events(np.array([time]))[0] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_clock_keeps_the_order_and_cuts_where_the_times_do():
    times = np.sort(np.random.default_rng(0).uniform(0, 9, 100))
    clock = FOLLOW_UP.expected_events(times)
    assert (np.diff(clock) > 0).all()
    by_time = np.searchsorted(FOLLOW_UP.cuts, times, side="right")
    assert np.array_equal(np.searchsorted(FOLLOW_UP.expected_cuts(), clock, side="right"), by_time)


@pytest.mark.parametrize(
    ("cuts", "hazards"),
    [
        ((), (1.0,)), ((1.0,), (1.0,)), ((1.0,), (1.0, 0.0)), ((0.0,), (1.0, 1.0)), ((2.0, 1.0), (1.0, 1.0, 1.0)),
        ((1.0,), (1.0, float("nan"))), ((float("inf"),), (1.0, 1.0)), (("1",), (1.0, 1.0)), ((True,), (1.0, 1.0)),
    ],
)  # fmt: skip
def test_a_follow_up_that_makes_no_sense(cuts, hazards):
    with pytest.raises(ConfigError, match=r"^follow-up: "):
        FollowUp(cuts, hazards)


def test_a_survival_task():
    assert Task.from_json(TASK.to_json()) == TASK
    assert (TASK.outputs, TASK.loss, TASK.classes) == (1, "survival", 2)
    assert TASK.expected_cuts == pytest.approx((0.1, 0.9))
    targets = TASK.targets(some_records())
    assert targets.dtype == np.float32
    assert targets[:, 0].tolist() == pytest.approx([0, 0.05, 0.9, 1.7])
    assert targets[:, 1].tolist() == [0, 1, 0, 1]
    binary = Task("toy", "binary", (2,), 2, ("no", "yes"), "mlp")
    assert (binary.outputs, binary.loss, binary.expected_cuts) == (2, "cross_entropy", ())
    assert binary.targets(some_records(None)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"follow_up": None}, {"kind": "binary"}, {"classes": 3, "class_names": ["a", "b", "c"]}, {"follow_up": 1},
        {"follow_up": {"cuts": [1.0]}}, {"follow_up": {"cuts": [1.0], "hazards": [1.0]}},
        {"follow_up": {"cuts": 1.0, "hazards": [1.0]}},
    ],
)  # fmt: skip
def test_a_survival_task_that_makes_no_sense(change):
    with pytest.raises(ConfigError, match=r"^(task|follow-up)"):
        Task.from_json(json.dumps(asdict(TASK) | change))


def test_times_belong_to_survival_tasks_and_to_no_others():
    assert TASK.check(some_records(), "here") is not None
    with pytest.raises(DataError, match=r"^here: records have no times"):
        TASK.check(some_records(None), "here")
    binary = replace(TASK, kind="binary", follow_up=None)
    with pytest.raises(DataError, match=r"^here: records have times"):
        binary.check(some_records(), "here")


def test_times_stay_with_their_records(tmp_path):
    records = some_records()
    assert records.take(np.array([3, 1])).time.tolist() == [7, 0.5]
    both = Records.concatenate([records, records.take(np.array([True, False, False, False]))])
    assert both.time.tolist() == [*TIMES.tolist(), 0]
    with pytest.raises(DataError, match="with and without times"):
        Records.concatenate([records, some_records(None)])
    records.save(tmp_path / "r.npz")
    again = Records.load(tmp_path / "r.npz")
    assert np.array_equal(again.time, records.time)
    assert again.time.dtype == np.float32


@pytest.mark.parametrize(
    "time", [TIMES.astype(float), TIMES[:3], np.float32([0, 1, -1, 2]), np.float32([0, 1, np.nan, 2])]
)
def test_times_that_are_none(time):
    with pytest.raises(DataError, match="time") as caught:
        some_records(time)
    assert "nan" not in str(caught.value)


def test_the_time_takes_part_in_who_is_held_back():
    x, y = np.zeros((200, 2), np.float32), np.zeros(200, np.int64)
    _, held = hold_out_by_record(Records(x, y, time=np.arange(200, dtype=np.float32)), 0.2, 0, "silo")
    assert 15 < len(held) < 65


def test_tcga_brca(shared_data):
    data = load("tcga-brca", shared_data, seed=0)
    train = {silo.name: (len(silo.records), int(silo.records.y.sum())) for silo in data.natural}
    test = {silo.name: (len(silo.holdout), int(silo.holdout.y.sum())) for silo in data.natural}
    assert train == dict(zip(REGIONS, [(248, 45), (156, 35), (164, 14), (129, 16), (129, 7), (40, 2)], strict=True))
    assert test == dict(zip(REGIONS, [(63, 14), (40, 4), (42, 8), (33, 3), (33, 2), (11, 1)], strict=True))
    assert data.default_partition == "natural"
    assert data.task.nominal_records == len(data.train) == 866
    assert data.train.x.shape[1:] == data.task.input_shape == (39,)
    assert np.abs(data.train.x).max() <= 1
    assert set(np.unique(data.train.x[:, 1:])) == {0, 1}
    times = np.concatenate([*(s.records.time for s in data.natural), *(s.holdout.time for s in data.natural)])
    assert times.max() == pytest.approx(8605 / 365.25)


PATIENTS = [f"P{number}" for number in range(12)]
CODES = ",".join(["0"] * 38)


@pytest.fixture
def tcga_folder(tmp_path):
    """One train and one test patient a region."""
    names = ",".join(["pid", "age_at_index", *(f"code {n}" for n in range(38)), "E", "T"])
    rows = [f"{pid},50,{CODES},{number % 2}.0,{100.0 * number}" for number, pid in enumerate(PATIENTS)]
    (tmp_path / "brca.csv").write_text("\n".join([names, *rows, rows[0].replace("P0,", "left out,")]) + "\n")
    parts = [f"{pid},x,{('train', 'test')[number % 2]}_{number // 2}" for number, pid in enumerate(PATIENTS)]
    (tmp_path / "train_test_split.csv").write_text("\n".join(["pid,fold,fold2", *parts]) + "\n")
    return tmp_path


def test_patients_outside_the_split_are_left_out(tcga_folder):
    data = load_tcga_brca(tcga_folder)
    assert [(len(silo.records), len(silo.holdout)) for silo in data.natural] == [(1, 1)] * 6
    assert data.natural[5].holdout.time[0] == pytest.approx(1100 / 365.25)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("brca.csv", "pid,age", "id,age", "brca.csv:1: not the columns"),
        ("brca.csv", f"P3,50,{CODES}", f"P3,50,2{CODES[1:]}", "brca.csv:5: a code is neither 0 nor 1"),
        ("brca.csv", "P3,50,", "P3,,", "brca.csv:5: a code is neither"),
        ("brca.csv", "1.0,300.0", "1.0,-3", "brca.csv:5: a code is neither"),
        ("brca.csv", "1.0,300.0", "2.0,300.0", "brca.csv:5: a code is neither"),
        ("brca.csv", "P3,", "Q3,", "brca.csv: lacks a patient of test_1"),
        ("train_test_split.csv", "test_1", "test_6", "train_test_split.csv:5:3: not a part"),
        ("train_test_split.csv", "fold2", "part", "train_test_split.csv:1: the columns are not"),
    ],
)
def test_malformed_tcga_brca(tcga_folder, file, old, new, said):
    text = (tcga_folder / file).read_text()
    assert old in text
    (tcga_folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        load_tcga_brca(tcga_folder)
    assert str(caught.value).startswith(str(tcga_folder / said))
    assert "\n" not in str(caught.value)


DECLARATION = 'task = "survival"\nfeatures = 2\ncuts = [4]\nhazards = [0.1, 0.2]\n'


@pytest.fixture
def survival_folder(tmp_path):
    root = tmp_path / "registers"
    for name in ("north", "south"):
        (root / name).mkdir(parents=True)
    (root / "dataset.toml").write_text(DECLARATION)
    (root / "north" / "train.csv").write_text("age,event,weight,time\n50,0,70.5,2\n61,1.0,,6.5\n")
    np.savez(
        root / "south" / "train.npz",
        X=np.array([[40.0, np.nan], [55.0, 90.0]]), event=np.array([1, 0]), time=np.array([3, 0.25]),
    )  # fmt: skip
    return root


def read(folder):
    return load(f"folder:{folder}", None, seed=0)


def test_a_user_s_own_survival_tables(survival_folder):
    data = read(survival_folder)
    north, south = data.natural
    assert (data.task.kind, data.task.outputs, data.task.default_model) == ("survival", 1, "mlp")
    assert data.task.follow_up == FollowUp((4,), (0.1, 0.2))
    assert north.records.x.tolist() == [[50, 70.5], [61, 0]]
    assert (north.records.y.tolist(), north.records.time.tolist()) == ([0, 1], [2, 6.5])
    assert (south.records.y.tolist(), south.records.time.tolist()) == ([1, 0], [3, 0.25])
    assert data.task.targets(north.records)[:, 0].tolist() == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("age,label,weight,time\n50,0,70,2\n", ":1: no column is named event"),
        ("age,event,weight\n50,0,70\n", ":1: no column is named time"),
        ("age,event,weight,time\n50,2,70,2\n", r":2:2: the label is not one of 0 \(event not seen\) and 1"),
        ("age,event,weight,time\n50,1,70,-2\n", ":2:4: no time of follow-up"),
        ("age,event,weight,time\n50,1,70,\n", ":2:4: no time of follow-up"),
        ("age,event,weight,time\n50,1,70,soon\n", ":2:4: column 'time'"),
    ],
)
def test_malformed_survival_table(survival_folder, table, said):
    path = survival_folder / "north" / "train.csv"
    path.write_text(table)
    with pytest.raises(DataError, match=f"^{path}{said}"):
        read(survival_folder)


@pytest.mark.parametrize(
    ("time", "said"), [([3], "it needs a number"), (["a", "b"], "time is <U1"), ([1, np.nan], r"time\[1\] is no time")]
)
def test_malformed_survival_arrays(survival_folder, time, said):
    path = survival_folder / "south" / "train.npz"
    np.savez(path, X=np.zeros((2, 2)), event=np.array([1, 0]), time=np.array(time))
    with pytest.raises(DataError, match=f"^{path}: .*{said}"):
        read(survival_folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cuts = [4]\n", "", ": cuts is missing; write it with four lines"),
        ("cuts = [4]", "cuts = 4", ":3: cuts: not a list"),
        ("[0.1, 0.2]", "[0.1]", ":3: cuts: follow-up: 1 cuts make 2 intervals"),
        ("features", "classes = [0, 1]\nfeatures", ":2: classes: unknown key"),
        ("features = 2", 'features = 2\ncolumns = ["age", "time"]', ":3: columns: "),
    ],
)
def test_malformed_survival_declaration(survival_folder, old, new, said):
    path = survival_folder / "dataset.toml"
    path.write_text(DECLARATION.replace(old, new))
    with pytest.raises(DataError) as caught:
        read(survival_folder)
    assert str(caught.value).startswith(f"{path}{said}")
    assert "\n" not in str(caught.value)
