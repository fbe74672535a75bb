"""Tiny ImageNet in its published folders (Le and Yang 2015, Stanford CS231n): 200 classes of 64 x 64 photographs.

PATH/wnids.txt                     the classes' WordNet ids, one a line
PATH/train/WNID/images/*.JPEG      500 a class
PATH/val/images/*.JPEG             with val/val_annotations.txt: file name, class and box, separated by tabs

The part "test" has no labels and is not used: the part "val" is the public test part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoflip_secure.data.arrays import existing_file, existing_folder
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.photographs import decode_jpeg, photo_records
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError

__all__ = ["load_tiny_imagenet"]

SIDE = 64
CLASSES = 200
AGAIN = "fetch the data set again, or correct --data-dir"


def load_tiny_imagenet(folder: Path) -> LoadedData:
    """Tiny ImageNet: 100,000 train, 10,000 public test, which as float32 take 5.4 GB of memory.

    Raises
    ------
    DataError
        A file is missing or malformed; the message names it, in text files with its line.
    """
    existing_folder(folder, "it must hold wnids.txt, train and val")
    classes = _class_ids(folder / "wnids.txt")
    train = _train_files(folder / "train", classes)
    test = _test_files(folder / "val", classes)
    task = Task(
        "tiny-imagenet", "multiclass", (3, SIDE, SIDE), CLASSES, classes, "cnn6", nominal_records=len(train)
    )  # fmt: skip
    return LoadedData(task, _read(train), _read(test), natural=None)


def _lines(path: Path) -> list[str]:
    existing_file(path, AGAIN)
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text; {AGAIN}") from error


def _class_ids(path: Path) -> tuple[str, ...]:
    ids = [line.strip() for line in _lines(path) if line.strip()]
    for number, name in enumerate(ids, start=1):
        # The id names a folder: anything but letters and digits could point elsewhere.
        if not (name.isascii() and name.isalnum()) or name in ids[: number - 1]:
            raise DataError(f"{path}:{number}: not a new WordNet id such as n02124075; {AGAIN}")
    if len(ids) != CLASSES:
        raise DataError(f"{path}: lists {len(ids)} classes, not {CLASSES}; {AGAIN}")
    return tuple(ids)


def _train_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        images = existing_folder(folder / name / "images", AGAIN)
        found = sorted(images.glob("*.JPEG"))
        if not found:
            raise DataError(f"{images}: holds no file *.JPEG; {AGAIN}")
        files += [(path, label) for path in found]
    return files


def _test_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    annotations = folder / "val_annotations.txt"
    label_of = {name: label for label, name in enumerate(classes)}
    files: dict[str, int] = {}
    for number, line in enumerate(_lines(annotations), start=1):
        name, label = (*line.split("\t"), "")[:2]
        if Path(name).name != name or not name or label not in label_of or name in files:
            raise DataError(f"{annotations}:{number}: not a new file name, a tab and one of the classes; {AGAIN}")
        files[name] = label_of[label]
    if not files:
        raise DataError(f"{annotations}: is empty; {AGAIN}")
    return [(folder / "images" / name, label) for name, label in files.items()]


def _read(files: list[tuple[Path, int]]) -> Records:
    images = np.empty((len(files), 3, SIDE, SIDE), np.uint8)
    for image, (path, _) in zip(images, files, strict=True):
        existing_file(path, AGAIN)
        try:
            image[:] = decode_jpeg(path.read_bytes(), SIDE, str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    return photo_records(images, np.array([label for _, label in files]))
