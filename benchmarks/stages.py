"""`make bench-stages`: seconds of a round and where they go, with three SuperNodes on this machine, before and after.

    python benchmarks/stages.py [--rounds 8] [--quick]

The same coordinator, silos, TLS and node authentication three times:

- alone    in one process, without a network: what silos and coordinator compute
- plain    Flower as it comes: a process is started for every message, which imports what it needs
- worker   what `autoflip-secure silo up` runs: one worker a silo that stays, and a SuperNode that looks more often

Overhead is a round's seconds less those of `alone`. Writes results/stages.{json,md}, with --quick stages-quick.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine
from run_table import RESULTS
from sklearn.datasets import load_breast_cancer

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoflip_secure import deployment
from autoflip_secure.config import RunConfig
from autoflip_secure.deployment.deployed_run import DeployedRun, create_run
from autoflip_secure.deployment.flower import (
    FlowerControl,
    flower_environment,
    superlink_command,
    supernode_command,
)
from autoflip_secure.federation.code_digest import code_digest
from tests.end_to_end.deployment_harness import PROGRAM, Deployment, free_port, until

SILOS = ("a", "b", "c")
OPTIONS: dict[str, Any] = {"dp_epsilon": 8.0, "colluders": 0, "prune": "none", "evaluations": 1, "bits": 18}
PLAIN_APP = Path(__file__).parent / "stages_app"
WORKER_APP = Path(deployment.__file__).parent / "flower_app"
STAGES = ("masked", "confirm", "unmask")
POLICY = f'approval = "standing"\nmodels = ["mlp"]\ncode = ["{code_digest().hex()}"]\nepsilon = 16.0\n'

Processes = list[subprocess.Popen[bytes]]


def start(processes: Processes, home: Path, name: str, command: tuple[str, ...]) -> None:
    """Start a process of a home."""
    (home / "flower").mkdir(exist_ok=True)
    with (home / "flower" / f"{name}.log").open("ab") as log:
        started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=flower_environment(home))
    processes.append(started)


def plain_silo(processes: Processes, home: Path, port: int) -> None:
    """Flower's SuperNode as it comes."""
    command = (
        str(Path(sys.executable).parent / "flower-supernode"),
        "--superlink", f"127.0.0.1:{port}", "--root-certificates", str(home / "ca.pem"),
        "--auth-supernode-private-key", str(home / "node.key"),
        "--node-config", f'home="{home}"', "--host", "127.0.0.1", "--port", str(free_port()),
    )  # fmt: skip
    start(processes, home, "supernode", command)


def worker_silo(processes: Processes, home: Path, port: int) -> None:
    """What `silo up` starts."""
    secret, local = home / "flower" / "worker.secret", free_port()
    (home / "flower").mkdir(exist_ok=True)
    secret.write_bytes(os.urandom(32))
    start(processes, home, "supernode", supernode_command(home, f"127.0.0.1:{port}", local, secret))
    command = (sys.executable, "-m", "autoflip_secure.deployment.silo_worker", "--home", str(home))
    start(processes, home, "worker", (*command, "--address", f"127.0.0.1:{local}", "--secret-file", str(secret)))


def deployed(made: Deployment, rounds: int, silo: Callable[[Processes, Path, int], None], app: Path) -> DeployedRun:
    """One run on a SuperLink and three SuperNodes."""
    processes: Processes = []
    control = FlowerControl(made.coordinator, made.port)
    try:
        start(processes, made.coordinator, "superlink", superlink_command(made.coordinator, "127.0.0.1", made.port))
        control.configure()
        until(lambda: _answers(control), "the SuperLink answers")
        # Those of a run before are taken for connected until their heartbeats are overdue, and refused until then.
        until(lambda: all(node["status"] != "online" for node in control.nodes()), "nodes of before are gone")
        for name in made.names:
            _register(control, made.silo(name))
            silo(processes, made.silo(name), made.port)
        until(lambda: sum(n["status"] == "online" for n in control.nodes()) == len(made.names), "silos are online")
        chosen = {**OPTIONS, "rounds": rounds, "join_timeout": 120.0, "stage_timeout": 120.0}
        config = RunConfig.model_construct(_fields_set=set(chosen), **dict(RunConfig.create(**chosen)))
        run = create_run(made.coordinator, config, f"run-{time.time_ns()}", "stages")
        run.want()
        control.start(app, {"run": run.name})
        until(lambda: run.state() != "wanted", "the run has ended", 1200)
        assert run.state() == "finished", run.failure()
        return run
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _answers(control: FlowerControl) -> bool:
    try:
        control.nodes()
    except Exception:
        return False
    return True


