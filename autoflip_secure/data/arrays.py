"""Strict readers of array files: npz without pickle, and the gzipped idx format of MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import DataError

__all__ = ["existing_file", "existing_folder", "read_idx", "read_npz"]

IDX_TYPES: dict[int, tuple[str, np.dtype[Any]]] = {
    0x08: ("unsigned bytes", np.dtype(np.uint8)),
    0x0C: ("32-bit integers", np.dtype(">i4")),
}
MAX_IDX_BYTES = 1 << 30
PIECE = 1 << 20
DAMAGED_ARCHIVE = (
    ValueError, OSError, EOFError, KeyError, NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def existing_folder(path: Path, purpose: str) -> Path:
    """`path` if it is a folder.

    Raises
    ------
    DataError
        It is not; the message says what should be there.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; {purpose}")
    return path


def existing_file(path: Path, purpose: str) -> Path:
    """`path` if it is a file.

    Raises
    ------
    DataError
        It is not; the message says what should be there.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {purpose}")
    return path


def read_npz(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, NDArray[np.generic]]:
    """Named arrays of an npz file, `optional` ones where they are there; Python objects are refused, never unpickled.

    Raises
    ------
    DataError
        Missing or damaged file, or an array that is not in it.
    """
    existing_file(path, f"write one with numpy.savez and the arrays {', '.join(names)}")
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise DataError(f"{path}: not an npz file; write it with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            absent = [name for name in names if name not in archive.files]
            if absent:
                raise DataError(
                    f"{path}: holds the arrays {', '.join(archive.files) or '(none)'}; {', '.join(absent)} is missing"
                )
            present = [name for name in optional if name in archive.files]
            return {name: archive[name] for name in (*names, *present)}
    except DAMAGED_ARCHIVE as error:
        raise DataError(f"{path}: damaged, or holds Python objects; write plain arrays with numpy.savez") from error


def read_idx(path: Path, dimensions: int, *, integers: bool = False) -> NDArray[Any]:
    """Unsigned bytes, or 32-bit integers, of a gzipped idx file.

    Layout: two zero bytes, the type (0x08, for integers 0x0C), the number of dimensions, each dimension as a big-endian
    32-bit integer, then exactly their product of values, big-endian too (LeCun, Cortes, Burges, "The MNIST database of
    handwritten digits").

    Returns
    -------
    uint8 array, or int32 array, with `dimensions` dimensions.

    Raises
    ------
    DataError
        Anything else in the file; the message gives the byte offset (in the decompressed stream).
    """
    existing_file(path, "fetch the data set again, or correct --data-dir")
    code = 0x0C if integers else 0x08
    dtype = IDX_TYPES[code][1]
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _idx_shape(path, header, dimensions, code)
            size = math.prod(shape) * dtype.itemsize
            body = _read_at_most(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file; fetch it again") from error
    if len(body) != size:
        end = "has more bytes" if len(body) > size else f"ends after {len(body)} bytes"
        raise DataError(f"{path}: byte {len(header)}: {end}; shape {shape} needs {size}; fetch it again")
    return np.frombuffer(body, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _read_at_most(file: gzip.GzipFile, size: int) -> bytes:
    """As many bytes as there are, up to `size`, of which nothing is set aside before they are there."""
    body = bytearray()
    while len(body) < size and (part := file.read(min(PIECE, size - len(body)))):
        body += part
    return bytes(body)


def _idx_shape(path: Path, header: bytes, dimensions: int, code: int) -> tuple[int, ...]:
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path}: byte {len(header)}: ends inside its header; fetch it again")
    values, dtype = IDX_TYPES[code]
    if header[:4] != bytes([0, 0, code, dimensions]):
        raise DataError(
            f"{path}: byte 0: starts with 0x{header[:4].hex()}; "
            f"an idx file of {values} in {dimensions} dimensions starts with 0x0000{code:02x}{dimensions:02x}"
        )
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", header[4:])
    if not 0 < math.prod(shape) * dtype.itemsize <= MAX_IDX_BYTES:
        raise DataError(f"{path}: byte 4: shape {shape} is empty or larger than {MAX_IDX_BYTES} bytes; fetch it again")
    return shape
