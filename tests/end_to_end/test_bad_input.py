"""Bad input: exit code 2, one line on stderr that names the option or file, nothing on stdout, no run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoflip_secure.ckks.ring import ring
from autoflip_secure.sim import main


def write_folder(folder: Path, rows: str = "a,b,label\n1,2,0\n3,4,1\n", declaration: str | None = None) -> Path:
    for name in ("north", "south", "west"):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.csv").write_text("a,b,label\n" + "1,2,0\n3,4,1\n" * 5)
    (folder / "south" / "train.csv").write_text(rows)
    text = 'task = "classification"\nclasses = [0, 1]\nfeatures = 2\n' if declaration is None else declaration
    (folder / "dataset.toml").write_text(text)
    return folder


CASES = {
    "unknown option": (["--epsilon", "8"], "--epsilon"),
    "unknown data set": (["--dataset", "imagenet"], "imagenet"),
    "unknown model": (["--model", "transformer"], "--model"),
    "unknown partition": (["--partition", "zipf:2"], "--partition"),
    "unknown aggregation": (["--aggregation", "homomorphic"], "--aggregation"),
    "epsilon zero": (["--dp-epsilon", "0"], "--dp-epsilon"),
    "epsilon negative": (["--dp-epsilon", "-3"], "--dp-epsilon"),
    "epsilon not a number": (["--dp-epsilon", "eight"], "--dp-epsilon"),
    "epsilon nan": (["--dp-epsilon", "nan"], "--dp-epsilon"),
    "trust without epsilon": (["--dp-trust", "local"], "--dp-trust"),
    "delta one": (["--dp-epsilon", "8", "--dp-delta", "1"], "--dp-delta"),
    "too few silos": (["--silos", "2"], "--silos"),
    "too many colluders": (["--silos", "5", "--colluders", "4"], "--colluders"),
    "cohorts too small": (["--silos", "6", "--cohorts", "3", "--dp-epsilon", "8"], "--cohorts"),
    "data set needs a folder": (["--dataset", "heart"], "--data-dir"),
    "folder is missing": (["--dataset", "heart", "--data-dir", "/nowhere/at/all"], "/nowhere/at/all"),
    "sparse training under DP": (["--prune", "feddst", "--dp-epsilon", "8"], "--prune feddst"),
    "masks under DP": (["--prune", "fedmask", "--dp-epsilon", "8"], "--prune fedmask"),
    "unknown preset": (["--preset", "paper-imagenet"], "--preset paper-imagenet: unknown; use one of paper-mnist"),
    "natural silos where there are none": (["--partition", "natural"], "--partition"),
    "several steps under distributed noise": (["--dp-epsilon", "8", "--local-steps", "3"], "--local-steps"),
    "unreachable flops": (["--prune-flops", "0.0001"], "--prune-flops"),
    "exploration without training": (
        ["--dp-epsilon", "8", "--rounds", "5", "--explore-rounds", "5"],
        "--explore-rounds",
    ),
    "no such configuration": (["--config", "/nowhere/run.toml"], "/nowhere/run.toml"),
    "nothing to resume": (["--resume", "/nowhere/run"], "--resume"),
    "wrong summary": (["--summary", "xml"], "--summary"),
    "no gpu": (["--device", "cuda"], "--device"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_one_line_and_exit_code_two(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "no gpu":
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, named = CASES[case]
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert named in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == [], "something was started"


@pytest.mark.parametrize("silos", ["90", "100"])
def test_more_silos_than_records(silos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "data")
    code = main(
        ["--dataset", f"folder:{folder}", "--partition", "iid", "--silos", silos, "--run-dir", str(tmp_path / "r")]
    )
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("rows", "declaration", "named"),
    [
        ("a,b,label\n1,two,0\n", None, "train.csv:2"),
        ("a,b,label\n1,2,7\n3,4,1\n", None, "train.csv:2"),
        ("a,b,label\n1,2\n", None, "train.csv:2"),
        ("a,b\n1,2\n", None, "label"),
        ("", None, "train.csv"),
        ("a,b,label\n1,2,0\n", "task = classification", "dataset.toml"),
        ("a,b,label\n1,2,0\n", 'task = "classification"\nclasses = [0, 1]\nfeatures = 9\n', "9"),
    ],
)
def test_malformed_files_name_file_and_line(
    rows: str, declaration: str | None, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "data", rows, declaration)
    assert main(["--dataset", f"folder:{folder}", "--run-dir", str(tmp_path / "r")]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert named in printed.err
    assert not (tmp_path / "r").exists()


def test_malformed_configuration_names_line_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text('dataset = "digits"\nrounds = = 3\n')
    assert main(["--config", str(tmp_path / "run.toml")]) == 2
    assert "line 2, column" in capsys.readouterr().err


def test_unknown_option_in_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text("epsilom = 3\n")
    assert main(["--config", str(tmp_path / "run.toml")]) == 2
    assert "epsilom" in capsys.readouterr().err


def test_a_used_run_directory_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    assert main(["--run-dir", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_the_command_line_wins_over_the_file(run_sim, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('rounds = 9\nprune = "none"\naggregation = "none"\n')
    small = ("--dataset", "digits", "--model", "mlp", "--silos", "4", "--workers", "0", "--quiet")
    summary = run_sim("--config", str(tmp_path / "run.toml"), "--rounds", "2", small=small)
    assert (summary["rounds"], summary["prune"], summary["aggregation"]) == (2, "none", "none")


def test_saying_that_nothing_is_pruned_is_as_good_as_silence(run_sim) -> None:
    """Options that say nothing of this, such as --cohorts 1, run as if they were left out."""
    small = ("--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "2", "--workers", "0", "--quiet")
    neutral = (
        "--no-warm-start", "--explore-rounds", "1", "--explore-steps", "1", "--prune-threshold", "0",
        "--prune-hysteresis", "0", "--prune-flops", "1", "--prune-floor", "0", "--prune-steps", "1",
        "--agreement-every", "0", "--cohorts", "1",
    )  # fmt: skip
    silent = run_sim("--prune", "none", small=small, name="silent")
    said = run_sim("--prune", "none", *neutral, small=small, name="said")
    figures = ("loss", "accuracy", "flops_ratio", "params_ratio", "rounds")
    assert [said[name] for name in figures] == [silent[name] for name in figures]


def test_the_record_of_a_run_is_a_configuration(run_sim, tmp_path: Path) -> None:
    """With epochs too, which are steps in it; and what it holds of pruning stands against no other method."""
    small = ("--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "3", "--workers", "0", "--quiet")
    first = run_sim("--local-epochs", "1", small=small, name="first")
    record = tmp_path / "first" / "config.toml"
    again = run_sim("--config", str(record), small=(), name="again")
    assert (again["loss"], again["accuracy"]) == (first["loss"], first["accuracy"])
    edited = [line for line in record.read_text().splitlines() if not line.startswith("prune_steps")]
    (tmp_path / "edited.toml").write_text("\n".join(edited))
    assert run_sim("--config", str(tmp_path / "edited.toml"), "--prune", "none", small=())["prune"] == "none"


@pytest.mark.parametrize("arguments", [["--help"], ["--bogus"]])
def test_the_command_line_answers_without_loading_anything_heavy(arguments: list[str]) -> None:
    heavy = "torch|opacus|flwr|sklearn|matplotlib|mlxtend|datasets|tenseal|zstandard"
    code = (
        "import sys; from autoflip_secure.sim import main; main(sys.argv[1:]); "
        f"loaded = [m for m in '{heavy}'.split('|') if m in sys.modules]; sys.exit(9 if loaded else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_entry_points_answer() -> None:
    for module in ("autoflip_secure.sim", "autoflip_secure.cli"):
        ended = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
        assert ended.returncode == 0
        assert "Usage" in ended.stdout


def test_runs_without_ckks_do_not_load_seal(tmp_path: Path) -> None:
    options = ["--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "1", "--prune", "none", "--quiet"]
    code = (
        "import sys; from autoflip_secure.sim import main; code = main(sys.argv[1:]); "
        "sys.exit(9 if 'tenseal' in sys.modules else code)"
    )
    arguments = [*options, "--workers", "0", "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_ckks_without_memory_files_is_refused_when_the_run_is_configured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.cache_clear()  # of earlier tests
    monkeypatch.delattr(os, "memfd_create")
    assert main(["--aggregation", "ckks", "--run-dir", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert "--aggregation ckks needs anonymous memory files" in printed.err
    assert list(tmp_path.iterdir()) == []
