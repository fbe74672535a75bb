"""The ServerApp of a deployment: the coordinator of one run in the coordinator's home, on the SuperLink's Grid."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from autoflip_secure.deployment.deployed_run import DeployedRun
from autoflip_secure.deployment.flower import HOME_VARIABLE
from autoflip_secure.errors import AutoflipSecureError, CannotContinue

__all__ = ["app", "coordinate"]

app = ServerApp()
log = logging.getLogger(__name__)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume what the run configuration names."""
    coordinate(Path(os.environ[HOME_VARIABLE]), str(context.run_config["run"]), grid)


def coordinate(home: Path, name: str, grid: Grid) -> None:
    """Run or resume one run to its end and write its summary and report.

    Raises
    ------
    CannotContinue
        It has to rest; why is in its failed.json. Everything up to the last whole round is kept.
    """
    from autoflip_secure.federation.coordinator import Coordinator
    from autoflip_secure.federation.finish import finish
    from autoflip_secure.federation.server_app import RunOutcome
    from autoflip_secure.report.html import write_report

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    run = DeployedRun(home / "runs" / name)
    with run.only_coordinator():
        if run.state() != "wanted":
            log.info("run %s is %s: nothing to do", name, run.state())
            return
        config = run.resolved()
        try:
            coordinator = Coordinator(run, config, grid, lambda line: log.info("round %s done", line["round"]))
            state = coordinator.run()
            figures = finish(run, config, RunOutcome(coordinator, state))
            write_report(run.path, figures)
            run.unwant()
        except AutoflipSecureError as error:
            run.fail(error)
            log.error("run %s rests: %s", name, error)  # noqa: TRY400, RUF100
            raise CannotContinue(str(error)) from error
