"""Colour photographs: decoding a JPEG that may be anything, and images of bytes as records."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.records import Records
from autoflip_secure.errors import DataError

__all__ = ["decode_jpeg", "photo_records"]

WHITE = np.float32(255.0)


def decode_jpeg(content: bytes, side: int, where: str) -> NDArray[np.uint8]:
    """Red, green and blue of a square JPEG, shape (3, side, side); a grey one has three equal channels.

    Raises
    ------
    DataError
        Not a whole JPEG of that size; the message starts with `where`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            # The size is in the header: a picture of another one is never decoded, however large it says it is.
            if image.size != (side, side):
                raise DataError(f"{where}: a picture of {image.size[0]} x {image.size[1]}, not {side} x {side}")
            return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a whole JPEG file; fetch it again") from error


def photo_records(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Records:
    """Images of shape (n, channels, side, side) as float32 in [0, 1]."""
    return Records(np.divide(images, WHITE, dtype=np.float32), labels.astype(np.int64))
