"""The bar shown on a terminal: one line with the bar, one below it with the run's state."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

__all__ = ["LiveBar"]


class _BarAndState(Progress):
    """A bar with free text below it."""

    state = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.state:
            yield Text(self.state, style="dim")


class LiveBar:
    """Bar over `rounds` rounds on stderr; stdout is left alone, also while it runs."""

    def __init__(self, rounds: int) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), TaskProgressColumn())
        self._bar = _BarAndState(*columns, console=Console(stderr=True), redirect_stdout=False, expand=True)
        self._task = self._bar.add_task("", total=rounds)

    def start(self, text: str) -> None:
        """Show the empty bar."""
        self._bar.update(self._task, description=text)
        self._bar.start()

    def show(self, done: int, text: str, state: str) -> None:
        """Move the bar to `done` rounds; `text` stands before it, `state` below."""
        self._bar.state = state
        self._bar.update(self._task, completed=done, description=text)

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Leave the last state on the screen and stop redrawing."""
        self._bar.stop()
