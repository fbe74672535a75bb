"""How many records has a silo? Read from the size of its messages, and from how long it takes to answer.

What the adversary has: what a coordinator receives of a run (`--record-server-view`), and when: a message is written to
disk as it arrives, and silos of this simulation answer one after another, so the time between two messages is what one
silo took, with no network in between to blur it. The silos' sizes are known to the one who scores the attack alone.
"""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from autoflip_secure.attacks.outcome import Attack, Outcome, Scale, proportion_interval
from autoflip_secure.attacks.recorded_view import RecordedView
from autoflip_secure.attacks.settings import SETTINGS
from autoflip_secure.config import RunConfig
from autoflip_secure.data.registry import load
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.provisioning import RunFolder, provision
from autoflip_secure.federation.wire import TRAINING_STAGES

__all__ = [
    "ATTACK",
    "guessed_sizes",
    "prepared_run",
    "rank_correlation",
    "reply_seconds",
    "run_of_sizes",
    "sizes_sent",
    "told_apart",
]

RECORDS = (300, 60, 4000, 110, 2200, 160, 1200, 420, 700, 80, 3000)
"""Records of each silo. The first is left out: its process loads the libraries for all."""

FEATURES = 64
OPTIONS: dict[str, Any] = {
    "colluders": 0, "rounds": 4, "explore_rounds": 1, "model": "mlp", "workers": 0, "evaluations": 2,
    "sampling_rate": 0.2, "evaluate_every": 2,
}  # fmt: skip
VARIANTS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({"aggregation": "none"}, 0.0),
    "sum": ({}, 0.0),
    "sum + DP 8": ({"dp_epsilon": 8.0}, 0.0),
    "sum + DP 1": ({"dp_epsilon": 1.0}, 0.0),
    "sum + DP 8, reply_every": ({"dp_epsilon": 8.0}, 0.25),
    "ckks + DP 8": ({"aggregation": "ckks", "dp_epsilon": 8.0, "reserve": 1.0}, 0.0),
}
"""Options, and the `reply_every` of all silos' policies."""

QUICK = ("plain", "sum", "sum + DP 8", "sum + DP 8, reply_every")
SILO_STAGES = TRAINING_STAGES | {"join"}
SAME = 0.5
"""Score of a pair of silos whose messages are of the same sizes, one by one."""

assert set(SETTINGS) <= set(VARIANTS)


def write_federation(folder: Path, records: Sequence[int], seed: int) -> Path:
    """A folder: data set of silos with so many records each; values and labels depend on the seed."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "dataset.toml").write_text(
        f'task = "classification"\nclasses = [0, 1]\nfeatures = {FEATURES}\nrecords = {sum(RECORDS)}\n'
    )
    for number, count in enumerate(records):
        x = generator.normal(size=(count, FEATURES))
        x[generator.random(x.shape) < 0.05 * (number % 3)] = np.nan
        y = (x[:, 0] > generator.normal()).astype(np.int64)
        (folder / f"silo-{number:02d}").mkdir()
        np.savez(folder / f"silo-{number:02d}" / "train.npz", X=x, y=y)
    return folder


def run_of_sizes(
    options: Mapping[str, Any], run: Path, *, records: Sequence[int] = RECORDS, seed: int = 0, reply_every: float = 0.0
) -> Path:
    """One run of the command line over silos of these sizes, recorded; its folder.

    Parameters
    ----------
    options : mapping
        Fields of `RunConfig`, beside `OPTIONS`.
    reply_every : float
        What every silo sets in its own policy.toml before the run begins.

    Raises
    ------
    RuntimeError
        The run failed; the message is its own.
    """
    prepared_run(options, run, records=records, seed=seed, reply_every=reply_every)
    command = [sys.executable, "-m", "autoflip_secure.sim", "--resume", str(run), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {ended.stderr.strip()}")
    return run


def prepared_run(
    options: Mapping[str, Any], run: Path, *, records: Sequence[int] = RECORDS, seed: int = 0, reply_every: float = 0.0
) -> None:
    """The folders of such a run, which `--resume` begins."""
    data = write_federation(run.with_name(f"{run.name}-data"), records, seed)
    config = RunConfig.create(
        **{**OPTIONS, **options}, dataset=f"folder:{data}", seed=seed, run_dir=run, record_server_view=True
    )
    loaded = load(config.dataset, None, seed)
    folder = RunFolder(run)
    provision(folder, resolve(config, loaded.task, natural_silos=len(records)), loaded)
    for silo in range(1, len(records) + 1):
        policy = silo_folder(run, silo) / "policy.toml"
        lines = [line for line in policy.read_text().splitlines() if not line.startswith("reply_every")]
        policy.write_text("\n".join([f"reply_every = {reply_every}", *lines]) + "\n")


def sizes_sent(run: Path) -> dict[int, list[tuple[Any, ...]]]:
    """By silo, what it sent in order: (what is public of it, bytes of the reply, of the error, of the audit head).

    Public are the stage, and size and minimum of the silo's cohort, as the manifests of that attempt say.
    """
    sent: dict[int, list[tuple[Any, ...]]] = {}
    manifests = [(each.round, each.attempt, each.manifest) for each in RecordedView(run).asked]
    for _, message in _messages(run):
        fields, silo = message["fields"], _sender(message)
        asked = [m for round, attempt, m in manifests if (round, attempt) == (message["round"], message["attempt"])]
        own = [(m, m.cohort_of(silo)) for m in asked]
        public = (message["stage"], *((len(m.cohorts[cohort]), m.minimum[cohort]) for m, cohort in own))
        lengths = (len(fields["reply"]), len(fields["error"]), len(fields["head"]))
        sent.setdefault(silo, []).append((public, *lengths))
    return sent


def reply_seconds(run: Path) -> dict[int, dict[tuple[str, int], list[float]]]:
    """By silo, and stage and length of its answer, seconds from the message before to each such answer.

    Only stages that use records.
    """
    found: dict[int, dict[tuple[str, int], list[float]]] = {}
    before: tuple[str, float] = ("", 0.0)
    for time, message in _messages(run):
        stage = f"{message['stage']} {message['round']} {message['attempt']}"
        # The coordinator's own work lies before the first answer of a stage.
        if message["stage"] in SILO_STAGES and before[0] == stage:
            kind = (message["stage"], len(message["fields"]["reply"]))
            found.setdefault(_sender(message), {}).setdefault(kind, []).append(time - before[1])
        before = (stage, time)
    return found


def guessed_sizes(run: Path) -> dict[int, float]:
    """A figure by silo in whose order they are guessed to be: the least time of the most usual kind of answer.

    The least, since whatever else a machine does only adds to it.
    """
    seconds = reply_seconds(run)
    counts = Counter(kind for each in seconds.values() for kind, times in each.items() for _ in times)
    usual, _ = counts.most_common(1)[0]
    return {silo: min(kinds[usual]) for silo, kinds in seconds.items() if usual in kinds}


def rank_correlation(guessed: Sequence[float], true: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 95 % interval by Fisher's transformation (Bonett and Wright 2000)."""
    from scipy.stats import spearmanr

    value = float(spearmanr(guessed, true).statistic) if len(set(guessed)) > 1 else 0.0
    bounded = math.copysign(min(abs(value), 1 - 1e-6), value)
    half = 1.96 * math.sqrt((1 + bounded**2 / 2) / (len(true) - 3))
    return value, min(value, math.tanh(math.atanh(bounded) - half)), max(value, math.tanh(math.atanh(bounded) + half))


