"""FedDST, EFLPrune and FedMask from the command line: they end, meet the budget, and learn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

CHANCE = 0.1
METHODS = {
    "feddst": ("--prune", "feddst"),
    "eflprune": ("--prune", "eflprune"),
    "fedmask": ("--prune", "fedmask", "--warm-start", "--partition", "iid"),
}


@pytest.mark.parametrize("method", METHODS)
def test_learns_within_the_budget_and_the_same_in_clear(run_sim, tmp_path: Path, method: str) -> None:
    for aggregation in ("secagg", "none"):
        summary = run_sim("--rounds", "6", *METHODS[method], "--aggregation", aggregation, name=aggregation)
        assert summary["flops_ratio"] <= 0.5
        assert summary["params_ratio"] < 0.6
        assert summary["accuracy"] > 3 * CHANCE
        assert summary["rounds_aborted"] == 0
    secure, plain = (tmp_path / name / "model.safetensors" for name in ("secagg", "none"))
    assert secure.read_bytes() == plain.read_bytes()


def test_bytes_of_rounds_that_regrow_are_counted(run_sim, tmp_path: Path) -> None:
    """A readjustment sends the masked coordinates too; the 6 rounds readjust after the first three."""
    run_sim("--rounds", "6", "--prune", "feddst", "--prune-flops", "1", "--prune-threshold", "0.5")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    total = [0.0] + [row["upload_bytes_per_silo"] for row in rows]
    sent = [after - before for before, after in itertools.pairwise(total)]
    assert sent[0] == pytest.approx(sent[2], rel=0.01)
    assert sent[3] == pytest.approx(sent[5], rel=0.01)
    assert sent[2] / sent[3] == pytest.approx(rows[0]["params_dense"] / rows[3]["params_live"], rel=0.03)


def test_votes_cost_a_fraction_of_updates(run_sim) -> None:
    votes = run_sim("--rounds", "4", "--prune", "fedmask", "--prune-flops", "1", name="votes")
    updates = run_sim("--rounds", "4", "--prune", "none", name="updates")
    assert votes["upload_bytes_per_silo"] < 0.4 * updates["upload_bytes_per_silo"]


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_eflprune_needs_the_public_model_alone_and_so_runs_under_dp(run_sim, trust: str) -> None:
    summary = run_sim("--prune", "eflprune", "--dp-epsilon", "8", "--dp-trust", trust)
    assert summary["flops_ratio"] <= 0.5
    assert 0 < summary["epsilon_spent"] <= 8
    assert summary["rounds_aborted"] == 0
