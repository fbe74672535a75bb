"""autoflip-secure dashboard. What serves the page is imported when it is served: `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoflip_secure.errors import ConfigError

__all__ = ["dashboard"]

PORT = 8265

Where = Annotated[Path | None, typer.Argument(metavar="[PATH]", help="as --home, or a run directory")]
Homes = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="AUTOFLIP_SECURE_HOME", help="a silo's or coordinator's home [.]", show_default=False
    ),
]
Host = Annotated[str, typer.Option(help="address to listen on")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")]
TokenFile = Annotated[Path | None, typer.Option(help="token that readers need; a must unless --host is loopback")]
AllowHost = Annotated[list[str] | None, typer.Option(help="name readers know this machine by; may be repeated")]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="PEM certificate chain: serves https")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="PEM private key of --tls-cert")]


def dashboard(
    path: Where = None,
    home: Homes = None,
    host: Host = "127.0.0.1",
    port: Port = PORT,
    token_file: TokenFile = None,
    allow_host: AllowHost = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
) -> None:
    """Serve a live page about a run, a coordinator or a silo, and /metrics for Prometheus. Reads only."""
    from autoflip_secure.dashboard.serving import serve

    if not host:
        raise ConfigError("--host: is empty; 127.0.0.1 is this machine alone, 0.0.0.0 every address of it")
    serve(
        path or home or Path(),
        host=host,
        port=port,
        token_file=token_file,
        names=tuple(allow_host or ()),
        certificate=tls_cert,
        key=tls_key,
    )
