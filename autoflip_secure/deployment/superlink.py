"""python -m autoflip_secure.deployment.superlink ARGUMENTS : flower-superlink, showing the network its Fleet API only.

Flower 1.41 serves three interfaces on one port: Fleet for SuperNodes, which are authenticated, Control (start a run
with any code, register a node, stop a run) and Runtime. Control asks for no password, so whoever reaches the port could
run code at the coordinator. Here everything but Fleet and the health check answers processes of this machine alone,
and of those only the coordinator's own user's. Fleet answers only whom it knows: Flower reads a request whole before it
asks who sent it, here a node's signature is looked at first, and what follows has a limit.
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

__all__ = ["MOST_BYTES", "FleetOnly", "is_signed_by_a_node", "main", "owner_of_connection"]

FLEET = "/v1/fleet/"
HEALTH_PATH = "/health"
FORWARDING = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""Headers of a proxy: behind one on this machine, everybody would look local."""

MOST_BYTES = 1 << 30
"""Of one request from the network: far above a contribution, below what would end a coordinator."""

CONNECTIONS_KEPT = 256
"""Of this machine and user, whose ends are remembered: far more than a coordinator has processes."""

ESTABLISHED = "01"
CONNECTIONS = ("/proc/net/tcp", "/proc/net/tcp6")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class FleetOnly:
    """ASGI middleware in front of all of Flower's own.

    Parameters
    ----------
    app : callable
    nodes : callable
        nodes() gives the public keys of the silos in the installed bundle, PEM.
    owner : callable
        owner(client, server) gives the user at the other end of a connection on this machine; None where unknown.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        nodes: Callable[[], frozenset[bytes]],
        owner: Callable[[tuple[str, int], tuple[str, int]], int | None] | None = None,
    ) -> None:
        self._app, self._nodes, self._owner = app, nodes, owner or owner_of_connection
        self._own: OrderedDict[int, tuple[str, int]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, path = scope["type"], scope.get("path", "")
        fleet = kind == "http" and _is_fleet(path)
        if fleet and is_signed_by_a_node(dict(scope.get("headers", ())), self._nodes()):
            await self._app(scope, _limited(receive), send)
        elif kind == "lifespan" or (kind == "http" and path == HEALTH_PATH) or self._is_own(scope):
            await self._app(scope, receive, send)
        elif fleet:
            await _deny(send, 401)
        elif kind == "http":
            await _deny(send, 404)
        # Anything else (a websocket) is closed by not being accepted.

    def _is_own(self, scope: Scope) -> bool:
        """Whether a process of this machine and this user asks, and not for somebody else."""
        client: tuple[str, int] | None = scope.get("client")
        server: tuple[str, int] | None = scope.get("server")
        if not client or any(name.lower() in FORWARDING for name, _ in scope.get("headers", ())):
            return False
        try:
            if not _plain(client[0]).is_loopback:
                return False
        except ValueError:
            return False
        return server is not None and self._is_of_own_connection(client, server)

    def _is_of_own_connection(self, client: tuple[str, int], server: tuple[str, int]) -> bool:
        """Looked up once a connection: the server makes one pair of a connection's end, and shows it with each request.

        That very pair is kept, so no other connection's can have its identity, even one from the same port later.
        """
        if self._own.get(id(client)) is client:
            self._own.move_to_end(id(client))
            return True
        if self._owner(client, server) != os.getuid():
            return False
        self._own[id(client)] = client
        if len(self._own) > CONNECTIONS_KEPT:
            self._own.popitem(last=False)
        return True


def _is_fleet(path: str) -> bool:
    # A path with dots is not normalised by every server in the same way.
    return path.startswith(FLEET) and ".." not in path and "//" not in path


async def _deny(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def _limited(receive: Receive) -> Receive:
    """The same body up to a limit; a longer one ends as if its sender had gone."""
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return {"type": "http.disconnect"} if read > MOST_BYTES else message

    return limited


def is_signed_by_a_node(headers: MutableMapping[bytes, bytes], nodes: frozenset[bytes]) -> bool:
    """Whether a Fleet request bears a fresh signature of a node of the bundle: Flower's own check, of headers alone."""
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

    lower = {name.lower(): value for name, value in headers.items()}
    try:
        public = b64decode(lower[FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()], validate=True)
        signature = b64decode(lower[FLEET_HTTP_SIGNATURE_HEADER.lower().encode()], validate=True)
        stamp = lower[TIMESTAMP_HEADER.lower().encode()].decode("ascii")
        age = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
        fresh = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        return public in nodes and fresh and verify_signature(bytes_to_public_key(public), stamp.encode(), signature)
    except (KeyError, ValueError, TypeError):
        return False


def owner_of_connection(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """User id of the process at the client's end of a TCP connection within this machine (Linux); None if not found."""
    wanted = (_plain(client[0]), client[1], _plain(server[0]), server[1])
    for table in map(Path, CONNECTIONS):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            # A socket that its process has left is shown as root's.
            if fields[3] == ESTABLISHED and (*_endpoint(fields[1]), *_endpoint(fields[2])) == wanted:
                return int(fields[7])
    return None


def _endpoint(text: str) -> tuple[Any, int]:
    """`0100007F:1F40` -> (127.0.0.1, 8000): words of the address in this machine's byte order."""
    address, port = text.split(":")
    words = (bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
    return _plain(b"".join(words)), int(port, 16)


def _plain(address: str | bytes) -> Any:
    """An IP address; one of IPv4 in IPv6's clothes as what it is."""
    read = ip_address(address)
    return getattr(read, "ipv4_mapped", None) or read


def main() -> None:
    """Run flower-superlink with this process's arguments; the coordinator's home is in the environment."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    from autoflip_secure.deployment.deployed_run import node_keys
    from autoflip_secure.deployment.flower import HOME_VARIABLE

    home = Path(os.environ[HOME_VARIABLE])
    middleware = (Middleware(FleetOnly, nodes=lambda: frozenset(node_keys(home))),)
    extensions.get_middleware = lambda: middleware
    flower_superlink()


if __name__ == "__main__":
    main()
