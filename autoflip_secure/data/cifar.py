"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their published binary versions, or CIFAR-10 as a JPEG copy. All public.

The versions "for Python" are pickles, which run code when they are read (torchvision reads those): they are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_file, existing_folder
from autoflip_secure.data.cifar_jpeg import JPEG_ARCHIVE, read_jpeg_archive
from autoflip_secure.data.cifar_names import CIFAR10_NAMES, CIFAR100_NAMES
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.photographs import photo_records
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError

__all__ = ["load_cifar10", "load_cifar100"]

SIDE = 32
SHAPE = (3, SIDE, SIDE)
PIXELS = 3 * SIDE * SIDE
BINARY_10, PICKLES_10 = "cifar-10-batches-bin", "cifar-10-batches-py"
BINARY_100, PICKLES_100 = "cifar-100-binary", "cifar-100-python"
COARSE_CLASSES = 20
LOSSY = "a JPEG copy of CIFAR-10 (quality 75, lossy): results are not comparable with those on the original"


def load_cifar10(folder: Path) -> LoadedData:
    """CIFAR-10: 50,000 train, 10,000 public test; the JPEG copy is read where the published files are not there.

    Raises
    ------
    DataError
        Neither is there, or a file is malformed; the message names it.
    """
    existing_folder(folder, f"it must hold {BINARY_10} or {JPEG_ARCHIVE}")
    archive = folder / JPEG_ARCHIVE
    if archive.is_file() and not (folder / BINARY_10).is_dir():
        parts = read_jpeg_archive(archive, CIFAR10_NAMES, SIDE)
        return _loaded("cifar10", parts["train"], parts["test"], CIFAR10_NAMES, LOSSY)
    binary = _binary_folder(folder, BINARY_10, PICKLES_10)
    train = Records.concatenate([_read_10(binary / f"data_batch_{number}.bin") for number in range(1, 6)])
    return _loaded("cifar10", train, _read_10(binary / "test_batch.bin"), CIFAR10_NAMES)


def load_cifar100(folder: Path) -> LoadedData:
    """CIFAR-100 by its 100 fine labels: 50,000 train, 10,000 public test.

    Raises
    ------
    DataError
        A file is missing or malformed; the message names it.
    """
    existing_folder(folder, f"it must hold {BINARY_100}")
    binary = _binary_folder(folder, BINARY_100, PICKLES_100)
    train, test = (_read_100(binary / f"{part}.bin") for part in ("train", "test"))
    return _loaded("cifar100", train, test, CIFAR100_NAMES)


def _loaded(name: str, train: Records, test: Records, class_names: tuple[str, ...], note: str = "") -> LoadedData:
    task = Task(name, "multiclass", SHAPE, len(class_names), class_names, "cnn6", nominal_records=len(train), note=note)
    return LoadedData(task, train, test, natural=None)


def _binary_folder(folder: Path, name: str, pickles: str) -> Path:
    if (folder / pickles).is_dir() and not (folder / name).is_dir():
        raise DataError(
            f"{folder / pickles}: Python pickles, which are not read because they run code; "
            f"fetch the binary version, the folder {name}"
        )
    return existing_folder(folder / name, "fetch the binary version of the data set, or correct --data-dir")


def _read_10(path: Path) -> Records:
    labels, images = _read_binary(path, (len(CIFAR10_NAMES),))
    return photo_records(images, labels[:, 0])


def _read_100(path: Path) -> Records:
    labels, images = _read_binary(path, (COARSE_CLASSES, len(CIFAR100_NAMES)))
    return photo_records(images, labels[:, 1])


def _read_binary(path: Path, classes: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels of shape (n, kinds) and images of shape (n, 3, 32, 32).

    Layout of a record, with nothing between records: a byte for each kind of label, then 1,024 bytes each of red, green
    and blue, row by row (https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version").
    """
    existing_file(path, "fetch the data set again, or correct --data-dir")
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    size = len(classes) + PIXELS
    if content.size == 0 or content.size % size:
        raise DataError(f"{path}: has {content.size} bytes, which is no multiple of {size} a record; fetch it again")
    records = content.reshape(-1, size)
    labels, images = records[:, : len(classes)], records[:, len(classes) :]
    beyond = np.argwhere(labels >= np.array(classes))
    if beyond.size:
        row, kind = beyond[0].tolist()
        raise DataError(f"{path}: record {row} has label {labels[row, kind]}, not below {classes[kind]}")
    return labels, images.reshape(-1, *SHAPE)
