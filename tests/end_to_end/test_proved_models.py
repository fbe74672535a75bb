"""Runs that prove their models: the same models as without, and the same after a coordinator was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoflip_secure.cli import main as autoflip_secure
from autoflip_secure.sim import main
from tests.end_to_end.test_crash_safety import killed, ledger_lines

ROUNDS = 4
SMALL = (
    "--dataset",
    "digits",
    "--model",
    "mlp",
    "--silos",
    "5",
    "--rounds",
    str(ROUNDS),
    "--workers",
    "0",
    "--quiet",
    "--no-report",
)


def model(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def proofs(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "proofs").iterdir())


@pytest.fixture(scope="module")
def unproved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of the run whose silos take models as they come."""
    run = tmp_path_factory.mktemp("unproved") / "run"
    assert main([*SMALL, "--run-dir", str(run)]) == 0
    assert not (run / "proofs").exists()
    return model(run)


def test_a_proved_run_has_the_model_of_one_that_is_not(tmp_path: Path, unproved: bytes) -> None:
    """As a user starts it."""
    run = tmp_path / "run"
    options = [*SMALL, "--prove-models", "--run-dir", str(run), "--summary", "json"]
    done = subprocess.run([sys.executable, "-m", "autoflip_secure.sim", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rounds"], summary["rounds_aborted"]) == (ROUNDS, 0)
    assert model(run) == unproved
    assert proofs(run) == [f"{number:06d}.msgpack" for number in range(ROUNDS)]
    for silo in (run / "silos").iterdir():
        assert len(list((silo / "followed").glob("*/state.json"))) == 1
        assert not (silo / "silo.log").read_text()
    assert autoflip_secure(["ledger", "verify", str(run)]) == 0
    assert autoflip_secure(["audit", "verify", str(run)]) == 0


def test_a_proved_run_with_noise_comes_to_its_end(run_sim, tmp_path: Path) -> None:
    summary = run_sim("--prove-models", "--dp-epsilon", "8", small=SMALL)
    assert (summary["rounds"], summary["rounds_aborted"]) == (ROUNDS, 0)
    assert summary["epsilon_spent"] <= 8
    assert len(proofs(tmp_path / "run")) == ROUNDS


@pytest.mark.slow
def test_silos_that_drop_out_follow_when_they_are_back(run_sim, tmp_path: Path) -> None:
    """Ten silos, of which every stage misses some; the key is shared while some are away."""
    dropping = ("--silos", "10", "--dropout", "0.1", "--prune", "none", "--rounds", "6")
    summary = run_sim("--prove-models", *dropping, small=SMALL)
    assert summary["rounds"] == 6
    assert len(proofs(tmp_path / "run")) == 6


@pytest.mark.parametrize("aggregation", ["none", "ckks"])
def test_sums_that_carry_no_tags_are_refused_in_one_line(
    aggregation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*SMALL, "--prove-models", "--aggregation", aggregation, "--run-dir", str(run)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"--prove-models: sums by {aggregation} carry no tags; give --aggregation secagg" in errors
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "round", "lines"),
    [
        # The last try of the round is the one that was opened, or there was none: then it is paid for twice.
        pytest.param("before:key", 0, ROUNDS, id="before the key"),
        pytest.param("after:key", 0, ROUNDS, id="after the key"),
        pytest.param("after:masked", 2, ROUNDS + 1, id="before the sum"),
        pytest.param("before:follow", 2, ROUNDS, id="between the sum and showing it"),
        pytest.param("after:follow", 2, ROUNDS, id="after it was shown"),
        pytest.param("checkpoint:begin", 2, ROUNDS, id="before the checkpoint"),
        pytest.param("checkpoint:begin", ROUNDS - 1, ROUNDS, id="before the last checkpoint"),
    ],
)
def test_a_killed_run_goes_on_to_the_same_model(
    moment: str, round: int, lines: int, tmp_path: Path, unproved: bytes
) -> None:
    run = tmp_path / "run"
    killed(moment, round, *SMALL, "--prove-models", "--run-dir", str(run))
    shown = {name: (run / "proofs" / name).read_bytes() for name in proofs(run)} if round else {}
    assert main(["--resume", str(run), "--quiet", "--no-report"]) == 0
    assert {name: (run / "proofs" / name).read_bytes() for name in shown} == shown, "what was shown stays"
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").open()] == list(range(ROUNDS))
    assert [ledger_lines(run, silo) for silo in range(1, 6)] == [lines] * 5
    if lines == ROUNDS:
        assert model(run) == unproved
    assert autoflip_secure(["ledger", "verify", str(run)]) == 0
    assert autoflip_secure(["audit", "verify", str(run)]) == 0
