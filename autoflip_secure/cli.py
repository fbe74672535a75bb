"""autoflip-secure: the command line. `sim` here is the same command as `python -m autoflip_secure.sim`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoflip_secure import audit_cli, coordinator_cli, ledger_cli, provision_cli, silo_cli
from autoflip_secure.dashboard.command import dashboard
from autoflip_secure.errors import ConfigError
from autoflip_secure.options import run_command
from autoflip_secure.run_cli import run_federation
from autoflip_secure.sim import simulate

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Private, pruned federated training from secure sums.",
)
app.command("sim")(simulate)
app.add_typer(provision_cli.app, name="provision")
app.add_typer(coordinator_cli.app, name="coordinator")
app.add_typer(silo_cli.app, name="silo")
app.command("run")(run_federation)
app.add_typer(ledger_cli.app, name="ledger")
app.add_typer(audit_cli.app, name="audit")
app.command("dashboard")(dashboard)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="directory of a finished run")]) -> None:
    """Write RUN/report.html anew from the run's own files."""
    import json

    from autoflip_secure.federation.provisioning import RunFolder
    from autoflip_secure.report.html import write_report

    folder = RunFolder(run)
    if not folder.summary.exists():
        raise ConfigError(f"{run}: no summary.json there; the run is not finished, go on with sim --resume {run}")
    write_report(folder.path, json.loads(folder.summary.read_text()))
    print(folder.report)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="directory of a finished run")],
    output: Annotated[Path | None, typer.Option(help="folder to write [RUN/export]", show_default=False)] = None,
) -> None:
    """Write the pruned model for inference: safetensors, torch.export and ONNX, and what pruning gained."""
    from autoflip_secure.export.folder import export_run
    from autoflip_secure.export.table import figures_text

    folder, figures = export_run(run, output)
    print(figures_text(figures))
    print(folder)


@app.command()
def version() -> None:
    """Print the version."""
    from autoflip_secure import __version__

    print(__version__)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; exit codes as in autoflip_secure.sim."""
    return run_command(app, arguments)


def _entry() -> None:
    sys.exit(main())


if __name__ == "__main__":
    _entry()
