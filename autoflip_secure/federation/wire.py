"""How a stage's request and reply travel in a Flower message: one ConfigRecord of plain fields, nothing else.

Request: stage, round, attempt, request (bytes of the secure sum), attachment (bytes: the model, if needed), heads
(bytes: the heads of audit logs that the manifest names; with the model).
Reply: status ("ok", "dropped", "refused", "failed"), reply (bytes), error (the class name of a refusal, never its text:
an error's words may quote private data, so they stay in the silo's own log), head (bytes: the signed head of the silo's
audit log, whose last line is about this reply).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict

from autoflip_secure.errors import ProtocolError

__all__ = [
    "TRAINING_STAGES",
    "Reply",
    "Request",
    "message_type_of",
    "read_reply",
    "read_request",
    "reply_message",
    "request_message",
]

T = TypeVar("T")

RECORD = "autoflip_secure"
TRAINING_STAGES = frozenset({"masked", "encrypt", "clear"})
"""Stages in which a silo computes on its records, and with which the model travels; Flower files them under train, all
others under query."""


@dataclass(frozen=True)
class Request:
    """What the coordinator asks in one stage."""

    stage: str
    round: int
    attempt: int
    request: bytes
    attachment: bytes = b""
    heads: bytes = b""


@dataclass(frozen=True)
class Reply:
    """What a silo answers."""

    status: str
    reply: bytes = b""
    error: str = ""
    head: bytes = b""


def message_type_of(stage: str) -> str:
    """Flower message type of a stage, e.g. `train.masked`, `query.confirm`."""
    return f"train.{stage}" if stage in TRAINING_STAGES else f"query.{stage}"


def request_message(node: int, request: Request, ttl: float | None = None) -> Message:
    """Message to one node, which is not delivered after `ttl` seconds: a node that comes back works for nobody then."""
    record = ConfigRecord(
        {
            "stage": request.stage,
            "round": request.round,
            "attempt": request.attempt,
            "request": request.request,
            "attachment": request.attachment,
            "heads": request.heads,
        }
    )
    content = RecordDict({RECORD: record})
    return Message(
        content, node, message_type_of(request.stage), ttl=ttl, group_id=f"{request.round}.{request.attempt}"
    )


def read_request(message: Message) -> Request:
    """Fields of a request.

    Raises
    ------
    ProtocolError
        A field is missing or has another type.
    """
    fields = _fields(message)
    return Request(
        _typed(fields, "stage", str),
        _typed(fields, "round", int),
        _typed(fields, "attempt", int),
        _typed(fields, "request", bytes),
        _typed(fields, "attachment", bytes),
        _typed(fields, "heads", bytes),
    )


def reply_message(reply: Reply, to: Message) -> Message:
    """Message that answers another."""
    record = ConfigRecord({"status": reply.status, "reply": reply.reply, "error": reply.error, "head": reply.head})
    return Message(RecordDict({RECORD: record}), reply_to=to)


def read_reply(message: Message) -> Reply:
    """Fields of a reply; a message that carries a Flower error reads as failed.

    Raises
    ------
    ProtocolError
        A field is missing, has another type, or there is one too many.
    """
    if message.has_error():
        # The reason is kept only as the kind of error: Flower puts tracebacks there.
        return Reply("failed", error=f"Flower error {message.error.code}")
    fields = _fields(message)
    if set(fields) != {"status", "reply", "error", "head"} or len(message.content) != 1:
        raise ProtocolError("a reply holds exactly status, reply, error and head")
    return Reply(
        _typed(fields, "status", str),
        _typed(fields, "reply", bytes),
        _typed(fields, "error", str),
        _typed(fields, "head", bytes),
    )


def _fields(message: Message) -> ConfigRecord:
    record = message.content.config_records.get(RECORD) if message.has_content() else None
    if record is None:
        raise ProtocolError("a message without our record")
    return record


def _typed(fields: ConfigRecord, name: str, kind: type[T]) -> T:
    value = fields.get(name)
    if type(value) is not kind:
        raise ProtocolError(f"field {name!r} of a message is not of type {kind.__name__}")
    return value
