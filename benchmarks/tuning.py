"""How the defaults for DP on images were chosen: one setting varied at a time, on embedded public data.

    python benchmarks/tuning.py [--seeds 1] [--fresh]

Each run is DP-SGD in one place with the noise that ten silos' sum carries when all survive and one may collude
(variance 10/9): with equal sampling rates that is what a federation does (tests/privacy/test_privacy_equivalence.py).
No silo's record was used, so the choice costs no privacy. Writes results/tuning.{json,md}; rows already there are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import machine

from autoflip_secure.data.registry import load
from autoflip_secure.models.features import features_of
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy.accounting import solve_noise_multiplier
from autoflip_secure.privacy.local_sgd import dp_sgd
from autoflip_secure.seeds import torch_stream
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.training.evaluation import evaluate

RESULTS = Path(__file__).parent / "results"
DELTA = 1e-5
RESERVE = 0.04
SILOS, COLLUDERS = 10, 1


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    model: str
    epsilon: float
    rounds: int
    learning_rate: float
    sampling_rate: float = 0.1
    clip: float = 0.1
    momentum: float = 0.9


def settings() -> list[Setting]:
    """The defaults and, around them, one thing changed."""
    pixels, scattered = (Setting(model, 8, 200, 4.0) for model in ("cnn-tanh", "scatter"))
    at_3, at_1 = Setting("cnn-tanh", 3, 200, 2.0), Setting("cnn-tanh", 1, 123, 0.93)
    return [
        pixels,
        *(replace(pixels, learning_rate=rate) for rate in (2.0, 8.0)),
        *(replace(pixels, rounds=rounds) for rounds in (100, 300)),
        replace(pixels, sampling_rate=0.05),
        replace(pixels, clip=1.0, learning_rate=0.4),
        *(at_3, replace(at_3, learning_rate=4.0)),
        *(at_1, replace(at_1, rounds=200), replace(at_1, rounds=70), replace(at_1, learning_rate=1.5)),
        scattered,
        *(replace(scattered, learning_rate=rate) for rate in (2.0, 8.0, 16.0)),
        *(replace(at_3, model="scatter", learning_rate=rate) for rate in (2.0, 4.0, 8.0)),
        *(replace(at_1, model="scatter", learning_rate=rate) for rate in (0.93, 2.0, 4.0)),
        replace(at_1, model="scatter", rounds=200),
    ]


def accuracy(setting: Setting, seed: int) -> float:
    """Public test accuracy of one run on mnist5k."""
    data = load("mnist5k", None, seed)
    assert data.train is not None
    assert data.public_test is not None
    spec = dense_spec(setting.model, data.task.input_shape, data.task.outputs)
    network = build(spec, torch_stream(seed, "init"))
    paid = setting.rounds + math.ceil(RESERVE * setting.rounds) + 2
    multiplier = solve_noise_multiplier([(setting.sampling_rate, paid)], (), setting.epsilon, DELTA)
    dp_sgd(
        network,
        torch.from_numpy(features_of(setting.model, data.train.x)),
        torch.from_numpy(data.train.y),
        nominal_records=len(data.train),
        steps=setting.rounds,
        sampling_rate=setting.sampling_rate,
        clip=setting.clip,
        noise_multiplier=multiplier * math.sqrt(SILOS / (SILOS - COLLUDERS)),
        learning_rate=setting.learning_rate,
        momentum=setting.momentum,
        live=None,
        sampling=SecretRandomness(),
        noise=SecretRandomness(),
    )
    scores = evaluate(network, features_of(setting.model, data.public_test.x), data.public_test.y, data.task.kind)
    assert scores.accuracy is not None
    return scores.accuracy


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a setting."""
    lines = [
        "# Settings for DP on images",
        "",
        "mnist5k, DP-SGD with the noise of ten silos' sum; public test accuracy %, mean over seeds (each in "
        "brackets). "
        "Chosen: 200 rounds at learning rate 4 (epsilon / 8)^0.7, fewer rounds below epsilon 2, sampling rate 0.1, "
        "clip 0.1, momentum 0.9.",
        "",
        "| model | epsilon | rounds | learning rate | sampling rate | clip | momentum | accuracy % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings():
        found = [100 * row["accuracy"] for row in rows if row["setting"] == asdict(setting)]
        if found:
            each = ", ".join(f"{value:.1f}" for value in found)
            values = asdict(setting).values()
            figures = " | ".join(value if isinstance(value, str) else f"{value:g}" for value in values)
            lines.append(f"| {figures} | {statistics.mean(found):.1f} ({each}) |")
    return "\n".join([*lines, "", f"Made by `python benchmarks/tuning.py` on {json.dumps(machine('torch'))}."]) + "\n"


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    arguments = parser.parse_args()
    path = RESULTS / "tuning.json"
    rows: list[dict[str, Any]] = []
    if path.exists() and not arguments.fresh:
        rows = json.loads(path.read_text())["rows"]
    for seed in range(arguments.seeds):
        for setting in settings():
            if any((row["setting"], row["seed"]) == (asdict(setting), seed) for row in rows):
                continue
            rows.append({"setting": asdict(setting), "seed": seed, "accuracy": accuracy(setting, seed)})
            path.write_text(json.dumps({"machine": machine("torch"), "rows": rows}, indent=1))
            print(f"{setting}, seed {seed}: {rows[-1]['accuracy']:.3f}", file=sys.stderr, flush=True)
    (RESULTS / "tuning.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
