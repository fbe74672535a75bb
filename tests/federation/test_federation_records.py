"""The run's own logs: JSON lines that survive a crash, and the recorded view of the coordinator."""

from __future__ import annotations

import json
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.federation.events import JsonLines, keep_lines, read_json_lines
from autoflip_secure.federation.server_view import ServerView, read_server_view


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log")
    for number in range(3):
        log.write(number=number, text="Ärzte\n")
        assert [line["number"] for line in read_json_lines(tmp_path / "log")] == list(range(number + 1))
    assert (tmp_path / "log").read_text().count("\n") == 3
    log.close()


def test_a_stamp_is_put_first_where_it_is_asked_for(tmp_path: Path) -> None:
    for stamp in (True, False):
        log = JsonLines(tmp_path / str(stamp), stamp=stamp)
        log.write(event="sum")
        log.close()
        (line,) = read_json_lines(tmp_path / str(stamp))
        assert list(line) == (["time", "event"] if stamp else ["event"])


@given(st.integers(0, 40))
def test_a_fragment_left_by_a_crash_is_cut(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("logs") / "log"
    whole = json.dumps({"number": 1}) + "\n"
    fragment = (json.dumps({"number": 2, "text": "x" * 40}) + "\n")[:length]
    path.write_text(whole + fragment)
    assert [line["number"] for line in read_json_lines(path)] == [1]
    log = JsonLines(path)
    log.write(number=3)
    log.close()
    assert [line["number"] for line in read_json_lines(path)] == [1, 3]
    assert path.read_text().startswith(whole)


def test_a_log_that_is_nothing_but_a_fragment_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"numb')
    log = JsonLines(tmp_path / "log")
    log.write(number=3)
    log.close()
    assert list(read_json_lines(tmp_path / "log")) == [{"number": 3}]


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert list(read_json_lines(tmp_path / "log")) == []
    keep_lines(tmp_path / "log", lambda line: True)
    assert not (tmp_path / "log").exists()


def test_lines_a_resumed_run_writes_again_are_left_out(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log")
    for number in range(5):
        log.write(round=number)
    log.close()
    with (tmp_path / "log").open("a") as file:
        file.write('{"round": 2, "cut')
    keep_lines(tmp_path / "log", lambda line: line["round"] < 3)
    assert [line["round"] for line in read_json_lines(tmp_path / "log")] == [0, 1, 2]
    assert (tmp_path / "log").read_text().endswith("}\n")


FIELDS = {"status": "ok", "reply": b"\x00\xff", "error": ""}


def test_messages_are_kept_in_order_with_all_their_bytes(tmp_path: Path) -> None:
    view = ServerView(tmp_path / "view")
    for number in range(12):
        view.received(stage="clear", round=number, attempt=1, sender=number, fields=FIELDS)
    messages = read_server_view(tmp_path / "view")
    assert messages == [{"stage": "clear", "round": n, "attempt": 1, "from": n, "fields": FIELDS} for n in range(12)]
    assert sorted(p.name for p in (tmp_path / "view").iterdir())[0] == "000000.msgpack"


def test_a_resumed_view_goes_on_with_the_next_number(tmp_path: Path) -> None:
    for round in range(3):
        view = ServerView(tmp_path / "view")
        view.received(stage="clear", round=round, attempt=0, sender=1, fields=FIELDS)
        view.public(round=round, attempt=0, manifest=b"m", model=b"w")
    assert [message["round"] for message in read_server_view(tmp_path / "view")] == [0, 1, 2]


def test_a_gap_is_not_filled(tmp_path: Path) -> None:
    view = ServerView(tmp_path / "view")
    for round in range(3):
        view.received(stage="clear", round=round, attempt=0, sender=1, fields=FIELDS)
    (tmp_path / "view" / "000001.msgpack").unlink()
    ServerView(tmp_path / "view").received(stage="clear", round=9, attempt=0, sender=1, fields=FIELDS)
    assert [message["round"] for message in read_server_view(tmp_path / "view")] == [0, 2, 9]


def test_more_than_a_million_messages_stay_in_order(tmp_path: Path) -> None:
    view = ServerView(tmp_path / "view")
    view.received(stage="clear", round=0, attempt=0, sender=1, fields=FIELDS)
    (tmp_path / "view" / "000000.msgpack").rename(tmp_path / "view" / "999998.msgpack")
    view = ServerView(tmp_path / "view")
    for round in (1, 2):
        view.received(stage="clear", round=round, attempt=0, sender=1, fields=FIELDS)
    assert [message["round"] for message in read_server_view(tmp_path / "view")] == [0, 1, 2]


def test_public_values_are_apart_from_what_was_received(tmp_path: Path) -> None:
    view = ServerView(tmp_path / "view")
    view.public(round=1, attempt=2, manifest=b"manifest", model=b"model")
    view.close(b"final")
    assert read_server_view(tmp_path / "view") == []
    with (tmp_path / "view" / "public.msgpack").open("rb") as file:
        records = list(msgpack.Unpacker(file))
    assert records == [
        {"round": 1, "attempt": 2, "manifest": b"manifest", "model": b"model"},
        {"final_model": b"final"},
    ]
