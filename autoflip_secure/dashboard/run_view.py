"""One run directory as the page shows it: configuration, rounds, silos, events. Reads only what was appended."""

from __future__ import annotations

import json
import threading
import time
import tomllib
from collections import Counter, deque
from pathlib import Path
from typing import Any

from autoflip_secure.dashboard.presence import Presence
from autoflip_secure.dashboard.tail import JsonTail, Stamp, stamp_of
from autoflip_secure.dashboard.values import plain
from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.parties.roster import Roster
from autoflip_secure.report import text
from autoflip_secure.report.units import number

__all__ = ["RunView", "is_run"]

FIGURES = (
    "silos", "accuracy", "c_index", "auroc", "loss", "epsilon", "agreement", "agreement_average", "params_live",
    "params_dense", "flops", "flops_dense", "upload_bytes_per_silo", "upload_bytes_total_per_silo",
    "upload_bytes_dense_fp32", "download_bytes_per_silo", "aborts", "seconds",
)  # fmt: skip
"""Figures of a round that go to the page."""

SETTINGS = (
    "dataset", "model", "partition", "silos", "rounds", "participation", "cohorts", "aggregation", "colluders",
    "min_cohort", "block", "dp_epsilon", "dp_delta", "dp_trust", "prune", "prune_flops", "explore_rounds", "optimizer",
    "engine", "dropout", "seed",
)  # fmt: skip
"""Options that go to the page."""

RESULTS = (
    "accuracy", "c_index", "auroc", "loss", "epsilon_spent", "seconds_total", "params_ratio", "flops_ratio",
    "upload_ratio", "upload_ratio_total", "rounds", "rounds_aborted", "task",
)  # fmt: skip
"""Figures of a finished run that go to the page."""

ROUTINE = frozenset({"sum", "asking", "stage", "silo_dropped"})
"""Events that are no news: they come every round, or with an `absent` that says the same."""

MOST_EVENTS = 2000
"""Events kept to be shown; all are counted."""

DEFAULT_TIMEOUT = 600.0
GRACE = 60.0
"""Seconds beyond a stage's timeout after which a run that writes nothing is called quiet."""

Known = tuple[Stamp, dict[str, Any]]
"""A file's contents, and the state of the file they were read in."""


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return (path / "config.toml").is_file()


