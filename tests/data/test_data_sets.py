from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from autoflip_secure.data.heart import FEATURE_NAMES, load_heart
from autoflip_secure.data.images import load_mnist, load_pneumonia_mnist
from autoflip_secure.data.names import DATASETS
from autoflip_secure.data.registry import load
from autoflip_secure.errors import ConfigError, DataError

HEART_LINE = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"


def rows(x):
    return {row.tobytes() for row in x.reshape(len(x), -1)}


def test_mnist5k():
    data = load("mnist5k", None, seed=1)
    assert (len(data.train), len(data.public_test)) == (4000, 1000)
    assert np.bincount(data.train.y).tolist() == [400] * 10
    assert np.bincount(data.public_test.y).tolist() == [100] * 10
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    assert data.task.input_shape == (1, 28, 28)
    assert data.task.nominal_records == 4000
    assert data.natural is None
    assert data.default_partition == "dirichlet:0.5"
    assert len(rows(data.train.x) | rows(data.public_test.x)) == 5000
    again = load("mnist5k", None, seed=2)
    assert np.array_equal(again.public_test.x, data.public_test.x)


def test_digits():
    data = load("digits", None, seed=0)
    assert data.task.input_shape == (1, 8, 8)
    assert len(data.train) == data.task.nominal_records
    assert len(data.train) + len(data.public_test) == 1797
    assert abs(len(data.public_test) / 1797 - 0.2) < 0.01
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)


def test_breast_cancer_is_scaled_by_public_records_alone():
    data = load("breast-cancer", None, seed=0)
    assert data.task.kind == "binary"
    assert len(data.train) == data.task.nominal_records == 456
    assert np.allclose(data.public_test.x.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(data.public_test.x.std(axis=0), 1, atol=1e-5)
    assert not np.allclose(data.train.x.mean(axis=0), 0, atol=1e-3)
    # The larger tumour is the malignant one: class 1 must be the disease.
    assert data.train.x[data.train.y == 1, 0].mean() > data.train.x[data.train.y == 0, 0].mean()


def test_heart(shared_data):
    data = load("heart", shared_data, seed=0)
    assert [(silo.name, len(silo.records), int(silo.records.y.sum())) for silo in data.natural] == [
        ("Cleveland", 303, 139),
        ("Hungarian", 294, 106),
        ("Switzerland", 123, 115),
        ("VA", 200, 149),
    ]
    assert data.public_test is None
    assert data.default_partition == "natural"
    assert data.task.input_shape == (len(FEATURE_NAMES),)
    assert np.abs(data.train.x).max() <= 1
    missing = FEATURE_NAMES.index("chol missing")
    swiss = data.natural[2].records.x
    assert swiss[:, missing].all()
    assert not swiss[:, FEATURE_NAMES.index("chol")].any()
    first = dict(zip(FEATURE_NAMES, data.natural[0].records.x[0].tolist(), strict=True))
    assert first["sex"] == 1
    assert first["age"] == pytest.approx((63 - 20) / 70 * 2 - 1)
    assert (first["cp=1"], first["cp=4"], first["thal=6"], first["thal=3"]) == (1, 0, 1, 0)


@pytest.mark.parametrize(("name", "size", "share"), [("mnist", 60000, None), ("fashion-mnist", 60000, 0.1)])
def test_idx_sets(shared_data, name, size, share):
    data = load(name, shared_data, seed=0)
    assert (len(data.train), len(data.public_test)) == (size, 10000)
    assert data.train.x.shape[1:] == (1, 28, 28)
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    if share:
        assert np.allclose(np.bincount(data.train.y) / size, share)
    assert data.train.y[:3].tolist() == {"mnist": [5, 0, 4], "fashion-mnist": [9, 0, 0]}[name]


def test_pneumonia_mnist(shared_data):
    data = load("pneumonia-mnist", shared_data, seed=0)
    assert np.bincount(data.train.y).tolist() == [1214, 3494]
    assert np.bincount(data.public_test.y).tolist() == [234, 390]
    assert data.task.kind == "binary"


def test_names_that_do_not_load(tmp_path):
    with pytest.raises(ConfigError, match=r"--dataset minst: unknown; use one of mnist5k, digits"):
        load("minst", None, seed=0)
    with pytest.raises(ConfigError, match=r"--data-dir PATH, with its files in PATH/heart-4-hospitals$"):
        load("heart", None, seed=0)
    with pytest.raises(ConfigError, match=r"in PATH/mnist and PATH/qmnist-writers$"):
        load("mnist-writers", None, seed=0)
    with pytest.raises(ConfigError, match=r"in PATH/shakespeare or PATH/tiny-shakespeare$"):
        load("shakespeare", None, seed=0)
    with pytest.raises(ConfigError, match="needs a path"):
        load("folder:", None, seed=0)
    with pytest.raises(DataError, match="no such folder"):
        load("heart", tmp_path / "absent", seed=0)
    with pytest.raises(DataError, match=r"heart-4-hospitals: no such folder; it must hold"):
        load("heart", tmp_path, seed=0)


@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if info.subfolders])
def test_absent_folders_are_named(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(name, tmp_path, seed=0)
    assert DATASETS[name].subfolders[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def heart_folder(tmp_path):
    for stem in ("cleveland", "hungarian", "switzerland", "va"):
        (tmp_path / f"processed.{stem}.data").write_text(HEART_LINE * 3)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (HEART_LINE.replace("145.0", "high"), "2:4: column 'trestbps'"),
        (HEART_LINE.replace("233.0", "inf"), "2:5: column 'chol'"),
        (HEART_LINE.replace("6.0,0\n", "5.0,0\n"), "2:13: column 'thal'"),
        (HEART_LINE.replace("6.0,0\n", "6.0,7\n"), "2:14: column 'num'"),
        (HEART_LINE.replace("6.0,0\n", "6.0,?\n"), "2:14: column 'num'"),
        (HEART_LINE.replace(",6.0", ""), "2:14: the line has 13 cells, not 14"),
        (HEART_LINE.replace("\n", ",1\n"), "2:15: the line has 15 cells, not 14"),
    ],
)
def test_malformed_heart_line(heart_folder, line, place):
    path = heart_folder / "processed.va.data"
    path.write_text(HEART_LINE + line + HEART_LINE)
    with pytest.raises(DataError) as caught:
        load_heart(heart_folder)
    assert str(caught.value).startswith(f"{path}:{place}")
    assert "\n" not in str(caught.value)


