"""CIFAR-10 as JPEG files in one tar.xz, read member by member in memory: nothing is unpacked to disk."""

from __future__ import annotations

import lzma
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autoflip_secure.data.photographs import decode_jpeg, photo_records
from autoflip_secure.data.records import Records
from autoflip_secure.errors import DataError

__all__ = ["JPEG_ARCHIVE", "read_jpeg_archive"]

JPEG_ARCHIVE = "cifar10_jpeg_q75.tar.xz"
MEMBER = re.compile(r"(train|test)/([a-z]+)/[0-9]{4}\.jpg")
LARGEST_PICTURE = 1 << 16  # bytes; a 32 x 32 JPEG of any quality is far smaller


def read_jpeg_archive(path: Path, class_names: tuple[str, ...], side: int) -> dict[str, Records]:
    """The parts train and test of an archive of {train,test}/CLASS/NNNN.jpg.

    Raises
    ------
    DataError
        A damaged archive, a member that is neither such a picture nor a folder, one that is there twice, or a part
        without pictures; the message names archive and member.
    """
    labels = {name: index for index, name in enumerate(class_names)}
    found: dict[str, tuple[list[np.ndarray], list[int]]] = {"train": ([], []), "test": ([], [])}
    for part, class_name, where, content in _pictures(path):
        if class_name not in labels:
            raise DataError(f"{where}: no class is named {class_name}; fetch the archive again")
        images, classes = found[part]
        images.append(decode_jpeg(content, side, where))
        classes.append(labels[class_name])
    for part, (images, _) in found.items():
        if not images:
            raise DataError(f"{path}: holds no picture of the part {part}; fetch it again")
    return {part: photo_records(np.stack(images), np.array(classes)) for part, (images, classes) in found.items()}


def _pictures(path: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """(part, class, place for messages, content) of each picture, in the order of the archive."""
    try:
        with lzma.open(path) as content:
            with tarfile.open(fileobj=content, mode="r|") as archive:
                yield from _members(path, archive)
            # The checksums of xz come last, behind what tar reads.
            while content.read(1 << 20):
                pass
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a whole tar.xz archive; fetch it again") from error


def _members(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, str, str, bytes]]:
    seen: set[str] = set()
    for member in archive:
        if member.isdir():
            continue
        where = f"{path}: member {member.name[:80]!r}"
        name = MEMBER.fullmatch(member.name)
        # A link or device would make "its content" that of something else.
        if name is None or not member.isreg() or member.name in seen:
            raise DataError(f"{where}: not a picture such as train/cat/0001.jpg, or there twice")
        if member.size > LARGEST_PICTURE:
            raise DataError(f"{where}: {member.size} bytes are too large for a picture of its size")
        seen.add(member.name)
        stream = archive.extractfile(member)
        assert stream is not None, "regular members have content"
        yield name[1], name[2], where, stream.read()
