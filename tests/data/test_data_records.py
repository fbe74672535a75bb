from __future__ import annotations

import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoflip_secure.data.arrays import read_npz
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo, write_silo
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError, StorageError

TASK = Task("toy", "multiclass", (4,), 3, ("a", "b", "c"), "mlp", 12)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.zeros((2, 3)), np.zeros(2, np.int64), "float32"),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.int32), "int64"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64), "do not match"),
        (np.zeros(2, np.float32), np.zeros(2, np.int64), "do not match"),
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64), "no record"),
        (np.array([[0], [np.nan]], np.float32), np.zeros(2, np.int64), "record 1 "),
        (np.zeros((2, 3), np.float32), np.array([0, -1]), "record 1 "),
    ],
)
def test_records_refuse(x, y, said):
    with pytest.raises(DataError, match=said):
        Records(x, y)


def test_repr_shows_no_values():
    records = Records(np.full((2, 3), 123.25, np.float32), np.array([7, 7]))
    assert repr(records) == "Records(2 of shape (3,))"


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 3)), elements=st.floats(-9, 9, width=32)))
def test_records_round_trip(tmp_path_factory, x):
    path = tmp_path_factory.mktemp("records") / "r.npz"
    Records(x, np.arange(len(x))).save(path)
    back = Records.load(path)
    assert np.array_equal(back.x, x)
    assert np.array_equal(back.y, np.arange(len(x)))
    assert back.x.dtype == np.float32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_take_and_concatenate(make_records):
    records = make_records(9)
    first, rest = records.take(np.arange(4)), records.take(np.arange(9) >= 4)
    whole = Records.concatenate([first, rest])
    assert np.array_equal(whole.x, records.x)
    assert np.array_equal(whole.y, records.y)
    with pytest.raises(DataError, match="one shape"):
        Records.concatenate([records, make_records(3, shape=(5,))])
    with pytest.raises(DataError, match="one shape"):
        Records.concatenate([])


def damage_nothing_there(path):
    path.unlink()


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF  # inside the stored array: the archive's checksum notices
    path.write_bytes(content)


def damage_pickle(path):
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=np.zeros(1, np.int64))


def damage_text(path):
    path.write_text("x,y\n")


def damage_missing_array(path):
    np.savez(path, x=np.zeros((1, 1), np.float32))


def damage_types(path):
    np.savez(path, x=np.zeros((1, 1)), y=np.zeros(1))


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_there,
        damage_truncate,
        damage_flip,
        damage_pickle,
        damage_text,
        damage_missing_array,
        damage_types,
    ],
)
def test_damaged_file_is_a_one_line_error_naming_it(tmp_path, make_records, damage):
    path = tmp_path / "train.npz"
    make_records(20).save(path)
    damage(path)
    with pytest.raises(DataError) as caught:
        Records.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_npz_objects_are_never_unpickled(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (marker.write_text, ("x",))

    path = tmp_path / "bad.npz"
    np.savez(path, x=np.array([Payload()], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        read_npz(path, ("x",))
    assert not marker.exists()


def test_silo_folder_round_trip_and_modes(tmp_path, make_records):
    directory = tmp_path / "silo"
    write_silo(directory, make_records(8), make_records(3, seed=1))
    data = read_silo(directory, TASK)
    assert (len(data.train), len(data.holdout)) == (8, 3)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}


def test_silo_folder_rewritten_without_holdout_forgets_the_old_one(tmp_path, make_records):
    write_silo(tmp_path, make_records(8), make_records(3))
    write_silo(tmp_path, make_records(5), None)
    data = read_silo(tmp_path)
    assert len(data.train) == 5
    assert data.holdout is None


def test_silo_folder_that_does_not_fit(tmp_path, make_records):
    with pytest.raises(DataError, match="holdout"):
        write_silo(tmp_path, make_records(8), make_records(3, shape=(5,)))
    write_silo(tmp_path, make_records(8, classes=4), None)
    with pytest.raises(DataError, match=r"train\.npz: .*beyond the 3 classes"):
        read_silo(tmp_path, TASK)
    write_silo(tmp_path, make_records(8), make_records(8, classes=4))
    with pytest.raises(DataError, match=r"holdout\.npz: .*beyond"):
        read_silo(tmp_path, TASK)
    with pytest.raises(DataError, match="no such folder"):
        read_silo(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="nothing was changed"):
        write_silo(tmp_path / "file", make_records(8), None)
