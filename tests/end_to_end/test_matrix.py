"""Every combination of aggregation, trust and pruning, from command line to summary and report."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

COMBINATIONS = list(itertools.product(("secagg", "none"), ("none", "local", "distributed"), ("autoflip", "none")))
COMBINATIONS += [("secagg", trust, "random") for trust in ("none", "distributed")]


@pytest.mark.parametrize(("aggregation", "trust", "prune"), COMBINATIONS, ids=["-".join(c) for c in COMBINATIONS])
def test_runs_to_a_summary(run_sim, tmp_path: Path, aggregation: str, trust: str, prune: str) -> None:
    privacy = () if trust == "none" else ("--dp-epsilon", "8", "--dp-trust", trust)
    summary = run_sim("--aggregation", aggregation, "--prune", prune, *privacy)
    assert (summary["aggregation"], summary["dp_trust"], summary["prune"]) == (aggregation, trust, prune)
    assert summary["rounds"] == 5
    assert summary["rounds_aborted"] == 0
    assert 0 <= summary["accuracy"] <= 1
    if prune != "none":
        assert summary["flops_ratio"] <= 0.5
        assert summary["params_live"] < summary["params_dense"]
    else:
        assert summary["flops_ratio"] == summary["params_ratio"] == 1
    in_clear = aggregation == "none" and trust == "distributed"
    assert summary["privacy"]["holds"] == (trust != "none" and not in_clear)
    if trust == "none" or in_clear:
        assert summary["epsilon_spent"] is None
    else:
        assert 0 < summary["epsilon_spent"] <= 8
        assert len([row for row in summary["ledgers"] if row["dataset"] == "train"]) == 6
    run = tmp_path / "run"
    assert {"config.toml", "events.jsonl", "metrics.jsonl", "checkpoint", "model.safetensors", "report.html"} <= {
        path.name for path in run.iterdir()
    }


@pytest.mark.parametrize("noise", [(), ("--dp-epsilon", "8", "--colluders", "0", "--insecure-reproducible-noise")])
def test_plain_and_secure_sums_give_the_same_model(run_sim, tmp_path: Path, noise: tuple[str, ...]) -> None:
    """With DP off, or noise drawn from the seed, nothing random differs: the final models are equal bit for bit."""
    for aggregation in ("secagg", "none"):
        run_sim("--aggregation", aggregation, "--seed", "3", *noise, name=aggregation)
    secure, plain = (tmp_path / name / "model.safetensors" for name in ("secagg", "none"))
    assert secure.read_bytes() == plain.read_bytes()


def test_another_seed_gives_another_model(run_sim, tmp_path: Path) -> None:
    for seed in ("3", "4"):
        run_sim("--aggregation", "none", "--seed", seed, name=seed)
    assert (tmp_path / "3/model.safetensors").read_bytes() != (tmp_path / "4/model.safetensors").read_bytes()


def test_distributed_noise_is_secret_not_seeded(run_sim, tmp_path: Path) -> None:
    """Two runs of one seed differ under DP: were noise or sampling drawn from the seed, the models would be equal."""
    for name in ("one", "two"):
        run_sim("--aggregation", "none", "--dp-epsilon", "8", "--seed", "3", name=name)
    assert (tmp_path / "one/model.safetensors").read_bytes() != (tmp_path / "two/model.safetensors").read_bytes()


def test_the_marked_test_option_makes_noise_reproducible_and_says_so(run_sim, tmp_path: Path) -> None:
    options = ("--aggregation", "none", "--dp-epsilon", "8", "--insecure-reproducible-noise")
    summaries = [run_sim(*options, name=name) for name in ("one", "two")]
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert all(summary["insecure_reproducible_noise"] for summary in summaries)


def test_compaction_shrinks_what_is_sent(run_sim) -> None:
    dense = run_sim("--prune", "none", name="dense")
    pruned = run_sim("--prune", "autoflip", "--rounds", "12", name="pruned")
    assert pruned["upload_ratio"] < dense["upload_ratio"]
    assert pruned["download_bytes_per_silo"] / 12 < dense["download_bytes_per_silo"] / 5


def test_drops_are_survived_and_listed_by_stage(run_sim) -> None:
    summary = run_sim("--dp-epsilon", "8", "--dropout", "0.15", "--rounds", "12", "--colluders", "0", "--silos", "10")
    assert set(summary["drops"]) <= {"masked", "confirm", "unmask"}
    assert sum(summary["drops"].values()) > 5
    assert summary["rounds"] == 12
    assert summary["epsilon_spent"] <= 8


def test_workers_change_nothing(run_sim, tmp_path: Path) -> None:
    small = ("--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "3", "--quiet", "--colluders", "0")
    for workers in ("0", "2"):
        run_sim("--workers", workers, name=workers, small=small)
    assert (tmp_path / "0/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()


def test_target_accuracy_reports_rounds_and_bytes(run_sim) -> None:
    summary = run_sim("--target-accuracy", "0.05", "--evaluate-every", "1")
    assert summary["rounds_to_target"] >= 1
    assert 0 < summary["upload_bytes_to_target"] <= summary["upload_bytes_per_silo"]


def test_participation_below_one(run_sim) -> None:
    summary = run_sim("--participation", "0.67", "--colluders", "0", "--silos", "9")
    assert summary["rounds"] == 5
    assert summary["upload_ratio"] < 0.7
