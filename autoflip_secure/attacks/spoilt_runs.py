"""Whole runs in which some silos are bad, and what their models do on public test records."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.attacks.bad_silos import TARGET, triggered
from autoflip_secure.attacks.recorded_view import RecordedView
from autoflip_secure.attacks.settings import run_federation
from autoflip_secure.attacks.step_lengths import longest_step
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.training.evaluation import predict

__all__ = ["SpoiltRun", "predicted", "spoilt_run", "write_undeclared"]

UNBOUNDED = """
import sys
from autoflip_secure.federation.sum_watch import SumWatch
SumWatch.passed = lambda watch, manifest, sums, aggregates: list(aggregates)
from autoflip_secure.sim import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line with one defence taken out, as a mutation test does."""

HELD_OUT = "breast-cancer"
"""Data of which no total is declared in the runs on `write_undeclared`'s folder."""


@dataclass(frozen=True)
class SpoiltRun:
    """One finished run.

    Attributes
    ----------
    summary : dict
        summary.json.
    events : Counter
        How many events there were of each name.
    wrong : bool array
        For each public test record, whether the final model predicts it wrongly.
    fooled : bool array
        For each that is not of class `TARGET`, whether the final model says `TARGET` once it bears the trigger.
    longest_step : float
        Of a round, over the longest that all silos together could honestly take.
    steps : int
        Rounds in which that was measured.
    """

    summary: dict[str, Any]
    events: Counter[str]
    wrong: NDArray[np.bool_]
    fooled: NDArray[np.bool_]
    longest_step: float
    steps: int


@cache
def _public_test(dataset: str, data: Path | None) -> Records:
    test = load(dataset, data, 0).public_test
    assert test is not None
    return test


def spoilt_run(
    dataset: str, options: str, setting: str, seed: int, run: Path, *, data: Path | None = None, bounds: bool = True
) -> SpoiltRun:
    """Run the command line, and judge its model as anybody could who has it and the public test records.

    Parameters
    ----------
    options : str
        Beside those of the data set and the setting.
    bounds : bool
        Whether the coordinator bounds opened sums; False: that defence is taken out of the code.
    """
    whole = f"--dataset {dataset} {options}"
    summary = run_federation(whole, setting, seed, run, data=data, program=None if bounds else UNBOUNDED)
    test = _public_test(dataset, data)
    others = test.x[test.y != TARGET]
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return SpoiltRun(
        summary,
        Counter(line["event"] for line in lines),
        predicted(run, test.x) != test.y,
        predicted(run, triggered(others)) == TARGET,
        *longest_step(run),
    )


def write_undeclared(folder: Path, silos: int, seed: int) -> Records:
    """Write breast-cancer as a folder of so many hospitals without a public total or public test records, so that
    records are counted by a census and scores come from a sum; the public test records, which only a judge has.
    """
    loaded = load(HELD_OUT, None, 0)
    assert loaded.train is not None
    assert loaded.public_test is not None
    folder.mkdir()
    (folder / "dataset.toml").write_text('task = "classification"\nclasses = [0, 1]\nfeatures = 30\n')
    order = np.random.default_rng(seed).permutation(len(loaded.train))
    for number, rows in enumerate(np.array_split(order, silos)):
        (folder / f"hospital-{number:02d}").mkdir()
        part = loaded.train.take(rows)
        np.savez(folder / f"hospital-{number:02d}" / "train.npz", X=part.x, y=part.y)
    return loaded.public_test


def predicted(run: Path, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes that the final model of a run gives, shape (n,)."""
    payload = ModelPayload.from_bytes(RecordedView(run).final_model)
    network = build(payload.spec)
    load_flat_parameters(network, torch.from_numpy(payload.network))
    return np.asarray(predict(network, x).argmax(axis=1), np.int64)
