"""Which silos are up, and which stage is on, told from the events of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autoflip_secure.report.units import number

__all__ = ["Presence", "SiloState", "Stage"]


JOINED = "joined"

LONGEST_WORD = 64


@dataclass
class SiloState:
    """What the coordinator has seen of one silo.

    Attributes
    ----------
    silo : int
    up : bool or None
        Whether it answered the last stage it was asked in; None before the first.
    since : float or None
        Seconds since 1970 since when it is up or down.
    sums : int
        Sums it was in.
    drops : int
        Attempts in which it was missed.
    missed : str
        Stage at which it was first missed the last time.
    answer : str
        What it said last to the join request; empty before it was asked, and where it joined at once.
    """

    silo: int
    up: bool | None = None
    since: float | None = None
    sums: int = 0
    drops: int = 0
    missed: str = ""
    answer: str = ""
    _away: tuple[Any, Any] | None = None

    def seen(self, up: bool, when: float | None) -> None:
        """Note that it answered, or did not."""
        if up is not self.up:
            self.up, self.since = up, when


@dataclass
class Stage:
    """One stage of the newest attempt; `seconds` and `answered` are None while it is on."""

    stage: str
    round: int
    attempt: int
    asked: int
    began: float | None
    answered: int | None = None
    seconds: float | None = None


@dataclass
class Presence:
    """Follows events in their order.

    A run whose coordinator does not record stages still tells who was absent and who was in a sum.

    Attributes
    ----------
    silos : dict of int to SiloState
    stages : list of Stage
        Of the newest attempt, in order.
    sums : int
        Sums so far.
    seconds : dict of str to tuple
        By stage, how often it was run and how many seconds that took together.
    """

    silos: dict[int, SiloState] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    sums: int = 0
    seconds: dict[str, tuple[int, float]] = field(default_factory=dict)
    _asked: tuple[int, ...] = ()
    _records_stages: bool = False

    def follow(self, event: dict[str, Any]) -> None:
        """Take in one event; others than those about silos and stages change nothing."""
        when = number(event.get("time"))
        match event.get("event"):
            case "joined":
                for silo in _ids(event.get("silos")):
                    self._of(silo).seen(True, when)
            case "join_answer":
                for silo in _ids([event.get("silo")]):
                    self._of(silo).answer = str(event.get("answer", ""))[:LONGEST_WORD]
            case "asking":
                self._begin(event, when)
            case "stage":
                self._end(event, when)
            case "absent":
                self._absent(event, when)
            case "sum":
                self._sum(event, when)

    @property
    def waits(self) -> bool:
        """Whether silos were asked to join and have not, and nothing else has happened yet."""
        return not (self.stages or self.sums) and any(s.answer not in ("", JOINED) for s in self.silos.values())

    def _of(self, silo: int) -> SiloState:
        return self.silos.setdefault(silo, SiloState(silo))

    def _begin(self, event: dict[str, Any], when: float | None) -> None:
        self._records_stages = True
        self._asked = _ids(event.get("silos"))
        stage = Stage(str(event.get("stage", ""))[:LONGEST_WORD], *_place(event), len(self._asked), when)
        if self.stages and (self.stages[-1].round, self.stages[-1].attempt) != (stage.round, stage.attempt):
            self.stages.clear()
        self.stages.append(stage)

    def _end(self, event: dict[str, Any], when: float | None) -> None:
        self._records_stages = True
        answered = set(_ids(event.get("answered")))
        for silo in answered.union(self._asked):
            self._of(silo).seen(silo in answered, when)
        self._asked = ()
        name, seconds = str(event.get("stage", ""))[:LONGEST_WORD], number(event.get("seconds"))
        if self.stages and self.stages[-1].stage == name and self.stages[-1].seconds is None:
            self.stages[-1].answered, self.stages[-1].seconds = len(answered), seconds
        if seconds is not None:
            times, total = self.seconds.get(name, (0, 0.0))
            self.seconds[name] = times + 1, total + seconds

    def _absent(self, event: dict[str, Any], when: float | None) -> None:
        for silo in _ids([event.get("silo")]):
            state = self._of(silo)
            state.drops += 1
            state.missed = str(event.get("stage", ""))[:LONGEST_WORD]
            state._away = _place(event)
            state.seen(False, when)

    def _sum(self, event: dict[str, Any], when: float | None) -> None:
        self.sums += 1
        cohorts = event.get("silos")
        for cohort in cohorts if isinstance(cohorts, list) else ():
            for silo in _ids(cohort):
                state = self._of(silo)
                state.sums += 1
                if not self._records_stages and state._away != _place(event):
                    state.seen(True, when)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(item for item in value if type(item) is int) if isinstance(value, list) else ()


def _place(event: dict[str, Any]) -> tuple[int, int]:
    found = [event.get(name) for name in ("round", "attempt")]
    return tuple(value if type(value) is int else 0 for value in found)  # type: ignore[return-value]
