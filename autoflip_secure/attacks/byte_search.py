"""Many byte strings looked for in files at once, in every form in which a program may have written them.

Raw bytes, hexadecimal digits, base64 (PEM), Python's and JSON's escapes, lists of integers and of floats, one long
decimal number, and what lies packed in zip or gzip: each form is turned back into bytes, which are then searched for
all strings together.
"""

from __future__ import annotations

import binascii
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

__all__ = ["Finder", "forms_of"]

PROBE = 8
"""Bytes by which a place is found; all of a piece has to fit there."""

PIECE = 16
"""Bytes of a secret that count as having found it: half of a key is as bad as all of it."""

HEX = re.compile(rb"(?:[0-9a-fA-F]{2}[ :]?){12,}")
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{22,}")
"""22 digits are the fewest that hold a piece; most numbers written with all their digits are shorter."""
SMALL_NUMBERS = re.compile(rb"\d{1,3}(?:\s*,\s*\d{1,3}){11,}")
WORDS = re.compile(rb"\d{5,20}(?:\s*,\s*\d{5,20})+")
LONG_NUMBER = re.compile(rb"\d{34,}")

EXPONENT = rb"(?:[eE][-+]?\d++)?+"
FLOAT = rb"[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)" + EXPONENT
WORD_BETWEEN = rb"\\[nrt]|np\.float(?:32|64)\("
"""Between floats in escaped text, and in reprs of lists of NumPy's own."""

MARKS_BETWEEN = b",;|()[]"
BETWEEN_FLOATS = rb"(?:[\s" + re.escape(MARKS_BETWEEN) + rb"]++|" + WORD_BETWEEN + rb")++"
FLOATS = re.compile(
    # It begins with a digit, which is quickly looked for, and not in the middle of a number.
    rb"\d(?<!\d\d)(?<!\d\.\d)\d*+(?:\.\d*+)?+" + EXPONENT + rb"(?:" + BETWEEN_FLOATS + FLOAT + rb"){3,}+"
)
"""Four floats or more: the fewest that hold a piece as float32. No quantifier gives back what it took, so that time
grows with the length only."""

BEFORE_DIGITS = re.compile(rb"[-+]?\.?$")
WORD = re.compile(WORD_BETWEEN)
TO_SPACES = bytes.maketrans(MARKS_BETWEEN, b" " * len(MARKS_BETWEEN))

PRINTED_DECIMALS = (4, 6, 8)
"""As torch, pandas and NumPy print floats unless told otherwise."""

URL_SAFE = bytes.maketrans(b"-_", b"+/")
BETWEEN = bytes(PIECE)
"""Keeps forms apart that are searched in one piece."""

ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|u00[0-9a-fA-F]{2}|.)", re.DOTALL)
SIMPLE = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f", b"0": b"\0"}

MOST_DIGITS = 4000
"""Python reads longer numbers only on request."""


