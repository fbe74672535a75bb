"""One stage of a secure sum over Flower's Grid: send, wait, count bytes, record what arrived, report who is missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from autoflip_secure import errors
from autoflip_secure.errors import AutoflipSecureError, BudgetExhausted, ProtocolError
from autoflip_secure.federation.audit_trail import CoordinatorTrail
from autoflip_secure.federation.policy_rules import public_names
from autoflip_secure.federation.server_view import ServerView
from autoflip_secure.federation.wire import TRAINING_STAGES, Reply, Request, read_reply, request_message
from autoflip_secure.sums.manifest import Blocks, in_whole_blocks

__all__ = ["KNOWN_ERRORS", "StageExchange", "Traffic"]

VECTOR_STAGES = TRAINING_STAGES | {"open"}
"""Stages whose replies are as long as the contribution."""

KNOWN_ERRORS = frozenset(errors.__all__) | public_names()
LONGEST_ERROR = 64

# Seconds between two looks for replies: short stages are over at once, long ones are not asked about all the time.
FIRST_PAUSE = 0.001
LONGEST_PAUSE = 0.5
QUICKER = 8.0
"""By which pauses shrink after a reply: others are likely soon."""

LATE = 5.0
"""Seconds after its stage in which a message may still be delivered."""

LOOK_FOR_NODES = 5.0
"""Seconds between two looks whether the nodes that are waited for are still connected."""


@dataclass
class Traffic:
    """Bytes and drops of a run so far. Bytes are payloads: transport framing is Flower's own."""

    upload_contributions: int = 0
    upload_total: int = 0
    download_total: int = 0
    drops: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "drops": dict(self.drops)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Traffic:
        return cls(**{**data, "drops": Counter(data["drops"])})


