"""A run directory as a finished run leaves it, made from formulas, with any part left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

DENSE_PARAMS, DENSE_FLOPS = 26_010, 1_480_000
LAYERS = {"conv1": 16, "conv2": 32, "dense1": 32}
EPSILON = 8.0


@dataclass
class MadeRun:
    """A run directory and the summary that belongs to it."""

    path: Path
    summary: dict[str, Any]
    lines: list[dict[str, Any]]

    def write_metrics(self, text: str) -> None:
        (self.path / "metrics.jsonl").write_text(text)


def _scores(number: int, rounds: int, *, auroc: bool) -> dict[str, Any]:
    accuracy = 0.95 - 0.8 * math.exp(-6 * (number + 1) / rounds) + 0.008 * math.sin(number)
    scores = {"accuracy": round(accuracy, 4), "loss": round(1.2 - accuracy, 4)}
    return {**scores, "auroc": round(0.5 + accuracy / 2, 4) if auroc else None}


def _layers(number: int, first: int, names: dict[str, int], *, halved: bool) -> list[dict[str, Any]]:
    rows = []
    for index, (name, units) in enumerate(names.items()):
        average = (0.25 + 0.5 * index / len(names)) * (1 - 0.4 * number / 200)
        measured = round(average + 0.08 * math.cos(number + index), 4) if number % 20 == 0 or number < first else None
        left = units // 2 if halved else units
        row = {"layer": name, "units": left, "live": left * 81, "agreement": round(average, 4)}
        rows.append({**row, "agreement_raw": measured})
    return rows


def make_lines(
    rounds: int, *, dp: bool, auroc: bool, prune: bool, every: int, first: int, layers: dict[str, int], drops: bool
) -> list[dict[str, Any]]:
    lines = []
    upload = total = 0.0
    for number in range(rounds):
        halved = prune and number >= first
        live = 14_300 if halved else DENSE_PARAMS
        upload += live * 2.67
        total += live * 2.67 + 900
        scored = (number + 1) % every == 0 or number == rounds - 1
        rows = _layers(number, first, layers, halved=halved) if prune else []
        measured = bool(rows) and rows[0]["agreement_raw"] is not None
        lines.append(
            {
                "round": number,
                "phase": "explore" if prune and number < first else "train",
                "cohorts": 2 if measured else 1,
                "silos": 10,
                **(_scores(number, rounds, auroc=auroc) if scored else {}),
                "epsilon": round(EPSILON * math.sqrt((number + 1) / rounds) * 0.99, 4) if dp and scored else None,
                "agreement": rows[0]["agreement_raw"] if measured else None,
                "agreement_average": 0.4 * (1 - 0.4 * number / 200) if rows else None,
                "params_live": live,
                "params_dense": DENSE_PARAMS,
                "flops": DENSE_FLOPS // 2 if halved else DENSE_FLOPS,
                "flops_dense": DENSE_FLOPS,
                "layers": rows,
                "upload_bytes_per_silo": upload,
                "upload_bytes_total_per_silo": total,
                "upload_bytes_dense_fp32": 4 * DENSE_PARAMS * (number + 1),
                "download_bytes_per_silo": 4.0 * DENSE_PARAMS * (number + 1),
                "aborts": 1 if drops and number >= 30 else 0,
                "drops": {"masked": 1 + number // 9, "confirm": 1, "unmask": number // 40} if drops else {},
                "seconds": 0.41,
            }
        )
    return lines


def make_summary(lines: list[dict[str, Any]], *, dp: bool, prune: bool, ledgers: bool) -> dict[str, Any]:
    last = lines[-1]
    scored = [line for line in lines if "accuracy" in line]
    best = scored[-1] if scored else {}
    promise = (
        "(8, 1e-05)-differential privacy for each patient's record at one silo."
        if dp
        else "No differential privacy: what the sums show about single patients is not bounded (--dp-trust none)."
    )
    dense_bytes = last["upload_bytes_dense_fp32"]
    spent = last["epsilon"]
    return {
        "schema": 1,
        "run": "mnist5k-20260101-120000-001",
        "dataset": "mnist5k",
        "partition": "dirichlet:0.5",
        "model": "cnn-tanh",
        "task": "multiclass",
        "silos": 10,
        "rounds": len(lines),
        "rounds_aborted": last["aborts"],
        "drops": last["drops"],
        "aggregation": "secagg",
        "prune": "autoflip" if prune else "none",
        "dp_trust": "distributed" if dp else "none",
        "engine": "local",
        "seed": 0,
        "accuracy": best.get("accuracy"),
        "auroc": best.get("auroc"),
        "loss": best.get("loss"),
        "epsilon_target": EPSILON if dp else None,
        "epsilon_spent": spent,
        "delta": 1e-5 if dp else None,
        "colluders": 1,
        "params_dense": last["params_dense"],
        "params_live": last["params_live"],
        "params_ratio": last["params_live"] / last["params_dense"],
        "flops_dense": last["flops_dense"],
        "flops_live": last["flops"],
        "flops_ratio": last["flops"] / last["flops_dense"],
        "training_flops_ratio": 0.525,
        "upload_bytes_per_silo": last["upload_bytes_per_silo"],
        "upload_bytes_dense_fp32": dense_bytes,
        "upload_ratio": last["upload_bytes_per_silo"] / dense_bytes,
        "upload_bytes_total_per_silo": last["upload_bytes_total_per_silo"],
        "upload_ratio_total": last["upload_bytes_total_per_silo"] / dense_bytes,
        "download_bytes_per_silo": last["download_bytes_per_silo"],
        "rounds_to_target": None,
        "upload_bytes_to_target": None,
        "agreement_final": last["agreement_average"],
        "seconds_total": 82.3,
        "seconds_training": 60.1,
        "seconds_secure_sum": 22.2,
        "insecure_reproducible_noise": False,
        "note": "",
        "privacy": {
            "promise": promise,
            "noise_multiplier": 1.234 if dp else 0.0,
            "evaluation_noise_multiplier": 0.0,
            "census_noise_multiplier": 0.0,
            "planned_steps": len(lines) + 10,
        },
        "ledgers": [
            {"silo": silo, "dataset": "train", "lines": len(lines), "epsilon": round(spent - silo / 100, 4)}
            for silo in range(1, 11)
        ]
        if dp and ledgers and spent is not None
        else [],
        "package_versions": {"autoflip-secure": "0.1.0", "numpy": "2.4.1"},
    }


def make_events(lines: list[dict[str, Any]], *, prune: bool, first: int, drops: bool) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"time": 1.0, "event": "joined", "silos": list(range(1, 11)), "refused": []}]
    for stage, times in (lines[-1]["drops"] if drops else {}).items():
        for i in range(times):
            place = {"stage": stage, "round": i, "attempt": 0, "silo": 1 + i % 9, "status": "silent", "error": ""}
            events.append({"time": 2.0, "event": "absent", **place})
    if drops:
        reason = "6 of 10 silos of a cohort sent a masked vector, 8 are needed"
        place = {"phase": "train", "round": 30, "attempt": 0, "stage": "masked"}
        events.append({"time": 3.0, "event": "abort", **place, "reason": reason, "blamed": [4]})
        events.append({"event": "silo_misbehaved", "silo": 4, "stage": "masked", "reason": "unsigned vector"})
    if prune:
        sizes = {"live_before": DENSE_PARAMS, "live_after": 14_300, "widths": [8, 16, 16], "flops_ratio": 0.5}
        events.append({"time": 4.0, "event": "pruned", "round": first, **sizes})
    return events


def make(
    path: Path,
    rounds: int = 200,
    *,
    dp: bool = True,
    auroc: bool = True,
    prune: bool = True,
    every: int = 10,
    first: int = 20,
    layers: dict[str, int] | None = None,
    drops: bool = True,
    ledgers: bool = True,
    **changes: Any,
) -> MadeRun:
    """Write a run directory; `changes` are made to its summary."""
    path.mkdir()
    lines = make_lines(
        rounds, dp=dp, auroc=auroc, prune=prune, every=every, first=first, layers=layers or LAYERS, drops=drops
    )
    summary = {**make_summary(lines, dp=dp, prune=prune, ledgers=ledgers), **changes}
    events = make_events(lines, prune=prune, first=first, drops=drops)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    (path / "config.toml").write_text('dataset = "mnist5k"\nsilos = 10\nrounds = 200\nrecord_server_view = false\n')
    return MadeRun(path, summary, lines)


@pytest.fixture(scope="session")
def build_run() -> Callable[..., MadeRun]:
    """build_run(path, rounds=..., dp=..., ...) -> MadeRun."""
    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., MadeRun]:
    """make_run(rounds=..., dp=..., ...) -> MadeRun in the test's own folder."""
    return partial(make, tmp_path / "run")
