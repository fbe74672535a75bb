"""A survival task from a user's own tables, and the exact scores that benchmarks show beside the noised ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.seeds import stream

SIZES = {"north": 300, "south": 260, "west": 220, "east": 320}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "exact_scores.py"
    spec = importlib.util.spec_from_file_location("exact_scores", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registers(tmp_path: Path) -> Path:
    """Four silos with exponential times; the hazard grows with the first feature."""
    generator, folder = stream(0, "registers"), tmp_path / "registers"
    for name, size in SIZES.items():
        (folder / name).mkdir(parents=True)
        x = generator.uniform(-1, 1, (size, 3))
        death, end = generator.exponential(8 * np.exp(-2.5 * x[:, 0])), generator.uniform(2, 12, size)
        rows = np.column_stack([x, np.minimum(death, end), death < end])
        lines = [",".join([*(f"{value:.3f}" for value in row[:4]), str(int(row[4]))]) for row in rows]
        (folder / name / "train.csv").write_text("a,b,c,time,event\n" + "\n".join(lines) + "\n")
    (folder / "dataset.toml").write_text(
        'task = "survival"\nfeatures = 3\ncuts = [1, 2, 4, 7]\nhazards = [0.1, 0.1, 0.1, 0.1, 0.1]\n'
    )
    return folder


def small(registers: Path, *options: str) -> tuple[str, ...]:
    return ("--dataset", f"folder:{registers}", "--colluders", "0", "--workers", "0", "--quiet", *options)


def test_without_noise_the_summary_is_as_good_as_exact(run_sim, registers, benchmark, tmp_path) -> None:
    summary = run_sim(small=small(registers, "--rounds", "4", "--prune", "none"), report=True)
    exact = benchmark.exact_scores(tmp_path / "run")
    held = [len(np.load(path)["x"]) for path in (tmp_path / "run").glob("silos/*/data/holdout.npz")]
    assert exact["records"] == sum(held) == pytest.approx(220, abs=4)
    assert (summary["accuracy"], summary["auroc"], exact["accuracy"], exact["auroc"]) == (None, None, None, None)
    assert summary["loss"] == pytest.approx(exact["loss"], abs=0.02), "clipped losses, rounded to the grid"
    assert summary["c_index"] == pytest.approx(exact["c_index"], abs=0.06), "bins of risk and intervals of time"
    scored = [row for row in read_json_lines(tmp_path / "run/metrics.jsonl") if "c_index" in row]
    assert scored[-1]["c_index"] == summary["c_index"]
    assert "C-index" in (tmp_path / "run/report.html").read_text()


def test_under_dp_it_ranks_patients(run_sim, registers, benchmark, tmp_path) -> None:
    summary = run_sim("--dp-epsilon", "8", small=small(registers, "--rounds", "20"))
    exact = benchmark.exact_scores(tmp_path / "run")
    assert exact["c_index"] > 0.65
    assert abs(summary["c_index"] - exact["c_index"]) < 0.3
    assert summary["flops_ratio"] < 0.6
    assert summary["epsilon_spent"] <= 8
    assert {row["dataset"] for row in summary["ledgers"]} == {"train", "holdout"}


def test_exact_scores_need_a_finished_run(benchmark, tmp_path) -> None:
    with pytest.raises(ConfigError, match="not the directory of a finished run"):
        benchmark.exact_scores(tmp_path)
