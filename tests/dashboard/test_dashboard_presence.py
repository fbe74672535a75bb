"""A silo is up if it answered the last stage it was asked in."""

from __future__ import annotations

from typing import Any

import pytest

from autoflip_secure.dashboard.presence import Presence

JOINED = {"time": 1.0, "event": "joined", "silos": [1, 2, 3], "refused": []}


def asking(stage: str, silos: list[int], time: float, round: int = 0, attempt: int = 0) -> dict[str, Any]:
    return {"time": time, "event": "asking", "stage": stage, "round": round, "attempt": attempt, "silos": silos}


def ended(stage: str, answered: list[int], time: float, round: int = 0, attempt: int = 0) -> dict[str, Any]:
    place = {"stage": stage, "round": round, "attempt": attempt}
    return {"time": time, "event": "stage", **place, "answered": answered, "seconds": 0.5}


def absent(silo: int, time: float, round: int = 0) -> dict[str, Any]:
    return {"time": time, "event": "absent", "stage": "masked", "round": round, "attempt": 0, "silo": silo}


def summed(silos: list[list[int]], time: float, round: int = 0) -> dict[str, Any]:
    return {"time": time, "event": "sum", "phase": "train", "round": round, "attempt": 0, "silos": silos}


def followed(*events: dict[str, Any]) -> Presence:
    presence = Presence()
    for event in events:
        presence.follow(event)
    return presence


def up(presence: Presence) -> dict[int, tuple[bool | None, float | None]]:
    return {silo: (state.up, state.since) for silo, state in presence.silos.items()}


def test_silos_are_up_since_they_joined_as_long_as_they_answer() -> None:
    presence = followed(JOINED, asking("masked", [1, 2, 3], 2.0), ended("masked", [1, 2, 3], 3.0))
    assert up(presence) == {1: (True, 1.0), 2: (True, 1.0), 3: (True, 1.0)}


def test_one_that_did_not_answer_is_down_until_it_does() -> None:
    events = [JOINED, asking("masked", [1, 2, 3], 2.0), absent(3, 2.5), ended("masked", [1, 2], 3.0)]
    presence = followed(*events, asking("confirm", [1, 2], 4.0), ended("confirm", [1, 2], 5.0))
    assert up(presence)[3] == (False, 2.5), "it was not asked again, so nothing is known that is newer"
    presence.follow(asking("masked", [1, 2, 3], 6.0, round=1))
    assert up(presence)[3] == (False, 2.5), "it was asked and may still answer"
    presence.follow(ended("masked", [1, 2, 3], 7.0, round=1))
    assert up(presence)[3] == (True, 7.0)
    assert (presence.silos[3].drops, presence.silos[3].missed) == (1, "masked")


def test_runs_that_record_no_stages_tell_who_is_up_by_their_sums() -> None:
    presence = followed(JOINED, absent(2, 2.0), summed([[1], [2, 3]], 3.0))
    assert up(presence)[2] == (False, 2.0), "its vector is in the sum, and it was missed afterwards"
    presence.follow(summed([[1, 2, 3]], 4.0, round=1))
    assert up(presence)[2] == (True, 4.0)
    assert [presence.silos[silo].sums for silo in (1, 2, 3)] == [2, 2, 2]
    assert presence.sums == 2


def test_a_sum_brings_no_silo_up_where_stages_are_recorded() -> None:
    presence = followed(
        JOINED, asking("masked", [1, 2, 3], 2.0), ended("masked", [1, 2], 3.0), summed([[1, 2, 3]], 4.0)
    )
    assert up(presence)[3] == (False, 3.0)


def test_the_stages_shown_are_those_of_the_newest_attempt() -> None:
    events = [asking("masked", [1, 2], 1.0), ended("masked", [1, 2], 2.0), asking("confirm", [1, 2], 3.0)]
    presence = followed(*events)
    assert [(s.stage, s.asked, s.answered) for s in presence.stages] == [("masked", 2, 2), ("confirm", 2, None)]
    presence.follow(asking("masked", [1, 2], 4.0, attempt=1))
    assert [(s.stage, s.attempt) for s in presence.stages] == [("masked", 1)]
    assert presence.seconds == {"masked": (1, 0.5)}


def test_a_run_waits_while_silos_were_asked_and_have_not_joined() -> None:
    pending = {"time": 1.0, "event": "join_answer", "silo": 2, "answer": "ApprovalPending"}
    presence = followed({"time": 1.0, "event": "join_answer", "silo": 1, "answer": "joined"})
    assert not presence.waits
    presence.follow(pending)
    assert presence.waits
    assert presence.silos[2].answer == "ApprovalPending"
    presence.follow({**pending, "answer": "joined"})
    assert not presence.waits
    presence.follow(pending)
    presence.follow(asking("masked", [1], 2.0))
    assert not presence.waits, "it went on without"


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": "asking"},
        {"event": "stage", "answered": "all", "stage": None, "seconds": "long"},
        {"event": "absent", "silo": "1"},
        {"event": "sum", "silos": 3},
        {"event": "sum", "silos": [3, None, ["a"]]},
        {"event": "joined", "silos": [True, 1.5, None]},
        {"event": "something new", "silos": [1]},
    ],
)
def test_events_of_another_form_change_nothing(event: dict[str, Any]) -> None:
    assert followed(event).silos == {}
