"""A user's own folder and the four hospitals: census, private scores, ledgers of both record sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.seeds import stream


def write_hospitals(folder: Path, sizes: dict[str, int]) -> Path:
    """Two-class tables in which the first feature tells the class."""
    generator = stream(0, "own data")
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True)
        labels = generator.integers(0, 2, size)
        features = generator.normal(size=(size, 3))
        features[:, 0] += 3 * labels - 1.5
        rows = np.column_stack([features.clip(-4, 4), labels])
        lines = [",".join([*(f"{v:.3f}" for v in row[:3]), str(int(row[3]))]) for row in rows]
        lines[1] = "," + lines[1].split(",", 1)[1]  # a missing value
        (folder / name / "train.csv").write_text("a,b,c,label\n" + "\n".join(lines) + "\n")
    (folder / "dataset.toml").write_text(
        'task = "classification"\nclasses = [0, 1]\nfeatures = 3\nminimum = -4.0\nmaximum = 4.0\n'
    )
    return folder


@pytest.mark.parametrize("trust", ["distributed", "local", "none"])
def test_a_folder_of_hospitals(run_sim, tmp_path: Path, trust: str) -> None:
    folder = write_hospitals(tmp_path / "data", {"north": 400, "south": 300, "west": 250, "east": 350})
    privacy = () if trust == "none" else ("--dp-epsilon", "8", "--dp-trust", trust)
    small = ("--dataset", f"folder:{folder}", "--rounds", "25", "--colluders", "0", "--workers", "0", "--quiet")
    summary = run_sim(*privacy, small=small)
    assert summary["silos"] == 4
    assert summary["partition"] == "natural"
    # Four silos score about 260 held-back records; noise moves the count by a few.
    assert summary["accuracy"] > 0.75
    assert summary["auroc"] > 0.8
    (census,) = [line for line in read_json_lines(tmp_path / "run/events.jsonl") if line["event"] == "census"]
    assert abs(census["records"] - 0.8 * 1300) < 150
    if trust == "none":
        assert census["records"] == sum(
            len(np.load(path)["x"]) for path in (tmp_path / "run").glob("silos/*/data/train.npz")
        )
    else:
        assert {row["dataset"] for row in summary["ledgers"]} == {"train", "holdout"}
        assert max(row["epsilon"] for row in summary["ledgers"]) == summary["epsilon_spent"] <= 8


def test_the_four_hospitals_report_auroc(run_sim, shared_data: Path) -> None:
    small = (
        "--dataset",
        "heart",
        "--data-dir",
        str(shared_data),
        "--partition",
        "natural",
        "--workers",
        "0",
        "--quiet",
    )
    summary = run_sim("--dp-epsilon", "8", "--colluders", "0", small=small, report=True)
    assert summary["silos"] == 4
    assert summary["epsilon_spent"] <= 8
    assert summary["auroc"] > 0.7


@pytest.mark.slow
def test_ray_gives_the_figures_of_the_local_engine(run_sim) -> None:
    small = ("--dataset", "digits", "--model", "mlp", "--silos", "4", "--rounds", "3", "--colluders", "0", "--quiet")
    local = run_sim("--engine", "local", "--workers", "0", name="local", small=small)
    ray = run_sim("--engine", "ray", name="ray", small=small)
    differing = {"run", "engine"} | {name for name in local if name.startswith("seconds")}
    # Identity keys and session ids differ, and with them lengths of a few encoded integers.
    inexact = {"download_bytes_per_silo", "upload_bytes_total_per_silo", "upload_ratio_total"}
    for name in set(local) - differing - inexact:
        assert ray[name] == local[name], name
    for name in inexact:
        assert ray[name] == pytest.approx(local[name], rel=1e-3), name
