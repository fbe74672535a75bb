"""Data sets of LEAF (Caldas et al. 2018, arXiv 1812.01097) as its `preprocess.sh` writes them: JSON files of users.

PATH/data/train/*.json, PATH/data/test/*.json, each
    {"users": [NAME, ...], "num_samples": [N, ...], "user_data": {NAME: {"x": [...], "y": [...]}}}

Split by sample (`-t sample`), a user is in both: a natural silo with its own holdout. Split by user (`-t user`), the
users of the test files are others: all their records together are the public test part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoflip_secure.data.arrays import existing_folder
from autoflip_secure.data.named_records import NamedRecords, cut_by_silo
from autoflip_secure.data.records import Records
from autoflip_secure.errors import DataError

__all__ = ["Encoder", "LeafUsers", "read_leaf"]

Encoder = Callable[[str, list[Any], list[Any]], Records]
"""encode(where, x, y): a user's records from the lists of the file; raises DataError that starts with `where`."""


@dataclass(frozen=True)
class LeafUsers:
    """All users of a data set.

    Attributes
    ----------
    silos : tuple of NamedRecords
        The users of the train files, by name.
    train : Records
        Their training records together.
    public_test : Records or None
        Records of the users of the test files where those are others.
    """

    silos: tuple[NamedRecords, ...]
    train: Records
    public_test: Records | None


def read_leaf(folder: Path, encode: Encoder) -> LeafUsers:
    """Read both parts below `folder`.

    Raises
    ------
    DataError
        No such files, a file that is not of that form, a user who is in one part twice, or test files that hold some of
        the users only; the message names the file.
    """
    existing_folder(folder, "it must hold data/train and data/test with the JSON files that LEAF writes")
    train, test = (_read_part(folder / "data" / part, encode) for part in ("train", "test"))
    names = sorted(train)
    others = not set(train) & set(test)
    odd = sorted(set(train) ^ set(test))
    if odd and not others:
        raise DataError(
            f"{folder / 'data'}: user {odd[0]!r} is in one of train and test only, others are in both; "
            "run LEAF's preprocess.sh again"
        )
    whole = Records.concatenate([train[name] for name in names])
    parts = cut_by_silo(whole, [len(train[name]) for name in names])
    silos = tuple(
        NamedRecords(name, part, None if others else test[name]) for name, part in zip(names, parts, strict=True)
    )
    return LeafUsers(silos, whole, Records.concatenate(list(test.values())) if others else None)


def _read_part(folder: Path, encode: Encoder) -> dict[str, Records]:
    """Records of each user of a part's files."""
    existing_folder(folder, "it must hold the JSON files that LEAF's preprocess.sh writes")
    users: dict[str, Records] = {}
    for path in sorted(folder.glob("*.json")):
        for name, x, y in _users(path):
            where = f"{path}: user {name!r}"
            if name in users:
                raise DataError(f"{where}: is there twice; run LEAF's preprocess.sh again")
            users[name] = encode(where, x, y)
    if not users:
        raise DataError(f"{folder}: holds no user; run LEAF's preprocess.sh again")
    return users


def _users(path: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """(name, x, y) of each user of a file; lists of one length, as long as the file says."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a whole JSON file; run LEAF's preprocess.sh again") from error
    names, counts, data = (_member(path, content, key) for key in ("users", "num_samples", "user_data"))
    if not isinstance(data, dict) or not isinstance(counts, list) or not isinstance(names, list):
        raise DataError(f"{path}: users and num_samples are not lists, or user_data is no object; see LEAF's README")
    if len(counts) != len(names):
        raise DataError(f"{path}: names {len(names)} users but {len(counts)} numbers of samples")
    for name, count in zip(names, counts, strict=True):
        if not isinstance(name, str) or not name or not name.isprintable():
            raise DataError(f"{path}: user {name!r:.80} is not named by printable text")
        user = data.pop(name, None)
        x, y = (user.get("x"), user.get("y")) if isinstance(user, dict) else (None, None)
        if not isinstance(x, list) or not isinstance(y, list) or not len(x) == len(y) == count or count == 0:
            raise DataError(f"{path}: user {name!r}: has no lists x and y of {count!r:.80} samples, at least one")
        yield name, x, y


def _member(path: Path, content: object, key: str) -> object:
    if not isinstance(content, dict) or key not in content:
        raise DataError(f"{path}: is no object with a member {key}; run LEAF's preprocess.sh again")
    return content[key]
