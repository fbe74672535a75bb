"""autoflip-secure silo: a silo's keys, the installed bundle, its records, its policy, and its processes.

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
from autoflip_secure.review_cli import add_review_commands

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Run a silo of a federation.")


@app.command()
def init(
    name: Annotated[str, typer.Option(help="the silo's name, as the federation's owner knows it")],
    home: HomeOption = Path(),
) -> None:
    """Make the silo's keys, policy.toml, and request.txt, to be sent to the federation's owner."""
    from autoflip_secure.deployment.enrolment import read_request
    from autoflip_secure.deployment.silo_home import init_silo

    made = init_silo(home, name)
    print(f"send to the federation's owner: {made.request}")
    print(f"and read out over the phone: {read_request(made.request).fingerprint}")
    print(f"say what this silo accepts: {made.policy}")


@app.command()
def install(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="bundle.txt you were sent")],
    home: HomeOption = Path(),
    authority: Annotated[
        str | None, typer.Option(help="fingerprint of the authority, as its owner read it out (first time only)")
    ] = None,
) -> None:
    """Check a bundle and install it; the former one is kept where anything is wrong."""
    from autoflip_secure.deployment.silo_home import SiloHome, install_silo

    change = install_silo(home, bundle, authority=authority)
    print(f"version {SiloHome(home).installed().version} is installed: {change}")


@app.command()
def data(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="folder with train.csv or train.npz, and maybe test")],
    home: HomeOption = Path(),
    replace: Annotated[bool, typer.Option("--replace", help="put these in the place of the silo's records")] = False,
) -> None:
    """Take this silo's records in, checked against what the federation declared."""
    from autoflip_secure.deployment.record_import import LEDGER_NOTE, import_records
    from autoflip_secure.deployment.silo_home import SiloHome

    made = import_records(SiloHome(home), path, replace=replace)
    held = f", {made.holdout} of them held back for scoring" if made.holdout else ""
    of = "" if made.patients is None else f" of {made.patients} patients"
    print(f"{made.train + made.holdout} records{of}{held}")
    if made.replaced:
        print(LEDGER_NOTE)


@app.command()
def show(home: HomeOption = Path(), json: Json = False) -> None:
    """Fingerprints, certificates, who is enrolled, and whether there are records."""
    from autoflip_secure.deployment.silo_home import SiloHome

    made = SiloHome(home)
    made.require_whole()
    print_facts(made.facts(), json=json)


@app.command()
def services(
    out: OutOption,
    home: HomeOption = Path(),
    user: UserOption = "autoflip-secure",
    base_image: BaseImageOption = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="the unit may use graphics cards")] = False,
) -> None:
    """Write a systemd unit, a Dockerfile and a compose file that run this home."""
    from autoflip_secure.deployment.services import BASE_IMAGE, Service, write_services
    from autoflip_secure.deployment.silo_home import SiloHome

    bundle = SiloHome(home).installed()
    service = Service("silo", bundle.name, home.resolve(), bundle.port, user, base_image or BASE_IMAGE, gpu=gpu)
    print_paths(write_services(service, out))


@app.command()
def up(home: HomeOption = Path()) -> None:
    """Run the silo's processes until stopped; what leaves is decided by policy.toml and by `silo approve`."""
    from autoflip_secure.deployment.silo_runtime import silo_up

    silo_up(home, say)


@app.command()
def status(home: HomeOption = Path(), json: Json = False) -> None:
    """Which processes are up, and whether the coordinator can be reached."""
    from autoflip_secure.deployment.silo_runtime import silo_status

    print_status(silo_status(home), json=json)


@app.command()
def stop(home: HomeOption = Path()) -> None:
    """End the silo's processes; it takes part again when it is up."""
    process_cli.stop(home / "flower", "the silo")


@app.command()
def logs(
    home: HomeOption = Path(),
    which: Annotated[str | None, typer.Option(help="supernode, worker or silo [all]", show_default=False)] = None,
    lines: Lines = 20,
    keep_on: Follow = False,
) -> None:
    """Show what the processes said; the silo's own log says why something was refused."""
    flower = home / "flower"
    names = {"supernode": flower / "supernode.log", "worker": flower / "worker.log", "silo": home / "silo.log"}
    follow(names, which, lines=lines, keep_on=keep_on)


add_review_commands(app)
