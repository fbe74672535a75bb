"""Runs in forks end as the command line does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoflip_secure.attacks.settings import run_federation, run_federations
from autoflip_secure.attacks.simulated import simulated

OPTIONS = ("--dataset", "digits", "--model", "mlp", "--rounds", "2", "--workers", "0", "--summary", "json", "--quiet")


def test_a_forked_run_comes_to_what_the_command_line_comes_to(tmp_path: Path) -> None:
    forked = simulated([*OPTIONS, "--run-dir", str(tmp_path / "forked")])
    command = [sys.executable, "-m", "autoflip_secure.sim", *OPTIONS, "--run-dir", str(tmp_path / "plain")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    plain = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (forked[0], plain.returncode) == (0, 0), forked[2] + plain.stderr
    summaries = [json.loads(said.splitlines()[-1]) for said in (forked[1], plain.stdout)]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"] > 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("forked", "plain")]
    assert models[0] == models[1]


def test_forked_runs_share_no_key_and_leave_nothing_open(tmp_path: Path) -> None:
    keys = set()
    for place in ("first", "second"):
        code, _, complained = simulated([*OPTIONS, "--run-dir", str(tmp_path / place)])
        assert code == 0, complained
        keys |= {path.read_bytes() for path in (tmp_path / place / "silos").glob("*/identity.key")}
    assert len(keys) == 2 * len(list((tmp_path / "first" / "silos").iterdir())), (
        "forks of one process, keys of their own"
    )
    assert not list(tmp_path.rglob("*-wal"))


def test_a_run_that_fails_says_why_and_leaves_the_next_one_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"--rounds 0.*rounds"):
        run_federation("--dataset digits --rounds 0", "sum", 0, tmp_path / "failed")
    assert run_federation("--dataset digits --model mlp --rounds 2", "sum", 0, tmp_path / "next")["rounds"] == 2


def test_runs_in_turn_come_to_what_each_comes_to_alone(tmp_path: Path) -> None:
    options = "--dataset digits --model mlp --rounds 2 --dp-epsilon 8"
    together = {seed: tmp_path / f"together-{seed}" for seed in (3, 4)}
    summaries = run_federations(options, "sum", together)
    assert [summary["run"] for summary in summaries] == ["together-3", "together-4"]
    assert summaries[1]["epsilon_spent"] == run_federation(options, "sum", 4, tmp_path / "alone")["epsilon_spent"]
    keys = [path.read_bytes() for run in together.values() for path in (run / "silos").glob("*/identity.key")]
    assert len(set(keys)) == len(keys) > 2
    exact = {seed: tmp_path / f"exact-{seed}" for seed in (3, 4)}
    run_federations("--dataset digits --model mlp --rounds 2", "sum", exact)
    run_federation("--dataset digits --model mlp --rounds 2", "sum", 4, tmp_path / "exactly")
    assert (exact[4] / "model.safetensors").read_bytes() == (tmp_path / "exactly" / "model.safetensors").read_bytes()


def test_the_run_that_failed_is_named_and_those_before_it_are_there(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "full").touch()
    runs = {0: tmp_path / "first", 1: tmp_path / "second", 2: tmp_path / "third"}
    with pytest.raises(RuntimeError, match=r"--seed 1 .*second"):
        run_federations("--dataset digits --model mlp --rounds 2", "sum", runs)
    assert (runs[0] / "summary.json").exists()
    assert not runs[2].exists()
