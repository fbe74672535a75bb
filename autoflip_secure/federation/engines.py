"""Where the apps run: in this machine's processes (LocalGrid) or on Flower's Ray simulation. Same apps, same result."""

from __future__ import annotations

import logging
import os
from typing import Any

from flwr.app import Context, RecordDict

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.client_app import ClientAppFactory, close_silos
from autoflip_secure.federation.coordinator import Watcher
from autoflip_secure.federation.local_grid import LocalGrid, default_workers
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.server_app import RunOutcome, make_server_app

__all__ = ["run_federation"]


def run_federation(folder: RunFolder, config: ResolvedConfig, watch: Watcher) -> RunOutcome:
    """Run the federation to its end on the configured engine.

    Raises
    ------
    Whatever stopped the coordinator, as it was raised.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    outcome = RunOutcome()
    app = make_server_app(folder, config, watch, outcome)
    factory = ClientAppFactory(folder.path)
    if config.engine == "ray":
        _run_on_ray(app, factory, config.silos)
    else:
        workers = default_workers(config.silos) if config.workers is None else min(config.workers, config.silos)
        try:
            with LocalGrid(factory, config.silos, workers) as grid:
                app(grid, _server_context())
        finally:
            close_silos()  # those that this process answered for, without workers
    if outcome.error is not None:
        raise outcome.error
    return outcome


def _run_on_ray(app: Any, factory: ClientAppFactory, silos: int) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # quiets a tip of Ray's
    from flwr.simulation import run_simulation

    run_simulation(
        app,
        factory(),
        silos,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"logging_level": "error", "log_to_driver": False, "include_dashboard": False},
        },
    )


def _server_context() -> Context:
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
