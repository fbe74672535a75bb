"""Edits of valid inputs of a parser: bits flipped, pieces cut out, put in, swapped or repeated, and items replaced.

An edit is plain data, so that it may be drawn by a generator of random numbers or by a testing library that shrinks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

__all__ = ["ITEMS", "KINDS", "PIECES", "Edit", "drawn_edits", "edited"]

KINDS = ("flip", "put", "insert", "cut", "swap", "repeat", "token", "item", "end", "nest")

PIECES: tuple[bytes, ...] = (
    *(number.to_bytes(8, order) for number in (1 << 60, (1 << 64) - 1, 1 << 31) for order in ("big", "little")),
    *((number).to_bytes(4, order) for number in ((1 << 32) - 1, 1 << 31) for order in ("big", "little")),
    b"\x00",
    b"\xff",
    b"\xc0\x80",
    b"\n",
    b'"',
    b",",
    b"=",
    b"[",
    b"}",
    b"\xdd\xff\xff\xff\xff",  # msgpack: an array of 2^32 - 1 items
    b"\xc6\xff\xff\xff\xff",  # msgpack: 2^32 - 1 bytes
    b"\xd6\xff\x00\x00\x00\x00",  # msgpack: a time
    b"-----BEGIN PRIVATE KEY-----\n",
)
"""What is put or inserted: lengths that nobody has the memory for, and signs that mean something."""

TOKENS = (
    *("0", "-1", "1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000, "1.5", "1152921504606846976", "null", "true"),
    *('""', '"\\ud800"', '"\\u0000"', "[]", "{}", "[[1]]", '"x"', "inf", "nan", "0x10", "1_000", "1979-05-27"),
)
"""What stands in the place of one word, number or quoted text."""

ITEMS: tuple[Any, ...] = (
    *(0, -1, 1, 1 << 60, (1 << 64) - 1, 1.5, float("nan"), float("inf"), -0.0, None, True, b"", b"\x00" * 32),
    *("", "x", "\x00", [], [[]], {}, {"a": 1}, [1, 2, 3], msgpack.Timestamp(0), msgpack.ExtType(5, b"x")),
)
"""What stands in the place of one item of a msgpack message."""

TOKEN = re.compile(rb'"(?:[^"\\]|\\.){0,200}"|[\w.+-]+')
LONGEST_TEXT = 1 << 16
DEEP = 3000
"""Brackets that are opened one in another: deeper than Python's own readers go."""


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    where : float
        Place, as a part of the input's length, in [0, 1).
    size : int
        How many bytes it takes, where it takes any.
    choice : int
        Which piece, token, item or bit.
    """

    kind: str
    where: float
    size: int
    choice: int


def drawn_edits(generator: np.random.Generator) -> list[Edit]:
    """One to four edits."""
    return [
        Edit(
            KINDS[int(generator.integers(len(KINDS)))],
            float(generator.random()),
            int(2 ** generator.uniform(0, 8)),
            int(generator.integers(1 << 16)),
        )
        for _ in range(int(generator.integers(1, 5)))
    ]


def edited(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The input after all edits, in order."""
    for edit in edits:
        data = _edited(data, edit)
    return data


def _edited(data: bytes, edit: Edit) -> bytes:
    place, piece = int(edit.where * (len(data) + 1)), PIECES[edit.choice % len(PIECES)]
    end = min(len(data), place + edit.size)
    match edit.kind:
        case "flip" if place < len(data):
            return data[:place] + bytes([data[place] ^ 1 << edit.choice % 8]) + data[place + 1 :]
        case "put":
            return data[:place] + piece + data[place + len(piece) :]
        case "insert":
            return data[:place] + piece + data[place:]
        case "cut":
            return data[:place] + data[end:]
        case "swap":
            other = min(len(data), end + edit.size)
            return data[:place] + data[end:other] + data[place:end] + data[other:]
        case "repeat":
            return data[:end] + data[place:end] * (1 + edit.choice % 40) + data[end:]
        case "token":
            return _with_token(data, edit)
        case "item":
            return _with_item(data, edit)
        case "end":
            return data[:place]
        case "nest":
            return data[:place] + (b"[", b'{"a":', b"(", b"\x91")[edit.choice % 4] * DEEP + data[place:]
    return data


def _with_token(data: bytes, edit: Edit) -> bytes:
    """One word, number or quoted text of a text replaced."""
    found = list(TOKEN.finditer(data[:LONGEST_TEXT]))
    if not found:
        return data
    token = found[int(edit.where * len(found))]
    return data[: token.start()] + TOKENS[edit.choice % len(TOKENS)].encode() + data[token.end() :]


def _with_item(data: bytes, edit: Edit) -> bytes:
    """One item of a msgpack message replaced, also inside messages that are items; other inputs stay as they are."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        return data
    if not isinstance(value, list) or not value:
        return data
    lists = [value]
    for each in lists:
        lists += [item for item in each if isinstance(item, list) and item]
    chosen = lists[edit.choice % len(lists)]
    place = int(edit.where * len(chosen))
    inner = chosen[place]
    if isinstance(inner, bytes) and len(inner) > 2 and edit.size % 2:
        chosen[place] = _with_item(inner, Edit("item", edit.where * 7 % 1, edit.size // 2, edit.choice))
    else:
        chosen[place] = ITEMS[(edit.choice >> 4) % len(ITEMS)]
    return bytes(msgpack.packb(value))
