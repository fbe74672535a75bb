"""Only what was appended is read, each line once, and a log that was written anew is noticed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.dashboard.tail import REMEMBERED, JsonTail
from autoflip_secure.storage import write_atomically

objects = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20), max_size=3), max_size=12)


def lines_of(values: list[Any]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


@given(values=objects, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_each_line_is_read_once_wherever_writing_is_interrupted(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("tail") / "log.jsonl"
    data, tail, found, written = lines_of(values), JsonTail(path), [], 0
    for end in [*sorted(cuts), len(data)]:
        with path.open("ab") as file:
            file.write(data[written:end])
        written = max(written, min(end, len(data)))
        found += tail.appended()
    assert found == values
    assert (tail.generation, tail.damaged) == (0, 0)


class Counted(io.FileIO):
    """A file that counts the bytes read of it."""

    read_so_far = 0

    def readinto(self, buffer: Any) -> int | None:
        number = super().readinto(buffer)
        Counted.read_so_far += number or 0
        return number


def test_a_look_at_a_long_log_reads_what_is_new_and_little_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines_of([{"round": number, "text": "x" * 1000} for number in range(1000)]))
    tail, new = JsonTail(path), lines_of([{"round": 1000}])
    assert len(list(tail.appended())) == 1000
    monkeypatch.setattr(Path, "open", lambda self, mode: io.BufferedReader(Counted(self), buffer_size=16))
    assert list(tail.appended()) == []
    assert Counted.read_so_far == REMEMBERED
    with open(path, "ab") as file:
        file.write(new)
    assert list(tail.appended()) == [{"round": 1000}]
    assert Counted.read_so_far == 2 * REMEMBERED + len(new)


def test_a_log_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines_of([{"round": number} for number in range(5)]))
    tail = JsonTail(path)
    assert len(list(tail.appended())) == 5
    write_atomically(path, lines_of([{"round": number} for number in range(3)]))
    assert [line["round"] for line in tail.appended()] == [0, 1, 2]
    assert tail.generation == 1
    write_atomically(path, lines_of([{"round": number} for number in range(9)]))
    assert len(list(tail.appended())) == 9, "also where the new one is longer"
    assert tail.generation == 2


def test_a_log_that_was_rewritten_in_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines_of([{"round": 10}, {"round": 11}]))
    tail = JsonTail(path)
    list(tail.appended())
    path.write_bytes(lines_of([{"round": 20}, {"round": 21}, {"round": 22}]))
    assert [line["round"] for line in tail.appended()] == [20, 21, 22]
    assert tail.generation == 1


def test_a_log_that_went_away_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = JsonTail(path)
    assert (list(tail.appended()), tail.generation) == ([], 0)
    path.write_bytes(lines_of([{"a": 1}]))
    assert list(tail.appended()) == [{"a": 1}]
    path.unlink()
    assert (list(tail.appended()), tail.generation) == ([], 1)


@pytest.mark.parametrize("line", [b"{not json", b"[1, 2]", b"3", b'"text"', b"\xff\xfe", b"[" * 100_000, b""])
def test_a_damaged_line_is_counted_and_the_others_are_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"b": 2}\n')
    tail = JsonTail(path)
    assert list(tail.appended()) == [{"a": 1}, {"b": 2}]
    assert tail.damaged == 1
