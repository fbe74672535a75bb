"""Parsers of messages: of silos to the coordinator, and of the coordinator to silos."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoflip_secure.attacks.parser_calls import Call, Parser, as_bytes
from autoflip_secure.attacks.parser_samples import Samples, function_of, sealed
from autoflip_secure.ckks import messages as ckks_messages
from autoflip_secure.federation.join import DOMAIN as JOIN_DOMAIN
from autoflip_secure.parties import run_key_messages
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.wire import Message
from autoflip_secure.secagg import round_messages, setup_messages

__all__ = ["message_parsers"]


def _message(function: Any, data: bytes, _: Path) -> object:
    return function.__func__(setup_messages.AdvertiseRequest, data)


def _kinds() -> list[type[Message]]:
    modules = (ckks_messages, round_messages, setup_messages, run_key_messages)
    listed = [getattr(module, name) for module in modules for name in module.__all__]
    return [kind for kind in listed if isinstance(kind, type) and issubclass(kind, Message)]


def message_parsers(s: Samples) -> Iterator[Parser]:
    """Messages of silos to the coordinator, and of the coordinator to silos."""
    for kind in _kinds():
        reader = f"{kind.__module__.removeprefix('autoflip_secure.')}:{kind.__name__}.from_bytes"
        yield Parser(reader, s.messages([kind]), as_bytes)
    yield Parser("parties.wire:Message.from_bytes", s.messages([setup_messages.AdvertiseRequest]), _message)
    yield Parser("parties.roster:Roster.from_bytes", [s.roster.to_bytes()], as_bytes)
    yield Parser("sums.manifest:Manifest.from_bytes", s.manifests, as_bytes)
    yield Parser("federation.model_payload:ModelPayload.from_bytes", s.models, as_bytes)
    yield Parser("federation.audit_log:Head.from_bytes", s.replies["head"][:2], as_bytes)
    yield Parser("federation.audit_heads:ShownHeads.from_bytes", s.heads, as_bytes)
    yield Parser("federation.join:read_join_reply", s.replies["join"], as_bytes)
    yield Parser("federation.join:JoinRequest.from_body", [s.joined], as_bytes)
    coordinator = Identity.load(s.run / "federation" / "coordinator.key")
    yield Parser(
        "federation.join:JoinRequest.open",
        [s.joined],
        lambda f, data, _: f(sealed(data, lambda body: coordinator.sign(JOIN_DOMAIN, body)), coordinator.public),
        "signed",
    )
    yield Parser(
        "federation.join:JoinRequest.open", [s.join_request.sign(coordinator)],
        lambda f, data, _: f(data, coordinator.public),
    )  # fmt: skip
    advertisement = setup_messages.AdvertiseReply.from_bytes(s.replies["advertise"][0]).advertisement
    dealing = setup_messages.ShareReply.from_bytes(s.replies["share"][0]).dealing
    head = setup_messages.Advertisement.from_bytes(
        function_of("parties.signing:Signed.from_bytes")(advertisement).payload
    )
    graph = function_of("secagg.graph:complete_graph")(4)
    keys = setup_messages.Dealing.from_bytes(
        function_of("parties.signing:Signed.from_bytes")(dealing).payload
    ).keys_hash
    yield Parser("parties.signing:Signed.from_bytes", [advertisement, *s.replies["unmask"]], as_bytes)
    yield Parser(
        "secagg.epoch:read_advertisement", [advertisement], lambda f, data, _: f(data, s.roster, head, head.slots)
    )
    yield Parser(
        "secagg.epoch:read_dealing", [dealing], lambda f, data, _: f(data, s.roster, head, keys, (1, 2, 3, 4), graph)
    )
    signed = function_of("parties.signing:Signed")(
        s.messages([ckks_messages.KeyAdvertisement])[0], bytes(64)
    ).to_bytes()
    yield Parser("ckks.keys:read_advertisement", [signed], lambda f, data, _: f(data, s.roster, head, 2))
    yield Parser("ckks.keys:read_advertisements", [signed], lambda f, data, _: f([data], s.roster, head, 2))
    yield Parser("ckks.packing:from_bytes", [bytes(range(70))], lambda f, data, _: f(data, 7))
    ready = type("Ready", (), {"session": bytes(16), "epoch": 1, "slots": 4, "epoch_hash": bytes(32)})
    yield Parser("parties.requests:read_manifest", s.manifests, lambda f, data, _: f(ready, data))
    open_request = "parties.requests:open_request"
    yield Parser(
        open_request,
        [s.replies["unmask"][0]],
        lambda f, data, _: f(setup_messages.AdvertiseRequest, s.roster, bytes(16), data),
    )
    yield Parser("autoflip.masking:unpack_mask", [(9).to_bytes(8, "big") + b"\xff\x80"], lambda f, data, _: f(data, 9))
    yield Parser("federation.wire:read_request", [s.manifests[0]], _flower_message("request"))
    yield Parser("federation.wire:read_reply", [s.replies["masked"][0][:200]], _flower_message("reply"))
    yield from _proof_parsers(s)
    silo = s.run / "silos" / "silo-001"
    asked = {"join": s.join_request.sign(coordinator), "key": _key_request(s), "follow": s.proofs[0]}
    for stage in ("join", "key", "follow", "advertise", "share", "masked", "confirm", "unmask"):
        sample = asked.get(stage, s.replies["unmask"][0])
        yield Parser("federation.silo:Silo", [sample], _answers(silo, stage), stage)


def _proof_parsers(s: Samples) -> Iterator[Parser]:
    """Of runs that prove their models."""
    statement = run_key_messages.RunKeyReply.from_bytes(s.replies["key"][0]).statement
    yield Parser(
        "parties.run_key_messages:read_statement",
        [statement],
        lambda f, data, _: f(data, s.roster, s.join_request.session),
    )
    yield Parser("federation.sum_proof:SumProof.from_bytes", s.proofs, as_bytes)
    yield Parser("federation.sum_proof:Position.read", s.replies["follow"], as_bytes)


def _key_request(s: Samples) -> bytes:
    return run_key_messages.RunKeyRequest(s.join_request.session, s.roster.hash(), "state").to_bytes()


def _flower_message(direction: str) -> Call:
    """Has a Flower message read whose fields are made of the input, one of them of a wrong type or missing."""

    def call(function: Any, data: bytes, _: Path) -> object:
        from flwr.app import ConfigRecord, Message, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        values: dict[str, Any] = {"status": "ok", "reply": data, "error": "", "head": data[:9]}
        if direction == "request":
            values = {"stage": "join", "round": 0, "attempt": 0, "request": data, "attachment": b"", "heads": b""}
        if data:
            name = list(values)[data[0] % len(values)]
            wrong = (data.decode("latin-1"), 1.5, True, [1, 2], None)[data[-1] % 5]
            values[name] = wrong
            if wrong is None:
                del values[name]
        return function(Message(RecordDict({"autoflip_secure": ConfigRecord(values)}), 1, "query.join"))

    return call


def _answers(home: Path, stage: str) -> Call:
    """A silo asked with any bytes as request, model and audit heads: it answers, and with a refusal.

    A failure would mean that it went on to its records.
    """
    opened: list[Any] = []

    def call(function: Any, data: bytes, _: Path) -> object:
        copy = home.parents[1] / f"asked-{stage}"
        if not opened:
            shutil.copytree(home, copy)
            opened.append(function(copy))
        if stage == "follow":  # every input as the first sum it is shown: of others it looks at the round only
            shutil.rmtree(copy / "followed", ignore_errors=True)
        request = function_of("federation.wire:Request")(stage, 0, 0, data, data[:100], data[50:])
        reply = opened[0].answer(request)
        if reply.status == "failed":
            raise RuntimeError((copy / "silo.log").read_text()[-2000:])
        return reply

    return call
