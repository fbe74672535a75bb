"""One stage over a Grid: who answered, who is counted as missing, which bytes are counted, what is recorded."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from google.protobuf.message import DecodeError

from autoflip_secure.federation import exchange as exchange_module
from autoflip_secure.federation.client_app import STAGES
from autoflip_secure.federation.exchange import LONGEST_ERROR, StageExchange, Traffic
from autoflip_secure.federation.wire import RECORD, Reply, read_request, reply_message

Answer = Callable[[int, Message], Message | None]


class FakeGrid:
    """Answers each message by `answer(node, message)`; None is silence. Ids are set on sending, as Flower does."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.sent: list[Message] = []
        self.replies: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return range(101, 105)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            self.sent.append(message)
            reply = self._answer(message.metadata.dst_node_id, message)
            if reply is not None:
                # Error replies of nodes that failed come from the server's own node.
                reply.metadata.__dict__["_src_node_id"] = 1
                self.replies.append(reply)
        return [message.metadata.message_id for message in self.sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies, self.replies = self.replies, []
        return reversed(replies)


class RecordingView:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def received(self, **message: Any) -> None:
        self.messages.append(message)


def absences(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "absent"]


def ok(node: int, message: Message) -> Message:
    return reply_message(Reply("ok", b"from %d" % node), message)


@pytest.fixture
def start() -> Callable[[Answer], tuple[StageExchange, FakeGrid, RecordingView, list[dict[str, Any]]]]:
    """start(answer) -> exchange over silos 1..4 at nodes 101..104, its grid, its view, its events."""

    def begin(answer: Answer) -> tuple[StageExchange, FakeGrid, RecordingView, list[dict[str, Any]]]:
        grid, view, events = FakeGrid(answer), RecordingView(), []
        exchange = StageExchange(
            grid,  # type: ignore[arg-type]
            Traffic(),
            timeout=0.1,
            view=view,  # type: ignore[arg-type]
            event=lambda name, **fields: events.append({"event": name, **fields}),
        )
        exchange.nodes = {silo: 100 + silo for silo in range(1, 5)}
        exchange.begin(3, 1, b"the model")
        return exchange, grid, view, events

    return begin


REQUESTS = {silo: b"to %d" % silo for silo in range(1, 5)}


def test_silos_without_all_of_their_block_are_not_asked_for_their_records(start) -> None:
    """What they sent would be in no sum; it would cost them budget."""
    exchange, grid, _, events = start(ok)
    exchange.nodes[4] = 999
    exchange.blocks = ((1, 2), (3, 4))
    requests = dict.fromkeys(range(1, 5), b"request")
    assert sorted(silo for silo, _ in exchange("masked", requests)) == [1, 2]
    assert sorted(message.metadata.dst_node_id for message in grid.sent) == [101, 102]
    assert [event["silos"] for event in events if event["event"] == "not_asked"] == [[3]]
    assert [event["silo"] for event in absences(events)] == [4], "silo 3 is there"
    assert sorted(silo for silo, _ in exchange("confirm", requests)) == [1, 2, 3], "it helps all the same"
    exchange.begin(4, 0, b"the model")
    assert sorted(silo for silo, _ in exchange("masked", requests)) == [1, 2, 3], "of a run without blocks"


def test_the_block_of_a_silo_without_budget_is_not_asked(start) -> None:
    exchange, _, _, events = start(ok)
    exchange.blocks, exchange.exhausted = ((1, 2), (3, 4)), {2}
    assert sorted(silo for silo, _ in exchange("masked", dict.fromkeys(range(1, 5), b"request"))) == [3, 4]
    assert [event["silos"] for event in events if event["event"] == "not_asked"] == [[1, 2]]


def test_replies_find_their_silo_although_the_source_is_wrong(start) -> None:
    exchange, *_ = start(ok)
    assert dict(exchange("confirm", REQUESTS)) == {silo: b"from %d" % (100 + silo) for silo in REQUESTS}


def test_only_those_who_were_asked_are_asked(start) -> None:
    exchange, grid, *_ = start(ok)
    assert set(dict(exchange("confirm", {2: b"a", 4: b"b"}))) == {2, 4}
    assert [message.metadata.dst_node_id for message in grid.sent] == [102, 104]


def test_requests_say_stage_round_and_attempt(start) -> None:
    exchange, grid, *_ = start(ok)
    dict(exchange("confirm", REQUESTS))
    requests = [read_request(message) for message in grid.sent]
    assert [(r.stage, r.round, r.attempt, r.request) for r in requests] == [
        ("confirm", 3, 1, content) for content in REQUESTS.values()
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_travels_with_the_stage_that_trains_and_no_other(start, stage: str) -> None:
    exchange, grid, *_ = start(ok)
    dict(exchange(stage, REQUESTS))
    trains = stage in ("masked", "encrypt", "clear")
    assert {read_request(message).attachment for message in grid.sent} == {b"the model" if trains else b""}


def test_bytes_are_counted_by_kind(start) -> None:
    exchange, *_ = start(ok)
    traffic = exchange._traffic
    dict(exchange("confirm", REQUESTS))
    assert (traffic.upload_contributions, traffic.upload_total, traffic.download_total) == (0, 4 * 8, 4 * 4)
    dict(exchange("masked", REQUESTS))
    assert (traffic.upload_contributions, traffic.upload_total) == (4 * 8, 8 * 8)
    assert traffic.download_total == 8 * 4 + 4 * len(b"the model")


def test_a_part_of_a_ckks_opening_counts_as_the_ciphertexts_do(start) -> None:
    """It is as long: whoever compares uploads by vectors alone has to see both."""
    exchange, *_ = start(ok)
    traffic, seen = exchange._traffic, []
    for stage in ("keys", "encrypt", "open"):
        dict(exchange(stage, REQUESTS))
        seen.append((traffic.upload_contributions, traffic.upload_total))
    assert seen == [(0, 32), (32, 64), (64, 96)]


def test_contributions_are_counted_from_those_who_gave_one(start) -> None:
    def answer(node: int, message: Message) -> Message | None:
        return reply_message(Reply("ok" if node == 101 else "refused", b"12345678"), message)

    exchange, *_ = start(answer)
    dict(exchange("clear", REQUESTS))
    assert exchange._traffic.upload_contributions == 8
    assert exchange._traffic.upload_total == 32


REPLY = {"status": "ok", "reply": b"", "error": "", "head": b""}


def malformed(message: Message, fields: dict[str, Any]) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(fields)}), reply_to=message)


