"""Image data sets below `--data-dir`: mnist and fashion-mnist (idx), pneumonia-mnist (npz). All are public."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.arrays import existing_folder, read_idx, read_npz
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError

__all__ = ["load_fashion_mnist", "load_mnist", "load_pneumonia_mnist"]

SIDE = 28
WHITE = np.float32(255.0)
FASHION_NAMES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
PNEUMONIA_FILES = ("pneumoniamnist.npz", "pneumoniamnist_reassembled.npz")


def load_mnist(folder: Path) -> LoadedData:
    """MNIST: 60,000 train, 10,000 public test (LeCun, Cortes, Burges)."""
    return _load_idx_set("mnist", folder, tuple(str(digit) for digit in range(10)), "cnn-tanh")


def load_fashion_mnist(folder: Path) -> LoadedData:
    """Fashion-MNIST: 60,000 train, 10,000 public test (Xiao et al. 2017, arXiv 1708.07747)."""
    return _load_idx_set("fashion-mnist", folder, FASHION_NAMES, "cnn-tanh")


def _load_idx_set(name: str, folder: Path, class_names: tuple[str, ...], model: str) -> LoadedData:
    existing_folder(folder, "it must hold train-images-idx3-ubyte.gz and the three files that go with it")
    train, test = (_read_idx_part(folder, part, len(class_names)) for part in ("train", "t10k"))
    task = Task(name, "multiclass", (1, SIDE, SIDE), len(class_names), class_names, model, nominal_records=len(train))
    return LoadedData(task, train, test, natural=None)


def _read_idx_part(folder: Path, part: str, classes: int) -> Records:
    image_path = folder / f"{part}-images-idx3-ubyte.gz"
    label_path = folder / f"{part}-labels-idx1-ubyte.gz"
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    return _image_records(images, labels, classes, image_path, label_path, image_path.name, label_path.name)


def load_pneumonia_mnist(folder: Path) -> LoadedData:
    """PneumoniaMNIST: 4,708 train, 624 public test; the validation part is not used (Yang et al. 2023, MedMNIST v2)."""
    existing_folder(folder, f"it must hold {PNEUMONIA_FILES[0]}")
    path = next((folder / name for name in PNEUMONIA_FILES if (folder / name).is_file()), folder / PNEUMONIA_FILES[0])
    arrays = read_npz(path, ("train_images", "train_labels", "test_images", "test_labels"))
    train, test = (
        _image_records(arrays[images], _one_column(arrays[labels]), 2, path, path, images, labels)
        for images, labels in (("train_images", "train_labels"), ("test_images", "test_labels"))
    )
    task = Task(
        "pneumonia-mnist", "binary", (1, SIDE, SIDE), 2, ("normal", "pneumonia"), "cnn-tanh", nominal_records=len(train)
    )
    return LoadedData(task, train, test, natural=None)


def _one_column(labels: NDArray[np.generic]) -> NDArray[np.generic]:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _image_records(
    images: NDArray[np.generic],
    labels: NDArray[np.generic],
    classes: int,
    image_path: Path,
    label_path: Path,
    image_name: str,
    label_name: str,
) -> Records:
    """Grey images as float32 in [0, 1], shape (n, 1, 28, 28)."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise DataError(
            f"{image_path}: {image_name} is {images.dtype} of shape {images.shape}, "
            f"not uint8 images of {SIDE} x {SIDE}; fetch it again"
        )
    if labels.dtype != np.uint8 or labels.shape != (len(images),):
        raise DataError(
            f"{label_path}: {label_name} is {labels.dtype} of shape {labels.shape}, not uint8 labels "
            f"of {len(images)} images; fetch it again"
        )
    beyond = np.flatnonzero(labels >= np.uint8(classes))
    if beyond.size:
        raise DataError(f"{label_path}: label {int(beyond[0])} of {label_name} is not below {classes}; fetch it again")
    x = np.divide(images, WHITE, dtype=np.float32).reshape(-1, 1, SIDE, SIDE)
    return Records(x, labels.astype(np.int64))