def test_heart_file_missing(heart_folder):
    (heart_folder / "processed.va.data").unlink()
    with pytest.raises(DataError, match=r"processed\.va\.data: no such file"):
        load_heart(heart_folder)


def idx(shape, body=None, kind=8):
    body = bytes(int(np.prod(shape))) if body is None else body
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


@pytest.fixture
def idx_folder(tmp_path):
    for part, size in (("train", 3), ("t10k", 2)):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx((size, 28, 28))))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx((size,))))
    return tmp_path


def test_small_idx_set_loads(idx_folder):
    assert len(load_mnist(idx_folder).train) == 3


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (IMAGES, b"not gzip", "not a whole gzip file"),
        (IMAGES, gzip.compress(idx((3, 28, 28)))[:-9], "not a whole gzip file"),
        (IMAGES, gzip.compress(idx((3, 28, 28), kind=9)), "byte 0: starts with"),
        (IMAGES, gzip.compress(idx((3,))), "byte 0: starts with|byte 11: ends inside"),
        (IMAGES, gzip.compress(idx((3, 28, 28))[:9]), "byte 9: ends inside its header"),
        (IMAGES, gzip.compress(idx((3, 28, 28))[:-1]), "byte 16: ends after 2351 bytes"),
        (IMAGES, gzip.compress(idx((3, 28, 28)) + b"x"), "byte 16: has more bytes"),
        (IMAGES, gzip.compress(idx((2**31, 2**31, 2), b"")), "byte 4: shape"),
        (IMAGES, gzip.compress(idx((3, 27, 28))), "not uint8 images of 28 x 28"),
        (LABELS, gzip.compress(idx((4,))), "not uint8 labels of 3 images"),
        (LABELS, gzip.compress(idx((3,), bytes([1, 10, 2]))), "label 1 of .* is not below 10"),
    ],
)
def test_malformed_idx(idx_folder, file, content, said):
    (idx_folder / file).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_mnist(idx_folder)
    assert str(caught.value).startswith(f"{idx_folder / file}: ")
    assert "\n" not in str(caught.value)


def test_idx_file_missing(idx_folder):
    (idx_folder / LABELS).unlink()
    with pytest.raises(DataError, match=f"{LABELS}: no such file"):
        load_mnist(idx_folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_images": np.zeros((3, 28, 28))}, "train_images is float64"),
        ({"test_labels": np.full((2, 1), 2, np.uint8)}, "label 0 of test_labels is not below 2"),
        ({"test_labels": np.zeros((3, 1), np.uint8)}, "not uint8 labels of 2 images"),
        ({"test_labels": None}, "test_labels is missing"),
    ],
)
def test_malformed_pneumonia(tmp_path, change, said):
    arrays = {
        "train_images": np.zeros((3, 28, 28), np.uint8), "train_labels": np.zeros((3, 1), np.uint8),
        "test_images": np.zeros((2, 28, 28), np.uint8), "test_labels": np.zeros((2, 1), np.uint8),
    }  # fmt: skip
    path = tmp_path / "pneumoniamnist.npz"
    np.savez(path, **arrays)
    assert len(load_pneumonia_mnist(tmp_path).train) == 3
    np.savez(path, **{name: value for name, value in (arrays | change).items() if value is not None})
    with pytest.raises(DataError, match=said) as caught:
        load_pneumonia_mnist(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
