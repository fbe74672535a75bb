"""What lies at a path: one run, a coordinator's home or a folder of runs, or a silo's home."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoflip_secure.dashboard.run_view import RunView, is_run
from autoflip_secure.dashboard.silo_view import SiloView
from autoflip_secure.errors import ConfigError

__all__ = ["Home", "open_home"]

SILO_FILES = ("policy.toml", "identity.key", "state.sqlite")
COORDINATOR_FILES = ("coordinator.key", "runs")


@dataclass
class Home:
    """What the page is about.

    Attributes
    ----------
    kind : str
        run, coordinator or silo.
    path : Path
    silo : SiloView or None
        Of a silo's home.
    """

    kind: str
    path: Path
    silo: SiloView | None = None
    _views: dict[str, RunView] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def title(self) -> str:
        """Name for a heading."""
        return self.silo.name if self.silo else self.path.resolve().name or str(self.path)

    def runs(self) -> list[RunView]:
        """Runs that are there now, by name; a view stays the same as long as its run is there."""
        if self.kind == "silo":
            return []
        found = {path.name: path for path in self._run_folders()}
        with self._turn:
            self._views = {name: self._views.get(name) or RunView(path) for name, path in sorted(found.items())}
            return list(self._views.values())

    def run(self, name: str) -> RunView | None:
        """The run of that name; names that are no run of this home find nothing, whatever path they spell."""
        return next((run for run in self.runs() if run.name == name), None)

    def overview(self) -> dict[str, Any]:
        """What the page asks for first."""
        runs = [run.overview() for run in self.runs()]
        newest_first = sorted(runs, key=lambda run: -(run["changed"] or 0))
        return {"kind": self.kind, "title": self.title, "runs": newest_first}

    def _run_folders(self) -> list[Path]:
        if self.kind == "run":
            return [self.path]
        folder = self.path / "runs" if (self.path / "runs").is_dir() else self.path
        try:
            return [path for path in folder.iterdir() if is_run(path)]
        except OSError:
            return []


def open_home(path: Path) -> Home:
    """Tell what lies at `path`.

    Raises
    ------
    ConfigError
        Nothing that the page could show.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: is not a folder; give a silo's or coordinator's home or a run directory")
    path = path.resolve()
    if is_run(path):
        return Home("run", path)
    if any((path / name).exists() for name in SILO_FILES):
        return Home("silo", path, SiloView(path))
    if any((path / name).exists() for name in COORDINATOR_FILES) or any(map(is_run, path.iterdir())):
        return Home("coordinator", path)
    raise ConfigError(
        f"{path}: holds neither a run (config.toml), nor runs, nor a silo's policy.toml; give a silo's or "
        "coordinator's home or a run directory"
    )
