"""A run as the page is told of it: piece by piece, the same as at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.dashboard.homes import open_home
from autoflip_secure.dashboard.run_view import MOST_EVENTS, RunView
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.events import keep_lines


class Page:
    """What a page knows after its polls."""

    def __init__(self, view: RunView) -> None:
        self.view, self.generation, self.rounds, self.events = view, "", [], []
        self.told = (0, 0)
        self.last: dict[str, Any] = {}

    def poll(self) -> int:
        """Rounds that were told now."""
        self.last = told = self.view.page(self.generation, *self.told)
        if told["generation"] != self.generation:
            self.rounds, self.events, self.generation = [], [], told["generation"]
        self.rounds += told["rounds"]
        self.events += told["events"]
        self.told = told["rounds_told"], told["events_told"]
        return len(told["rounds"])


def test_piece_by_piece_a_page_learns_what_it_would_learn_at_once(make: Any, run_folder: Path) -> None:
    page = Page(RunView(run_folder))
    assert page.poll() == 6
    assert page.poll() == 0
    for number in range(6, 10):
        make.append(run_folder / "metrics.jsonl", make.metrics_line(number))
        make.append(run_folder / "events.jsonl", *make.event_lines(number, time=time.time(), missing=1))
        assert page.poll() == 1
    fresh = Page(RunView(run_folder))
    fresh.poll()
    assert page.rounds == fresh.rounds
    assert page.events == fresh.events
    assert [row["round"] for row in page.rounds] == list(range(10))


def test_layers_are_told_in_rounds_in_which_they_changed(run_folder: Path) -> None:
    page = Page(RunView(run_folder))
    page.poll()
    assert [row["round"] for row in page.rounds if "layers" in row] == [0, 2]
    assert page.rounds[2]["layers"][0] == {"layer": "conv1", "units": 8.0, "live": 166.0, "agreement": 0.1}


def test_a_resumed_run_is_told_anew(make: Any, run_folder: Path) -> None:
    page = Page(RunView(run_folder))
    page.poll()
    keep_lines(run_folder / "metrics.jsonl", lambda line: line["round"] < 3)
    assert page.poll() == 3
    make.append(run_folder / "metrics.jsonl", make.metrics_line(3, accuracy=0.9))
    page.poll()
    assert [row["round"] for row in page.rounds] == [0, 1, 2, 3]
    assert page.rounds[3]["accuracy"] == 0.9


def test_a_round_that_was_done_again_counts_once(make: Any, run_folder: Path) -> None:
    page = Page(RunView(run_folder))
    page.poll()
    make.append(run_folder / "metrics.jsonl", make.metrics_line(5, accuracy=0.75))
    page.poll()
    assert [row["round"] for row in page.rounds] == list(range(6))
    assert page.rounds[5]["accuracy"] == 0.75


def test_what_happens_every_round_is_no_news_and_all_is_counted(run_folder: Path) -> None:
    told = RunView(run_folder).page()
    assert [event["event"] for event in told["events"]] == ["joined", "absent", "abort"]
    assert told["event_counts"]["sum"] == 6


def test_events_beyond_those_kept_are_counted(make: Any, tmp_path: Path) -> None:
    folder = make.run(tmp_path / "run", rounds=1)
    lost = [
        {"event": "absent", "silo": 1, "stage": "masked", "round": i, "attempt": 0} for i in range(MOST_EVENTS + 50)
    ]
    make.append(folder / "events.jsonl", *lost)
    page = Page(RunView(folder))
    page.poll()
    assert len(page.events) == MOST_EVENTS
    assert page.last["events_told"] == MOST_EVENTS + 50 + 3
    make.append(folder / "events.jsonl", lost[0])
    page.poll()
    assert len(page.events) == MOST_EVENTS + 1


def test_silos_have_their_names_from_the_roster(run_folder: Path) -> None:
    silos = RunView(run_folder).page()["silos"]
    assert [(silo["silo"], silo["name"], silo["up"]) for silo in silos] == [
        (1, "north", True),
        (2, "south", True),
        (3, "west", False),
    ]


def test_the_roster_of_a_coordinators_home_serves_all_its_runs(make: Any, tmp_path: Path) -> None:
    run = make.run(tmp_path / "home" / "runs" / "first")
    (run / "federation" / "roster.bin").rename(tmp_path / "home" / "roster.bin")
    assert [silo["name"] for silo in RunView(run).page()["silos"]] == ["north", "south", "west"]


def test_the_promise_and_alarms_are_the_reports_own_words(run_folder: Path) -> None:
    told = RunView(run_folder).page()
    assert told["alarms"] == []
    assert "Sums were protected by secagg" in told["promise"][0]
    assert told["promise"][1].startswith("Epsilon of 8 at delta 1e-05")
    config = run_folder / "config.toml"
    config.write_text(config.read_text().replace('"secagg"', '"none"'))
    titles = [alarm["title"] for alarm in RunView(run_folder).page()["alarms"]]
    assert "the coordinator saw every silo" in titles
    assert "the differential-privacy promise does not hold" in titles


def age(folder: Path, seconds: float) -> None:
    for name in ("events.jsonl", "metrics.jsonl"):
        os.utime(folder / name, (time.time() - seconds,) * 2)


def test_states_of_a_run(run_folder: Path) -> None:
    view = RunView(run_folder)
    assert view.page()["state"] == "running"
    age(run_folder, 600 + 30)
    assert view.page()["state"] == "running", "a stage may take as long as its timeout"
    age(run_folder, 600 + 90)
    assert view.page()["state"] == "quiet"
    (run_folder / "places.json").write_text("[1, 2, 3]")
    assert view.page()["state"] == "stopped"
    (run_folder / "wanted").write_text("")
    assert view.page()["state"] == "quiet"
    (run_folder / "failed.json").write_text('{"error": "CannotContinue", "reason": "too few silos"}')
    told = view.page()
    assert told["state"] == "failed"
    assert {"title": "the run cannot go on", "text": "too few silos"} in told["alarms"]
    (run_folder / "summary.json").write_text('{"accuracy": 0.5, "rounds": 6, "ledgers": []}')
    told = view.page()
    assert told["state"] == "finished"
    assert told["result"] == {"accuracy": 0.5, "rounds": 6}


def test_a_run_that_waits_for_approval_says_so(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("rounds = 5\n")
    view = RunView(folder)
    assert view.page()["state"] == "starting"
    make.append(folder / "events.jsonl", {"time": 1.0, "event": "join_answer", "silo": 2, "answer": "ApprovalPending"})
    os.utime(folder / "events.jsonl", (1.0, 1.0))
    told = view.page()
    assert told["state"] == "waiting"
    assert told["silos"][0]["answer"] == "ApprovalPending"


@pytest.mark.parametrize("content", ["", "not = [toml", "\x00", "rounds = nan\nsilos = inf\n"])
def test_a_damaged_configuration_stops_nothing(run_folder: Path, content: str) -> None:
    (run_folder / "config.toml").write_text(content)
    json.dumps(RunView(run_folder).page(), allow_nan=False)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"accuracy": NaN}', '{"ledgers": "none"}', "[" * 100_000])
def test_a_damaged_summary_stops_nothing(run_folder: Path, content: str) -> None:
    (run_folder / "summary.json").write_text(content)
    json.dumps(RunView(run_folder).page(), allow_nan=False)


def test_numbers_that_are_none_do_not_reach_the_page(make: Any, run_folder: Path) -> None:
    bad = {"accuracy": float("nan"), "loss": "<b>", "layers": [{"layer": 3, "units": None}, "x"], "drops": {"a": "b"}}
    make.append(run_folder / "metrics.jsonl", {**make.metrics_line(6), **bad}, {"round": "7"}, {"no": "round"})
    make.append(run_folder / "events.jsonl", {"event": "odd", "deep": {"a": [[[[[1]]]]]}, "value": float("inf")})
    view = RunView(run_folder)
    told = view.page()
    json.dumps(told, allow_nan=False)
    assert told["rounds"][6].keys().isdisjoint({"accuracy", "loss"})
    assert told["damaged"] == 2


def test_what_lies_at_a_path_is_told_apart(make: Any, tmp_path: Path, run_folder: Path, silo_folder: Path) -> None:
    assert open_home(run_folder).kind == "run"
    assert open_home(silo_folder).kind == "silo"
    home = tmp_path / "home"
    make.run(home / "runs" / "one")
    (home / "runs" / "not a run").mkdir()
    (home / "runs" / "note.txt").write_text("")
    for path in (home, home / "runs"):
        opened = open_home(path)
        assert opened.kind == "coordinator"
        assert [run.name for run in opened.runs()] == ["one"]


def test_runs_that_come_and_go_are_noticed(make: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    opened = open_home(home)
    assert opened.overview()["runs"] == []
    make.run(home / "runs" / "one")
    (first,) = opened.runs()
    make.run(home / "runs" / "two")
    assert opened.runs()[0] is first, "what was read of it is kept"
    (home / "runs" / "one" / "config.toml").unlink()
    assert [run["name"] for run in opened.overview()["runs"]] == ["two"]


@pytest.mark.parametrize("there", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("")])
def test_a_path_that_holds_nothing_to_show_is_refused(tmp_path: Path, there: Any) -> None:
    path = tmp_path / "thing"
    there(path)
    with pytest.raises(ConfigError, match="give a silo's or coordinator's home or a run directory"):
        open_home(path)
