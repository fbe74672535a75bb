"""Hospitals whose patients have five records each, from their tables to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.report.text import privacy_sentence
from autoflip_secure.seeds import stream

PATIENTS = {"north": 120, "south": 90, "west": 80, "east": 110}
EACH = 5


def write_visits(folder: Path, patients: dict[str, int]) -> Path:
    """Two-class tables in which the first feature tells the class; a patient's rows are not together."""
    generator = stream(0, "visits")
    for name, count in patients.items():
        (folder / name).mkdir(parents=True)
        labels = generator.integers(0, 2, count)
        rows = []
        for patient in np.repeat(np.arange(count), EACH):
            a, b = generator.normal(size=2).clip(-2, 2)
            rows.append(f"{a + 5 * labels[patient] - 2.5:.3f},{name}-{patient},{b:.3f},{labels[patient]}")
        lines = [rows[i] for i in generator.permutation(len(rows))]
        (folder / name / "train.csv").write_text("a,person,b,label\n" + "\n".join(lines) + "\n")
    (folder / "dataset.toml").write_text(
        'task = "classification"\nclasses = [0, 1]\nfeatures = 2\nminimum = -5\nmaximum = 5\npatient = "person"\n'
    )
    return folder


@pytest.mark.parametrize(
    ("trust", "rounds"), [("distributed", "12"), pytest.param("local", "30", marks=pytest.mark.slow)]
)
def test_a_folder_of_patients(run_sim, tmp_path: Path, trust: str, rounds: str) -> None:
    folder = write_visits(tmp_path / "data", PATIENTS)
    small = ("--dataset", f"folder:{folder}", "--rounds", rounds, "--colluders", "0", "--workers", "0", "--quiet")
    summary = run_sim("--dp-epsilon", "8", "--dp-trust", trust, small=small)
    assert summary["accuracy"] > 0.75
    # A census that counted records would find five times as many.
    (census,) = [line for line in read_json_lines(tmp_path / "run/events.jsonl") if line["event"] == "census"]
    assert abs(census["records"] - 0.8 * sum(PATIENTS.values())) < 150
    for silo in (tmp_path / "run/silos").iterdir():
        train, holdout = (np.load(silo / "data" / f"{part}.npz")["group"] for part in ("train", "holdout"))
        assert not np.intersect1d(train, holdout).size
        assert set(np.unique(np.concatenate([train, holdout]), return_counts=True)[1]) == {EACH}
    assert {row["dataset"] for row in summary["ledgers"]} == {"train", "holdout"}
    assert max(row["epsilon"] for row in summary["ledgers"]) == summary["epsilon_spent"] <= 8
    assert "each patient, with all of the patient's records, at one silo" in summary["privacy"]["promise"]
    assert "for each patient, with all records, at a silo" in privacy_sentence(summary)
