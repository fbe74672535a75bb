"""Words of SEAL's objects, in and out, through memory.

TenSEAL's binding of SEAL reads and writes objects by path alone, and word by word. Paths of anonymous memory serve both
ways at once: no byte touches a disk. The layout is SEAL's published serialisation (header of 16 bytes, then the
members); it is checked against the word-by-word accessors before anything depends on it.
"""

from __future__ import annotations

import os
import weakref
import zlib
from typing import Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from autoflip_secure.errors import NotAvailable

__all__ = ["SealMemory"]

MAGIC = b"\x5e\xa1\x10"
HEADER_BYTES = 16
RAW, ZLIB, ZSTD = 0, 1, 2
WORD_BYTES = 8
LARGEST = 1 << 24


class Saved(Protocol):
    """A SEAL object."""

    def save(self, path: str, /) -> None: ...


class SealMemory:
    """One piece of anonymous memory that SEAL reads and writes as a file.

    Raises
    ------
    NotAvailable
        The system has none.
    """

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise NotAvailable("--aggregation ckks needs anonymous memory files, which this system lacks; use Linux")
        self._descriptor = os.memfd_create("autoflip-ckks", os.MFD_CLOEXEC)
        # Unlike __del__ it does not come after the modules are gone when the interpreter ends.
        weakref.finalize(self, os.close, self._descriptor)
        self._path = f"/proc/self/fd/{self._descriptor}"
        self._decompress = zstandard.ZstdDecompressor().decompressobj

    def dump(self, value: Saved) -> tuple[bytes, bytes]:
        """Header and uncompressed members of an object, as SEAL saves it.

        Raises
        ------
        NotAvailable
            The bytes are not of SEAL's serialisation, as of version 4.
        """
        value.save(self._path)
        data = os.pread(self._descriptor, LARGEST, 0)
        header, body = data[:HEADER_BYTES], data[HEADER_BYTES:]
        if header[:3] != MAGIC or int.from_bytes(header[8:], "little") != len(data):
            raise NotAvailable("this TenSEAL writes SEAL objects in an unknown form; install the version pinned here")
        mode = header[5]
        if mode == ZSTD:
            body = self._decompress().decompress(body)
        elif mode == ZLIB:
            body = zlib.decompress(body)
        elif mode != RAW:
            raise NotAvailable(f"this TenSEAL compresses SEAL objects in an unknown way ({mode})")
        return header, body

    def words(self, value: Saved, count: int) -> NDArray[np.uint64]:
        """The last `count` words of an object, shape (count,)."""
        _, body = self.dump(value)
        return np.frombuffer(body, "<u8", count, len(body) - WORD_BYTES * count)

    def load(self, value: Any, context: Any, header: bytes, body: bytes) -> None:
        """Fill an object of the same kind as the one that `dump` gave the header of."""
        plain = header[:5] + bytes([RAW]) + header[6:8] + (HEADER_BYTES + len(body)).to_bytes(8, "little")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, plain + body, 0)
        value.load(context, self._path)

    def clear(self) -> None:
        """Forget what was written last; called after secrets."""
        os.ftruncate(self._descriptor, 0)