class Finder:
    """Secrets to look for.

    Parameters
    ----------
    secrets : sequence of bytes
        Each at least 16 bytes.
    whole : collection of int
        Numbers of those that have to be there as a whole, since parts of them may be common, such as records. Where
        they are float32 values, these may have been rounded for print. What a print leaves out ("...") is not found.
    """

    def __init__(self, secrets: Sequence[bytes], whole: Collection[int] = ()) -> None:
        self._pieces: dict[bytes, list[tuple[int, int, bytes]]] = {}
        for number, secret in enumerate(secrets):
            if len(secret) < PIECE:
                raise ValueError(f"secret {number} has {len(secret)} bytes, fewer than {PIECE}")
            if number in whole:
                for form in {secret, *_as_printed(secret)}:
                    self._add_whole(number, form)
            else:
                for start in {0, len(secret) // 2 - PIECE // 2, len(secret) - PIECE}:
                    self._add(number, 0, secret[start : start + PIECE])
        self._probes = np.unique(np.frombuffer(b"".join(self._pieces), "<u8"))
        self._likely = np.zeros(1 << 16, np.bool_)
        self._likely[(self._probes & np.uint64(0xFFFF)).astype(np.int64)] = True

    def _add_whole(self, number: int, secret: bytes) -> None:
        # Looked for by the part that is least like others.
        before = max(range(0, len(secret) - PROBE), key=lambda at: len(set(secret[at : at + PROBE])))
        self._add(number, before, secret)

    def _add(self, number: int, before: int, piece: bytes) -> None:
        self._pieces.setdefault(piece[before : before + PROBE], []).append((number, before, piece))

    def found_in(self, data: bytes) -> set[int]:
        """Numbers of the secrets that stand in the data in any form."""
        return self._raw(data) | self._raw(BETWEEN.join(forms_of(data)))

    def _raw(self, data: bytes) -> set[int]:
        found: set[int] = set()
        for shift in range(PROBE):
            count = (len(data) - shift) // PROBE
            if count < 1:
                continue
            words: NDArray[np.uint64] = np.frombuffer(data, "<u8", count, shift)
            likely = np.flatnonzero(self._likely[(words & np.uint64(0xFFFF)).astype(np.int64)])
            for place in likely[np.isin(words[likely], self._probes)].tolist():
                start = shift + PROBE * place
                for number, before, piece in self._pieces[data[start : start + PROBE]]:
                    if data[start - before : start - before + len(piece)] == piece and start >= before:
                        found.add(number)
        return found


def forms_of(data: bytes) -> Iterator[bytes]:
    """What comes out of every way of reading data as something written down or packed."""
    yield from _unpacked(data)
    for match in HEX.finditer(data):
        digits = re.sub(rb"[ :]", b"", match[0])
        for start in (0, 1):
            yield bytes.fromhex(digits[start : len(digits) - (len(digits) - start) % 2].decode())
    joined = re.sub(rb"\\n|\r?\n", b"", data)  # PEM is broken into lines
    for text in {data, joined}:
        for match in BASE64.finditer(text):
            digits = match[0].translate(URL_SAFE)
            for start in range(4):
                part = digits[start:]
                yield binascii.a2b_base64(part[: len(part) - len(part) % 4])
    if b"\\" in data:
        yield _unescaped(data)
    for match in SMALL_NUMBERS.finditer(data):
        yield bytes(number for number in map(int, match[0].split(b",")) if number < 256)
    for match in WORDS.finditer(data):
        yield b"".join((int(number) % (1 << 64)).to_bytes(8, "little") for number in match[0].split(b","))
    for match in FLOATS.finditer(data):
        # A sign, or a point without a digit, may stand before the first digit.
        before = BEFORE_DIGITS.search(data[max(match.start() - 2, 0) : match.start()])
        values = _floats((before[0] if before else b"") + match[0])
        yield values.astype("<f8").tobytes()
        with np.errstate(over="ignore"):
            yield values.astype("<f4").tobytes()
    for match in LONG_NUMBER.finditer(data):
        number = int(match[0][:MOST_DIGITS])
        for order in ("big", "little"):
            yield number.to_bytes(-(-number.bit_length() // 8), order)


def _floats(text: bytes) -> NDArray[np.float64]:
    """The numbers of a run of floats, in order, shape (numbers,)."""
    if b"\\" in text or b"n" in text:
        text = WORD.sub(b" ", text)
    return np.fromstring(text.translate(TO_SPACES), dtype=np.float64, sep=" ")


def _as_printed(record: bytes) -> Iterator[bytes]:
    """float32 values with the decimals that are left of them in print; nothing for bytes that are no such values."""
    if len(record) % 4:
        return
    values = np.frombuffer(record, "<f4")
    if not np.isfinite(values).all():
        return
    for decimals in PRINTED_DECIMALS:
        text = np.array2string(values, precision=decimals, threshold=len(values), floatmode="maxprec")
        yield _floats(text.encode()).astype("<f4").tobytes()


def _unpacked(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"PK\x03\x04"):
        with (
            suppress(zipfile.BadZipFile, zlib.error, NotImplementedError),
            zipfile.ZipFile(io.BytesIO(data)) as archive,
        ):
            for name in archive.namelist():
                yield archive.read(name)
    if data.startswith(b"\x1f\x8b"):
        with suppress(OSError, EOFError, zlib.error):
            yield gzip.decompress(data)


def _unescaped(data: bytes) -> bytes:
    r"""Text with \x00 of Python's reprs, or \u00ff and UTF-8 of JSON, read as the bytes that were meant."""
    return ESCAPE.sub(_meant, data)


def _meant(escape: re.Match[bytes]) -> bytes:
    said = escape[1]
    return bytes.fromhex(said[-2:].decode()) if len(said) > 1 else SIMPLE.get(said, said)
