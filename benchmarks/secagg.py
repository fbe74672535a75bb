"""`make bench-secagg`: secure aggregation beside its bounds and peers: time, bytes and memory, in one run.

    python benchmarks/secagg.py [--quick] [--silos 3,10 --coordinates 10000,1e6 --dropout 0,0.3 --sparsity 0,0.8]

Writes results/secagg.json (settings, seed, machine, every figure), secagg.md (targets and tables, with what is counted
in a figure) and secagg.png. `--quick` writes secagg-quick.*, a choice of your own (the cross product of what you give)
secagg-custom.*. A row that fails is reported and the others go on. About 20 minutes on two cores, `--quick` below five.
"""

from __future__ import annotations

import os

# One core for everything but the line on worker processes; before anything else reads them.
os.environ["AUTOFLIP_MASK_WORKERS"] = "1"
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from machine import machine
from secagg_peers import compare
from secagg_report import draw, report
from secagg_rows import Setting, full_settings, guess_seconds, measure_group, quick_settings
from secagg_targets import targets

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CHILD = HERE / "secagg_child.py"
PACKAGES = ("autoflip-secure", "cryptography", "numpy", "blake3", "flwr", "tenseal")
CORES = os.sched_getaffinity(0)
WORKER_COORDINATES = 3 * 10**7
# Rough seconds of the parts that are not rows: peers by coordinate, a child process by coordinate.
PEER_SECONDS, CHILD_SECONDS = 3.5e-5, 2e-7


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


class Run:
    """The records of one run; each is on disk once it is there."""

    def __init__(self, name: str, options: dict[str, Any], seed: int, folder: Path) -> None:
        self.path, self.folder, self._began = RESULTS / name, folder, time.perf_counter()
        self.results: dict[str, Any] = {
            "machine": {**machine(*PACKAGES), "cores": len(CORES), "load_before": round(os.getloadavg()[0], 2)},
            "options": options, "seed": seed, "setup": [], "rows": [], "peers": [], "memory": [],
            "workers": {}, "targets": [], "seconds": 0.0,
        }  # fmt: skip

    def save(self) -> None:
        """Write the JSON."""
        self.results["seconds"] = time.perf_counter() - self._began
        self.path.with_suffix(".json").write_text(json.dumps(self.results, indent=1) + "\n")

    def rows(self, settings: Sequence[Setting], repetitions: int) -> None:
        """All settings, by number of silos."""
        for n in sorted({setting.silos for setting in settings}):
            mine = [setting for setting in settings if setting.silos == n]
            say(f"[{time.perf_counter() - self._began:.0f} s] n = {n}: key set-up and {len(mine)} rows")
            try:
                measure_group(mine, repetitions, self.results["seed"], self.folder, self._keep)
            except Exception as error:
                say(f"n = {n}: failed, {error}")
                self.results["setup"].append({"silos": n, "error": f"{type(error).__name__}: {error}"})
            self.save()

    def _keep(self, record: dict[str, Any]) -> None:
        self.results["rows" if "setting" in record else "setup"].append(record)
        self.save()

    def peers(self, sizes: Sequence[int], repetitions: int) -> None:
        """Ours and the peers at n = 10."""
        for d in sizes:
            say(f"[{time.perf_counter() - self._began:.0f} s] peers, d = {d}")
            try:
                self.results["peers"] += compare(10, d, repetitions, self.results["seed"], self.folder)
            except Exception as error:
                say(f"peers, d = {d}: failed, {error}")
            self.save()

    def memory(self, sizes: Sequence[int]) -> None:
        """Peak memory, one fresh process a size."""
        for d in sizes:
            say(f"[{time.perf_counter() - self._began:.0f} s] memory, d = {d}")
            self.results["memory"].append({"coordinates": d} | child("memory", str(d), str(self.folder)))
            self.save()

    def workers(self, coordinates: int) -> None:
        """Gain of worker processes."""
        say(f"[{time.perf_counter() - self._began:.0f} s] worker processes")
        self.results["workers"] = {"coordinates": coordinates} | child("workers", str(coordinates))
        self.save()

    def finish(self, command: str) -> str:
        """Targets, markdown and figure; returns the markdown."""
        self.results["targets"] = [vars(line) for line in targets(self.results)]
        self.save()
        text = report(self.results, command)
        self.path.with_suffix(".md").write_text(text)
        draw(self.results, self.path.with_suffix(".png"))
        return text


