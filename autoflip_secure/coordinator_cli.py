"""autoflip-secure coordinator: the coordinator's keys, the installed bundle, and its processes.

Heavy imports happen inside functions: `--help` and a refused option answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoflip_secure import process_cli
from autoflip_secure.home_option import (
    BaseImageOption,
    Follow,
    HomeOption,
    Json,
    Lines,
    OutOption,
    UserOption,
    print_facts,
    print_paths,
)
from autoflip_secure.process_cli import follow, print_status, say

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Run the coordinator of a federation.")


@app.command()
def init(home: HomeOption = Path()) -> None:
    """Make the coordinator's keys and request.txt, to be sent to the federation's owner."""
    from autoflip_secure.deployment.coordinator_home import init_coordinator
    from autoflip_secure.deployment.enrolment import read_request

    made = init_coordinator(home)
    print(f"send to the federation's owner: {made.request}")
    print(f"and read out over the phone: {read_request(made.request).fingerprint}")


@app.command()
def install(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="bundle.txt you were sent")],
    home: HomeOption = Path(),
    authority: Annotated[
        str | None, typer.Option(help="fingerprint of the authority, as its owner read it out (first time only)")
    ] = None,
    public_test: Annotated[
        Path | None, typer.Option(help="public_test.npz of the federation [beside BUNDLE]", show_default=False)
    ] = None,
) -> None:
    """Check a bundle and install it; the former one is kept where anything is wrong."""
    from autoflip_secure.deployment.coordinator_home import CoordinatorHome, install_coordinator

    change = install_coordinator(home, bundle, authority=authority, public_test=public_test)
    print(f"version {CoordinatorHome(home).installed().version} is installed: {change}")


@app.command()
def show(home: HomeOption = Path(), json: Json = False) -> None:
    """Fingerprints, certificates, and who is enrolled."""
    from autoflip_secure.deployment.coordinator_home import CoordinatorHome

    made = CoordinatorHome(home)
    made.require_whole()
    print_facts(made.facts(), json=json)


@app.command()
def services(
    out: OutOption,
    home: HomeOption = Path(),
    user: UserOption = "autoflip-secure",
    base_image: BaseImageOption = None,
) -> None:
    """Write a systemd unit, a Dockerfile and a compose file that run this home."""
    from autoflip_secure.deployment.coordinator_home import CoordinatorHome
    from autoflip_secure.deployment.services import BASE_IMAGE, Service, write_services

    bundle = CoordinatorHome(home).installed()
    service = Service("coordinator", bundle.name, home.resolve(), bundle.port, user, base_image or BASE_IMAGE)
    print_paths(write_services(service, out))


@app.command()
def up(
    home: HomeOption = Path(),
    host: Annotated[str, typer.Option(help="address to listen on; the port is the federation's")] = "0.0.0.0",  # noqa: S104, RUF100
) -> None:
    """Run the coordinator's processes, and the runs that were asked for, until stopped."""
    from autoflip_secure.deployment.coordinator_runtime import coordinator_up

    coordinator_up(home, host, say)


@app.command()
def status(home: HomeOption = Path(), json: Json = False) -> None:
    """Which processes, silos and runs are up."""
    from autoflip_secure.deployment.coordinator_runtime import coordinator_status

    print_status(coordinator_status(home), json=json)


@app.command()
def stop(home: HomeOption = Path()) -> None:
    """End the coordinator's processes; runs go on when it is up again."""
    process_cli.stop(home / "flower", "the coordinator")


@app.command()
def logs(
    home: HomeOption = Path(),
    lines: Lines = 20,
    keep_on: Follow = False,
) -> None:
    """Show what the processes said."""
    follow({"superlink": home / "flower" / "superlink.log"}, None, lines=lines, keep_on=keep_on)
