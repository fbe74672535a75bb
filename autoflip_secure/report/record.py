"""What a run directory says about its rounds: metrics.jsonl, events.jsonl and config.toml, read once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import DataError
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.report.units import number

__all__ = ["RunRecord", "load_record"]

Values = NDArray[np.float64]


@dataclass(frozen=True)
class RunRecord:
    """Rounds, events and configuration of one run.

    Attributes
    ----------
    rounds : tuple of dict
        Lines of metrics.jsonl, one a round, in order, at least one.
    events : tuple of dict
        Lines of events.jsonl, in order.
    config : dict
        config.toml.

    Raises
    ------
    DataError
        There is no round to report on.
    """

    rounds: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    config: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.rounds:
            raise DataError("metrics.jsonl holds no round, so there is nothing to report; finish the run first")

    @property
    def last(self) -> dict[str, Any]:
        """The last round."""
        return self.rounds[-1]

    @property
    def numbers(self) -> Values:
        """Rounds counted from 1, shape (rounds,)."""
        return np.array([row["round"] + 1 for row in self.rounds], dtype=np.float64)

    @property
    def exploration_rounds(self) -> int:
        """Rounds of the first phase."""
        return sum(row.get("phase") == "explore" for row in self.rounds)

    def column(self, name: str) -> Values:
        """One figure of every round, shape (rounds,); NaN where a round does not have it."""
        return np.array([_or_nan(row.get(name)) for row in self.rounds])

    def layer_names(self) -> tuple[str, ...]:
        """Layers in order of first appearance."""
        return tuple(dict.fromkeys(str(layer["layer"]) for row in self.rounds for layer in _layers(row)))

    def layer_column(self, layer: str, name: str) -> Values:
        """One figure of one layer in every round, shape (rounds,); NaN where a round does not have it."""
        found = [next((entry for entry in _layers(row) if entry["layer"] == layer), {}) for row in self.rounds]
        return np.array([_or_nan(entry.get(name)) for entry in found])

    def of_kind(self, event: str) -> list[dict[str, Any]]:
        """Events called `event`."""
        return [line for line in self.events if line.get("event") == event]


def load_record(run_path: Path) -> RunRecord:
    """Read a run directory.

    A round that was recorded twice, since the run was interrupted between its record and its checkpoint, counts once,
    as the resumed run did it.

    Raises
    ------
    DataError
        A file is missing or damaged, or holds no round; the message names it.
    """
    metrics = run_path / "metrics.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    for row in _lines(metrics):
        if not isinstance(row.get("round"), int):
            raise DataError(f"{metrics}: a line has no round number; the report was not written, the run is untouched")
        rows[row["round"]] = row
    if not rows:
        raise DataError(f"{metrics}: holds no round, so there is nothing to report; finish the run first")
    events = _lines(run_path / "events.jsonl")
    return RunRecord(tuple(rows[number] for number in sorted(rows)), tuple(events), _config(run_path / "config.toml"))


def _lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = _reading(path, lambda: list(read_json_lines(path)))
    if not all(isinstance(line, dict) for line in lines):
        raise DataError(f"{path}: a line is not a JSON object; the report was not written, the run is untouched")
    return lines


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = _reading(path, lambda: tomllib.loads(path.read_text(encoding="utf-8")))
    return config


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OSError as error:
        reason = error.strerror
    except (ValueError, RecursionError, DataError) as error:  # of JSON, of TOML, of UTF-8
        reason = str(error)
    raise DataError(f"{path}: cannot be read ({reason}); the report was not written, the run is untouched")


def _layers(row: dict[str, Any]) -> list[dict[str, Any]]:
    return row.get("layers") or []


def _or_nan(value: Any) -> float:
    known = number(value)
    return np.nan if known is None else known
