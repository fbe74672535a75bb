"""Who may ask: the Host header, the method and the token of every request, and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from autoflip_secure.errors import ConfigError

__all__ = ["Guard", "is_private_path", "read_token"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SHORTEST_TOKEN, LONGEST_TOKEN = 24, 512
LOOPBACK_NAMES = frozenset({"localhost"})

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def read_token(path: Path) -> str:
    """The token in a file that its owner alone can read.

    Raises
    ------
    ConfigError
        The file cannot be read, others can read it, or it holds no token.
    """
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigError(f"--token-file {path}: cannot be read ({reason})") from None
    if stat.S_IMODE(mode) & 0o077 and os.name == "posix":
        raise ConfigError(f"--token-file {path}: others can read it; chmod 600 {path}")
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(
            f"--token-file {path}: a token is one word of {SHORTEST_TOKEN} to {LONGEST_TOKEN} letters; make one with "
            "`openssl rand -hex 32`"
        )
    return token


def is_private_path(path: str) -> bool:
    """Whether a path tells anything beyond the page's own files, which are public."""
    return not (path == "/" or path.startswith("/static/"))


class Guard:
    """ASGI middleware around the whole application.

    The Host header is checked since a web page elsewhere may have its own name resolve to this machine (DNS
    rebinding) and would then read answers as its own. An address is never such a name.

    Parameters
    ----------
    app : ASGI application
    token : str or None
        Bearer token of everything but the page's own files; None where nobody needs one.
    names : iterable of str
        Names beside localhost by which the page may be asked for.
    """

    def __init__(self, app: App, token: str | None = None, names: Iterable[str] = ()) -> None:
        self._app = app
        self._token = None if token is None else _digest(token.encode())
        self._names = LOOPBACK_NAMES | {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, _with_headers(send))
        else:
            await _answer(_with_headers(send), *refused)

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        """Status, words and headers; None where the request may pass."""
        if not self._is_our_name(_header(scope, b"host")):
            return 421, "this page is not served under that name; start it with --allow-host NAME", {}
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "this page only reads", {"allow": "GET, HEAD"}
        if self._token is not None and is_private_path(scope["path"]) and not self._is_ours(scope):
            return 401, "a token is needed", {"www-authenticate": 'Bearer realm="autoflip_secure"'}
        return None

    def _is_our_name(self, hosts: list[bytes]) -> bool:
        if len(hosts) != 1:
            return False
        name = _without_port(hosts[0].decode("latin-1")).lower().rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True

    def _is_ours(self, scope: Scope) -> bool:
        given = _header(scope, b"authorization")
        if len(given) != 1 or not given[0].lower().startswith(b"bearer "):
            return False
        return hmac.compare_digest(_digest(given[0][len(b"bearer ") :].strip()), self._token or b"")


def _digest(token: bytes) -> bytes:
    """What is compared has one length, whatever was sent."""
    return hashlib.sha256(token).digest()


def _header(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _without_port(host: str) -> str:
    if host.startswith("["):
        name, closed, _ = host[1:].partition("]")
        return name if closed else ""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            there = list(message.get("headers", []))
            if not any(name.lower() == b"cache-control" for name, _ in there):
                own.append((b"cache-control", b"no-store"))
            message["headers"] = there + own
        await send(message)

    return sending


async def _answer(send: Send, status: int, words: str, headers: dict[str, str]) -> None:
    body = words.encode() + b"\n"
    sent = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
