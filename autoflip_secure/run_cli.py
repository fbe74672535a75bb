"""autoflip-secure run: trains a model across the silos of a federation, on the coordinator's machine.

Heavy imports happen inside functions: `--help` and a refused option answer at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoflip_secure.errors import CannotContinue, ConfigError, Interrupted
from autoflip_secure.home_option import HomeOption
from autoflip_secure.options import config_from, with_config_options

if TYPE_CHECKING:
    from autoflip_secure.deployment.deployed_run import DeployedRun

__all__ = ["run_federation"]

WEEK = 7 * 24 * 3600.0
STAGE = 120.0
LOOK_EVERY = 0.5

BLOCK, LEFT_OF_BLOCKS = 3, 0.6
"""Silos that are summed together or not at all, and the part of a cohort that must be there: a silo that drops out
takes two others along (of the last block up to four), which leaves enough of eight silos or more."""


@with_config_options
def run_federation(
    options: dict[str, Any],
    *,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with any of these options")] = None,
    name: Annotated[str | None, typer.Option("--name", help="of the run [a number]", show_default=False)] = None,
    resume: Annotated[str | None, typer.Option("--resume", help="go on with the run of this name")] = None,
    stop: Annotated[str | None, typer.Option("--stop", help="let the run of this name rest")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="start it and return")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress on stderr")] = False,
    home: HomeOption = Path(),
) -> None:
    """Train a model with all silos that approve of it; goes on by itself after crashes and restarts."""
    if resume is not None or stop is not None:
        if options or config is not None or name is not None or (resume is not None and stop is not None):
            raise ConfigError("--resume and --stop: a run keeps its own configuration; give one of them alone")
        run = _find(home, str(resume or stop))
        if stop is not None:
            _rest(run)
            return
    else:
        run = _create(home, options, config, name)
    run.want()
    if detach:
        print(run.path)
        return
    _watch(run, quiet=quiet)


def _create(home: Path, options: dict[str, Any], file: Path | None, name: str | None) -> DeployedRun:
    from autoflip_secure.config import RunConfig
    from autoflip_secure.deployment.coordinator_home import CoordinatorHome
    from autoflip_secure.deployment.deployed_run import create_run, runs_of

    made = CoordinatorHome(home)
    made.require_whole()
    bundle = made.installed()
    chosen = config_from(options, file)
    # Officers take their time, and a silo that does not answer is soon done without.
    # Institutions' policies ask for proofs and blocks, unless they say otherwise.
    usual: dict[str, Any] = {"join_timeout": WEEK, "stage_timeout": STAGE}
    usual |= {"prove_models": chosen.aggregation == "secagg", "block": BLOCK}
    if "block" not in chosen.model_fields_set or chosen.block > 1:
        usual["min_cohort"] = LEFT_OF_BLOCKS
    missing = {field: value for field, value in usual.items() if field not in chosen.model_fields_set}
    chosen = RunConfig.model_construct(_fields_set=chosen.model_fields_set, **{**dict(chosen), **missing})
    return create_run(home, chosen, name or f"run-{len(runs_of(home)) + 1:03d}", bundle.name)


def _find(home: Path, name: str) -> DeployedRun:
    from autoflip_secure.deployment.deployed_run import runs_of

    runs = {run.name: run for run in runs_of(home)}
    if name not in runs:
        raise ConfigError(f"{name}: no such run in {home / 'runs'}; there are: {', '.join(runs) or 'none'}")
    if runs[name].state() == "finished":
        raise ConfigError(f"{name}: the run is finished; see {runs[name].summary}")
    return runs[name]


def _rest(run: DeployedRun) -> None:
    from autoflip_secure.deployment.coordinator_home import CoordinatorHome
    from autoflip_secure.deployment.flower import FlowerControl

    run.unwant()
    if run.flower_run.exists():
        FlowerControl(run.home, CoordinatorHome(run.home).address[1]).stop(int(run.flower_run.read_text()))
    print(f"run {run.name} rests; go on with: autoflip-secure run --resume {run.name} --home {run.home}")


def _watch(run: DeployedRun, *, quiet: bool) -> None:
    """Show progress until the run is finished or rests. The run does not need this process."""
    from autoflip_secure.federation.events import read_json_lines
    from autoflip_secure.report.progress import Progress

    config, shown, told = run.resolved(), len(list(read_json_lines(run.metrics))), 0
    with Progress(config, run.path, quiet=quiet) as progress:
        try:
            while run.state() == "wanted":
                lines = list(read_json_lines(run.metrics))
                for line in lines[shown:]:
                    progress.round_done(line)
                shown = max(shown, len(lines))
                told = _tell_answers(run, progress.say, told)
                time.sleep(LOOK_EVERY)
        except KeyboardInterrupt:
            raise Interrupted(
                f"run {run.name} goes on without this command; watch it with: autoflip-secure run --resume {run.name} "
                f"--home {run.home}, stop it with: --stop {run.name}"
            ) from None
        if run.state() != "finished":
            raise CannotContinue(run.failure() or f"run {run.name} rests; go on with --resume {run.name}")
        import json

        progress.finished(json.loads(run.summary.read_text()), run.report)


def _tell_answers(run: DeployedRun, say: Any, told: int) -> int:
    """Say what silos answered when they were asked to join, each once."""
    from autoflip_secure.federation.events import read_json_lines

    answers = [line for line in read_json_lines(run.events) if line["event"] == "join_answer"]
    for line in answers[told:]:
        say(f"silo {line['silo']}: {line['answer']}")
    return max(told, len(answers))