def told_apart(sent: Mapping[int, Any], records: Mapping[int, int]) -> list[float]:
    """For each pair of silos one of which has three times the other's records: 1 where the one with more bytes does.

    One half where both sent the same, message by message; messages of which different things are public are left out.
    """
    scores = []
    for small, large in product(records, records):
        if 3 * records[small] <= records[large]:
            both = [(a, b) for a, b in zip(sent[small], sent[large], strict=True) if a[0] == b[0]]
            one, other = ([size for pair in both for size in pair[side][1:]] for side in (0, 1))
            scores.append(SAME if one == other else float(sum(other) > sum(one)))
    return scores


def _messages(run: Path) -> list[tuple[float, dict[str, Any]]]:
    """(seconds since 1970, message), in order of arrival."""
    paths = sorted((run / "server_view").glob("[0-9]*.msgpack"))
    return [(path.stat().st_mtime_ns / 1e9, msgpack.unpackb(path.read_bytes())) for path in paths]


def _sender(message: dict[str, Any]) -> int:
    """Who sent it; a silo says who it is in its answer to a join."""
    return int(message["from"] or msgpack.unpackb(message["fields"]["reply"]))


def _run(scale: Scale) -> Iterator[Outcome]:
    records = {number: count * 4 // 5 for number, count in enumerate(RECORDS, start=1)}  # a fifth is held back
    for setting in QUICK if scale.quick else VARIANTS:
        options, every = VARIANTS[setting]
        scores, guesses, true = [], [], []
        for seed in range(1 if scale.quick else 3):
            run = run_of_sizes(options, scale.work / f"{setting} {seed}", seed=seed, reply_every=every)
            scores += told_apart(sizes_sent(run), records)
            guessed = guessed_sizes(run)
            silos = [silo for silo in sorted(guessed) if silo > 1]
            guesses += [guessed[silo] for silo in silos]
            true += [float(records[silo]) for silo in silos]
        differ = sum(score != SAME for score in scores)
        yield Outcome(
            "record count from message sizes", setting, "pairs of silos whose messages differ in size at all",
            *proportion_interval(differ, len(scores)), len(scores), 0.0, 0.0, "sizes depend on public values only",
        )  # fmt: skip
        yield Outcome(
            "record count from reply times", setting, "rank correlation", *rank_correlation(guesses, true),
            len(true), 0.0, note="" if every else "nothing is promised with reply_every = 0",
        )  # fmt: skip


ATTACK = Attack("side-channels", "side-channels.md", _run)
