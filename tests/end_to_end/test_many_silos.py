"""More than 100 silos: the sparse share graph from the command line to the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MANY = ("--dataset", "digits", "--model", "mlp", "--silos", "101", "--rounds", "2", "--workers", "0", "--quiet")


@pytest.mark.slow
def test_plain_and_secure_sums_of_101_silos_give_the_same_model(run_sim, tmp_path: Path) -> None:
    for aggregation in ("secagg", "none"):
        summary = run_sim("--aggregation", aggregation, "--partition", "iid", name=aggregation, small=MANY)
        assert (summary["silos"], summary["rounds_aborted"]) == (101, 0)
    secure, plain = (tmp_path / name / "model.safetensors" for name in ("secagg", "none"))
    assert secure.read_bytes() == plain.read_bytes()


@pytest.mark.slow
def test_101_silos_with_noise_and_drops(run_sim, tmp_path: Path) -> None:
    summary = run_sim("--partition", "iid", "--dp-epsilon", "8", "--dropout", "0.05", small=MANY)
    assert summary["rounds"] == 2
    assert sum(summary["drops"].values()) > 0
    assert 0 < summary["epsilon_spent"] <= 8
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    (opened,) = [event for event in events if event["event"] == "epoch_opened"]
    assert len(opened["silos"]) == 101
