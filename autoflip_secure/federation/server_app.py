"""The ServerApp: runs the coordinator of a run folder on whatever Grid Flower hands it."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.coordinator import Coordinator, Watcher
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.run_state import RunState

__all__ = ["RunOutcome", "make_server_app"]


@dataclass
class RunOutcome:
    """Filled in when the ServerApp's main has ended: its coordinator's last state, or why it stopped."""

    coordinator: Coordinator | None = None
    state: RunState | None = None
    error: BaseException | None = field(default=None, repr=False)


def make_server_app(folder: RunFolder, config: ResolvedConfig, watch: Watcher, outcome: RunOutcome) -> ServerApp:
    """ServerApp of one run; its result goes to `outcome`, since Flower's main returns nothing."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            outcome.coordinator = Coordinator(folder, config, grid, watch)
            outcome.state = outcome.coordinator.run()
        except BaseException as error:
            # Engines wrap or swallow what main raises; the caller re-raises it as it is.
            outcome.error = error

    return app
