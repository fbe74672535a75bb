"""A run killed at any moment resumes to the same number of rounds; no ledger counts less than what left the silo."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.server_view import read_server_view
from autoflip_secure.sim import main
from autoflip_secure.storage import open_silo_database

SCRIPT = Path(__file__).with_name("killed_run.py")
ROUNDS = 4
OPTIONS = (
    "--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", str(ROUNDS), "--explore-rounds", "1",
    "--colluders", "0", "--dp-epsilon", "8", "--workers", "0", "--record-server-view", "--quiet",
)  # fmt: skip
MOMENTS = (
    "before:advertise", "after:advertise", "before:share", "after:share",
    "before:masked", "silo:charged", "silo:replied", "after:masked",
    "before:confirm", "after:confirm", "before:unmask", "after:unmask",
    "checkpoint:begin", "checkpoint:renaming",
)  # fmt: skip


def ledger_lines(run: Path, silo: int) -> int:
    database = open_silo_database(silo_folder(run, silo) / "state.sqlite")
    (count,) = database.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone()
    database.close()
    return count


def killed(run: Path, moment: str, round: int) -> None:
    command = [sys.executable, str(SCRIPT), moment, str(round), *OPTIONS, "--run-dir", str(run)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -9, f"{moment}: not killed but {ended.returncode}: {ended.stderr[-500:]}"


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str], moment: str) -> None:
    run = tmp_path / "run"
    # Keys are set up in the first round; all other moments are tried in the middle of the run.
    killed(run, moment, 0 if moment.split(":")[1] in ("advertise", "share") else 2)
    spent_before = {silo: ledger_lines(run, silo) for silo in range(1, 5)}

    code = main(["--resume", str(run), "--summary", "json", "--quiet"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    summary = json.loads(printed.out.splitlines()[-1])
    assert summary["rounds"] == ROUNDS
    assert summary["epsilon_spent"] <= 8
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").open()][-1] == ROUNDS - 1

    left = Counter(m["from"] for m in read_server_view(run / "server_view") if m["stage"] == "masked")
    for silo in range(1, 5):
        lines = ledger_lines(run, silo)
        assert lines >= spent_before[silo], "a line was lost"
        assert lines >= ROUNDS
        assert lines >= left[silo], f"silo {silo} sent {left[silo]} noised vectors and its ledger has {lines} lines"


@pytest.mark.slow
def test_a_line_charged_before_the_kill_stays_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    killed(run, "silo:charged", 2)
    charged = {silo: ledger_lines(run, silo) for silo in range(1, 5)}
    assert sorted(charged.values()) == [2, 2, 2, 3], "exactly one silo had charged its line and not trained"
    assert main(["--resume", str(run), "--quiet"]) == 0
    (twice,) = [silo for silo, lines in charged.items() if lines == 3]
    assert ledger_lines(run, twice) == ROUNDS + 1


@pytest.mark.slow
def test_three_kills_in_a_row(tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed(run, "after:masked", 1)
    for moment in ("before:unmask", "silo:replied"):
        command = [sys.executable, str(SCRIPT), moment, "1", "--resume", str(run), "--quiet"]
        assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == -9
    # Three attempts are gone; the reserve pays for them or the run says why it stops, with the model kept.
    assert main(["--resume", str(run), "--quiet"]) in (0, 3)
    for silo in range(1, 5):
        assert ledger_lines(run, silo) >= 4


def test_a_finished_run_cannot_be_resumed(run_sim, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_sim()
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "finished" in capsys.readouterr().err
