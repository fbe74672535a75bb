"""Patients with several records: how they are declared, read, kept together and kept apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.data import patients as patients_module
from autoflip_secure.data.declaration import read_declaration
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.partition import partition
from autoflip_secure.data.patients import patient_labels
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.data.silo_folder import SiloData, read_silo, write_silo
from autoflip_secure.data.splits import hold_out, hold_out_by_record
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, DataError

DECLARATION = 'task = "classification"\nclasses = [0, 1]\nfeatures = 2\npatient = "person"\n'
GROUPS = st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda values: len(set(values)) > 1)


def grouped(values, labels=None):
    """Records numbered by their one feature, of the patients given."""
    group = np.array(values, np.int64)
    y = group % 3 if labels is None else np.array(labels, np.int64)
    return Records(np.arange(len(group), dtype=np.float32).reshape(-1, 1), y, group)


def patients_of(records):
    return set(records.group.tolist())


@pytest.fixture
def clinics(silo_folder):
    """north: five records of three patients and a test table; south: an npz of two patients."""
    (silo_folder / "dataset.toml").write_text(DECLARATION)
    north = "age,person,label,weight\n50,a-1,0,70\n61,7,1,\n47,a-1,1,88\n50,7.0,0,70\n20,B,0,60\n"
    (silo_folder / "north" / "train.csv").write_text(north)
    (silo_folder / "north" / "test.csv").write_text("age,person,label,weight\n33,c,0,60\n34,c,0,60\n")
    x, y = np.array([[40.0, np.nan], [55.0, 90.0], [1, 2]]), np.array([1, 0, 1])
    np.savez(silo_folder / "south" / "train.npz", X=x, y=y, patient=np.array([5, 6, 5]))
    return silo_folder


def read(folder):
    return load(f"folder:{folder}", None, seed=0)


def test_a_declared_column_groups_records_and_is_no_feature(clinics):
    data = read(clinics)
    north, south = data.natural
    assert data.task.unit == "patient"
    assert north.records.x.tolist() == [[50, 70], [61, 0], [47, 88], [50, 70], [20, 60]]
    assert north.records.patient_numbers().tolist() == [0, 1, 0, 1, 2], "7 and 7.0 are one key"
    assert (north.records.patients, north.holdout.patients, south.records.patients) == (3, 1, 2)
    assert south.records.patient_numbers().tolist() == [0, 1, 0]
    # A key has one label wherever it is read, so the same patient is found again in another file.
    assert north.records.group[1] == patient_labels(["7"])[0]


def test_public_records_need_no_patient(clinics):
    for table in ("age,label,weight\n33,0,60\n", "age,person,label,weight\n33,,0,60\n"):
        (clinics / "public_test.csv").write_text(table)
        public = read(clinics).public_test
        assert public.group is None
        assert public.x.tolist() == [[33, 60]]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("north/train.csv", "age,label,weight\n50,0,70\n", r"train.csv:1: no column is named 'person'"),
        ("north/train.csv", "age,person,label,weight\n5,a,0,7\n5,,0,7\n", r"train.csv:3:2: the record has no patient"),
        ("north/test.csv", "age,person,label,weight\n5,a-1,0,7\n5,B,0,7\n", "north: 2 patients are in train and in te"),
        ("dataset.toml", DECLARATION + "records = 9\n", r"dataset.toml:5: records: .* write patients = 900"),
        ("dataset.toml", DECLARATION.replace('"person"', '"label"'), r"dataset.toml:4: patient: not the name"),
        ("dataset.toml", DECLARATION.replace('"person"', "3"), r"dataset.toml:4: patient: not the name"),
        ("dataset.toml", DECLARATION + 'columns = ["age", "person"]\n', "patient: the column is among the features"),
        ("dataset.toml", DECLARATION.replace('patient = "person"', "patients = 4"), r":4: patients: .* records = 900"),
        ("dataset.toml", DECLARATION + "patients = 0\n", r"dataset.toml:5: patients: not a positive"),
    ],
)
def test_bad_patients_are_refused(clinics, file, content, said):
    (clinics / file).write_text(content)
    with pytest.raises(DataError, match=said) as refused:
        read(clinics)
    assert "a-1" not in str(refused.value), "keys are patients' own"


@pytest.mark.parametrize(
    ("patient", "said"),
    [
        (None, "patient is missing"),
        (np.array([5, 6]), r"patient is int64 of shape \(2,\)"),
        (np.array([5.0, 6.0, np.nan]), "patient is float64"),
        (np.array(["a", " ", "b"]), r"patient\[1\] is empty"),
    ],
)
def test_bad_npz_patients_are_refused(clinics, patient, said):
    named = {} if patient is None else {"patient": patient}
    np.savez(clinics / "south" / "train.npz", X=np.ones((3, 2)), y=np.array([1, 0, 1]), **named)
    with pytest.raises(DataError, match=said):
        read(clinics)


def test_the_public_total_is_that_of_patients(clinics):
    (clinics / "dataset.toml").write_text(DECLARATION + "patients = 5\n")
    assert read(clinics).task.nominal_records == 5
    assert read_declaration(clinics).patient == "person"


def test_two_keys_of_one_hash_are_refused(monkeypatch):
    monkeypatch.setattr(patients_module, "_label", lambda key: 4)
    assert patient_labels(["a", "a"]).tolist() == [4, 4]
    with pytest.raises(DataError, match="same hash"):
        patient_labels(["a", "b"])


@given(GROUPS, st.floats(0.05, 0.95), st.integers(0, 2**32))
def test_hold_out_keeps_patients_whole(values, fraction, seed):
    records = grouped(values)
    train, holdout = hold_out(records, fraction, seed, "silo")
    patients = len(set(values))
    assert not patients_of(train) & patients_of(holdout)
    assert len(train) + len(holdout) == len(values)
    assert holdout.patients == min(max(round(fraction * patients), 1), patients - 1)


@given(GROUPS, st.integers(0, 2**32))
def test_a_patient_s_key_decides_its_part(values, seed):
    """Neither the others nor its own records move a patient."""
    records = grouped(values)
    try:
        train, holdout = hold_out_by_record(records, 0.5, seed, "silo")
    except DataError:
        return  # all fell on one side
    assert not patients_of(train) & patients_of(holdout)
    assert len(train) + len(holdout) == len(values)
    part = {patient: patient in patients_of(holdout) for patient in values}
    fewer = records.take(records.group != values[0])
    changed = Records(-fewer.x, fewer.y, fewer.group)
    try:
        held = patients_of(hold_out_by_record(changed, 0.5, seed, "silo")[1])
    except DataError:
        return
    assert all((patient in held) == part[patient] for patient in patients_of(fewer))


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "pathological:2"])
def test_partitions_keep_patients_whole(how):
    values = np.repeat(np.arange(90), np.arange(90) % 4 + 1)
    np.random.default_rng(0).shuffle(values)
    records = grouped(values.tolist())
    parts = partition(records, how, 4, seed=1)
    seen = [patients_of(part) for part in parts]
    assert sum(len(s) for s in seen) == len(set().union(*seen)) == 90
    numbers = np.concatenate([part.x[:, 0] for part in parts])
    assert np.array_equal(np.sort(numbers), np.arange(len(values)))
    with pytest.raises(ConfigError, match="90 patients are enough for at most 45"):
        partition(records, how, 60, seed=1)


def test_files_keep_patients(tmp_path):
    records = grouped([3, 3, 9])
    records.save(tmp_path / "r.npz")
    assert np.array_equal(Records.load(tmp_path / "r.npz").group, [3, 3, 9])
    assert np.array_equal(Records.concatenate([records, records]).group, [3, 3, 9, 3, 3, 9])
    with pytest.raises(DataError, match="with and without patients"):
        Records.concatenate([records, Records(records.x, records.y)])
    for wrong in (np.array([1, 2]), np.array([1.0, 2.0, 3.0])):
        with pytest.raises(DataError, match="do not match 3 records"):
            Records(records.x, records.y, wrong)


def test_a_silo_never_trains_on_a_patient_it_holds_out(tmp_path):
    with pytest.raises(DataError, match="1 patients are trained on and held out"):
        SiloData(grouped([1, 1, 2]), grouped([2, 3]))
    write_silo(tmp_path / "data", grouped([1, 1, 2]), grouped([4, 3]))
    task = Task("toy", "multiclass", (1,), 3, ("a", "b", "c"), "mlp", unit="patient")
    assert read_silo(tmp_path / "data", task).train.patients == 2
    with pytest.raises(DataError, match="names patients, but the unit of task toy is the record"):
        read_silo(tmp_path / "data", Task("toy", "multiclass", (1,), 3, ("a", "b", "c"), "mlp"))
    with pytest.raises(DataError, match="names no patient"):
        LoadedData(task, None, None, (NamedRecords("north", Records(np.ones((1, 1), np.float32), np.zeros(1, int))),))
    with pytest.raises(ConfigError, match="unit 'visit'"):
        Task("toy", "binary", (1,), 2, ("a", "b"), "mlp", unit="visit")