def child(*arguments: str) -> dict[str, Any]:
    """What secagg_child.py measured, or an "error" text."""
    command = [sys.executable, str(CHILD), *arguments]
    # Memory that is freed goes back to the system at once, so that none lies ready from before the measurement.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}
    # The child may use every core again; only worker processes do.
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=environment if arguments[0] == "memory" else None,
        preexec_fn=lambda: os.sched_setaffinity(0, CORES),
    )
    if ended.returncode:
        say(f"{shlex.join(command)}: {ended.stderr.strip()}")
        return {"error": (ended.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(ended.stdout)


def numbers(text: str, kind: Callable[[float], Any] = float) -> list[Any]:
    """A comma-separated list; 1e6 may be written for a whole number."""
    return [kind(float(item)) for item in text.split(",")]


def chosen(silos: str | None, coordinates: str | None, dropout: str | None, sparsity: str | None) -> list[Setting]:
    """The cross product of what was given; n = 10, d = 10^6 without dropouts and pruning where nothing was."""
    made = [
        Setting(n, d, drop, pruned)
        for n in numbers(silos or "10", int)
        for d in numbers(coordinates or "1e6", int)
        for drop in numbers(dropout or "0")
        for pruned in numbers(sparsity or "0")
    ]
    for setting in made:
        if not setting.possible:
            say(f"{setting}: left out, too few silos stay or none drops")
    return [setting for setting in made if setting.possible]


def prepare_process() -> None:
    """One core, and a file or three for each of 1000 silos."""
    os.sched_setaffinity(0, {max(CORES)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if soft < hard:
        say(f"open files: limit raised from {soft} to {hard}")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="all targets but those above 10^7 coordinates")] = False,
    silos: Annotated[str | None, typer.Option(help="numbers of silos, with commas")] = None,
    coordinates: Annotated[str | None, typer.Option(help="numbers of coordinates, with commas")] = None,
    dropout: Annotated[str | None, typer.Option(help="parts of the silos that drop, with commas")] = None,
    sparsity: Annotated[str | None, typer.Option(help="parts of the coordinates pruned, with commas")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="rounds a row; fewer where they are long")] = 4,
    peers: Annotated[bool, typer.Option(help="measure the peers too")] = True,
    seed: Annotated[int, typer.Option(help="of the vectors and their rounding")] = 0,
) -> None:
    """Measure secure aggregation beside its bounds and peers."""
    own = any(option is not None for option in (silos, coordinates, dropout, sparsity))
    if own:
        settings, name, memory = chosen(silos, coordinates, dropout, sparsity), "secagg-custom", []
    elif quick:
        settings, name, memory = quick_settings(), "secagg-quick", [10**5, 10**6, 10**7]
    else:
        settings, name, memory = full_settings(), "secagg", [10**6, 10**7, 10**8]
    peer_sizes = [10**5, 10**6] if peers and not own else []
    prepare_process()
    RESULTS.mkdir(exist_ok=True)
    estimate = guess_seconds(settings, repetitions) + PEER_SECONDS * sum(peer_sizes) + CHILD_SECONDS * sum(memory) + 20
    say(f"{len(settings)} rows; about {estimate / 60:.1f} minutes on two cores of 2.6 GHz")
    options = {"quick": quick, "repetitions": repetitions, "peers": peers}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(name, options, seed, Path(folder))
        if peer_sizes:
            run.peers(peer_sizes, repetitions)
        run.rows(settings, repetitions)
        if not own:
            run.memory(memory)
            run.workers(WORKER_COORDINATES)
        print(run.finish(shlex.join(["python", "benchmarks/secagg.py", *sys.argv[1:]])))


if __name__ == "__main__":
    typer.run(main)
