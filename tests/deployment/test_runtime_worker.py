"""The worker of a silo: what it takes, what it never runs, and messages that never come whole."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp

from autoflip_secure.deployment.silo_worker import MOST_AT_ONCE, SiloWorker
from autoflip_secure.federation.wire import Reply, Request, read_reply, request_message


def until(holds, seconds: float = 10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.01)
    raise AssertionError("not in time")


class Client:
    """A connection to the Runtime API: hands out tasks, and can be closed."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.closed, self.asked = tokens, threading.Event(), []

    def AcquireTask(self, request: Any) -> Any:  # noqa: N802
        self.asked.append(list(request.supported_task_types))
        token = self.tokens.pop(0) if self.tokens else ""
        return SimpleNamespace(HasField=lambda name: bool(token), token=token)

    def SendTaskHeartbeat(self, request: Any) -> Any:  # noqa: N802
        return SimpleNamespace(success=True)

    def close(self) -> None:
        self.closed.set()


class Worker(SiloWorker):
    """A worker whose connections are `Client`s and whose silo answers with what it was asked."""

    def __init__(self, tokens: list[str]) -> None:
        self.connections: list[Client] = []
        self._tokens = tokens
        super().__init__(Path("home"), "127.0.0.1:1", b"secret")
        self.answered: list[str] = []
        self.at_once = self.most_at_once = 0

    def _connect(self, *interceptors: Any) -> Any:
        self.connections.append(Client(self._tokens if not self.connections else []))
        return self.connections[-1]

    def _open(self) -> Any:
        return SimpleNamespace(answer=self._slowly)

    def _slowly(self, request: Request) -> Reply:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        time.sleep(0.05)
        self.answered.append(request.stage)
        self.at_once -= 1
        return Reply("ok", request.request)


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The SuperNode's side: what each connection's message is, and what was pushed."""
    made = SimpleNamespace(message=lambda client: asked("confirm"), pushed=[], done=[])

    def pull(client: Client) -> Any:
        return made.message(client), SimpleNamespace(), None, None

    for name in ("run_id", "node_id", "task_id"):
        setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(run_clientapp, "pull_task_input", pull)
    monkeypatch.setattr(run_clientapp, "push_message", lambda client, message, context: made.pushed.append(message))
    monkeypatch.setattr(
        run_clientapp, "push_task_output", lambda client, context, status, why: made.done.append(status)
    )
    return made


def asked(stage: str) -> Message:
    return request_message(7, Request(stage, 3, 0, b"question"))


def test_a_message_is_answered_by_the_silo(flower: SimpleNamespace) -> None:
    worker = Worker(["token"])
    assert worker.answer_one()
    until(lambda: flower.done)
    (message,) = flower.pushed
    assert read_reply(message) == Reply("ok", b"question")
    assert worker.answered == ["confirm"]
    assert not worker.answer_one()


def test_only_messages_for_a_silo_are_taken(flower: SimpleNamespace) -> None:
    worker = Worker([])
    worker.answer_one()
    assert worker.connections[0].asked == [["flwr-clientapp"]], "never a task that runs code, a model or a connector"


def test_the_silo_answers_one_message_at_a_time(flower: SimpleNamespace) -> None:
    worker = Worker(["a", "b", "c", "d"])
    for _ in range(4):
        assert worker.answer_one()
    until(lambda: len(flower.done) == 4)
    assert worker.most_at_once == 1


def never_comes(client: Client) -> Message:
    """Flower asks for missing parts for hours, until its connection is closed."""
    client.closed.wait(30)
    raise RuntimeError("Cannot send a request, as the client has been closed.")


def test_a_message_that_never_comes_whole_holds_nobody_up(flower: SimpleNamespace) -> None:
    worker = Worker(["broken", "whole"])
    worker._pull_within = 0.5
    flower.message = lambda client: never_comes(client) if client is worker.connections[1] else asked("unmask")
    assert worker.answer_one()
    assert worker.answer_one()
    until(lambda: flower.done)
    assert worker.answered == ["unmask"]
    until(worker.connections[1].closed.is_set)
    until(lambda: worker._free._value == MOST_AT_ONCE)


def test_many_broken_messages_are_not_taken_without_end(flower: SimpleNamespace) -> None:
    worker = Worker([f"broken-{i}" for i in range(50)])
    worker._pull_within, flower.message = 0.3, never_comes
    threading.Thread(target=lambda: [worker.answer_one() for _ in range(30)], daemon=True).start()
    until(lambda: len(worker.connections) > MOST_AT_ONCE)
    assert sum(not client.closed.is_set() for client in worker.connections[1:]) <= MOST_AT_ONCE
    until(lambda: len(worker.connections) == 31, 20)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"autoflip_secure": ConfigRecord({"stage": 3})}),
        RecordDict({"other": ConfigRecord({"stage": "join"})}),
    ],
)
def test_a_message_that_is_no_request_is_refused(flower: SimpleNamespace, content: RecordDict) -> None:
    flower.message = lambda client: Message(content, 7, "query.confirm")
    worker = Worker(["token"])
    worker.answer_one()
    until(lambda: flower.done)
    assert read_reply(flower.pushed[0]) == Reply("refused", error="ProtocolError")
    assert worker.answered == []


def test_what_goes_wrong_at_the_silo_is_not_told(flower: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(request: Request) -> Reply:
        raise ValueError("patient 17 has diagnosis X")

    worker = Worker(["token"])
    monkeypatch.setattr(worker, "_slowly", fails)
    worker.answer_one()
    until(lambda: flower.done)
    assert read_reply(flower.pushed[0]) == Reply("failed")


def test_a_supernode_that_is_away_is_asked_again(flower: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(["token"])
    client = worker.connections[0]
    monkeypatch.setattr(client, "AcquireTask", lambda request: (_ for _ in ()).throw(httpx.ConnectError("away")))
    assert not worker.answer_one()
    monkeypatch.undo()
    assert worker._free._value == MOST_AT_ONCE