class RunView:
    """Follows one run. Calls from several threads take turns."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._turn = threading.Lock()
        self._metrics, self._events = JsonTail(path / "metrics.jsonl"), JsonTail(path / "events.jsonl")
        self._config: Known = (None, {})
        self._summary: Known = (None, {})
        self._failure: Known = (None, {})
        self._names: tuple[Stamp, dict[int, str]] = (None, {})
        self._restarts = 0
        self._clear_rounds()
        self._clear_events()

    def _clear_rounds(self) -> None:
        self._rounds: list[dict[str, Any]] = []
        self._places: dict[int, int] = {}
        self._drops: dict[str, int] = {}
        self._layers: list[dict[str, Any]] = []

    def _clear_events(self) -> None:
        self._news: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._counts: Counter[str] = Counter()
        self._told = 0
        self.presence = Presence()

    # What the page asks for

    def overview(self) -> dict[str, Any]:
        """One line of the list of runs."""
        with self._turn:
            self._follow()
            last, config = self._rounds[-1] if self._rounds else {}, self._settings()
            return {
                "name": self.name,
                "state": self._state(),
                "changed": self._changed(),
                "rounds": len(self._rounds),
                "planned": config.get("rounds"),
                "dataset": config.get("dataset"),
                "model": config.get("model"),
                "score": self._score(),
                "epsilon": self._last("epsilon"),
                "epsilon_target": config.get("dp_epsilon"),
                "live": _ratio(last.get("params_live"), last.get("params_dense")),
                "silos_up": sum(silo.up is True for silo in self.presence.silos.values()),
                "silos": config.get("silos"),
            }

    def page(self, generation: str = "", rounds: int = 0, events: int = 0) -> dict[str, Any]:
        """What changed since the page was told `rounds` rounds and `events` events of `generation`.

        Where that generation is past, all is told again.
        """
        with self._turn:
            self._follow()
            current = self.generation
            if generation != current:
                rounds = events = 0
            return {
                "name": self.name,
                "generation": current,
                "now": time.time(),
                "state": self._state(),
                "changed": self._changed(),
                "config": self._settings(),
                "promise": self._promise(),
                "alarms": self._alarms(),
                "stage_meaning": dict(text.STAGE_MEANING),
                "result": self._result(),
                "rounds_from": rounds,
                "rounds": self._rounds[rounds:],
                "rounds_told": len(self._rounds),
                "drops": self._drops,
                "events": self._news_after(events),
                "events_told": self._told,
                "event_counts": dict(self._counts),
                "damaged": self._metrics.damaged + self._events.damaged,
                "silos": self._silos(),
                "sums": self.presence.sums,
                "stages": [vars(stage) for stage in self.presence.stages],
                "stage_seconds": {name: total / times for name, (times, total) in self.presence.seconds.items()},
                "ledgers": plain(self._read_summary().get("ledgers") or []),
            }

    @property
    def generation(self) -> str:
        """Changes where what was told before no longer holds."""
        return f"{self._metrics.generation}.{self._events.generation}.{self._restarts}"

    def figures(self) -> dict[str, Any]:
        """What is measured of the run, for monitoring."""
        with self._turn:
            self._follow()
            return {
                "last": dict(self._rounds[-1]) if self._rounds else {},
                "layers": list(self._layers),
                "rounds": len(self._rounds),
                "score": self._score(),
                "epsilon": self._last("epsilon"),
                "drops": dict(self._drops),
                "counts": dict(self._counts),
                "silos": self._silos(),
                "config": self._settings(),
                "state": self._state(),
                "changed": self._changed(),
            }

    # Reading

    def _follow(self) -> None:
        generation = self._metrics.generation
        for line in self._metrics.appended():
            if self._metrics.generation != generation:
                generation = self._metrics.generation
                self._clear_rounds()
            self._take_round(line)
        if self._metrics.generation != generation:
            self._clear_rounds()  # written anew, and empty so far
        generation = self._events.generation
        for line in self._events.appended():
            if self._events.generation != generation:
                generation = self._events.generation
                self._clear_events()
            self._take_event(line)
        if self._events.generation != generation:
            self._clear_events()

    def _take_round(self, line: dict[str, Any]) -> None:
        round_number = line.get("round")
        if type(round_number) is not int:
            self._metrics.damaged += 1
            return
        told: dict[str, Any] = {"round": round_number, "phase": str(line.get("phase", ""))[:20]}
        told |= {name: value for name in FIGURES if (value := number(line.get(name))) is not None}
        layers = _layers(line.get("layers"))
        if layers and layers != self._layers:
            told["layers"] = self._layers = layers  # told where it changes, which is not in every round
        if isinstance(line.get("drops"), dict):
            self._drops = {str(stage)[:40]: times for stage, times in line["drops"].items() if type(times) is int}
        place = self._places.setdefault(round_number, len(self._rounds))
        if place == len(self._rounds):
            self._rounds.append(told)
        else:
            self._rounds[place] = told  # a resumed run did the round again
            self._restarts += 1

    def _take_event(self, event: dict[str, Any]) -> None:
        self.presence.follow(event)
        name = str(event.get("event"))  # of a damaged log it may be anything
        self._counts[name[:60]] += 1
        if name not in ROUTINE:
            self._told += 1
            self._news.append(plain(event))

    def _news_after(self, told: int) -> list[dict[str, Any]]:
        missing = min(self._told - told, len(self._news))
        return list(self._news)[len(self._news) - missing :] if missing > 0 else []

    def _read_config(self) -> dict[str, Any]:
        stamp = stamp_of(self.path / "config.toml")
        if stamp != self._config[0]:
            try:
                read = tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                read = {}
            self._config = stamp, read
        return self._config[1]

    def _read_summary(self) -> dict[str, Any]:
        self._summary = _json_object(self.path / "summary.json", self._summary)
        return self._summary[1]

    def _read_failure(self) -> dict[str, Any]:
        self._failure = _json_object(self.path / "failed.json", self._failure)
        return self._failure[1]

    def _silo_names(self) -> dict[int, str]:
        """By silo, from the run's roster, or the one beside all runs of a coordinator."""
        places = (self.path / "federation" / "roster.bin", self.path.parent.parent / "roster.bin")
        place = next((path for path in places if path.is_file()), None)
        stamp = stamp_of(place) if place else None
        if place is not None and stamp != self._names[0]:
            try:
                names = {entry.silo: entry.name for entry in Roster.from_bytes(place.read_bytes()).entries}
            except (OSError, AutoflipSecureError):
                names = {}
            self._names = stamp, names
        return self._names[1]

    # What it comes to

    def _settings(self) -> dict[str, Any]:
        config = self._read_config()
        return {name: plain(config[name]) for name in SETTINGS if name in config}

    def _result(self) -> dict[str, Any] | None:
        summary = self._read_summary()
        return {name: plain(summary[name]) for name in RESULTS if name in summary} or None

    def _words(self) -> dict[str, Any]:
        """What the report's words are made from, also while there is no summary."""
        config = self._read_config()
        trust = config.get("dp_trust", "distributed") if config.get("dp_epsilon") is not None else "none"
        so_far = {
            **{name: config.get(name) for name in ("aggregation", "colluders", "bad_silos")},
            "insecure_reproducible_noise": config.get("insecure_reproducible_noise", False),
            "dp_trust": trust,
            "epsilon_target": config.get("dp_epsilon"),
            "delta": config.get("dp_delta"),
        }
        return {**so_far, **self._read_summary()}

    def _promise(self) -> list[str]:
        words = self._words()
        sentence = text.privacy_sentence(words)
        return [text.protection(words), sentence[:1].upper() + sentence[1:] + "."]

    def _alarms(self) -> list[dict[str, str]]:
        found = [{"title": title, "text": words} for title, words in text.alarms(self._words())]
        reason = self._read_failure().get("reason")
        return [{"title": "the run cannot go on", "text": plain(str(reason))}, *found] if reason else found

    def _state(self) -> str:
        if self._read_summary():
            return "finished"
        if (self.path / "failed.json").exists():
            return "failed"
        # A coordinator's home says which runs are to go on; a simulation does not.
        if (self.path / "places.json").exists() and not (self.path / "wanted").exists():
            return "stopped"
        if self.presence.waits:
            return "waiting"
        changed = self._changed()
        if changed is None:
            return "starting"
        patience = number(self._read_config().get("stage_timeout")) or DEFAULT_TIMEOUT
        return "quiet" if time.time() - changed > patience + GRACE else "running"

    def _changed(self) -> float | None:
        """Seconds since 1970 of the last sign of life."""
        times = []
        for name in ("events.jsonl", "metrics.jsonl", "summary.json"):
            stamp = stamp_of(self.path / name)
            times += [stamp[2] / 1e9] if stamp else []
        return max(times, default=None)

    def _score(self) -> dict[str, Any] | None:
        """The score a task is judged by first, as last measured."""
        for name in ("accuracy", "c_index"):
            value = self._last(name)
            if value is not None:
                return {"name": name, "value": value}
        return None

    def _last(self, name: str) -> float | None:
        return next((row[name] for row in reversed(self._rounds) if name in row), None)

    def _silos(self) -> list[dict[str, Any]]:
        names, known = self._silo_names(), self.presence.silos
        rows = []
        for silo in sorted(names.keys() | known.keys()):
            state = known.get(silo)
            rows.append(
                {
                    "silo": silo,
                    "name": plain(names.get(silo, f"silo {silo}")),
                    "up": state.up if state else None,
                    "since": state.since if state else None,
                    "sums": state.sums if state else 0,
                    "drops": state.drops if state else 0,
                    "missed": state.missed if state else "",
                    "answer": state.answer if state else "",
                }
            )
        return rows


def _json_object(path: Path, known: Known) -> Known:
    """What a file holds, read again where it has changed; nothing where it is no JSON object."""
    stamp = stamp_of(path)
    if stamp == known[0]:
        return known
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        read = {}
    return stamp, read if isinstance(read, dict) else {}


def _layers(value: Any) -> list[dict[str, Any]]:
    rows = []
    for layer in value if isinstance(value, list) else ():
        if isinstance(layer, dict):
            figures = {name: number(layer.get(name)) for name in ("units", "live", "agreement")}
            rows.append({"layer": plain(str(layer.get("layer", ""))), **figures})
    return rows


def _ratio(part: Any, whole: Any) -> float | None:
    return part / whole if part is not None and whole else None
