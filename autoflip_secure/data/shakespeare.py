"""Shakespeare by speaker, to tell the next character: LEAF's JSON files, or Tiny Shakespeare. All is public."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoflip_secure.data.arrays import existing_folder
from autoflip_secure.data.characters import WINDOW, Alphabet, windows
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.leaf import read_leaf
from autoflip_secure.data.named_records import NamedRecords, cut_by_silo
from autoflip_secure.data.plays import TINY_ALPHABET, read_speakers
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import DataError

__all__ = ["load_shakespeare"]

TINY_FILE = "input.txt"
LEAF_ALPHABET = Alphabet("\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}")
"""LEAF's 80 characters, numbered as LEAF numbers them."""

FEWEST_CHARACTERS = 2_000
"""Of a speaker of Tiny Shakespeare; who says less is left out. 99 of the speakers have 89 % of the text."""

TRAIN_STRIDE = 10
TEST_STRIDE = 40
"""Neighbouring windows share most of their characters; scoring fewer of them costs little precision and saves time."""

TEST_SHARE = 0.2

OVERLAP = (
    "a record is a window of 80 characters and windows overlap, so an epsilon a record does not cover a whole line"
)
NOT_LEAF = "Tiny Shakespeare, not LEAF's: fewer plays and other windows"


def load_shakespeare(folder: Path) -> LoadedData:
    """One natural silo a speaker.

    Tiny Shakespeare: the last fifth of what each speaker says is the public test part; no window reaches over the cut.
    LEAF: each speaker's test part is the silo's own holdout; where it was split by user, other speakers are the public
    test part.

    Raises
    ------
    DataError
        A file is missing or malformed; the message names it.
    """
    existing_folder(folder, f"it must hold {TINY_FILE}, or data/train and data/test of LEAF")
    return _load_tiny(folder / TINY_FILE) if (folder / TINY_FILE).is_file() else _load_leaf(folder)


def _task(alphabet: Alphabet, records: int, *notes: str) -> Task:
    return Task(
        "shakespeare", "multiclass", (WINDOW,), len(alphabet.symbols), alphabet.names, "char-lstm",
        nominal_records=records, note="; ".join((*notes, OVERLAP)),
    )  # fmt: skip


def _load_tiny(path: Path) -> LoadedData:
    names: list[str] = []
    train: list[Records] = []
    test: list[Records] = []
    for name, text in read_speakers(path).items():
        if len(text) < FEWEST_CHARACTERS:
            continue
        numbers, cut = TINY_ALPHABET.numbers(text), round(len(text) * (1 - TEST_SHARE))
        parts = windows(numbers[:cut], TRAIN_STRIDE), windows(numbers[cut:], TEST_STRIDE)
        assert parts[0] is not None
        assert parts[1] is not None, "a fifth of the fewest characters is more than a window"
        names.append(name)
        train.append(parts[0])
        test.append(parts[1])
    if not names:
        raise DataError(f"{path}: no speaker says {FEWEST_CHARACTERS:,} characters; fetch Tiny Shakespeare again")
    whole = Records.concatenate(train)
    silos = map(NamedRecords, names, cut_by_silo(whole, [len(part) for part in train]))
    task = _task(TINY_ALPHABET, len(whole), NOT_LEAF)
    return LoadedData(task, whole, Records.concatenate(test), tuple(silos))


def _load_leaf(folder: Path) -> LoadedData:
    users = read_leaf(folder, _encode)
    return LoadedData(_task(LEAF_ALPHABET, len(users.train)), users.train, users.public_test, users.silos)


def _encode(where: str, x: list[Any], y: list[Any]) -> Records:
    if not all(isinstance(text, str) and len(text) == WINDOW for text in x):
        raise DataError(f"{where}: x is not a list of texts of {WINDOW} characters each")
    if not all(isinstance(symbol, str) and len(symbol) == 1 for symbol in y):
        raise DataError(f"{where}: y is not one character for each text")
    read, following = LEAF_ALPHABET.numbers("".join(x)), LEAF_ALPHABET.numbers("".join(y))
    if min(read.min(), following.min()) < 0:
        raise DataError(f"{where}: a character is not among the {len(LEAF_ALPHABET.symbols)} of LEAF")
    return Records(read.astype("float32").reshape(-1, WINDOW), following)
