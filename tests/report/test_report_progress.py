"""Progress on stderr."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoflip_secure.report import progress as module
from autoflip_secure.report.progress import Progress
from autoflip_secure.report.units import epsilon as epsilon_words


def config(rounds: int, epsilon: float | None = 8.0) -> Any:
    return SimpleNamespace(rounds=rounds, dp_epsilon=epsilon)


def follow(run: Any, progress: Progress, start: int = 0) -> None:
    with progress:
        for line in run.lines[start:]:
            progress.round_done(line)
        progress.finished(run.summary, run.path / "report.html")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.seconds)
    return now


@pytest.mark.parametrize(("rounds", "lines"), [(200, 10), (37, 10), (10, 10), (4, 4), (1, 1)])
def test_one_plain_line_a_tenth_of_the_rounds_and_nothing_on_stdout(
    make_run: Any, capsys: pytest.CaptureFixture[str], rounds: int, lines: int
) -> None:
    run = make_run(rounds=rounds)
    follow(run, Progress(config(rounds), run.path, quiet=False))
    out, err = capsys.readouterr()
    assert out == ""
    shown = [line for line in err.splitlines() if line.startswith("round ")]
    assert len(shown) == lines
    assert shown[-1].startswith(f"round {rounds} of {rounds} (")
    assert "\x1b" not in err


def test_a_line_holds_the_last_known_scores(
    make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: Any
) -> None:
    run = make_run(rounds=100, every=15)
    with Progress(config(100), tmp_path / "new", quiet=False) as progress:
        clock.seconds += 7  # preparations, which do not count for the time left
        for line in run.lines[:20]:
            clock.seconds += 2
            progress.round_done({**line, "seconds": 2})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "round 10 of 100 (explore): live 100.0 %, 694 kB per silo, 27 s elapsed, 3 min 00 s left"
    accuracy, spent = run.lines[14]["accuracy"], run.lines[14]["epsilon"]
    assert second.startswith(
        f"round 20 of 100 (explore): accuracy {accuracy:.3f}, epsilon {epsilon_words(spent)} of 8, "
    )


def test_a_resumed_run_shows_earlier_scores_and_its_own_pace(
    make_run: Any, capsys: pytest.CaptureFixture[str], clock: Any
) -> None:
    run = make_run(rounds=100)
    run.write_metrics("".join(json.dumps(line) + "\n" for line in run.lines[:84]))
    with Progress(config(100), run.path, quiet=False) as progress:
        for line in run.lines[84:90]:
            clock.seconds += 5
            progress.round_done({**line, "accuracy": None, "epsilon": None, "seconds": 5})
    (line,) = capsys.readouterr().err.splitlines()
    assert f"accuracy {run.lines[79]['accuracy']:.3f}" in line
    assert line.endswith("30 s elapsed, 50 s left")


def test_a_damaged_log_does_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("{damaged\n")
    with Progress(config(10), tmp_path, quiet=False) as progress:
        progress.say("going on")
    assert capsys.readouterr().err == "going on\n"


def test_quiet_says_nothing(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(rounds=20)
    progress = Progress(config(20), run.path, quiet=True)
    follow(run, progress)
    progress.say("not heard")
    assert capsys.readouterr() == ("", "")


def test_the_result_names_scores_promise_size_upload_drops_and_report(
    make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    Progress(config(200), run.path, quiet=False).finished(run.summary, run.path / "report.html")
    err = capsys.readouterr().err
    for expected in (
        "200 rounds by 10 silos in 1 min 22 s",
        "accuracy  0.941, AUROC 0.971",
        "epsilon 7.920 spent of 8 at delta 1e-05 for each patient's record at a silo, against the coordinator and up "
        "to 1 colluding silo\n",
        "55.0 % of the parameters live (14,300 of 26,010), 50.0 % of the FLOPs",
        "8.26 MB per silo, 39.7 % of plain FedAvg's 20.8 MB",
        "23 at masked, 1 at confirm, 4 at unmask, 1 aborted attempt",
        str(run.path / "report.html"),
    ):
        assert expected in err
    assert "WARNING" not in err


def test_the_result_of_a_run_with_little_to_tell(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(rounds=20, dp=False, drops=False, aggregation="none", accuracy=None, auroc=None)
    Progress(config(20, None), run.path, quiet=False).finished(run.summary, run.path / "report.html")
    err = capsys.readouterr().err
    assert "accuracy  not known\n" in err
    assert "no differential privacy" in err
    assert "WARNING: the coordinator saw every silo" in err
    assert "drops" not in err
    assert "epsilon" not in err


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_stdout_stays_clean(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    run = make_run(rounds=20)
    with Progress(config(20), run.path, quiet=False) as progress:
        for line in run.lines:
            progress.round_done(line)
        progress.say("a [bold] word")
        print("to stdout")
        progress.finished(run.summary, run.path / "report.html")
    shown = screen.getvalue()
    assert "round 20 of 20" in shown
    assert "100%" in shown
    assert f"accuracy {run.lines[-1]['accuracy']:.3f}" in shown
    assert "a [bold] word" in shown
    assert shown.rstrip().endswith("report.html")
    assert capsys.readouterr().out == "to stdout\n"
    assert sys.stderr is screen


def test_an_exception_takes_the_bar_away(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    run = make_run(rounds=20)

    def interrupted() -> None:
        with Progress(config(20), run.path, quiet=False) as progress:
            progress.round_done(run.lines[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sys.stderr is screen
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is shown again


def test_importing_is_cheap() -> None:
    heavy = "{'rich', 'matplotlib', 'numpy', 'torch', 'flwr', 'pydantic'}"
    code = f"import sys, autoflip_secure.report.progress; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
