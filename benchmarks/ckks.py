"""`make bench-ckks`: CKKS sums beside TenSEAL under one shared key as NVFlare sets it up, and beside masked sums.

    python benchmarks/ckks.py [--quick] [--fresh] [--silos 3,10 --values 1e6 --sparsity 0,0.8]

The same values through all three: time, bytes and memory by silos and sparsity, and whether each target is met. Writes
results/ckks.json (settings, seed, machine, every figure), ckks.md and ckks.png; `--quick` writes ckks-quick.*, a choice
of your own ckks-custom.*. All rows of one number of silos are measured in turn and kept once they are there, so an
interrupted benchmark goes on; `--fresh` starts anew. About ten minutes on two cores, `--quick` about two.
"""

from __future__ import annotations

import os

# One core for everything; before anything else reads them.
os.environ["AUTOFLIP_MASK_WORKERS"] = "1"
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckks_parts import measure_parts
from ckks_report import draw, report
from ckks_rows import CHAINS, OURS, PATH, Setting, guess_seconds, measure_group
from ckks_targets import NVFLARE_NAME, targets
from machine import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = ("autoflip-secure", "tenseal", "numpy", "cryptography", "blake3")
CORES = os.sched_getaffinity(0)
SILOS, VALUES, SPARSITY = [3, 5, 10, 20, 30], 10**6, [0.0, 0.5, 0.8]
QUICK_SILOS, QUICK_VALUES = [3, 10], 3 * 10**5
PEER_SILOS = 10
"""Silos at which the shared key is measured with pruning, and TenSEAL's tutorial at all."""


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def settings_of(silos: int, values: int, sparsities: Sequence[float]) -> list[Setting]:
    """What is measured in turn for one number of silos."""
    found = [Setting(name, silos, values, sparsity) for sparsity in sparsities for name in (OURS, PATH)]
    shared = sparsities if silos == PEER_SILOS else sparsities[:1]
    found += [Setting(NVFLARE_NAME, silos, values, sparsity) for sparsity in shared]
    if silos == PEER_SILOS:
        found += [Setting(name, silos, values, sparsities[0]) for name in CHAINS if name != NVFLARE_NAME]
    return found


class Run:
    """The records of one run; each is on disk once it is there."""

    def __init__(
        self, name: str, groups: Sequence[Sequence[Setting]], *, repetitions: int, seed: int, fresh: bool
    ) -> None:
        self.path, self._repetitions, self._seed = RESULTS / name, repetitions, seed
        self._groups = {settings[0].silos: settings for settings in groups}
        file = self.path.with_suffix(".json")
        kept = {} if fresh or not file.exists() else json.loads(file.read_text())
        done = [group for group in kept.get("groups", []) if self._is_wanted(group)]
        rows = [row for row in kept.get("rows", []) if row["silos"] in {group["silos"] for group in done}]
        self.results: dict[str, Any] = {
            "machine": self._machine(), "seed": seed, "repetitions": repetitions, "groups": done, "rows": rows,
            "parts": kept.get("parts", {}), "memory": kept.get("memory", []), "targets": [],
        }  # fmt: skip

    def groups(self, folder: Path) -> None:
        """All rows, by number of silos; those that are there already are kept."""
        for silos, settings in self._groups.items():
            if any(group["silos"] == silos for group in self.results["groups"]):
                say(f"n = {silos}: there already")
                continue
            say(f"n = {silos}: {len(settings)} settings")
            found = {"machine": self._machine()} | self._facts(silos)
            group, rows = measure_group(settings, self._repetitions, self._seed, folder)
            self.results["groups"].append(group | found)
            self.results["rows"] += rows
            self.save()

    def _facts(self, silos: int) -> dict[str, Any]:
        settings = [asdict(setting) for setting in self._groups[silos]]
        return {"seed": self._seed, "repetitions": self._repetitions, "settings": settings}

    def _is_wanted(self, group: dict[str, Any]) -> bool:
        silos = group["silos"]
        return silos in self._groups and self._facts(silos).items() <= group.items()

    def parts(self, values: int, silos: int, turns: int) -> None:
        """Inner computations, unless they are there."""
        wanted = {"silos": silos, "most": max(self._groups), "values": values, "turns": turns}
        if not wanted.items() <= self.results["parts"].items():
            say("inner computations")
            self.results["parts"] = measure_parts(values, silos, max(self._groups), self._seed, turns)
            self.save()

    def memory(self, values: int) -> None:
        """Peak memory of every approach, a fresh process each, unless it is there."""
        names = (OURS, NVFLARE_NAME, PATH)
        if [(found["approach"], found["values"]) for found in self.results["memory"]] == [(n, values) for n in names]:
            return
        say("memory")
        self.results["memory"] = [memory_of(name, values) for name in names]
        self.save()

    def save(self) -> None:
        """Write the JSON, a record a line."""
        parts = []
        for name, content in self.results.items():
            if isinstance(content, list) and content:
                lines = ",\n".join(json.dumps(item) for item in content)
                parts.append(f'"{name}": [\n{lines}\n]')
            else:
                parts.append(f'"{name}": {json.dumps(content)}')
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("{" + ",\n".join(parts) + "}\n")
        fresh.replace(self.path.with_suffix(".json"))

    def finish(self, command: str) -> str:
        """Targets, markdown and figure; returns the markdown."""
        self.results["targets"] = [vars(line) for line in targets(self.results)]
        self.save()
        text = report(self.results, command)
        self.path.with_suffix(".md").write_text(text)
        draw(self.results, self.path.with_suffix(".png"))
        return text

    @staticmethod
    def _machine() -> dict[str, Any]:
        return {**machine(*PACKAGES), "cores": len(CORES), "load_before": round(os.getloadavg()[0], 2)}


