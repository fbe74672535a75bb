"""The ServerApp of a deployment: the coordinator of one run in the coordinator's home, on the SuperLink's Grid."""

from __future__ import annotations

import json
import logging
import os
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from autoflip_secure.deployment.deployed_run import DeployedRun
from autoflip_secure.deployment.flower import HOME_VARIABLE
from autoflip_secure.errors import AutoflipSecureError, CannotContinue, StorageError

__all__ = ["app", "coordinate"]

PULL_WITHIN = 30.0
"""Seconds in which the parts of a reply have to come once a silo has announced it."""

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
    # Flower would ask for the missing parts of one silo's reply for hours, while those of others wait.
    http_grid.pull_objects = partial(pull_objects, max_time=PULL_WITHIN)  # type: ignore[attr-defined]
    run = DeployedRun(home / "runs" / name)
    with run.only_coordinator():
        if run.state() != "wanted":
            log.info("run %s is %s: nothing to do", name, run.state())
            return
        config = run.resolved()
        try:
            if not run.summary.exists():  # else it ended between its summary and its report
                coordinator = Coordinator(run, config, grid, lambda line: log.info("round %s done", line["round"]))
                finish(run, config, RunOutcome(coordinator, coordinator.run()))
            write_report(run.path, json.loads(run.summary.read_text()))
            run.unwant()
        except StorageError as error:
            log.error("run %s waits for its disk: %s", name, error)  # noqa: TRY400, RUF100
            raise  # still wanted: it is started again
        except AutoflipSecureError as error:
            run.fail(error)
            log.error("run %s rests: %s", name, error)  # noqa: TRY400, RUF100
            raise CannotContinue(str(error)) from error
