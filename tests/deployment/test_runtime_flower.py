"""What is changed about Flower's own processes: their pace, and what the network sees of a SuperLink."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import types
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from autoflip_secure.deployment import superlink
from autoflip_secure.deployment.flower import superlink_command, supernode_command
from autoflip_secure.deployment.superlink import CONNECTIONS_KEPT, FleetOnly, owner_of_connection
from autoflip_secure.deployment.supernode import FIRST_PAUSE, REPLY_PAUSE, Pace, has_reply, keep_pace


def pauses(pace_calls: int, seconds: float) -> list[float]:
    slept: list[float] = []
    pace = Pace(slept.append)
    for _ in range(pace_calls):
        pace.sleep(seconds)
    return slept


def test_looks_for_messages_begin_short_and_grow_to_flowers_own_pause() -> None:
    slept = pauses(60, 3)
    assert slept[0] == FIRST_PAUSE
    assert slept == sorted(slept)
    assert slept[-1] == 3
    assert 10 < sum(pause for pause in slept if pause < 3) < 60


def test_looks_for_a_reply_are_short() -> None:
    assert pauses(3, 0.5) == [REPLY_PAUSE] * 3


def test_a_message_makes_the_next_looks_short_again() -> None:
    slept: list[float] = []
    loop = types.SimpleNamespace(
        _pull_and_store_message=lambda **given: None, _push_messages=lambda **given: slept.append(-1)
    )
    keep_pace(loop, Pace(slept.append))
    for _ in range(40):
        loop.time.sleep(3)
    loop._push_messages(state=None)
    loop.time.sleep(3)
    assert slept[-2:] == [-1, FIRST_PAUSE]


def test_the_clock_stays_the_clock() -> None:
    assert Pace().monotonic() > 0


def test_a_reply_that_was_left_lying_is_sent_when_no_message_comes() -> None:
    state = InMemoryNodeState(ObjectStoreFactory().store())
    loop = types.SimpleNamespace(_pull_and_store_message=lambda **given: None, _push_messages=lambda **given: None)
    keep_pace(loop, Pace())
    assert loop._pull_and_store_message(state=state) is None
    for name in ("run_id", "node_id", "task_id"):
        setattr(TaskIdentity, name, 1)
    question = Message(RecordDict(), 1, "query.confirm")
    question.metadata.__dict__["_message_id"] = "question"
    state.store_message(question)
    assert loop._pull_and_store_message(state=state) is None, "a message that waits for its answer is no reply"
    answer = Message(RecordDict(), reply_to=question)
    answer.metadata.__dict__["_message_id"] = "answer"
    state.store_message(answer)
    assert loop._pull_and_store_message(state=state) is not None
    assert [message.metadata.message_id for message in state.get_messages_legacy(is_reply=True)] == ["answer"]
    assert loop._pull_and_store_message(state=state) is None, "it is sent once"


def test_a_state_of_another_flower_is_left_alone() -> None:
    assert not has_reply(object())


def test_flowers_loop_still_sleeps_where_the_pace_is_kept() -> None:
    source = inspect.getsource(start_client_internal)
    assert "time.sleep(3)" in source
    assert "_push_messages(" in source
    assert "_pull_and_store_message(" in source
    assert "if run_id is None:" in source


NODE = ec.generate_private_key(ec.SECP384R1())


def signed(key: ec.EllipticCurvePrivateKey = NODE, *, age: float = 1.0, stamp: str | None = None) -> tuple:
    """Headers of a SuperNode."""
    stamp = stamp or (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    public = public_key_to_bytes(key.public_key())
    return (
        (FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b64encode(public)),
        (FLEET_HTTP_SIGNATURE_HEADER.lower().encode(), b64encode(sign_message(key, stamp.encode()))),
        (TIMESTAMP_HEADER.encode(), stamp.encode()),
    )


def ask(path: str, client: tuple[str, int] | None, headers: tuple = (), owner: int | None = os.getuid()) -> int:
    """Status of a GET as the middleware lets it through: 200 from behind it, else its own."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "path": path, "client": client, "server": ("127.0.0.1", 8000), "headers": headers}
    asyncio.run(guarded(app, owner)(scope, receive, send))
    return sent[0]["status"]


OUTSIDE = ("10.1.2.3", 5000)


def guarded(app: Any, owner: int | None = None) -> FleetOnly:
    known = frozenset({public_key_to_bytes(NODE.public_key())})
    return FleetOnly(app, lambda: known, lambda client, server: owner)


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/activate-node", "/health"])
def test_the_network_sees_the_fleet_api(path: str) -> None:
    assert ask(path, OUTSIDE, signed()) == 200


@pytest.mark.parametrize(
    "headers",
    [
        (),
        signed(ec.generate_private_key(ec.SECP384R1())),
        signed(age=400),
        signed(age=-60),
        signed(stamp="yesterday"),
        (*signed()[:1], *signed(ec.generate_private_key(ec.SECP384R1()))[1:]),
        (*signed()[:2], (TIMESTAMP_HEADER.encode(), datetime.now(UTC).isoformat().encode())),
        ((FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b"%%%"), *signed()[1:]),
    ],
    ids=["none", "stranger", "old", "from the future", "no time", "another's key", "another time", "garbled"],
)
def test_a_stranger_is_refused_before_anything_is_read(headers: tuple) -> None:
    assert ask("/v1/fleet/push-object", OUTSIDE, headers) == 401


