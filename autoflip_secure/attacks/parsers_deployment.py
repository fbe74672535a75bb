"""Parsers of what people send each other to enrol, and of files in the homes of the parties."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autoflip_secure.attacks.parser_calls import Call, Parser, a_file, as_text, in_folder
from autoflip_secure.attacks.parser_samples import Samples, function_of
from autoflip_secure.parties.identity import Identity

__all__ = ["deployment_parsers"]


def deployment_parsers(s: Samples) -> Iterator[Parser]:
    """What people send each other to enrol, and files in the homes of the parties."""
    silo, coordinator = s.home_text("hospital-a/request.txt", "coordinator/request.txt")
    (bundle,) = s.home_text("authority/bundle.txt")
    for name, sample in (("silo", silo), ("coordinator", coordinator)):
        yield Parser(
            "deployment.enrolment:parse_request",
            [sample],
            lambda f, data, _: f(data.decode("utf-8", "replace"), "r"),
            name,
        )
    yield Parser("deployment.enrolment:read_request", [silo], a_file("request.txt"))
    yield Parser("deployment.armour:read_file", [silo], a_file("request.txt"))
    yield Parser(
        "deployment.armour:read_armoured", [silo],
        lambda f, data, _: f("silo request", data.decode("utf-8", "replace"), "r"),
    )  # fmt: skip
    yield Parser("deployment.bundle:open_bundle", [bundle], lambda f, data, _: f(data.decode("utf-8", "replace"), "b"))
    yield Parser("deployment.bundle:open_bundle", [_body(bundle)], _signed_bundle(s), "signed")
    yield Parser("deployment.enrolment:parse_request", [_body(silo)], _signed_request(s), "signed")
    yield Parser("deployment.federation_file:read_federation_file", s.home_text("FEDERATION.toml"), a_file("f.toml"))
    yield Parser(
        "deployment.federation_file:declared", [b'task = "classification"\nclasses = [0, 1]\nfeatures = 3\n'], as_text
    )
    node = json.loads(_body(silo))["node"].encode()
    yield Parser("deployment.keys:node_public", [node], as_text)
    certificates = json.loads(_body(bundle))
    yield Parser(
        "deployment.certificates:check_chain", [certificates["server"].encode()],
        lambda f, data, _: (f(certificates["ca"], data.decode("utf-8", "replace"), "127.0.0.1")),
    )  # fmt: skip
    wanted = json.loads(_body(coordinator))
    yield Parser(
        "deployment.certificates:valid_request", [wanted["certificate_request"].encode()],
        lambda f, data, _: f(data.decode("utf-8", "replace"), wanted["identity"]),
    )  # fmt: skip
    for name, path in (("TLS", "coordinator/server.key"), ("node", "hospital-a/node.key")):
        yield Parser("deployment.keys:key_file", s.home_text(path), _on_curve(import_curves()[name]), name)
    yield Parser("deployment.children:read_state", [b'{"pid": 1, "children": {}}'], in_folder("state.json", {}))
    yield Parser("dashboard.guard:read_token", [b"0123456789abcdef0123456789abcdef"], a_file("token"))


def _on_curve(curve: Any) -> Call:
    return lambda f, data, folder: a_file("k.key")(lambda path: f(path, curve), data, folder)


def import_curves() -> dict[str, Any]:
    """Curves of the two kinds of keys of a channel."""
    return {"TLS": function_of("deployment.keys:TLS_CURVE"), "node": function_of("deployment.keys:NODE_CURVE")}


def _body(text: bytes) -> bytes:
    """JSON of what a statement says."""
    return json.dumps(json.loads(b"\n".join(text.split(b"\n")[1:-2]))["body"]).encode()


def _signed_bundle(s: Samples) -> Call:
    """A bundle of any content that the authority itself signed."""
    authority = Identity.load(s.homes / "authority" / "authority.key")

    def call(function: Any, data: bytes, _: Path) -> object:
        return function(
            _statement(data, "federation bundle", {"authority": lambda m: authority.sign(b"enrolment/bundle", m)}), "b"
        )

    return call


def _signed_request(s: Samples) -> Call:
    """A silo's request of any content, signed by the keys it holds."""
    identity = Identity.load(s.homes / "hospital-a" / "identity.key")
    node = function_of("deployment.keys:key_file")(s.homes / "hospital-a" / "node.key", import_curves()["node"])
    signers = {
        "identity": lambda message: identity.sign(b"enrolment/silo", message),
        "node": lambda message: function_of("deployment.keys:node_sign")(node, message),
    }
    return lambda f, data, _: f(_statement(data, "silo request", signers), "r")


def _statement(data: bytes, label: str, signers: dict[str, Callable[[bytes], bytes]]) -> str:
    """Text of a signed statement; what is no JSON object stays as it is."""
    try:
        body = json.loads(data)
        message = function_of("deployment.armour:canonical")(body)
        signatures = {name: sign(message).hex() for name, sign in signers.items()}
        text: str = function_of("deployment.armour:armoured")(label, body, signatures)
        return text
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")
