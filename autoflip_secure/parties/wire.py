"""Canonical bytes of protocol messages: one msgpack array a message, strictly read.

A message is `[version, kind, field, ...]`. Reading refuses anything whose bytes are not exactly what writing the same
message would give, so one message has one encoding and one hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import msgpack

from autoflip_secure.errors import ProtocolError

__all__ = [
    "HASH_BYTES",
    "KEY_BYTES",
    "MAX_ID",
    "MAX_MESSAGE_BYTES",
    "PROTOCOL",
    "SESSION_BYTES",
    "SIGNATURE_BYTES",
    "Message",
    "is_ascending",
    "want_bytes",
    "want_ids",
    "want_int",
    "want_tuple",
]

PROTOCOL = b"autoflip-secure/secagg-s/2"
VERSION = 2
HASH_BYTES = 32
KEY_BYTES = 32
SESSION_BYTES = 16
SIGNATURE_BYTES = 64
MAX_ID = (1 << 16) - 1
MAX_COUNTER = (1 << 32) - 1
MAX_MESSAGE_BYTES = 1 << 30
# A length above what any message needs; without it a short hostile message could make the reader allocate gigabytes.
MAX_ARRAY = 4096
MAX_ITEMS = 1 << 15
"""Items of all arrays of a message; nested arrays take sixty times their bytes in memory."""
MAX_TEXT = 256

M = TypeVar("M", bound="Message")


class Message:
    """Base of the frozen dataclasses in `messages`; fields are ints, text, bytes and (nested) tuples of them."""

    KIND: ClassVar[str]

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        values = [getattr(self, item.name) for item in fields(self)]  # type: ignore[arg-type]
        return msgpack.packb([VERSION, self.KIND, *values])

    @classmethod
    def from_bytes(cls: type[M], data: bytes) -> M:
        """Read and validate.

        Raises
        ------
        ProtocolError
            Anything but the canonical bytes of a valid message of this kind.
        """
        message = cls(*_read_fields(data, cls.KIND, len(fields(cls))))  # type: ignore[arg-type]
        if message.to_bytes() != data:
            raise ProtocolError(f"not a {cls.KIND} message: its bytes are not canonical")
        return message

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


def _read_fields(data: bytes, kind: str, count: int) -> tuple[Any, ...]:
    if not isinstance(data, bytes) or len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"not a {kind} message: expected at most {MAX_MESSAGE_BYTES} bytes")
    left = MAX_ITEMS

    def counted(array: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal left
        left -= 1 + len(array)
        if left < 0:
            raise ValueError(f"more than {MAX_ITEMS} items")
        return array

    try:
        array = msgpack.unpackb(
            data,
            use_list=False,
            list_hook=counted,
            max_array_len=MAX_ARRAY,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=MAX_TEXT,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a {kind} message: {error}") from error
    if not isinstance(array, tuple) or len(array) != 2 + count:
        raise ProtocolError(f"not a {kind} message: expected an array of {2 + count} fields")
    if array[0] != VERSION or array[1] != kind:
        raise ProtocolError(f"not a {kind} message of version {VERSION}")
    return array[2:]


def want_int(what: str, value: object, least: int = 0, most: int = MAX_COUNTER) -> None:
    """Raise ProtocolError unless `value` is an int (not a bool) within [least, most]."""
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(f"{what} is not an integer within {least}..{most}")


def want_bytes(what: str, value: object, *lengths: int) -> None:
    """Raise ProtocolError unless `value` is bytes, of one of `lengths` where any are given."""
    if type(value) is not bytes or (lengths and len(value) not in lengths):
        raise ProtocolError(f"{what} is not {' or '.join(map(str, lengths))} bytes".replace("  ", " "))


def want_tuple(what: str, value: object, length: int | None = None) -> None:
    """Raise ProtocolError unless `value` is a tuple, of `length` items where that is given."""
    if type(value) is not tuple or (length is not None and len(value) != length):
        raise ProtocolError(f"{what} is not a list{'' if length is None else f' of {length} items'}")


def is_ascending(ids: Sequence[int]) -> bool:
    """Whether ids are strictly ascending, hence distinct."""
    return all(low < high for low, high in pairwise(ids))


def want_ids(what: str, value: object) -> None:
    """Raise ProtocolError unless `value` is a tuple of strictly ascending silo ids."""
    want_tuple(what, value)
    assert isinstance(value, tuple)
    for silo in value:
        want_int(f"a silo id of {what}", silo, 1, MAX_ID)
    if not is_ascending(value):
        raise ProtocolError(f"{what} are not distinct ascending silo ids")