ABSENT: dict[str, tuple[Answer, str, str]] = {
    "silent": (lambda node, m: None, "silent", ""),
    "dropped": (lambda node, m: reply_message(Reply("dropped"), m), "dropped", ""),
    "refused": (lambda node, m: reply_message(Reply("refused", error="PolicyRefusal"), m), "refused", "PolicyRefusal"),
    "failed": (lambda node, m: reply_message(Reply("failed"), m), "failed", ""),
    "crashed": (lambda node, m: Message(Error(4, "traceback"), reply_to=m), "failed", "Flower error 4"),
    "malformed": (lambda node, m: malformed(m, {"status": "ok"}), "malformed", "exactly status, reply, error and head"),
    "mistyped": (lambda node, m: malformed(m, {**REPLY, "reply": "text"}), "malformed", "'reply'"),
}


@pytest.mark.parametrize("case", list(ABSENT))
def test_whoever_gives_no_answer_is_absent_and_recorded(start, case: str) -> None:
    absent, status, error = ABSENT[case]
    exchange, _, view, events = start(lambda node, m: absent(node, m) if node == 103 else ok(node, m))
    assert set(dict(exchange("confirm", REQUESTS))) == {1, 2, 4}
    (event,) = absences(events)
    assert error in event.pop("error")
    assert event == {"event": "absent", "stage": "confirm", "round": 3, "attempt": 1, "silo": 3, "status": status}
    assert exchange._traffic.drops == {"confirm": 1}
    assert len(view.messages) == (3 if case == "silent" else 4)


def test_a_drop_is_counted_once_an_attempt_where_it_was_first_missed(start) -> None:
    exchange, _, _, events = start(lambda node, m: None if node in (102, 103) else ok(node, m))
    for stage in ("masked", "confirm", "unmask"):
        dict(exchange(stage, REQUESTS))
    assert exchange._traffic.drops == {"masked": 2}
    assert [(event["stage"], event["silo"]) for event in absences(events)] == [("masked", 2), ("masked", 3)]
    exchange.begin(3, 2, b"")
    dict(exchange("confirm", REQUESTS))
    assert exchange._traffic.drops == {"masked": 2, "confirm": 2}


def test_each_silo_is_counted_at_the_stage_it_was_first_missed(start) -> None:
    gone: set[int] = {101}
    exchange, *_ = start(lambda node, m: None if node in gone else ok(node, m))
    dict(exchange("masked", REQUESTS))
    gone.add(104)
    dict(exchange("confirm", REQUESTS))
    assert exchange._traffic.drops == {"masked": 1, "confirm": 1}