def _register(control: FlowerControl, home: Path) -> None:
    public = home / "node.pub"
    made = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(home / "node.key")], capture_output=True, text=True, check=True
    )
    public.write_text(made.stdout)
    control.register(public, home.name)


def alone(folder: Path, rounds: int) -> Path:
    """The same run inside one process; its events."""
    command = [PROGRAM, "sim", "--dataset", f"folder:{folder}", "--workers", "0", "--quiet", "--rounds", str(rounds)]
    for name, value in OPTIONS.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    subprocess.run([*command, "--run-dir", str(folder.parent / "alone")], check=True)
    return folder.parent / "alone" / "events.jsonl"


def figures(events: Path) -> dict[str, Any]:
    """Median seconds of each stage, of rounds after the first, and of all three together."""
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    stages = [line for line in lines if line["event"] == "stage" and line["round"] >= 1]
    found = {name: [line["seconds"] for line in stages if line["stage"] == name] for name in STAGES}
    median = {name: round(statistics.median(values), 3) for name, values in found.items()}
    return {"stages": median, "round": round(sum(median.values()), 3), "messages": len(stages)}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table."""
    base = rows["alone"]["round"]
    lines = [
        "# Seconds of a round, and where they go",
        "",
        "Three silos, a SuperLink and three SuperNodes on one machine, over TLS with authenticated nodes; DP through "
        "the secure sum. Medians of the rounds after the first. `alone`: the same in one process without a network, "
        "which is what silos and coordinator compute. Process starts are counted by the processes themselves.",
        "",
        "| | masked s | confirm s | unmask s | a round s | overhead s | process starts a round | "
        "s from a process's start to its first line of ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        stages = " | ".join(f"{row['stages'][stage]:.2f}" for stage in STAGES)
        over = "" if name == "alone" else f"{row['round'] - base:.2f}"
        age = f"{row['start']:.2f}" if row.get("start") else ""
        lines.append(f"| {name} | {stages} | {row['round']:.2f} | {over} | {row['starts']:.1f} | {age} |")
    before, after = (rows[name]["round"] - base for name in ("plain", "worker"))
    lines += ["", f"Overhead before {before:.2f} s, after {after:.2f} s: {before / after:.1f} times less.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="three rounds: about four minutes")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    x, y = load_breast_cancer(return_X_y=True)
    scaled = (x - x.mean(0)) / x.std(0)
    tables = {name: (scaled[i::3], y[i::3]) for i, name in enumerate(SILOS)}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        made = Deployment(Path(temporary), SILOS)
        made.found(tables, POLICY)
        data = Path(temporary) / "data"
        for name in SILOS:
            (data / name).mkdir(parents=True)
            (data / name / "train.csv").write_text((made.folder / f"{name}-export" / "train.csv").read_text())
        (data / "dataset.toml").write_text(f'task = "classification"\nclasses = [0, 1]\nfeatures = {x.shape[1]}\n')
        rows["alone"] = {**figures(alone(data, rounds)), "starts": 0.0}
        print(rows, file=sys.stderr)
        rows["plain"] = figures(deployed(made, rounds, plain_silo, PLAIN_APP).events)
        started = [
            json.loads(line)
            for name in SILOS
            for line in (made.silo(name) / "processes.jsonl").read_text().splitlines()
        ]
        per_round = len({line["pid"] for line in started if line["stage"] in STAGES}) / (rounds + 2)
        rows["plain"] |= {"starts": per_round, "start": statistics.median(line["start"] for line in started)}
        print(rows, file=sys.stderr)
        rows["worker"] = {**figures(deployed(made, rounds, worker_silo, WORKER_APP).events), "starts": 0.0}
    path = RESULTS / ("stages-quick" if arguments.quick else "stages")
    text = markdown(rows) + f"\nMade by `python benchmarks/stages.py` on {json.dumps(machine('flwr'))}.\n"
    path.with_suffix(".json").write_text(
        json.dumps({"machine": machine("flwr"), "rounds": rounds, "rows": rows}, indent=1)
    )
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
