"""Binds the port and serves the page until it is stopped."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from autoflip_secure.dashboard.guard import read_token
from autoflip_secure.dashboard.homes import open_home
from autoflip_secure.errors import ConfigError

__all__ = ["serve"]


def serve(
    path: Path,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    names: tuple[str, ...] = (),
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve the page about `path`; returns when it is stopped.

    Raises
    ------
    ConfigError
        Nothing to show there, the address cannot be bound, or others could reach the page without a token.
    """
    home = open_home(path)
    token = None if token_file is None else read_token(token_file)
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key: belong together; give both or neither")
    for option, file in (("--tls-cert", certificate), ("--tls-key", key)):
        if file is not None and not file.is_file():
            raise ConfigError(f"{option} {file}: is not there")
    listener = _bound(host, port, public=token is not None)
    address = ipaddress.ip_address(listener.getsockname()[0])
    if not address.is_loopback and certificate is None:
        print(
            "WARNING: without --tls-cert and --tls-key the token and the page cross the network in clear",
            file=sys.stderr,
        )
    scheme = "http" if certificate is None else "https"
    shown = f"[{address}]" if address.version == 6 else str(address)
    print(f"{scheme}://{shown}:{listener.getsockname()[1]}/  ({home.kind} {home.title}; Ctrl-C stops)", flush=True)

    import uvicorn

    from autoflip_secure.dashboard.app import make_app

    settings = uvicorn.Config(
        make_app(home, token=token, names=(*names, host)),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=2,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    with listener, suppress(KeyboardInterrupt):  # which is how it is stopped
        uvicorn.Server(settings).run(sockets=[listener])


def _bound(host: str, port: int, *, public: bool) -> socket.socket:
    """A listening socket; the address that was really bound is what decides whether it is loopback."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: is no address of this machine ({error})") from None
    if not public and not ipaddress.ip_address(address[0]).is_loopback:
        raise ConfigError(
            f"--host {host}: others could read the page; give --token-file too, or 127.0.0.1 and a tunnel of your own"
        )
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be bound ({os.strerror(error.errno or 0)})") from None
