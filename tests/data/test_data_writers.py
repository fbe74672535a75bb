from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from autoflip_secure.data.registry import load
from autoflip_secure.data.writers import LABELS_FILE, load_mnist_writers
from autoflip_secure.errors import DataError

DIGITS = (3, 1, 4, 1, 5)
WRITERS = (70, 2, 70, 2, 70)


def idx(values, code):
    values = np.asarray(values)
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(header + values.astype({8: np.uint8, 12: ">i4"}[code]).tobytes())


def extended(digits=DIGITS, writers=WRITERS, columns=8):
    rows = np.zeros((len(digits), columns), np.int64)
    rows[:, 0], rows[:, 2], rows[:, 3] = digits, writers, 99
    return rows


@pytest.fixture
def folders(tmp_path):
    """Five images of two writers, each full of its number; two images to score on."""
    mnist, writers = tmp_path / "mnist", tmp_path / "qmnist-writers"
    mnist.mkdir()
    writers.mkdir()
    for part, digits in (("train", DIGITS), ("t10k", (0, 9))):
        images = np.repeat(np.arange(len(digits)), 28 * 28).reshape(-1, 28, 28)
        (mnist / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images, 8))
        (mnist / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(digits, 8))
    (writers / LABELS_FILE).write_bytes(idx(extended(), 12))
    return mnist, writers


def test_silos_are_writers(folders):
    data = load("mnist-writers", folders[0].parent, seed=0)
    found = {silo.name: np.rint(silo.records.x[:, 0, 0, 0] * 255).tolist() for silo in data.natural}
    assert found == {"writer-0002": [1, 3], "writer-0070": [0, 2, 4]}
    assert [silo.records.y.tolist() for silo in data.natural] == [[1, 1], [3, 4, 5]]
    assert data.train.y.tolist() == [1, 1, 3, 4, 5]
    assert data.public_test.y.tolist() == [0, 9]
    assert (data.task.name, data.task.nominal_records, data.task.default_model) == ("mnist-writers", 5, "femnist-cnn")
    assert data.default_partition == "natural"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (idx(extended(digits=(3, 1, 4, 1, 6)), 12), "row 4 has another digit"),
        (idx(extended(writers=(1, 2, -3, 4, 5)), 12), "row 2 has a negative writer"),
        (idx(extended(columns=7), 12), r"has shape \(5, 7\), not 8 columns for 5 images"),
        (idx(extended(DIGITS[:4], WRITERS[:4]), 12), r"has shape \(4, 8\), not 8 columns for 5 images"),
        (idx(extended(), 8), "an idx file of 32-bit integers in 2 dimensions starts with 0x00000c02"),
        (gzip.compress(gzip.decompress(idx(extended(), 12))[:-1]), r"ends after 159 bytes; shape \(5, 8\) needs 160"),
        (idx(extended(), 12)[:-9], "not a whole gzip file"),
        (None, "no such file"),
    ],
)
def test_malformed_writers(folders, content, said):
    path = folders[1] / LABELS_FILE
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_mnist_writers(*folders)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_539_writers_of_mnist(shared_data):
    data = load("mnist-writers", shared_data, seed=0)
    sizes = [len(silo.records) for silo in data.natural]
    assert (len(sizes), min(sizes), int(np.median(sizes)), max(sizes)) == (539, 19, 116, 131)
    assert (sum(sizes), len(data.public_test)) == (60000, 10000)
    mnist = load("mnist", shared_data, seed=0)
    assert np.bincount(data.train.y).tolist() == np.bincount(mnist.train.y).tolist()
    # The first record of MNIST, a five, is of writer 2154.
    first = next(silo.records for silo in data.natural if silo.name == "writer-2154")
    assert any(np.array_equal(x, mnist.train.x[0]) for x in first.x[first.y == 5])
