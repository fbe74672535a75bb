"""A run killed at any moment resumes to the same number of rounds; no ledger counts less than what left the silo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.cli import main as autoflip_secure
from autoflip_secure.federation import coordinator, run_state
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.server_view import read_server_view
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.wire import TRAINING_STAGES
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.privacy.ledger_report import mechanisms
from autoflip_secure.sim import main
from autoflip_secure.storage import open_silo_database

ROUNDS = 4
OPTIONS = (
    "--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", str(ROUNDS), "--explore-rounds", "1",
    "--colluders", "0", "--dp-epsilon", "8", "--workers", "0", "--record-server-view", "--quiet", "--no-report",
)  # fmt: skip
MOMENTS = (
    "before:advertise", "after:advertise", "before:share", "after:share",
    "before:masked", "silo:charged", "silo:replied", "after:masked",
    "before:confirm", "after:confirm", "before:unmask", "after:unmask",
    "checkpoint:begin", "checkpoint:renaming",
)  # fmt: skip
CKKS_MOMENTS = (
    "before:keys", "after:keys", "before:encrypt", "silo:charged", "silo:replied", "after:encrypt",
    "before:open", "silo:opened", "after:open", "checkpoint:begin",
)  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, round: int) -> None:
    """Patch the seam at which this process is to die.

    before:STAGE, after:STAGE of the secure sum, as the coordinator sees it; silo:charged, after a ledger line;
    silo:trained, after the records were used and before anything is kept of it; silo:replied, before a masked vector or
    ciphertexts are sent; silo:opened, before a part of an opening is; checkpoint:begin, checkpoint:renaming.
    """
    where, what = moment.split(":")
    if where in ("before", "after"):
        original = StageExchange.__call__

        def call(self: StageExchange, stage: str, requests: Any) -> Any:
            hit = stage == what and self.round == round
            if hit and where == "after":
                for _ in original(self, stage, requests):
                    pass  # nothing of a stage happens before its replies are taken
            if hit:
                die()
            return original(self, stage, requests)

        StageExchange.__call__ = call  # type: ignore[method-assign]
    elif moment == "silo:charged":
        contribute = Contributor.contribute

        def charged(self: Contributor, manifest: Any, model: Any) -> Any:
            if manifest.round == round:
                die()
            return contribute(self, manifest, model)

        Contributor.contribute = charged  # type: ignore[method-assign]
    elif moment == "silo:trained":
        vectors = Contributor._vectors

        def trained(self: Contributor, manifest: Any, model: Any) -> Any:
            found = vectors(self, manifest, model)
            if manifest.round == round:
                die()
            return found

        Contributor._vectors = trained  # type: ignore[method-assign]
    elif moment in ("silo:replied", "silo:opened"):
        answer = Silo.answer
        stages = TRAINING_STAGES if what == "replied" else {"open"}

        def replied(self: Silo, request: Any) -> Any:
            reply = answer(self, request)
            if request.stage in stages and request.round == round and self.id == 3:
                die()
            return reply

        Silo.answer = replied  # type: ignore[method-assign]
    elif moment == "checkpoint:begin":
        save = coordinator.save_checkpoint

        def begin(folder: Path, state: Any) -> None:
            if state.round == round + 1:
                die()
            save(folder, state)

        coordinator.save_checkpoint = begin
    else:
        rename, seen = Path.rename, []

        def renaming(self: Path, target: Path) -> Path:
            result = rename(self, target)
            seen.append(target)
            # The old checkpoint has been moved away, the new one is not in its place yet.
            if target.name == "checkpoint.old" and len(seen) >= 2 * round:
                die()
            return result

        run_state.Path.rename = renaming  # type: ignore[method-assign]


def ledger_lines(run: Path, silo: int) -> int:
    database = open_silo_database(silo_folder(run, silo) / "state.sqlite")
    (count,) = database.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone()
    database.close()
    return count


def killed(moment: str, round: int, *arguments: str) -> None:
    """Run the command line in a child that dies by SIGKILL at `moment`; a fork saves importing torch anew each time."""
    child = os.fork()
    if child == 0:
        try:
            arm(moment, round)
            main(list(arguments))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{moment}: the run ended before it could be killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregation", "moment"), [*(("secagg", m) for m in MOMENTS), *(("ckks", m) for m in CKKS_MOMENTS)]
)
def test_kill_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str], aggregation: str, moment: str) -> None:
    run = tmp_path / "run"
    # Keys are set up in the first round; all other moments are tried in the middle of the run.
    round = 0 if moment.split(":")[1] in ("advertise", "share", "keys") else 2
    killed(moment, round, *OPTIONS, "--aggregation", aggregation, "--run-dir", str(run))
    spent_before = {silo: ledger_lines(run, silo) for silo in range(1, 5)}

    code = main(["--resume", str(run), "--summary", "json", "--quiet", "--no-report"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    summary = json.loads(printed.out.splitlines()[-1])
    assert summary["rounds"] == ROUNDS
    assert summary["epsilon_spent"] <= 8
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").open()] == list(range(ROUNDS))

    left = Counter(m["from"] for m in read_server_view(run / "server_view") if m["stage"] in TRAINING_STAGES)
    for silo in range(1, 5):
        lines = ledger_lines(run, silo)
        assert lines >= spent_before[silo], "a line was lost"
        assert lines >= ROUNDS
        assert lines >= left[silo], f"silo {silo} sent {left[silo]} noised vectors and its ledger has {lines} lines"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregation", "moment"), [("secagg", "silo:charged"), ("secagg", "silo:trained"), ("ckks", "silo:charged")]
)
def test_a_line_charged_before_the_kill_stays_spent(tmp_path: Path, aggregation: str, moment: str) -> None:
    run = tmp_path / "run"
    killed(moment, 2, *OPTIONS, "--aggregation", aggregation, "--run-dir", str(run))
    spent = {silo: read_ledger(silo_folder(run, silo) / "state.sqlite") for silo in range(1, 5)}
    assert autoflip_secure(["ledger", "verify", str(run)]) == 0, "also read before anything repairs the files"
    charged = {silo: ledger_lines(run, silo) for silo in range(1, 5)}
    assert sorted(charged.values()) == [2, 2, 2, 3], "exactly one silo had charged its line and not trained"
    assert main(["--resume", str(run), "--quiet", "--no-report"]) == 0
    (twice,) = [silo for silo, lines in charged.items() if lines == 3]
    assert ledger_lines(run, twice) == ROUNDS + 1
    after = read_ledger(silo_folder(run, twice) / "state.sqlite")
    assert after.entries[:3] == spent[twice].entries
    assert [entry.line.round for entry in after.entries] == [0, 1, 2, 2, 3]
    assert [use.count for use in mechanisms(after.entries)] == [5]
    assert autoflip_secure(["ledger", "verify", str(run)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after:encrypt", "silo:opened", "after:open"])
def test_ckks_goes_on_with_new_keys_and_every_line_spent(tmp_path: Path, moment: str) -> None:
    """What was encrypted or opened when the run died is not opened again: the round is paid for twice."""
    run = tmp_path / "run"
    killed(moment, 2, *OPTIONS, "--aggregation", "ckks", "--run-dir", str(run))
    assert [ledger_lines(run, silo) for silo in range(1, 5)] == [3] * 4
    database = open_silo_database(silo_folder(run, 3) / "state.sqlite")
    stages = dict(database.execute("SELECT slot, stage FROM ckks_slot ORDER BY slot").fetchall())
    database.close()
    assert stages == {0: "opened", 1: "opened", 2: "encrypted" if moment == "after:encrypt" else "opened"}
    assert main(["--resume", str(run), "--quiet", "--no-report"]) == 0
    assert [ledger_lines(run, silo) for silo in range(1, 5)] == [ROUNDS + 1] * 4
    events = [json.loads(line) for line in (run / "events.jsonl").open()]
    assert [event["epoch"] for event in events if event["event"] == "epoch_opened"] == [1, 2]
    assert [event["round"] for event in events if event["event"] == "sum"] == list(range(ROUNDS))
    assert autoflip_secure(["ledger", "verify", str(run)]) == 0


@pytest.mark.slow
def test_three_kills_in_a_row(tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed("after:masked", 1, *OPTIONS, "--run-dir", str(run))
    for moment in ("before:unmask", "silo:replied"):
        killed(moment, 1, "--resume", str(run), "--quiet")
    # Three attempts are gone; the reserve pays for them or the run says why it stops, with the model kept.
    assert main(["--resume", str(run), "--quiet", "--no-report"]) in (0, 3)
    for silo in range(1, 5):
        assert ledger_lines(run, silo) >= 4


def test_a_finished_run_cannot_be_resumed(run_sim, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_sim()
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "finished" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = [*OPTIONS, "--rounds", "400", "--explore-rounds", "1", "--workers", "1", "--run-dir", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "autoflip_secure.sim", *options],
        stderr=subprocess.PIPE,
        text=True,
        # A test run started in the background inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 3:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.count("\n") == 1
    assert f"--resume {run}" in errors
    done = (run / "metrics.jsonl").read_text().count("\n")
    # Fewer rounds are left to do than a test has time for: what counts is that the next round follows the last.
    child = os.fork()
    if child == 0:
        try:
            arm("before:masked", done + 3)
            main(["--resume", str(run), "--quiet", "--no-report"])
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    rounds = [json.loads(line)["round"] for line in (run / "metrics.jsonl").open()]
    assert rounds == list(range(len(rounds)))
    assert len(rounds) > done


@pytest.mark.slow
def test_a_full_disk_stops_with_one_line_and_keeps_the_checkpoint(
    run_sim, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    run = tmp_path / "run"
    save = coordinator.save_checkpoint

    def full(folder: Path, state: Any) -> None:
        if state.round == 3:
            with run_state.storing(folder):
                raise OSError(errno.ENOSPC, "No space left on device")
        save(folder, state)

    monkeypatch.setattr(coordinator, "save_checkpoint", full)
    assert main([*OPTIONS, "--run-dir", str(run)]) == 3
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "No space left" in errors
    monkeypatch.setattr(coordinator, "save_checkpoint", save)
    assert main(["--resume", str(run), "--quiet", "--no-report"]) == 0


@pytest.mark.slow
def test_workers_end_with_a_killed_coordinator(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*OPTIONS, "--rounds", "400", "--explore-rounds", "1", "--workers", "2", "--run-dir", str(run)]
    process = subprocess.Popen([sys.executable, "-m", "autoflip_secure.sim", *options])
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    workers = {int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
    process.kill()
    process.wait(timeout=30)
    assert len(workers) >= 2
    deadline = time.monotonic() + 30
    while [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < deadline, "a worker is left behind"
        time.sleep(0.2)
