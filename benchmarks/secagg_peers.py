"""Our round beside the peers' on the same vectors, in one process, for benchmarks/secagg.py."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from secagg_federation import Federation, Round, silo_values, update_channel
from secagg_rows import SLOTS

sys.path.append(str(Path(__file__).parent / "peers"))

import flower_secagg_plus
import plain_fedavg
import tenseal_ckks
from flwr.common.secure_aggregation.secaggplus_constants import Stage
from peer_round import PeerRound

__all__ = ["OURS", "compare"]

OURS = "SecAgg-S"
# The client's stage that carries the vector, by the peer's first word; it is compared with ours called masked.
VECTOR_STAGES = {"Flower": Stage.COLLECT_MASKED_VECTORS, "TenSEAL": "encrypt", "plain": "serialise"}


def _ours(federation: Federation, setup: Round, length: int, bits: int) -> dict[str, Any]:
    """One round of ours, in the peers' terms; a round bears 1/64 of a key set-up."""
    done = federation.sum(update_channel(length, bits))
    stages = {name: statistics.mean(cost.seconds.values()) for name, cost in done.stages.items()}
    early = [setup.stages[name] for name in ("advertise", "share")]
    client = sum(statistics.mean(cost.seconds.values()) for cost in early)
    # The first stage masked carried the delivery; its vector was tiny.
    client += statistics.mean(setup.stages["masked"].seconds.values())
    server = sum(cost.prepare + cost.read for cost in early) + setup.stages["masked"].prepare
    upload = sum(statistics.mean(cost.up.values()) for cost in done.stages.values())
    shared_upload = sum(statistics.mean(cost.up.values()) for cost in early) / SLOTS
    return {
        "method": f"{OURS}, {bits} bits",
        "client": stages | {"key set-up / 64": client / SLOTS},
        "server": {"all stages": done.coordinator + done.stages["masked"].prepare, "key set-up / 64": server / SLOTS},
        "vector_seconds": stages["masked"],
        "contribution_bytes": round(statistics.mean(done.stages["masked"].up.values())),
        "upload_bytes": round(upload + shared_upload),
        "grid_step": update_channel(length, bits).step,
        "error": None,
    }


def _peer(done: PeerRound, updates: dict[int, NDArray[np.float32]]) -> dict[str, Any]:
    error = done.error(updates)
    if error > done.step:
        raise ArithmeticError(f"{done.peer}: the sum is off by {error}, its encoding explains {done.step}")
    return {
        "method": done.peer,
        "client": done.client_seconds,
        "server": done.server_seconds,
        "vector_seconds": done.client_seconds[VECTOR_STAGES[done.peer.split()[0]]],
        "contribution_bytes": done.contribution_bytes,
        "upload_bytes": done.upload_bytes,
        # Only Flower's encoding is a grid; a rounding is off by less than a step of it.
        "grid_step": done.step / len(done.summed) if done.peer.startswith("Flower") else None,
        "error": error,
    }


def compare(silos: int, length: int, repetitions: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """One record a method: its best round by client and server seconds together.

    Peers that take long run once. One that fails has a "failed" text instead of figures.
    """
    updates = {silo: silo_values(seed, silo, length) for silo in range(1, silos + 1)}
    with tempfile.TemporaryDirectory(dir=folder) as databases:
        federation = Federation(silos, Path(databases), slots=SLOTS, seed=seed)
        try:
            setup, _ = federation.set_up()
            calls: dict[str, tuple[int, Callable[[], dict[str, Any]]]] = {
                f"{OURS}, 16 bits": (repetitions, lambda: _ours(federation, setup, length, 16)),
                f"{OURS}, 20 bits": (repetitions, lambda: _ours(federation, setup, length, 20)),
                "Flower SecAgg+": (repetitions, lambda: _peer(flower_secagg_plus.run_round(updates), updates)),
                "TenSEAL CKKS": (1, lambda: _peer(tenseal_ckks.run_round(updates), updates)),
                "plain FedAvg": (repetitions, lambda: _peer(plain_fedavg.run_round(updates), updates)),
            }
            return _take_turns(calls, silos, length)
        finally:
            federation.close()


def _take_turns(
    calls: dict[str, tuple[int, Callable[[], dict[str, Any]]]], silos: int, length: int
) -> list[dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for turn in range(max(times for times, _ in calls.values())):
        for name, (times, call) in calls.items():
            if turn >= times or "failed" in records.get(name, {}):
                continue
            try:
                found = call()
                found["whole_seconds"] = sum(found["client"].values()) + sum(found["server"].values())
            except Exception as error:
                records[name] = {"failed": f"{type(error).__name__}: {error}"}
                print(f"{name}, d = {length}: failed, {error}", file=sys.stderr, flush=True)
                continue
            best = records.get(name, found)
            vector_seconds = min(found["vector_seconds"], best["vector_seconds"])
            best = min(found, best, key=lambda record: record["whole_seconds"])
            records[name] = best | {"vector_seconds": vector_seconds, "repetitions": turn + 1}
    return [{"name": name, "silos": silos, "coordinates": length, **record} for name, record in records.items()]
