"""python -m autoflip_secure.deployment.superlink ARGUMENTS : flower-superlink, showing the network its Fleet API only.

Flower 1.41 serves three interfaces on one port: Fleet for SuperNodes, which are authenticated, Control (start a run
with any code, register a node, stop a run) and Runtime. Control asks for no password, so whoever reaches the port could
run code at the coordinator. Here everything but Fleet and the health check answers this machine alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

__all__ = ["FleetOnly", "main"]

PUBLIC_PATHS = ("/v1/fleet/",)
HEALTH_PATH = "/health"
FORWARDING = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""Headers of a proxy: behind one on this machine, everybody would look local."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class FleetOnly:
    """ASGI middleware: 404 for all but the Fleet API and the health check, unless asked from this machine."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_public(scope) or _is_local(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        # Anything else (a websocket) is closed by not being accepted.


def _is_public(scope: Scope) -> bool:
    path = scope.get("path", "")
    # A path with dots is not normalised by every server in the same way.
    plain = ".." not in path and "//" not in path
    return scope["type"] == "http" and plain and (path.startswith(PUBLIC_PATHS) or path == HEALTH_PATH)


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    if not client or any(name.lower() in FORWARDING for name, _ in scope.get("headers", ())):
        return False
    try:
        address = ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def main() -> None:
    """Run flower-superlink with this process's arguments."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    extensions.get_middleware = lambda: (Middleware(FleetOnly),)
    flower_superlink()


if __name__ == "__main__":
    main()
