"""Flower messages: typed plain fields, nothing else, and no words of an error."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation.client_app import STAGES
from autoflip_secure.federation.wire import (
    RECORD,
    Reply,
    Request,
    message_type_of,
    read_reply,
    read_request,
    reply_message,
    request_message,
)

REQUEST = Request("masked", 3, 1, b"\x00words", b"model", b"heads")

REPLY: dict[str, Any] = {"status": "ok", "reply": b"", "error": "", "head": b""}


def message(fields: dict[str, Any] | None, **others: Any) -> Message:
    """A message with our record of `fields`, and `others` beside it."""
    content = RecordDict({} if fields is None else {RECORD: ConfigRecord(fields)})
    content.update(others)
    return Message(content, 7, "query.confirm")


@given(st.builds(Request, st.text(min_size=1), st.integers(0, 2**62), st.integers(0, 99), *[st.binary()] * 3))
def test_requests_round_trip(request_: Request) -> None:
    fields = vars(request_)
    assert read_request(message(dict(fields))) == request_


def test_a_request_is_addressed_and_filed() -> None:
    sent = request_message(1003, REQUEST)
    assert read_request(sent) == REQUEST
    assert sent.metadata.dst_node_id == 1003
    assert sent.metadata.message_type == "train.masked"
    assert sent.metadata.group_id == "3.1"


def test_stages_that_train_are_filed_under_train() -> None:
    train = [stage for stage in STAGES if message_type_of(stage) == f"train.{stage}"]
    query = [stage for stage in STAGES if message_type_of(stage) == f"query.{stage}"]
    assert sorted(train) == ["clear", "encrypt", "masked"]
    assert sorted(query) == sorted(
        {"join", "reveal", "advertise", "share", "confirm", "unmask", "keys", "open", "key", "follow"}
    )
    assert sorted([*train, *query]) == sorted(STAGES)


@given(st.builds(Reply, st.sampled_from(["ok", "dropped", "refused", "failed"]), st.binary(), st.text(), st.binary()))
def test_replies_round_trip(reply: Reply) -> None:
    assert read_reply(reply_message(reply, request_message(1, REQUEST))) == reply


@pytest.mark.parametrize("name", list(vars(REQUEST)))
@pytest.mark.parametrize("value", [None, 1, True, 1.0, b"b", "s", [1], ["s"]])
def test_request_fields_are_typed(name: str, value: Any) -> None:
    if type(value) is type(getattr(REQUEST, name)):
        return
    fields = {**vars(REQUEST), name: value}
    if value is None:
        del fields[name]
    with pytest.raises(ProtocolError, match=name):
        read_request(message(fields))


@pytest.mark.parametrize("name", list(REPLY))
@pytest.mark.parametrize("value", [None, 1, True, 1.0, b"b", "s", [b"b"]])
def test_reply_fields_are_typed(name: str, value: Any) -> None:
    fields: dict[str, Any] = dict(REPLY)
    if type(value) is type(fields[name]):
        return
    fields[name] = value
    if value is None:
        del fields[name]
    with pytest.raises(ProtocolError):
        read_reply(message(fields))


def test_a_reply_carries_nothing_else() -> None:
    fields = dict(REPLY)
    assert read_reply(message(fields)) == Reply("ok")
    with pytest.raises(ProtocolError, match="exactly"):
        read_reply(message({**fields, "loss": 0.25}))
    for other in (ConfigRecord({"k": 1}), MetricRecord({"loss": 0.25}), ArrayRecord()):
        with pytest.raises(ProtocolError, match="exactly"):
            read_reply(message(fields, other=other))


def test_messages_without_our_record_are_refused() -> None:
    for read in (read_request, read_reply):
        with pytest.raises(ProtocolError, match="without our record"):
            read(message(None))
        with pytest.raises(ProtocolError, match="without our record"):
            read(message(None, another=ConfigRecord(REPLY)))


def test_an_error_reply_reads_as_failed_and_loses_its_words() -> None:
    secret = "record 17 of patient Miller"
    reply = read_reply(Message(Error(4, secret), reply_to=request_message(1, REQUEST)))
    assert reply.status == "failed"
    assert reply.reply == b""
    assert reply.error == "Flower error 4"