def test_refusals_are_counted_by_kind_and_forgotten_by_the_next_attempt(start) -> None:
    errors = {101: "BudgetExhausted", 102: "BudgetExhausted", 103: "PolicyRefusal"}

    def answer(node: int, message: Message) -> Message:
        return reply_message(Reply("refused", error=errors[node]), message) if node in errors else ok(node, message)

    exchange, *_ = start(answer)
    dict(exchange("masked", REQUESTS))
    assert exchange.refusals == {"BudgetExhausted": 2, "PolicyRefusal": 1}
    assert exchange.exhausted == {1, 2}
    exchange.begin(3, 2, b"")
    assert not exchange.refusals


def test_words_of_a_silos_own_are_neither_counted_by_nor_kept_at_length(start) -> None:
    """Else a silo could fill the run's memory and event log with refusals."""
    errors = iter(f"{number} " + "x" * 100_000 for number in range(100))

    def answer(node: int, message: Message) -> Message:
        return reply_message(Reply("refused", error=next(errors)), message)

    exchange, _, _, events = start(answer)
    dict(exchange("masked", REQUESTS))
    dict(exchange("confirm", REQUESTS))
    assert exchange.refusals == {"other": 4}, "a silo counts once in an attempt, whatever it refuses"
    assert {len(event["error"]) for event in absences(events)} == {LONGEST_ERROR} == {64}


def test_the_view_gets_every_message_as_it_came(start) -> None:
    exchange, _, view, _ = start(
        lambda node, m: reply_message(Reply("refused", b"\x01", "Refusal"), m) if node == 102 else ok(node, m)
    )
    dict(exchange("unmask", REQUESTS))
    assert {m["sender"] for m in view.messages} == {1, 2, 3, 4}
    by_silo = {message["sender"]: message for message in view.messages}
    assert by_silo[2] == {
        "stage": "unmask",
        "round": 3,
        "attempt": 1,
        "sender": 2,
        "fields": {"status": "refused", "reply": b"\x01", "error": "Refusal", "head": b""},
    }
    assert by_silo[3]["fields"] == {"status": "ok", "reply": b"from 103", "error": "", "head": b""}


def test_replies_to_other_messages_are_left_alone(start) -> None:
    def answer(node: int, message: Message) -> Message:
        reply = ok(node, message)
        if node == 102:
            reply.metadata.__dict__["_reply_to_message_id"] = "another"
        return reply

    exchange, _, view, _ = start(answer)
    assert set(dict(exchange("confirm", REQUESTS))) == {1, 3, 4}
    assert len(view.messages) == 3


def test_every_status_is_returned_to_whoever_asks_by_node(start) -> None:
    exchange, *_ = start(lambda node, m: None if node == 104 else reply_message(Reply("refused", error=str(node)), m))
    replies = dict(exchange.ask_nodes("join", dict.fromkeys((101, 104), b"")))
    assert replies == {101: Reply("refused", error="101")}
    assert not exchange._traffic.drops


def test_time_is_counted_as_training_in_the_stage_that_trains(start, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("autoflip_secure.federation.exchange.time.perf_counter", lambda: float(next(clock)))
    exchange, *_ = start(ok)
    dict(exchange("confirm", REQUESTS))
    assert exchange.training_seconds == 0
    dict(exchange("masked", REQUESTS))
    dict(exchange("clear", REQUESTS))
    assert exchange.training_seconds == 2


def test_traffic_round_trips_through_json() -> None:
    traffic = Traffic(1, 2, 3)
    traffic.drops["masked"] += 2
    again = Traffic.from_json(traffic.to_json())
    assert again == traffic
    again.drops["new"] += 1
    assert again.drops == {"masked": 2, "new": 1}


class HostileGrid(FakeGrid):
    """Flower cannot make a message of what one node sent: its reading raises, and what it had read before is gone."""

    def __init__(self, answer: Answer, hostile: int, error: Exception) -> None:
        super().__init__(answer)
        self.hostile, self.error = hostile, error

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in self.sent}
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in asked]
        self.replies = [reply for reply in self.replies if reply not in found]
        if any(nodes[identifier] == self.hostile for identifier in asked):
            raise self.error
        return found


