"""LocalGrid: nodes and their partitions, workers that stay, die and are replaced, and silence after the timeout.

Workers are forked here, so that a test does not wait for an interpreter to import torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from autoflip_secure.federation import local_grid
from autoflip_secure.federation.local_grid import FIRST_NODE_ID, LocalGrid, default_workers


def make_app() -> ClientApp:
    """query.WORD: does the word (die, raise, sleep), where `only` names its partition; then says who answered."""
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        fields = message.content.config_records["f"]
        partition = int(context.node_config["partition-id"])
        if fields["only"] in (partition, -1):
            if fields["word"] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if fields["word"] == "raise":
                raise ValueError("record 17 of patient Miller")
            if fields["word"] == "sleep":
                time.sleep(float(fields["seconds"]))
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        count = int(context.node_config["num-partitions"])
        found = ConfigRecord({"partition": partition, "count": count, "pid": os.getpid(), "ignores": ignored})
        return Message(RecordDict({"f": found}), reply_to=message)

    return app


def message(node: int, word: str = "", only: int = -1, seconds: float = 0.0) -> Message:
    record = ConfigRecord({"word": word, "only": only, "seconds": seconds})
    return Message(RecordDict({"f": record}), node, "query")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    """start(nodes, workers) -> LocalGrid; closed at the end."""
    monkeypatch.setattr(local_grid.multiprocessing, "get_context", lambda kind: _fork())
    grids: list[LocalGrid] = []

    def begin(nodes: int, workers: int) -> LocalGrid:
        grids.append(LocalGrid(make_app, nodes, workers))
        return grids[-1]

    yield begin
    for grid in grids:
        grid.close()


_real_context = multiprocessing.get_context


def _fork() -> multiprocessing.context.ForkContext:
    return _real_context("fork")  # type: ignore[return-value]


def found(replies: list[Message]) -> dict[int, dict[str, object]]:
    """What each node said, by partition."""
    return {int(r.content.config_records["f"]["partition"]): dict(r.content.config_records["f"]) for r in replies}


@pytest.mark.parametrize("workers", [0, 2])
def test_nodes_are_partitions_in_order(start: Callable[[int, int], LocalGrid], workers: int) -> None:
    grid = start(5, workers)
    nodes = list(grid.get_node_ids())
    assert nodes == [FIRST_NODE_ID + i for i in range(5)]
    sent = [message(node) for node in nodes]
    replies = list(grid.send_and_receive(sent, timeout=60))
    by_message = {r.metadata.reply_to_message_id: r for r in replies}
    for position, one in enumerate(sent):
        fields = by_message[one.metadata.message_id].content.config_records["f"]
        assert (fields["partition"], fields["count"]) == (position, 5)
    assert len({one.metadata.message_id for one in sent}) == 5


def test_workers_are_processes_and_a_silo_keeps_its_own(start) -> None:
    grid = start(5, 2)
    nodes = list(grid.get_node_ids())
    rounds = [found(list(grid.send_and_receive(map(message, nodes), timeout=60))) for _ in range(2)]
    pids = [{partition: said["pid"] for partition, said in r.items()} for r in rounds]
    assert pids[0] == pids[1]
    assert os.getpid() not in pids[0].values()
    assert pids[0][0] == pids[0][2] == pids[0][4] != pids[0][1] == pids[0][3]
    assert all(said["ignores"] for said in rounds[0].values()), "Ctrl-C must reach the coordinator alone"


def test_without_workers_silos_answer_in_this_process(start) -> None:
    grid = start(3, 0)
    replies = found(list(grid.send_and_receive([message(node) for node in grid.get_node_ids()], timeout=1)))
    assert {said["pid"] for said in replies.values()} == {os.getpid()}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_an_error_reply_without_its_words(start, workers: int) -> None:
    grid = start(2, workers)
    sent = [message(node, "raise", only=1) for node in grid.get_node_ids()]
    replies = {r.metadata.reply_to_message_id: r for r in grid.send_and_receive(sent, timeout=60)}
    good, bad = (replies[one.metadata.message_id] for one in sent)
    assert not good.has_error()
    assert bad.error.reason == "ValueError"


def test_a_worker_that_dies_gives_error_replies_and_is_replaced(start) -> None:
    grid = start(2, 2)
    nodes = list(grid.get_node_ids())
    before = found(list(grid.send_and_receive(map(message, nodes), timeout=60)))
    sent = [message(node, "die", only=1) for node in nodes]
    replies = {r.metadata.reply_to_message_id: r for r in grid.send_and_receive(sent, timeout=60)}
    assert not replies[sent[0].metadata.message_id].has_error()
    assert "worker process ended" in replies[sent[1].metadata.message_id].error.reason
    after = found(list(grid.send_and_receive(map(message, nodes), timeout=60)))
    assert after[0]["pid"] == before[0]["pid"]
    assert after[1]["pid"] not in (before[0]["pid"], before[1]["pid"])


def test_the_silos_of_a_dead_worker_all_get_error_replies(start) -> None:
    grid = start(3, 1)
    replies = list(grid.send_and_receive([message(node, "die", only=0) for node in grid.get_node_ids()], timeout=60))
    assert len(replies) == 3
    assert all(reply.has_error() for reply in replies)
    assert not any(r.has_error() for r in grid.send_and_receive([message(FIRST_NODE_ID)], timeout=60))


def test_who_is_silent_until_the_timeout_is_left_out(start) -> None:
    grid = start(2, 2)
    list(grid.send_and_receive(map(message, grid.get_node_ids()), timeout=60))
    started = time.monotonic()
    replies = list(grid.send_and_receive([message(n, "sleep", 1, 1.5) for n in grid.get_node_ids()], timeout=0.3))
    assert 0.3 <= time.monotonic() - started < 1.4
    assert list(found(replies)) == [0]
    assert not grid._pending
    again = list(grid.send_and_receive([message(n) for n in grid.get_node_ids()], timeout=60))
    assert sorted(found(again)) == [0, 1], "a late reply was taken for the next one"


def test_the_timeout_is_that_of_the_stage(start) -> None:
    grid = start(3, 3)
    list(grid.send_and_receive(map(message, grid.get_node_ids()), timeout=60))
    started = time.monotonic()
    sent = [message(n, "sleep", -1, 1.5) for n in grid.get_node_ids()]
    assert list(grid.send_and_receive(sent, timeout=0.4)) == []
    assert time.monotonic() - started < 1.0


def test_messages_can_be_pushed_and_pulled(start) -> None:
    grid = start(2, 1)
    ids = list(grid.push_messages([message(FIRST_NODE_ID), message(FIRST_NODE_ID + 1, "sleep", 1, 0.5)]))
    deadline = time.monotonic() + 60
    pulled: list[Message] = []
    while len(pulled) < 2 and time.monotonic() < deadline:
        pulled += grid.pull_messages(ids)
    assert [r.metadata.reply_to_message_id for r in pulled] == ids
    assert list(grid.pull_messages(ids)) == [], "a reply is given once"


def test_create_message_addresses_a_node(start) -> None:
    made = start(1, 0).create_message(RecordDict(), "query.x", 1001, "group")
    assert (made.metadata.dst_node_id, made.metadata.message_type, made.metadata.group_id) == (1001, "query.x", "group")


def test_workers_are_at_most_silos_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [default_workers(silos) for silos in (1, 5, 8, 30)] == [1, 5, 8, 8]


def test_workers_start_afresh_so_that_no_lock_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []

    def context(kind: str) -> multiprocessing.context.BaseContext:
        kinds.append(kind)
        return _real_context(kind)

    monkeypatch.setattr(local_grid.multiprocessing, "get_context", context)
    with LocalGrid(make_app, 1, 1):
        assert kinds == ["spawn"]


def test_the_folder_of_a_silo_follows_its_partition(tmp_path: Path) -> None:
    from autoflip_secure.federation.client_app import silo_folder

    assert silo_folder(tmp_path, 7) == tmp_path / "silos" / "silo-007"
