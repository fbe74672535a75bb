"""python -m autoflip_secure.sim : a whole federation on one machine, from data to report.

Heavy imports happen inside functions: `--help` and a refused option answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoflip_secure.config import ResolvedConfig, RunConfig, flag_of, load_config_file
from autoflip_secure.errors import CannotContinue, ConfigError, Interrupted
from autoflip_secure.options import config_from, run_command, with_config_options

if TYPE_CHECKING:
    from autoflip_secure.federation.provisioning import RunFolder

__all__ = ["app", "main", "simulate"]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Resume = Annotated[Path | None, typer.Option("--resume", help="go on with an interrupted run")]
Preset = Annotated[str | None, typer.Option("--preset", help="named settings: paper-mnist, quick-mnist, ... (README)")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with any of these options")]
Summary = Annotated[str | None, typer.Option("--summary", help="json: print summary.json as the last line of stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress on stderr")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="write report.html, or leave it for `report RUN`")]


@app.command()
@with_config_options
def simulate(
    options: dict[str, Any],
    *,
    resume: Resume = None,
    config: Config = None,
    preset: Preset = None,
    summary: Summary = None,
    quiet: Quiet = False,
    report: Report = True,
) -> None:
    """Train one private, pruned model in a federation of silos simulated on this machine."""
    if summary not in (None, "json"):
        raise ConfigError(f"--summary {summary}: the only form is json")
    if resume is not None:
        if options or config is not None or preset is not None:
            named = {"--config": config, "--preset": preset}
            given = next((flag for flag, value in named.items() if value is not None), None)
            given = given or flag_of(next(iter(options)))
            raise ConfigError(f"{given}: a resumed run keeps its own configuration; give --resume alone")
        folder, resolved = _reopen(resume)
    else:
        if "dp_trust" in options and "dp_epsilon" not in options and config is None and preset is None:
            raise ConfigError("--dp-trust: promises nothing without --dp-epsilon; give both or neither")
        folder, resolved = _prepare(config_from(options, config, preset))
    _run(folder, resolved, quiet=quiet, summary=summary, report=report)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 (bad input), 3 (cannot go on), 130 (interrupted)."""
    return run_command(app, arguments)


def _prepare(config: RunConfig) -> tuple[RunFolder, ResolvedConfig]:
    """Load the data, fill in the options and create the federation on disk."""
    from autoflip_secure.autoflip.unit_budget import check_reachable
    from autoflip_secure.data.registry import load
    from autoflip_secure.federation.defaults import resolve
    from autoflip_secure.federation.option_checks import check_ckks
    from autoflip_secure.federation.provisioning import RunFolder, provision
    from autoflip_secure.federation.pruning import prune_settings
    from autoflip_secure.federation.schedule import Schedule
    from autoflip_secure.models.spec import dense_spec
    from autoflip_secure.training.device import pick_device

    data = load(config.dataset, config.data_dir, config.seed)
    resolved = resolve(config, data.task, natural_silos=len(data.natural) if data.natural else None)
    pick_device(resolved.device)
    check_ckks(resolved)
    Schedule(resolved)
    dense = dense_spec(resolved.model, data.task.input_shape, data.task.outputs)
    if resolved.prune != "none":
        check_reachable(dense, prune_settings(resolved, resolved.prune_flops))
    folder = RunFolder(_new_directory(resolved))
    provision(folder, resolved, data)
    return folder, resolved


def _new_directory(config: ResolvedConfig) -> Path:
    import time

    if config.run_dir is None:
        name = config.dataset.replace(":", "-").replace("/", "-").strip("-")
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1000:03d}"
    if config.run_dir.exists() and (not config.run_dir.is_dir() or any(config.run_dir.iterdir())):
        raise ConfigError(
            f"--run-dir {config.run_dir}: is not empty; go on with --resume {config.run_dir} or name another"
        )
    return config.run_dir


def _reopen(path: Path) -> tuple[RunFolder, ResolvedConfig]:
    from autoflip_secure.federation.provisioning import RunFolder

    folder = RunFolder(path)
    if not folder.config.exists():
        raise ConfigError(f"--resume {path}: is not the directory of a run")
    if folder.summary.exists():
        raise ConfigError(f"--resume {path}: the run is finished; see {folder.summary}")
    return folder, ResolvedConfig.create(**load_config_file(folder.config))


def _run(folder: RunFolder, config: ResolvedConfig, *, quiet: bool, summary: str | None, report: bool) -> None:
    import json

    from autoflip_secure.federation.engines import run_federation
    from autoflip_secure.federation.finish import finish
    from autoflip_secure.federation.rotation import warnings_of
    from autoflip_secure.report.progress import Progress

    with Progress(config, folder.path, quiet=quiet) as progress:
        for warning in warnings_of(config):
            progress.say(f"WARNING: {warning}")
        try:
            outcome = run_federation(folder, config, progress.round_done)
        except KeyboardInterrupt:
            again = f"python -m autoflip_secure.sim --resume {folder.path}"
            raise Interrupted(f"interrupted; go on with: {again}") from None
        except CannotContinue as error:
            raise type(error)(f"{error} (checkpoint: {folder.checkpoint})") from error
        figures = finish(folder, config, outcome)
        if report:
            from autoflip_secure.report.html import write_report

            write_report(folder.path, figures)
        progress.finished(figures, folder.report if report else f"autoflip-secure report {folder.path}")
    if summary == "json":
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    sys.exit(main())