def memory_of(approach: str, values: int) -> dict[str, Any]:
    """What ckks_memory.py measured, or an "error" text."""
    command = [sys.executable, str(HERE / "ckks_memory.py"), approach, str(values)]
    # Memory that is freed goes back to the system at once, so that none lies ready from before the measurement.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        say(f"{shlex.join(command)}: {ended.stderr.strip()}")
        error = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return {"approach": approach, "silos": 0, "values": values, "error": error}
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def numbers(text: str) -> list[float]:
    """A comma-separated list; 1e6 may be written for a whole number."""
    return [float(item) for item in text.split(",")]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 and 10 silos, 300,000 values, one repetition")
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    parser.add_argument("--silos", type=numbers, help="numbers of silos, with commas")
    parser.add_argument("--values", type=float, help="values of the model, before pruning")
    parser.add_argument("--sparsity", type=numbers, help="parts of the values pruned, with commas; 0 is always there")
    parser.add_argument("--repetitions", type=int, default=3, help="sums a row; fewer with many silos")
    parser.add_argument("--seed", type=int, default=0, help="of the values and their rounding")
    given = parser.parse_args()
    given.own = any(option is not None for option in (given.silos, given.values, given.sparsity))
    usual_silos, usual_values = (QUICK_SILOS, QUICK_VALUES) if given.quick else (SILOS, VALUES)
    given.silos = sorted({int(number) for number in given.silos or usual_silos})
    given.values, given.sparsity = int(given.values or usual_values), sorted({0.0, *(given.sparsity or SPARSITY)})
    if given.silos[0] < 3 or not 0 <= given.sparsity[0] <= given.sparsity[-1] < 1 or given.values < 1:
        parser.error("a sum takes three silos or more, values to sum, and sparsities within 0..1")
    return given


def main() -> None:
    """Measure and write the tables."""
    given = arguments()
    os.sched_setaffinity(0, {max(CORES)})
    RESULTS.mkdir(exist_ok=True)
    repetitions = 1 if given.quick else given.repetitions
    groups = [settings_of(silos, given.values, given.sparsity) for silos in given.silos]
    estimate = guess_seconds([setting for group in groups for setting in group], repetitions) + 60
    say(f"{sum(map(len, groups))} rows; about {estimate / 60:.0f} minutes on a core of 2.6 GHz")
    name = "ckks-custom" if given.own else "ckks-quick" if given.quick else "ckks"
    run, began = Run(name, groups, repetitions=repetitions, seed=given.seed, fresh=given.fresh), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run.groups(Path(folder))
    run.parts(given.values, PEER_SILOS, 2 if given.quick else 5)
    say(f"all times taken after {time.perf_counter() - began:.0f} s")
    run.memory(given.values)
    print(run.finish(shlex.join(["python", "benchmarks/ckks.py", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
