"""Text as numbered characters: a fixed public alphabet, and windows whose next character is to be told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.records import Records

__all__ = ["WINDOW", "Alphabet", "windows"]

WINDOW = 80
"""Characters a model reads to tell the next one (McMahan et al. 2017, arXiv 1602.05629; LEAF, arXiv 1812.01097)."""


class Alphabet:
    """A list of different characters, numbered from 0 in its order. It is a constant: no text has a part in it.

    Attributes
    ----------
    symbols : str
    names : tuple of str
        What a reader of results sees: the characters, blanks spelled out.
    """

    def __init__(self, symbols: str) -> None:
        self.symbols = symbols
        self.names = tuple({" ": "space", "\n": "newline"}.get(symbol, symbol) for symbol in symbols)
        self._number = np.full(max(map(ord, symbols)) + 2, -1)
        self._number[[ord(symbol) for symbol in symbols]] = np.arange(len(symbols))

    def numbers(self, text: str) -> NDArray[np.int64]:
        """The number of each character, shape (len(text),); -1 for one that is not of the alphabet."""
        # surrogatepass: JSON may hold half a surrogate pair, which is no character of an alphabet, but must not crash.
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return self._number[np.minimum(codes, len(self._number) - 1)].astype(np.int64)


def windows(numbers: NDArray[np.int64], stride: int) -> Records | None:
    """Every `stride`-th window of `WINDOW` characters of a text, with the character that follows it.

    Returns
    -------
    Records
        x of shape (n, WINDOW), characters' numbers as float32; y the number of the next one. None: the text is too
        short for a window and its next character.
    """
    if len(numbers) <= WINDOW:
        return None
    starts = np.arange(0, len(numbers) - WINDOW, stride)
    x = np.lib.stride_tricks.sliding_window_view(numbers, WINDOW)[starts]
    return Records(x.astype(np.float32), numbers[starts + WINDOW])
