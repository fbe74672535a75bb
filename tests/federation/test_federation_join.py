"""The statement of a run: signed, read strictly, and named by a digest that covers all that the run computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import ProtocolError, Refusal
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.federation.join import MAX_REQUEST_BYTES, JoinRequest, join_reply, read_join_reply
from autoflip_secure.parties.identity import Identity
from autoflip_secure.privacy.accounting import Mechanism

PLANNED = {"train": [Mechanism(0.1, 1.25, 7), Mechanism(1.0, 20.0, 1)], "holdout": [Mechanism(1.0, 3.0, 4)]}


@pytest.fixture
def coordinator(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "coordinator.key")


@pytest.fixture
def request_(make_config, task) -> JoinRequest:
    return JoinRequest(b"s" * 16, make_config(dp_epsilon=1 / 3, learning_rate=0.1), task.to_json(), PLANNED)


def test_requests_round_trip(request_: JoinRequest, coordinator: Identity) -> None:
    for again in (
        JoinRequest.open(request_.sign(coordinator), coordinator.public),
        JoinRequest.from_body(request_.body()),
    ):
        assert again == request_
        assert again.digest() == request_.digest()


def test_the_signature_covers_every_byte(request_: JoinRequest, coordinator: Identity, tmp_path: Path) -> None:
    body, signature = msgpack.unpackb(request_.sign(coordinator))
    for position in range(0, len(body), 97):
        changed = body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]
        with pytest.raises(Refusal, match="not signed"):
            JoinRequest.open(msgpack.packb([changed, signature]), coordinator.public)
    other = Identity.create(tmp_path / "other.key")
    with pytest.raises(Refusal, match="not signed"):
        JoinRequest.open(request_.sign(other), coordinator.public)


@pytest.mark.parametrize("message", [b"", b"\xc1", msgpack.packb(7), msgpack.packb([b"a"]), msgpack.packb([1, 2, 3])])
def test_messages_of_another_form_are_refused(message: bytes, coordinator: Identity) -> None:
    with pytest.raises(ProtocolError, match="not a join request"):
        JoinRequest.open(message, coordinator.public)


def test_other_types_are_not_signed(coordinator: Identity) -> None:
    for content in (["text", b"s"], [b"b", "text"], [None, None]):
        with pytest.raises(Refusal):
            JoinRequest.open(msgpack.packb(content), coordinator.public)


def put(index: int, value: Any) -> Any:
    return lambda fields: fields.__setitem__(index, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop(),
        lambda fields: fields.append(1),
        put(0, b"short"),
        put(0, "s" * 16),
        put(1, "{"),
        put(1, "[]"),
        put(1, json.dumps({"aggregation": ["none"]})),
        put(2, 7),
        put(3, [1]),
        put(3, {"train": [[0.1]]}),
        put(3, {"train": [["x", 1.0, 1]]}),
        put(3, {"train": [[0.5, -1.0, 1]]}),
        put(4, b"short"),
        put(4, "c" * 32),
        put(4, None),
    ],
)
def test_statements_of_another_form_are_refused(change: Any, request_: JoinRequest) -> None:
    fields = msgpack.unpackb(request_.body())
    change(fields)
    with pytest.raises(ProtocolError, match="not a join request"):
        JoinRequest.from_body(msgpack.packb(fields))


@pytest.mark.parametrize("changes", [{"silos": 1}, {"surprise": 1}, {"rounds": None}, {"bits": 99}])
def test_impossible_configurations_are_refused(changes: dict[str, Any], request_: JoinRequest) -> None:
    fields = msgpack.unpackb(request_.body())
    fields[1] = json.dumps({**json.loads(fields[1]), **changes})
    with pytest.raises(ProtocolError, match="not a join request"):
        JoinRequest.from_body(msgpack.packb(fields))


def test_the_digest_covers_session_configuration_task_plan_and_code(request_: JoinRequest, make_config, task) -> None:
    config, text = request_.config, request_.task
    other = ResolvedConfig.create(**{**config.model_dump(), "seed": 1})
    more = {**PLANNED, "holdout": [Mechanism(1.0, 3.0, 5)]}
    digests = [
        request_.digest(),
        JoinRequest(b"t" * 16, config, text, PLANNED).digest(),
        JoinRequest(b"s" * 16, other, text, PLANNED).digest(),
        JoinRequest(b"s" * 16, config, text.replace("toy", "tox"), PLANNED).digest(),
        JoinRequest(b"s" * 16, config, text, more).digest(),
        JoinRequest(b"s" * 16, config, text, {"train": PLANNED["train"]}).digest(),
        JoinRequest(b"s" * 16, config, text, PLANNED, b"c" * 32).digest(),
    ]
    assert len(set(digests)) == len(digests)
    elsewhere = ResolvedConfig.create(**{**config.model_dump(), "workers": 3, "device": "auto"})
    swapped = dict(reversed(PLANNED.items()))
    assert JoinRequest(b"s" * 16, elsewhere, text, swapped).digest() == request_.digest()


def test_a_request_says_the_code_it_was_made_by(request_: JoinRequest) -> None:
    assert request_.code == code_digest()


def test_a_request_that_is_too_long_is_not_even_read(coordinator: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msgpack, "unpackb", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ProtocolError, match=r"262145 bytes is longer than 262144"):
        JoinRequest.open(bytes(MAX_REQUEST_BYTES + 1), coordinator.public)


def test_replies_are_one_silo_id() -> None:
    assert read_join_reply(join_reply(7)) == 7


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", b"\x00\x00", *map(msgpack.packb, (0, -1, True, "1", 1.0, None, [1]))]
)
def test_replies_of_another_form_are_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a join reply"):
        read_join_reply(content)
