"""Every combination of aggregation, trust and pruning, from command line to summary and report."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgpack
import pytest

from autoflip_secure.cli import main as command
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.report.text import STAGE_MEANING
from autoflip_secure.sim import main as sim_command

COMBINATIONS = list(itertools.product(("secagg", "none"), ("none", "local", "distributed"), ("autoflip", "none")))
COMBINATIONS += [("secagg", trust, "random") for trust in ("none", "distributed")]
COMBINATIONS += [("ckks", trust, "autoflip") for trust in ("none", "local", "distributed")]
COMBINATIONS += [("ckks", "none", "none"), ("ckks", "distributed", "random")]


@pytest.mark.parametrize(("aggregation", "trust", "prune"), COMBINATIONS, ids=["-".join(c) for c in COMBINATIONS])
def test_runs_to_a_summary(run_sim, tmp_path: Path, aggregation: str, trust: str, prune: str) -> None:
    privacy = () if trust == "none" else ("--dp-epsilon", "8", "--dp-trust", trust)
    summary = run_sim("--aggregation", aggregation, "--prune", prune, *privacy, report=True)
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


def test_a_report_can_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ["--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "2", "--workers", "0"]
    assert sim_command([*small, "--no-report", "--run-dir", str(run)]) == 0
    assert f"autoflip-secure report {run}" in " ".join(capsys.readouterr().err.split())
    assert not (run / "report.html").exists()
    assert command(["report", str(run)]) == 0
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    "noise",
    [
        (),
        ("--dp-epsilon", "8", "--colluders", "0", "--cohorts", "2", "--insecure-reproducible-noise"),
        ("--dp-epsilon", "8", "--dp-trust", "local", "--insecure-reproducible-noise"),
    ],
    ids=["without DP", "distributed, in two cohorts", "local"],
)
def test_plain_and_secure_sums_give_the_same_model(run_sim, tmp_path: Path, noise: tuple[str, ...]) -> None:
    """With DP off, or noise drawn from the seed, nothing random differs: the final models are equal bit for bit."""
    scores = {}
    for aggregation in ("secagg", "ckks", "none"):
        summary = run_sim("--aggregation", aggregation, "--seed", "3", *noise, name=aggregation)
        model = (tmp_path / aggregation / "model.safetensors").read_bytes()
        scores[aggregation] = (summary["accuracy"], summary["loss"], summary["epsilon_spent"], model)
    assert scores["secagg"] == scores["none"]
    assert scores["ckks"] == scores["none"]


@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_sums_of_counts_and_scores_are_the_plain_ones(run_sim, tmp_path: Path, aggregation: str) -> None:
    """Hospitals that hold back their own test records, whose number is not public: the widest fields there are."""
    folder = tmp_path / "data"
    for number in range(4):
        (folder / f"h{number}").mkdir(parents=True)
        rows = (f"{row % 7 - number / 9:.3f},{(row * row) % 11 / 3:.3f},{int(row % 7 > 3)}" for row in range(60))
        (folder / f"h{number}/train.csv").write_text("\n".join(["a,b,label", *rows]))
    (folder / "dataset.toml").write_text('task = "classification"\nclasses = [0, 1]\nfeatures = 2\n')
    small = ("--dataset", f"folder:{folder}", "--rounds", "3", "--workers", "0", "--quiet", "--prune", "none")
    found = {name: run_sim("--aggregation", name, small=small, name=name) for name in (aggregation, "none")}
    assert found[aggregation]["accuracy"] is not None
    for name in ("accuracy", "auroc", "loss"):
        assert found[aggregation][name] == found["none"][name]
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in found]
    assert models[0] == models[1]


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


def test_ckks_sums_that_a_silo_does_not_help_to_open_are_tried_again(run_sim, tmp_path: Path) -> None:
    """A silo that is gone when the others open stops the sum: all attempts of a round start from the same model."""
    options = ("--dropout", "0.08", "--rounds", "12", "--colluders", "0", "--silos", "10", "--prune", "none")
    summary = run_sim("--aggregation", "ckks", *options, "--record-server-view", report=True)
    assert set(summary["drops"]) == {"encrypt", "open"}
    assert summary["rounds"] == 12
    records = list(msgpack.Unpacker((tmp_path / "run/server_view/public.msgpack").open("rb")))[:-1]
    rounds = [record["round"] for record in records]
    assert summary["rounds_aborted"] == len(rounds) - 12 > 1
    models = {record["round"]: record["model"] for record in records}
    assert all(record["model"] == models[record["round"]] for record in records)
    assert len(set(models.values())) == 12, "each sum moves the model once"
    events = list(read_json_lines(tmp_path / "run/events.jsonl"))
    aborts = [event for event in events if event["event"] == "abort"]
    assert {event["stage"] for event in aborts} <= {"encrypt", "open"}
    assert sum(event["stage"] == "open" for event in aborts) > 1
    opened = [event["epoch"] for event in events if event["event"] == "epoch_opened"]
    assert opened == list(range(1, 2 + len(aborts))), "new keys after every abort"
    report = (tmp_path / "run/report.html").read_text()
    assert "opened by all of them together" in report
    assert STAGE_MEANING["open"] in report


def test_aborted_ckks_sums_stay_paid_for(run_sim) -> None:
    options = ("--dropout", "0.04", "--rounds", "8", "--reserve", "1", "--silos", "10", "--dp-epsilon", "8")
    summary = run_sim("--aggregation", "ckks", *options)
    assert summary["rounds"] == 8
    assert summary["rounds_aborted"] > 0
    lines = {row["silo"]: row["lines"] for row in summary["ledgers"]}
    assert 8 < max(lines.values()) <= 8 + summary["rounds_aborted"]
    assert summary["epsilon_spent"] <= 8
    assert summary["noise_over_least"]["largest"] <= 1.02, "all silos of an opened sum revealed what it can spare"


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_both_engines_give_the_same_model(run_sim, tmp_path: Path, aggregation: str) -> None:
    small = ("--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "3", "--quiet", "--workers", "0")
    for engine in ("local", "ray"):
        run_sim("--aggregation", aggregation, "--engine", engine, small=small, name=engine)
    assert (tmp_path / "local/model.safetensors").read_bytes() == (tmp_path / "ray/model.safetensors").read_bytes()


@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_workers_change_nothing(run_sim, tmp_path: Path, aggregation: str) -> None:
    small = ("--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "3", "--quiet", "--colluders", "0")
    for workers in ("0", "2"):
        run_sim("--workers", workers, "--aggregation", aggregation, name=workers, small=small)
    assert (tmp_path / "0/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()


def test_target_accuracy_reports_rounds_and_bytes(run_sim) -> None:
    summary = run_sim("--target-accuracy", "0.05", "--evaluate-every", "1")
    assert summary["rounds_to_target"] >= 1
    assert 0 < summary["upload_bytes_to_target"] <= summary["upload_bytes_per_silo"]


def test_participation_below_one(run_sim) -> None:
    summary = run_sim("--participation", "0.67", "--colluders", "0", "--silos", "9")
    assert summary["rounds"] == 5
    assert summary["upload_ratio"] < 0.7
