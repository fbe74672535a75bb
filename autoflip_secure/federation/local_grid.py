"""LocalGrid: Flower's Grid in one machine. Silos run in a small pool of worker processes, or inside this process.

The same ServerApp and ClientApp run here, on Flower's Ray simulation and on a SuperLink. A silo always runs in the same
worker, so its open state and compiled model stay warm there; a worker that dies is replaced, and its silos' replies are
error messages, as they would be from a node that crashed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["LocalGrid", "default_workers"]

RUN_ID = 1
SERVER_NODE_ID = 1
FIRST_NODE_ID = 1001

ClientAppFactory = Callable[[], ClientApp]

_worker_app: ClientApp | None = None


def default_workers(silos: int) -> int:
    """One worker a core this process may use, no more than silos."""
    return max(1, min(silos, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def _start_worker(factory: ClientAppFactory) -> None:
    global _worker_app
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _set_identity()
    _worker_app = factory()


def _end_with_parent() -> None:
    """A worker whose coordinator was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer_in_worker(message: Message, context: Context) -> Message:
    assert _worker_app is not None
    return _answer(_worker_app, message, context)


def _answer(app: ClientApp, message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)


def _set_identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE_ID, RUN_ID


class LocalGrid(Grid):
    """In-process Grid over `nodes` silos.

    Parameters
    ----------
    factory : callable without arguments
        Makes the ClientApp; must be picklable where workers > 0, since each worker calls it once.
    nodes : int
        Number of silos; node ids are 1001, 1002, ...; a node's partition-id is its position.
    workers : int
        Worker processes; 0 answers in this process, one silo after another.
    """

    def __init__(self, factory: ClientAppFactory, nodes: int, workers: int) -> None:
        _set_identity()
        self._factory = factory
        self._contexts = {FIRST_NODE_ID + i: _context(FIRST_NODE_ID + i, i, nodes) for i in range(nodes)}
        self._app = factory() if workers == 0 else None
        self._pools = [self._new_pool() for _ in range(workers)]
        self._pending: dict[str, tuple[Message, Future[Message] | None]] = {}
        self._run: Any = None

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(self._factory,)
        )

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            # Flower's own in-memory grid sets the id the same way: the metadata has no public setter for it.
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self._pending[message.metadata.message_id] = (message, self._submit(message))
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            if message_id in self._pending:
                _, future = self._pending[message_id]
                if future is None or future.done():
                    yield self._collect(message_id, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        ids = list(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies = []
        for message_id in ids:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                replies.append(self._collect(message_id, left))
            except TimeoutError:
                self._pending.pop(message_id)
        return replies

    def close(self) -> None:
        """Stop the workers."""
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, message: Message) -> Future[Message] | None:
        context = self._contexts[message.metadata.dst_node_id]
        if self._app is not None:
            return None  # answered when its reply is asked for
        worker = int(context.node_config["partition-id"]) % len(self._pools)
        try:
            return self._pools[worker].submit(_answer_in_worker, message, context)
        except BrokenProcessPool:
            self._pools[worker] = self._new_pool()
            return self._pools[worker].submit(_answer_in_worker, message, context)

    def _answer_here(self, message: Message) -> Message:
        assert self._app is not None
        return _answer(self._app, message, self._contexts[message.metadata.dst_node_id])

    def _collect(self, message_id: str, timeout: float | None) -> Message:
        message, future = self._pending[message_id]
        try:
            reply = self._answer_here(message) if future is None else future.result(timeout)
        except BrokenProcessPool:
            reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, "the silo's worker process ended"), reply_to=message)
        self._pending.pop(message_id)
        return reply


def _context(node: int, partition: int, nodes: int) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=node,
        node_config={"partition-id": partition, "num-partitions": nodes},
        state=RecordDict(),
        run_config={},
    )
