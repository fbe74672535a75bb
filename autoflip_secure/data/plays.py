"""Tiny Shakespeare (Karpathy 2015, char-rnn): a file of speeches, cut by who speaks.

A speech is a line NAME: and the lines up to the next empty one. NAME alone tells who speaks: the "First Citizen" of
every play is one speaker.
"""

from __future__ import annotations

from pathlib import Path

from autoflip_secure.data.arrays import existing_file
from autoflip_secure.data.characters import Alphabet
from autoflip_secure.errors import DataError

__all__ = ["TINY_ALPHABET", "read_speakers"]

TINY_ALPHABET = Alphabet("\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
"""The 65 characters of Tiny Shakespeare."""


def read_speakers(path: Path) -> dict[str, str]:
    """What each speaker says in all, in the order of first appearance; each line ends with a newline.

    Raises
    ------
    DataError
        No such file, a character that is not of `TINY_ALPHABET`, or a speech without a heading; the message names
        line and column.
    """
    existing_file(path, "fetch Tiny Shakespeare again, or correct --data-dir")
    try:
        # A character for each byte: none but ASCII is of the alphabet, so other encodings are refused with their place.
        text = path.read_bytes().decode("latin-1")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    unknown = (TINY_ALPHABET.numbers(text) < 0).nonzero()[0]
    if unknown.size:
        place = _place(path, text[: unknown[0]])
        raise DataError(f"{place}: a character that Tiny Shakespeare does not have; fetch it again")
    return _speeches(path, text)


def _speeches(path: Path, text: str) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    speaker: str | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            speaker = None
        elif speaker is not None:
            lines[speaker].append(line + "\n")
        elif line.endswith(":") and line[:-1].strip():
            speaker = line[:-1].strip()
            lines.setdefault(speaker, [])
        else:
            raise DataError(f"{path}:{number}: a speech starts without its speaker's name and a colon")
    return {speaker: "".join(said) for speaker, said in lines.items() if said}


def _place(path: Path, before: str) -> str:
    line_start = before.rfind("\n") + 1
    return f"{path}:{before.count(chr(10)) + 1}:{len(before) - line_start + 1}"
