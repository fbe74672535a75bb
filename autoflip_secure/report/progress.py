"""Progress of a run on stderr: a live bar on a terminal, a plain line every tenth of the rounds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autoflip_secure.errors import DataError
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.report.text import alarms, privacy_sentence
from autoflip_secure.report.units import (
    MISSING,
    bytes_text,
    count,
    count_of,
    duration,
    epsilon,
    main_score,
    number,
    percent,
    score,
)

if TYPE_CHECKING:
    from autoflip_secure.config import RunConfig
    from autoflip_secure.report.live_bar import LiveBar

__all__ = ["Progress"]

LINES = 10
"""Plain lines of a whole run."""

SCORES = {"accuracy": "accuracy", "c_index": "C-index"}
"""What is shown while a run goes on, by its name in metrics.jsonl; a task has one of them."""


class Progress:
    """Shows how a run is going. Use as a context manager; writes to stderr only, and nothing at all when quiet.

    Parameters
    ----------
    config : RunConfig
        Resolved options of the run.
    run_path : Path
        Run directory; the scores of its earlier rounds are shown until a resumed run has its own.
    quiet : bool
        Say nothing.
    """

    def __init__(self, config: RunConfig, run_path: Path, quiet: bool) -> None:
        assert config.rounds is not None
        self._rounds, self._target, self._quiet = config.rounds, config.dp_epsilon, quiet
        self._run_path = run_path
        self._started = time.monotonic()
        self._first: tuple[int, float] | None = None  # rounds done before this session, when its first round began
        self._scores: dict[str, float] = {}
        self._epsilon: float | None = None
        self._bar: LiveBar | None = None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        with contextlib.suppress(DataError):  # a damaged log must not keep the run from going on
            for line in read_json_lines(self._run_path / "metrics.jsonl"):
                self._remember(line)
        if not self._quiet and sys.stderr.isatty():
            from autoflip_secure.report.live_bar import LiveBar

            self._bar = LiveBar(self._rounds)
            self._bar.start(f"{self._run_path}: preparing")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def round_done(self, line: Mapping[str, Any]) -> None:
        """Show one round.

        Parameters
        ----------
        line : mapping
            The round's line of metrics.jsonl.
        """
        done = int(line["round"]) + 1
        if self._first is None:
            # Neither the rounds before an interruption nor the preparations say how long a round takes.
            self._first = (done - 1, time.monotonic() - float(line["seconds"]))
        self._remember(line)
        if self._bar is not None:
            self._bar.show(done, f"{line['phase']}, round {done} of {self._rounds}", self._state(line, done))
        elif not self._quiet and self._is_line_due(done):
            self._write(f"round {done} of {self._rounds} ({line['phase']}): {self._state(line, done)}")

    def say(self, text: str) -> None:
        """Write one line."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.say(text)
        else:
            self._write(text)

    def finished(self, summary: Mapping[str, Any], report: Path | str) -> None:
        """Write the result of the run, and where its report is or how to have it."""
        self._stop()
        if not self._quiet:
            self._write("\n".join(_result_lines(summary, report)))

    def _remember(self, line: Mapping[str, Any]) -> None:
        # Most rounds are not scored; the last known figure stays on show.
        for column, name in SCORES.items():
            known = number(line.get(column))
            if known is not None:
                self._scores[name] = known
        spent = number(line.get("epsilon"))
        self._epsilon = self._epsilon if spent is None else spent

    def _is_line_due(self, done: int) -> bool:
        """Whether `done` rounds complete another tenth of the run."""
        return done == self._rounds or LINES * done // self._rounds > LINES * (done - 1) // self._rounds

    def _state(self, line: Mapping[str, Any], done: int) -> str:
        elapsed = time.monotonic() - self._started
        parts = [f"{name} {score(value)}" for name, value in self._scores.items()]
        if self._target is not None and self._epsilon is not None:
            parts.append(f"epsilon {epsilon(self._epsilon)} of {epsilon(self._target)}")
        parts += [
            f"live {percent(line['params_live'] / line['params_dense'])}",
            f"{bytes_text(line['upload_bytes_per_silo'])} per silo",
            f"{duration(elapsed)} elapsed",
        ]
        if done < self._rounds and self._first is not None:
            before, began = self._first
            pace = (time.monotonic() - began) / (done - before)
            parts.append(f"{duration(pace * (self._rounds - done))} left")
        return ", ".join(parts)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @staticmethod
    def _write(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _result_lines(summary: Mapping[str, Any], report: Path | str) -> list[str]:
    rounds, silos = count_of(int(summary.get("rounds") or 0), "round"), count_of(int(summary.get("silos") or 0), "silo")
    rows = {
        main_score(summary)[0]: _scores(summary),
        "privacy": privacy_sentence(summary),
        "model": (
            f"{percent(summary.get('params_ratio'))} of the parameters live "
            f"({count(summary.get('params_live'))} of {count(summary.get('params_dense'))}), "
            f"{percent(summary.get('flops_ratio'))} of the FLOPs"
        ),
        "upload": (
            f"{bytes_text(summary.get('upload_bytes_per_silo'))} per silo, {percent(summary.get('upload_ratio'))} of "
            f"plain FedAvg's {bytes_text(summary.get('upload_bytes_dense_fp32'))}"
        ),
        "drops": _troubles(summary),
        "report": str(report),
    }
    warnings = [f"WARNING: {title}" for title, _ in alarms(summary)]
    title = f"{summary.get('run', 'run')}: {rounds} by {silos} in {duration(summary.get('seconds_total'))}"
    return [title, *warnings, *(f"  {name:<10}{words}" for name, words in rows.items() if words)]


def _scores(summary: Mapping[str, Any]) -> str:
    auroc = number(summary.get("auroc"))
    known = main_score(summary)[1]
    first = "not known" if known == MISSING else known
    return first if auroc is None else f"{first}, AUROC {score(auroc)}"


def _troubles(summary: Mapping[str, Any]) -> str:
    drops = [f"{count(times)} at {stage}" for stage, times in (summary.get("drops") or {}).items() if times]
    aborts = int(summary.get("rounds_aborted") or 0)
    return ", ".join(drops + [count_of(aborts, "aborted attempt")] * bool(aborts))