class StageExchange:
    """Callable with the signature of sums.secure_sum.Exchange, for one attempt at a time."""

    def __init__(
        self,
        grid: Grid,
        traffic: Traffic,
        *,
        timeout: float,
        view: ServerView | None,
        event: Callable[..., None],
        trail: CoordinatorTrail | None = None,
    ) -> None:
        self._grid, self._traffic, self._timeout, self._view, self._event = grid, traffic, timeout, view, event
        self._trail = trail
        self.nodes: dict[int, int] = {}
        self.round, self.attempt, self.attachment = 0, 0, b""
        self.spared: frozenset[int] = frozenset()
        """Silos that have the model of this attempt already: they are not sent it."""
        self.blocks: Blocks = ()
        """Silos of this attempt that are summed together or not at all."""
        self.exhausted: set[int] = set()
        """Silos that said that they have no budget left, in this attempt and, as the caller puts in, before."""
        self.refusals: Counter[str] = Counter()
        self._away: set[int] = set()
        self._told: set[tuple[int, str]] = set()
        self.training_seconds = 0.0

    def begin(self, round: int, attempt: int, attachment: bytes) -> None:
        """Start an attempt; `attachment` is the model that travels with the stage that trains."""
        self.round, self.attempt, self.attachment = round, attempt, attachment
        self.spared, self.blocks, self.exhausted = frozenset(), (), set()
        self.refusals.clear()
        self._told.clear()
        self._away.clear()

    def __call__(self, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        # Silos that have not joined, or whose node is known to be away, are not waited for.
        connected = set(self._grid.get_node_ids())
        there = frozenset(silo for silo in requests if self.nodes.get(silo) in connected)
        in_vain = self._in_vain(there) if stage in TRAINING_STAGES else frozenset()
        if in_vain:
            self._event("not_asked", stage=stage, round=self.round, attempt=self.attempt, silos=sorted(in_vain))
            requests = {silo: request for silo, request in requests.items() if silo not in in_vain}
        by_node = {self.nodes[silo]: request for silo, request in requests.items() if silo in there}
        silo_of = {node: silo for silo, node in self.nodes.items()}
        absent = {silo: Reply("silent") for silo in requests}
        if self._trail is not None:
            attachment = self.attachment if stage in TRAINING_STAGES else b""
            sent = {silo_of[node]: request for node, request in by_node.items()}
            self._trail.asking(stage, self.round, self.attempt, sent, attachment, self.spared)
        where, started = {"stage": stage, "round": self.round, "attempt": self.attempt}, time.perf_counter()
        self._event("asking", **where, silos=sorted(silo_of[node] for node in by_node))
        try:
            for node, reply in self.ask_nodes(stage, by_node):
                silo, content = silo_of[node], reply.reply
                if reply.status == "ok":
                    absent.pop(silo, None)
                    del reply
                    yield silo, content
                else:
                    absent[silo] = reply
                del content
        finally:  # also where the sum stops at a reply
            if self._trail is not None:
                self._trail.answered(stage, self.round, self.attempt)
        for silo, reply in sorted(absent.items()):
            self._count_absence(stage, silo, reply)
        answered = sorted(requests.keys() - absent.keys())
        self._event("stage", **where, answered=answered, seconds=round(time.perf_counter() - started, 3))

    def _in_vain(self, there: frozenset[int]) -> frozenset[int]:
        """Silos that are there without all of their block: what they sent would be in no sum, and cost them budget."""
        if not self.blocks:
            return frozenset()
        return there - in_whole_blocks(self.blocks, there - self.exhausted)

    def ask_nodes(
        self, stage: str, requests: Mapping[int, bytes], shown: bytes = b"", within: float | None = None
    ) -> Iterator[tuple[int, Reply]]:
        """(node id, reply) as they arrive, whatever their status; nodes silent until the timeout are left out.

        Parameters
        ----------
        shown : bytes
            Travels along with a stage in which the model does not.
        within : float, optional
            Seconds to wait, where that is less than for other stages.
        """
        attached = self._attached(stage, requests, shown)
        heads = self._heads_for(requests) if stage in TRAINING_STAGES else {}
        within = self._timeout if within is None else min(within, self._timeout)
        messages = [
            request_message(
                node,
                Request(stage, self.round, self.attempt, request, attached[node], heads.get(node, b"")),
                within + LATE,
            )
            for node, request in requests.items()
        ]
        self._traffic.download_total += sum(map(len, requests.values())) + sum(map(len, attached.values()))
        self._traffic.download_total += sum(map(len, heads.values()))
        started = time.perf_counter()
        for node, answer in self._arriving(messages, within):
            yield node, self._read(stage, node, answer)
        if stage in TRAINING_STAGES:
            self.training_seconds += time.perf_counter() - started

    def _attached(self, stage: str, nodes: Iterable[int], shown: bytes) -> dict[int, bytes]:
        """What travels along to each node: where silos train the model, but to those that have it."""
        if stage not in TRAINING_STAGES:
            return dict.fromkeys(nodes, shown)
        having = {self.nodes.get(silo) for silo in self.spared}
        return {node: b"" if node in having else self.attachment for node in nodes}

    def _heads_for(self, nodes: Iterable[int]) -> dict[int, bytes]:
        """What each node is shown of the audit heads that the manifest names."""
        if self._trail is None:
            return {}
        silo_of = {node: silo for silo, node in self.nodes.items()}
        return {node: self._trail.shown_to(silo_of.get(node, 0)) for node in nodes}

    def _arriving(self, messages: list[Message], within: float) -> Iterator[tuple[int, Message | None]]:
        """Push, then pull what has arrived until nothing is missing: one reply need be in memory at a time.

        A look asks after one message, the next one after another where it has not come: asking after all of them each
        time is what a SuperLink with many silos would do most of the time.
        """
        # Grids set message ids when they push, so they are read from the messages afterwards.
        self._grid.push_messages(messages)
        node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        messages.clear()
        deadline, pause = time.monotonic() + within, FIRST_PAUSE
        look = time.monotonic() + LOOK_FOR_NODES
        while node_of and (now := time.monotonic()) < deadline:
            identifier = next(iter(node_of))
            arrived = yield from self._arrived(identifier, node_of)
            if arrived:
                pause = max(FIRST_PAUSE, pause / QUICKER)
                continue
            # Where a look itself takes long, as over a network, looks are further apart from the start.
            pause = min(max(2 * pause, 2 * (time.monotonic() - now)), LONGEST_PAUSE)
            if identifier in node_of:
                node_of[identifier] = node_of.pop(identifier)  # the last to be asked after now
            if now > look:
                # Flower keeps a message for a node that is away; nothing comes from it before it is back.
                connected = set(self._grid.get_node_ids())
                node_of = {message: node for message, node in node_of.items() if node in connected}
                look = time.monotonic() + LOOK_FOR_NODES
            if node_of:
                time.sleep(pause)
        for identifier in list(node_of):
            yield from self._arrived(identifier, node_of)

    def _arrived(self, identifier: str, node_of: dict[str, int]) -> Generator[tuple[int, Message | None], None, bool]:
        """Whatever has arrived in answer to a message, which is taken out of those waited for; whether anything has."""
        arrived = False
        for answer in self._pull(identifier):
            # The source of an error reply is not the node that failed, hence the message it replies to.
            replied = identifier if answer is None else answer.metadata.reply_to_message_id
            node = node_of.pop(replied, None)
            if node is not None:
                arrived = True
                yield node, answer
        return arrived

    def _pull(self, identifier: str) -> Iterable[Message | None]:
        """What has arrived in answer to a message; None where Flower cannot make a message of it.

        One by one: bytes that Flower's reading does not survive would take along the replies of others.
        """
        try:
            return list(self._grid.pull_messages([identifier]))
        except (httpx.HTTPError, AutoflipSecureError):
            raise  # the SuperLink is away
        except Exception as error:
            self._event("unreadable", round=self.round, attempt=self.attempt, error=type(error).__name__)
            return [None]

    def _read(self, stage: str, node: int, answer: Any) -> Reply:
        try:
            reply = Reply("malformed") if answer is None else read_reply(answer)
        except ProtocolError as error:
            reply = Reply("malformed", error=str(error))
        self._traffic.upload_total += len(reply.reply) + len(reply.head)
        if stage in VECTOR_STAGES and reply.status == "ok":
            self._traffic.upload_contributions += len(reply.reply)
        sender = next((silo for silo, n in self.nodes.items() if n == node), 0)
        if self._view is not None:
            fields = {"status": reply.status, "reply": reply.reply, "error": reply.error, "head": reply.head}
            self._view.received(stage=stage, round=self.round, attempt=self.attempt, sender=sender, fields=fields)
        if self._trail is not None and sender:
            try:
                self._trail.take(sender, reply)
            except ProtocolError as error:
                return Reply("malformed", error=str(error))
        return reply

    def _count_absence(self, stage: str, silo: int, reply: Reply) -> None:
        if reply.error:
            # A silo may write anything here; only the names of this project's errors mean something.
            told = (silo, reply.error if reply.error in KNOWN_ERRORS else "other")
            if told not in self._told:  # a silo counts once, however many stages it refuses
                self._told.add(told)
                if told[1] == BudgetExhausted.__name__:
                    self.exhausted.add(silo)
                self.refusals[told[1]] += 1
        if silo in self._away:
            return  # a drop is counted at the stage where the silo was first missed
        self._away.add(silo)
        self._traffic.drops[stage] += 1
        self._event(
            "absent",
            stage=stage,
            round=self.round,
            attempt=self.attempt,
            silo=silo,
            status=reply.status,
            error=reply.error[:LONGEST_ERROR],
        )
