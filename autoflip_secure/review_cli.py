"""autoflip-secure silo review, approve, deny, policy check: an officer decides what may run at a silo.

Heavy imports happen inside functions: `--help` and a refused option answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoflip_secure.errors import ConfigError
from autoflip_secure.home_option import HomeOption, Json

if TYPE_CHECKING:
    from autoflip_secure.federation.admission import Admission
    from autoflip_secure.federation.approvals import ApprovalStore

__all__ = ["add_review_commands"]

SomeRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help="first digits of a run's digest [list all]")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="first digits of the run's digest, as `silo review` lists it")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask; the review was read")]


def add_review_commands(app: typer.Typer) -> None:
    """Put the commands into `autoflip-secure silo`."""
    for command in (review, approve, deny):
        app.command()(command)
    policy = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The silo's own policy.toml.")
    policy.callback()(lambda: None)  # else typer takes the one command there is for the whole group
    policy.command()(check)
    app.add_typer(policy, name="policy")


def review(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="first digits of a run's digest [list all]")
    ] = None,
    home: HomeOption = Path(),
    json: Json = False,
) -> None:
    """List the runs this silo was asked to join, or show what one would do, and what would leave."""
    from autoflip_secure.federation.approvals import MAX_UNDECIDED
    from autoflip_secure.federation.review_text import review_parts, runs_table
    from autoflip_secure.privacy.ledger_export import utc

    with _opened(home) as (admission, store):
        if run is not None:
            # Builds the initial model, hence loads torch: a list does without.
            from autoflip_secure.federation.run_review import review as look_at

            found = look_at(admission, store.find(run))
            _print_json(found.values()) if json else _print(*review_parts(found))
            return
        runs = store.runs()
    if json:
        rows = [{"run": each.digest.hex(), "state": each.state, "asked": utc(each.asked)} for each in runs]
        _print_json({"runs": rows})
    elif runs:
        _print(runs_table(runs), "`silo review RUN` shows one; of undecided ones the last "
               f"{MAX_UNDECIDED} are kept")  # fmt: skip
    else:
        print("no run was asked for yet")


def approve(run: Run, home: HomeOption = Path(), yes: Yes = False) -> None:
    """Let a run go on here, after showing it; again after an upgrade of the code, or a new silo in the roster."""
    from autoflip_secure.federation.approvals import officer
    from autoflip_secure.federation.review_text import review_parts
    from autoflip_secure.federation.run_review import pins_of
    from autoflip_secure.federation.run_review import review as look_at

    with _opened(home) as (admission, store):
        found = look_at(admission, store.find(run, deciding=True))
        if not yes:
            _print(*review_parts(found))
        if found.failed:
            failed = "; ".join(verdict.words for verdict in found.failed)
            raise ConfigError(f"RUN {found.run.name}: is not approved, since this silo would refuse it: {failed}")
        if not yes:
            typer.confirm(f"Approve run {found.run.digest.hex()}?", abort=True)
        pins, who = pins_of(admission, found.request), officer()
        store.approve(found.run.digest, pins, who)
        _write_down(home, admission, "approved", run=found.run.digest, who=who, code=pins.code, model=pins.model)
    print(f"approved {found.run.digest.hex()}; `silo deny {found.run.name}` withdraws it")


def deny(run: Run, home: HomeOption = Path(), yes: Yes = False) -> None:
    """Refuse a run; one that was approved ends here at its next stage."""
    from autoflip_secure.federation.approvals import officer

    with _opened(home) as (admission, store):
        found = store.find(run)
        if not yes:
            typer.confirm(f"Deny run {found.digest.hex()} ({found.state})?", abort=True)
        who = officer()
        store.deny(found.digest, who)
        _write_down(home, admission, "denied", run=found.digest, who=who)
    print(f"denied {found.digest.hex()}; nothing of it runs here any more")


def check(home: HomeOption = Path(), json: Json = False) -> None:
    """Read policy.toml, and say in words what each setting does; exit code 2 where it cannot be used."""
    from autoflip_secure.federation.code_digest import code_digest
    from autoflip_secure.federation.policy import SiloPolicy
    from autoflip_secure.federation.review_text import policy_parts
    from autoflip_secure.models.architectures import MODELS

    policy, code = SiloPolicy.read(home / "policy.toml"), code_digest().hex()
    unknown = [name for name in policy.models if name not in MODELS]
    if unknown:
        raise ConfigError(f"policy.toml: models: unknown network {unknown[0]!r}; known are {', '.join(MODELS)}")
    if json:
        _print_json({"policy": policy.model_dump(mode="json"), "code": code})
    else:
        _print(*policy_parts(policy, code))
    for refused in policy.data_refusals(home):
        raise ConfigError(f"policy.toml: {refused}")


@contextmanager
def _opened(home: Path) -> Iterator[tuple[Admission, ApprovalStore]]:
    from autoflip_secure.federation.approvals import ApprovalStore
    from autoflip_secure.federation.run_review import STATE, read_admission
    from autoflip_secure.storage import open_silo_database

    if not (home / "identity.key").is_file():
        raise ConfigError(f"--home {home}: is no silo's folder; make one with `autoflip-secure silo init`")
    database = open_silo_database(home / STATE)
    try:
        store = ApprovalStore(database)
        yield read_admission(home, store), store
    finally:
        database.close()


def _write_down(home: Path, admission: Admission, decision: str, **facts: Any) -> None:
    """Put a decision into the silo's audit log too, where the other parties witness that it was not changed later."""
    from autoflip_secure.federation.audit_log import AUDIT_FILE, AuditLog
    from autoflip_secure.parties.identity import Identity

    identity = Identity.load(home / "identity.key")
    own = [entry.silo for entry in admission.roster.entries if entry.public == identity.public]
    AuditLog(home / AUDIT_FILE, identity, f"silo {own[0] if own else '?'}").append(decision, **facts)


def _print_json(values: dict[str, Any]) -> None:
    import json

    print(json.dumps(values, indent=1))


def _print(*parts: Any) -> None:
    """On a terminal as wide as it is, elsewhere as wide as the tables are."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False, soft_wrap=True)
    for part in parts:
        console.print(part)
