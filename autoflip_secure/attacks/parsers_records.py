"""Parsers of records: data sets as they were published, and institutions' own tables."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autoflip_secure.attacks.parser_calls import Parser, a_file, in_folder
from autoflip_secure.attacks.parser_samples import Samples, function_of, idx_bytes, leaf_json, npz_bytes, packed_idx

__all__ = ["record_parsers"]


def record_parsers(s: Samples) -> Iterator[Parser]:
    """Data sets as they were published, and institutions' own tables."""
    table = b"a,b,label\n1,2,0\n3,,1\n5,6,1\n7,8,0\n"
    declaration = (
        b'task = "classification"\nclasses = [0, 1]\nfeatures = 2\nrecords = 40\nminimum = 0\nmaximum = [9, 9]\n'
    )
    survival = b'task = "survival"\nfeatures = 2\ncuts = [4.0]\nhazards = [0.03, 0.03]\npatient = "id"\npatients = 90\n'
    followed = b"id,a,b,event,time\np,1,2,0,3.5\nq,3,,1,1\nr,5,6,1,0\n"
    arrays = npz_bytes(X=np.ones((4, 2)), y=np.array([0, 1, 1, 0]))
    own = {"dataset.toml": declaration, "north/train.csv": table, "south/train.npz": arrays}
    for name in own:
        yield Parser("data.folder:load_folder", [own[name]], in_folder(name, own), name)
    patients = {"dataset.toml": survival, "north/train.csv": followed, "south/train.csv": followed}
    for name in ("dataset.toml", "north/train.csv"):
        yield Parser("data.folder:load_folder", [patients[name]], in_folder(name, patients), f"survival, {name}")
    declared = function_of("deployment.federation_file:declared")(declaration.decode())
    yield Parser(
        "data.folder:read_own_records", [table],
        lambda f, data, folder: in_folder("train.csv", {})(lambda place: f(place, declared), data, folder),
    )  # fmt: skip
    yield Parser(
        "data.folder:read_public_test", [table],
        lambda f, data, folder: a_file("test.csv")(lambda path: f(path, declared), data, folder),
    )  # fmt: skip
    yield Parser("data.declaration:read_declaration", [declaration, survival], in_folder("dataset.toml", {}))
    yield Parser("data.tables:read_table", [table, followed], a_file("table.csv"))
    squeezed = npz_bytes(compressed=True, X=np.ones((4, 2)), y=np.array([0, 1, 1, 0]))
    yield Parser(
        "data.arrays:read_npz", [arrays, squeezed],
        lambda f, data, folder: a_file("a.npz")(lambda path: f(path, ("X", "y")), data, folder),
    )  # fmt: skip
    held = npz_bytes(x=np.ones((3, 2), np.float32), y=np.array([0, 1, 0]), group=np.arange(3))
    others = npz_bytes(x=np.ones((1, 2), np.float32), y=np.array([0]), group=np.array([7]))
    yield Parser("data.records:Records.load", [held], a_file("train.npz"))
    yield Parser("data.silo_folder:read_silo", [held], in_folder("train.npz", {"holdout.npz": others}))
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([0, 1, 2], np.uint8)
    mnist = {
        f"{part}-{kind}.gz": packed_idx(values)
        for part in ("train", "t10k")
        for kind, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels))
    }
    for function in ("load_mnist", "load_fashion_mnist"):
        name = "train-labels-idx1-ubyte.gz"
        yield Parser(f"data.images:{function}", [idx_bytes(labels)], in_folder(name, mnist, _gzipped))

    def reading(f: Any, data: bytes, folder: Path) -> object:
        return a_file("x.gz")(lambda path: f(path, 3), data, folder)

    yield Parser("data.arrays:read_idx", [packed_idx(images)], reading)
    yield Parser(
        "data.arrays:read_idx",
        [idx_bytes(images)],
        lambda f, data, folder: reading(f, _gzipped(data), folder),
        "inside",
    )
    writers = np.zeros((3, 8), np.int32)
    writers[:, 0] = labels
    yield Parser(
        "data.writers:load_mnist_writers", [idx_bytes(writers)],
        lambda f, data, folder: in_folder("qmnist-train-labels-idx2-int.gz", mnist, _gzipped)(
            lambda place: f(place, place), data, folder
        ),
    )  # fmt: skip
    medical = npz_bytes(
        **{f"{part}_images": images for part in ("train", "test")},
        **{f"{part}_labels": labels[:, None] % 2 for part in ("train", "test")},
    )
    yield Parser("data.images:load_pneumonia_mnist", [medical], in_folder("pneumoniamnist.npz", {}))
    record = bytes(1) + bytes(3072)
    batches = {
        f"cifar-10-batches-bin/{n}.bin": record for n in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    }
    yield Parser("data.cifar:load_cifar10", [record], in_folder("cifar-10-batches-bin/test_batch.bin", batches))
    hundred = {f"cifar-100-binary/{part}.bin": bytes(1) + record for part in ("train", "test")}
    yield Parser("data.cifar:load_cifar100", [bytes(1) + record], in_folder("cifar-100-binary/test.bin", hundred))
    classes = ("cat", "dog")

    def archive(f: Any, data: bytes, folder: Path) -> object:
        return a_file("a.tar.xz")(lambda path: f(path, classes, 32), data, folder)

    yield Parser("data.cifar_jpeg:read_jpeg_archive", [lzma.compress(s.archive, preset=0)], archive)
    yield Parser(
        "data.cifar_jpeg:read_jpeg_archive", [s.archive],
        lambda f, data, folder: archive(f, lzma.compress(data, preset=0), folder), "inside",
    )  # fmt: skip
    yield Parser("data.photographs:decode_jpeg", [s.jpeg], lambda f, data, _: f(data, 32, "a picture"))
    leaf = leaf_json([[0.5] * 784] * 2, [0, 61])
    written = {f"data/{part}/a.json": leaf for part in ("train", "test")}
    yield Parser("data.femnist:load_femnist", [leaf], in_folder("data/train/a.json", written))
    play = leaf_json(["a" * 80] * 2, ["a", "b"])
    played = {f"data/{part}/a.json": play for part in ("train", "test")}
    yield Parser("data.shakespeare:load_shakespeare", [play], in_folder("data/train/a.json", played))
    yield Parser(
        "data.leaf:read_leaf", [play],
        lambda f, data, folder: in_folder("data/train/a.json", played)(
            lambda place: f(place, function_of("data.shakespeare:_encode")), data, folder
        ),
    )  # fmt: skip
    yield Parser("data.plays:read_speakers", [b"First Citizen:\nBefore we go.\n\nAll:\nSpeak.\n"], a_file("input.txt"))
    patient = b"63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n67,1,4,?,286,0,2,108,1,1.5,2,3,3,2\n"
    hospitals = {f"processed.{n}.data": patient for n in ("cleveland", "hungarian", "switzerland", "va")}
    yield Parser("data.heart:load_heart", [patient], in_folder("processed.va.data", hospitals))
    split = b"pid,fold,fold2\nTCGA-1,train,train_0\nTCGA-2,test,test_0\n"
    yield Parser(
        "data.tcga_brca:load_tcga_brca",
        [split],
        in_folder("train_test_split.csv", {"brca.csv": b"pid,E,T\nTCGA-1,0,3\n"}),
    )
    yield Parser("data.tiny_imagenet:load_tiny_imagenet", [b"n01\nn02\n"], in_folder("wnids.txt", {}))


def _gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)
