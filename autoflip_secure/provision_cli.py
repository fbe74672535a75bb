"""autoflip-secure provision: the federation's owner makes its authority, enrols and removes parties, renews.

Heavy imports happen inside functions: `--help` and a refused option answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from typer.core import TyperGroup

from autoflip_secure.home_option import (
    BaseImageOption,
    HomeOption,
    Json,
    OutOption,
    UserOption,
    print_facts,
    print_paths,
)

if TYPE_CHECKING:
    from autoflip_secure.deployment.authority import Authority, Outcome

__all__ = ["app"]


class _FileFirst(TyperGroup):
    """`provision FEDERATION.toml` is `provision init FEDERATION.toml`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].endswith(".toml") and args[0] not in self.commands:
            args = ["init", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FileFirst,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Found a federation and say who takes part. `provision FEDERATION.toml` is `provision init FEDERATION.toml`.",
)

Requests = Annotated[list[Path], typer.Argument(metavar="REQUEST...", help="request.txt files you were sent")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask whether fingerprints were compared")]


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FEDERATION.toml", help="the federation's file")],
    home: HomeOption = Path(),
) -> None:
    """Make the authority's keys and certificate, and print the fingerprint every party pins."""
    from autoflip_secure.deployment.authority import init_authority

    authority = init_authority(file, home)
    print(f"authority's home: {home}")
    print(f"authority's fingerprint: {authority.fingerprint}")
    print("Tell it to every party over the phone. Next: provision enrol REQUEST...")


@app.command()
def enrol(
    requests: Requests,
    home: HomeOption = Path(),
    replace: Annotated[bool, typer.Option("--replace", help="a party may come with new keys; its old ones go")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="sign the first bundle without those missing")] = False,
    yes: Yes = False,
) -> None:
    """Check requests and sign the next bundle. Before the first, requests are kept until all are there."""
    from autoflip_secure.deployment.authority import Authority
    from autoflip_secure.deployment.enrolment import SiloRequest, read_request

    authority = Authority(home)
    for path in requests:
        request = read_request(path)
        who = request.name if isinstance(request, SiloRequest) else "the coordinator"
        print(f"{who}: {request.fingerprint}")
    if sys.stdin.isatty() and not yes:
        typer.confirm("Did each party read you its fingerprint over the phone, and are they equal?", abort=True)
    _print_outcome(authority, authority.enrol(requests, replace=replace, partial=partial))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the silo's name")],
    home: HomeOption = Path(),
) -> None:
    """Sign a bundle without a silo; its keys are never enrolled again."""
    from autoflip_secure.deployment.authority import Authority

    authority = Authority(home)
    _print_outcome(authority, authority.remove(name))


@app.command()
def renew(home: HomeOption = Path()) -> None:
    """Sign a bundle with a new server certificate, and with what federation.toml says now."""
    from autoflip_secure.deployment.authority import Authority

    authority = Authority(home)
    _print_outcome(authority, authority.renew())


@app.command()
def show(home: HomeOption = Path(), json: Json = False) -> None:
    """The authority's fingerprint, certificates, and who is enrolled."""
    from datetime import UTC, datetime

    from autoflip_secure.deployment.authority import Authority
    from autoflip_secure.deployment.certificates import expiry_text

    authority = Authority(home)
    bundle, federation, now = authority.bundle, authority.federation, datetime.now(UTC)
    facts = {"federation": federation.name, "authority": authority.fingerprint}
    facts["CA certificate"] = expiry_text(authority.ca, now)
    if bundle is None:
        facts["bundle"] = "none signed; run: autoflip-secure provision enrol REQUEST..."
    else:
        enrolled = {entry.name for entry in bundle.members.entries}
        facts["bundle"] = f"version {bundle.version}, {bundle.fingerprint}"
        facts["coordinator"] = bundle.address
        facts["server certificate"] = expiry_text(bundle.server, now)
        facts["silos"] = ", ".join(f"{entry.silo} {entry.name}" for entry in bundle.members.entries)
        facts["not enrolled"] = ", ".join(name for name in federation.silos if name not in enrolled)
    print_facts(facts, json=json)


@app.command()
def services(
    out: OutOption,
    home: HomeOption = Path(),
    party_home: Annotated[Path, typer.Option(help="where parties keep their homes")] = Path("/var/lib/autoflip-secure"),
    user: UserOption = "autoflip-secure",
    base_image: BaseImageOption = None,
) -> None:
    """Write OUT/coordinator and OUT/silo: systemd unit, Dockerfile and compose file, for parties to start from."""
    from autoflip_secure.deployment.authority import Authority
    from autoflip_secure.deployment.services import BASE_IMAGE, ROLES, Service, write_services

    federation = Authority(home).federation
    for role in ROLES:
        service = Service(
            role, federation.name, party_home, federation.coordinator.port, user, base_image or BASE_IMAGE
        )
        print_paths(write_services(service, out / role))


def _print_outcome(authority: Authority, outcome: Outcome) -> None:
    if outcome.bundle is None:
        print(f"kept; the first bundle waits for: {', '.join(outcome.missing)} (or give --partial)")
        return
    print(f"signed version {outcome.bundle.version}: {outcome.change}")
    if outcome.missing:
        print(f"not enrolled: {', '.join(outcome.missing)}")
    print(f"fingerprint of the bundle: {outcome.bundle.fingerprint}")
    print(f"authority's fingerprint: {authority.fingerprint}")
    print(f"send to every party: {authority.home / 'bundle.txt'}")
