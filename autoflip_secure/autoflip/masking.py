"""A mask as bytes, its hash, and moving vectors between live coordinates and the full layout."""

from __future__ import annotations

import hashlib
from typing import cast

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import EncodingError, ProtocolError

__all__ = ["live_indices", "mask_hash", "pack_mask", "scatter_live", "unpack_mask"]

Flags = NDArray[np.bool_]

SIZE_BYTES = 8


def pack_mask(mask: Flags) -> bytes:
    """Canonical bytes of a mask: its length (8 bytes, big-endian), then a bit a parameter, most significant first."""
    return len(mask).to_bytes(SIZE_BYTES, "big") + np.packbits(mask).tobytes()


def unpack_mask(data: bytes, size: int) -> Flags:
    """Inverse of `pack_mask`, shape (size,).

    Raises
    ------
    ProtocolError
        Not the canonical bytes of a mask of `size` parameters.
    """
    expected = SIZE_BYTES + -(-size // 8)
    if len(data) != expected or int.from_bytes(data[:SIZE_BYTES], "big") != size:
        raise ProtocolError(f"{len(data)} bytes are not a mask of {size} parameters; it was not used")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=SIZE_BYTES))
    if bits[size:].any():
        raise ProtocolError("a mask's padding is not zero; it was not used")
    return bits[:size].astype(np.bool_)


def mask_hash(mask: Flags) -> bytes:
    """SHA-256 of the mask's canonical bytes, 32 bytes."""
    return hashlib.sha256(pack_mask(mask)).digest()


def live_indices(mask: Flags) -> NDArray[np.int64]:
    """Flat indices of the live parameters, ascending: the coordinates a masked vector is sent as."""
    return cast(NDArray[np.int64], np.flatnonzero(mask).astype(np.int64, copy=False))


def scatter_live(values: NDArray[np.floating], mask: Flags) -> NDArray[np.float64]:
    """Live coordinates back in the full layout, masked ones 0, shape (size,).

    Raises
    ------
    EncodingError
        Another number of values than the mask has live parameters.
    """
    if values.shape != (int(mask.sum()),):
        raise EncodingError(f"{values.size} values do not fit a mask with {int(mask.sum())} live parameters")
    full = np.zeros(mask.size)
    full[mask] = values
    return full