def test_what_a_node_sends_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink, "MOST_BYTES", 100)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while seen[-1:] != ["http.disconnect"]:
            seen.append((await receive())["type"])

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(40), "more_body": True}

    async def send(message: Any) -> None:
        raise AssertionError("nothing is answered")

    scope = {"type": "http", "path": "/v1/fleet/push-object", "client": OUTSIDE, "headers": signed()}
    asyncio.run(guarded(app)(scope, receive, send))
    assert seen == ["http.request", "http.request", "http.disconnect"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/stop-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/responses",
        "/docs",
        "/openapi.json",
        "/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet//control",
        "/v1/fleets/x",
        "/healthy",
    ],
)
def test_the_network_sees_nothing_else(path: str) -> None:
    assert ask(path, OUTSIDE, signed()) == 404
    assert ask(path, ("127.0.0.1", 5000)) == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may_control_its_superlink(address: str) -> None:
    assert ask("/v1/control/start-run", (address, 1)) == 200


OTHERS = [None, os.getuid() + 1]


@pytest.mark.parametrize("owner", OTHERS)
def test_another_user_of_this_machine_may_not(owner: int | None) -> None:
    assert ask("/v1/control/start-run", ("127.0.0.1", 1), owner=owner) == 404


def test_whose_a_connection_is_is_looked_up_once_a_connection() -> None:
    """Not once a port: another connection may come from the same one later, by somebody else."""
    owners, looked, sent = [os.getuid()], [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    def owner(client: Any, server: Any) -> int:
        looked.append(client)
        return owners[0]

    guard = FleetOnly(app, frozenset, owner)

    def status(client: tuple[str, int]) -> int:
        sent.clear()
        scope = {"type": "http", "path": "/v1/control/start-run", "client": client, "server": ("127.0.0.1", 8000)}
        asyncio.run(guard({**scope, "headers": ()}, None, send))
        return sent[0]

    def end(port: int) -> tuple[str, int]:
        return ("127.0.0.1", port)  # not a constant: a pair of its own each time

    first = end(1)
    assert [status(first), status(first), len(looked)] == [200, 200, 1]
    owners[0] = os.getuid() + 1
    assert status(first) == 200, "the connection is the same"
    assert status(end(1)) == 404, "the port is the same, the connection is not"
    refused = end(2)
    assert status(refused) == 404
    owners[0] = os.getuid()
    assert status(refused) == 200, "that somebody else's was seen there is not kept"
    for port in range(1000, 1000 + 2 * CONNECTIONS_KEPT):
        assert status(end(port)) == 200
    assert len(guard._own) == CONNECTIONS_KEPT


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the owner of a connection is known on Linux only")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_whose_a_connection_is(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        server.listen()
        with socket.create_connection((address, server.getsockname()[1])) as client:
            ends = client.getsockname()[:2], server.getsockname()[:2]
            assert owner_of_connection(*ends) == os.getuid()
            assert owner_of_connection(ends[0], (address, 1)) is None
            accepted, _ = server.accept()
        # Left by its process while the other end is still at work: shown as root's, and nobody's here.
        assert owner_of_connection(*ends) is None
        accepted.close()


@pytest.mark.parametrize("address", ["128.0.0.1", "::2", "::ffff:10.0.0.1", "localhost", "", "testclient"])
def test_other_addresses_may_not(address: str) -> None:
    assert ask("/v1/control/start-run", (address, 1)) == 404


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"Forwarded", b"X-Real-IP"])
def test_what_a_proxy_on_this_machine_passes_on_is_not_local(name: bytes) -> None:
    assert ask("/v1/control/start-run", ("127.0.0.1", 1), ((name, b"127.0.0.1"),)) == 404


def test_a_connection_without_an_address_is_not_local() -> None:
    assert ask("/v1/control/start-run", None) == 404


def test_a_websocket_from_outside_is_not_let_through() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("was let through")

    async def nothing(*_: Any) -> Any:
        return {}

    scope = {"type": "websocket", "path": "/v1/fleet/x", "client": OUTSIDE, "headers": signed()}
    asyncio.run(guarded(app)(scope, nothing, nothing))


def test_every_route_of_the_superlink_but_the_fleets_is_hidden(tmp_path: Any) -> None:
    from fastapi.routing import APIRoute, iter_route_contexts
    from flwr.superlink.main import create_app

    routes = [context.route for context in iter_route_contexts(create_app().routes)]
    paths = {route.path for route in routes if isinstance(route, APIRoute)}
    assert len(paths) > 40
    seen = {path for path in paths if ask(path, OUTSIDE, signed()) == 200}
    assert seen == {path for path in paths if path.startswith("/v1/fleet/")} | {"/health"}


def test_commands_always_ask_for_tls_and_authenticated_nodes(tmp_path: Any) -> None:
    link = superlink_command(tmp_path, "0.0.0.0", 8000)
    node = supernode_command(tmp_path, "fl.example.org:8000", 9100, tmp_path / "secret")
    assert "--insecure" not in link + node
    assert "--enable-supernode-auth" in link
    assert {"--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile"} <= set(link)
    assert {"--root-certificates", "--auth-supernode-private-key", "--superexec-auth-secret-file"} <= set(node)
    assert node[node.index("--host") + 1] == "127.0.0.1"
    assert "--disable-runtime-dependency-installation" in link
    assert "--allow-runtime-dependency-installation" not in node