@pytest.mark.parametrize(
    "error", [DecodeError("wrong wire type"), AttributeError("no attribute 'metadata'"), ValueError()]
)
def test_bytes_that_flower_does_not_survive_are_their_nodes_alone(error: Exception) -> None:
    events: list[dict[str, Any]] = []
    grid = HostileGrid(ok, 102, error)
    exchange = StageExchange(
        grid, Traffic(), timeout=5, view=None, event=lambda event, **fields: events.append({"event": event, **fields})
    )
    exchange.nodes = {silo: 100 + silo for silo in range(1, 5)}
    exchange.begin(0, 0, b"")
    replies = dict(exchange("confirm", dict.fromkeys(range(1, 5), b"request")))
    assert replies == {silo: b"from %d" % (100 + silo) for silo in (1, 3, 4)}
    assert [(event["silo"], event["status"]) for event in absences(events)] == [(2, "malformed")]


def test_a_superlink_that_is_away_is_no_silos_fault() -> None:
    grid = HostileGrid(ok, 102, httpx.ConnectError("refused"))
    exchange = StageExchange(grid, Traffic(), timeout=5, view=None, event=lambda event, **fields: None)
    exchange.nodes = {silo: 100 + silo for silo in range(1, 5)}
    exchange.begin(0, 0, b"")
    with pytest.raises(httpx.ConnectError):
        dict(exchange("confirm", dict.fromkeys(range(1, 5), b"request")))


def test_messages_are_not_delivered_long_after_their_stage() -> None:
    grid = FakeGrid(ok)
    exchange = StageExchange(grid, Traffic(), timeout=30, view=None, event=lambda event, **fields: None)
    exchange.nodes = {1: 101}
    exchange.begin(0, 0, b"")
    dict(exchange("confirm", {1: b"request"}))
    assert 30 <= grid.sent[0].metadata.ttl < 60


def test_a_silo_whose_node_is_away_is_not_waited_for() -> None:
    events: list[dict[str, Any]] = []
    grid = FakeGrid(ok)
    exchange = StageExchange(
        grid, Traffic(), timeout=600, view=None, event=lambda event, **fields: events.append({"event": event, **fields})
    )
    exchange.nodes = {1: 101, 2: 999}
    exchange.begin(0, 0, b"")
    assert dict(exchange("confirm", dict.fromkeys((1, 2, 3), b"request"))) == {1: b"from 101"}
    assert [(event["silo"], event["status"]) for event in absences(events)] == [(2, "silent"), (3, "silent")]
    assert [message.metadata.dst_node_id for message in grid.sent] == [101]


class GridByMessage(FakeGrid):
    """Gives a reply only to who asks after its message, as Flower's does, and counts how often it is asked."""

    def __init__(self, answer: Answer, arrived: Callable[[int], bool]) -> None:
        super().__init__(answer)
        self._arrived, self.asked = arrived, 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.asked += 1
        (wanted,) = message_ids
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id == wanted]
        places = {message.metadata.message_id: number for number, message in enumerate(self.sent)}
        return [reply for reply in found if self._arrived(places[reply.metadata.reply_to_message_id])]


def test_replies_that_are_there_are_taken_without_a_pause_and_each_asked_after_once(start, monkeypatch) -> None:
    exchange, *_ = start(ok)
    grid = GridByMessage(ok, arrived=lambda number: True)
    exchange._grid = grid
    monkeypatch.setattr(exchange_module.time, "sleep", lambda seconds: pytest.fail("nothing to wait for"))
    assert len(dict(exchange("confirm", REQUESTS))) == grid.asked == 4


def test_one_that_is_late_is_not_asked_after_with_all_others_each_time(start) -> None:
    exchange, *_ = start(ok)
    looks = 0

    def arrived(number: int) -> bool:
        nonlocal looks
        looks += 1
        return number == 0 or looks > 12

    grid = GridByMessage(ok, arrived)
    exchange._grid = grid
    exchange._timeout = 30.0
    assert next(iter(dict(exchange("confirm", REQUESTS)))) == 1
    # The first, twelve looks at those that are late, in turn, then these.
    assert grid.asked <= 1 + 12 + 3


def test_what_arrived_before_the_deadline_is_taken_though_nobody_asked_after_it_since(start) -> None:
    """Only the first is asked after while there is time; by the end the others have arrived, too."""
    exchange, *_ = start(ok)
    grid = GridByMessage(ok, arrived=lambda number: number > 0)
    exchange._grid = grid
    exchange._timeout = 0.0
    assert sorted(dict(exchange("confirm", REQUESTS))) == [2, 3, 4]
    assert grid.asked == 4
