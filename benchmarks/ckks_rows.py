"""The settings benchmarks/ckks.py measures, and how those of one number of silos are measured in turn."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckks_federation import CKKS, MASKED, Protocol, TimedSums
from ckks_peers import NVFLARE, TUTORIAL, Chain, SharedKeyRound, SharedKeySums
from secagg_federation import TINY, Round, StageCost, silo_values, update_channel

from autoflip_secure.ckks.packing import polynomials_of
from autoflip_secure.ckks.parameters import DEGREE, parameters_for
from autoflip_secure.sums.encoding import word_count

__all__ = ["BITS", "CHAINS", "OURS", "PATH", "SLOTS", "Setting", "guess_seconds", "measure_group", "repetitions_of"]

BITS = 16
SLOTS = 64
OURS, PATH = "CKKS, a key a silo", "masked (SecAgg-S)"
PROTOCOLS = {OURS: CKKS, PATH: MASKED}
CHAINS = {f"{chain.name} {list(chain.sizes)}": chain for chain in (NVFLARE, TUTORIAL)}
# Enough answers of silos for a median: a round of many silos has as many as several rounds of few.
ENOUGH_ANSWERS = 30
Record = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes
    ----------
    approach : str
        OURS, PATH or one of CHAINS.
    silos, values : int
    sparsity : float
        Part of the values that is pruned, hence not sent.
    """

    approach: str
    silos: int
    values: int
    sparsity: float = 0.0

    @property
    def live(self) -> int:
        """Values that are sent."""
        return max(1, round((1 - self.sparsity) * self.values))


def repetitions_of(silos: int, wanted: int) -> int:
    """Fewer for many silos, since every silo's answer counts."""
    return max(1, min(wanted, ENOUGH_ANSWERS // silos))


def guess_seconds(settings: Iterable[Setting], wanted: int) -> float:
    """Rough duration on a core of 2.6 GHz, s."""
    each = {OURS: 1.5e-6, PATH: 0.1e-6} | dict.fromkeys(CHAINS, 1.8e-6)
    return sum(
        each[setting.approach] * setting.live * setting.silos * repetitions_of(setting.silos, wanted)
        for setting in settings
    )


def measure_group(settings: Sequence[Setting], wanted: int, seed: int, folder: Path) -> tuple[Record, list[Record]]:
    """Key set-ups and rows of one number of silos; all settings take turns, so that other load falls on all alike.

    Raises as `TimedSums.sum` and `SharedKeySums.sum`: a sum that is wrong ends the benchmark.
    """
    n, began = settings[0].silos, time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as databases:
        sums = {}
        try:
            for name, protocol in PROTOCOLS.items():
                place = Path(databases) / str(len(sums))
                sums[name] = TimedSums(protocol, n, place, slots=SLOTS, seed=seed)
            tiny = update_channel(TINY, BITS)
            set_up = {
                name: _set_up_record(PROTOCOLS[name], half.sum(tiny), half.sum(tiny)) for name, half in sums.items()
            }
            calls = {setting: _call(setting, sums, seed) for setting in settings}
            costs = _take_turns(calls, repetitions_of(n, wanted))
        finally:
            for half in sums.values():
                half.close()
    rows = [_record(setting, seed, found) for setting, found in costs.items()]
    return {"silos": n, "slots": SLOTS, "set_up": set_up, "seconds": time.perf_counter() - began}, rows


def _call(setting: Setting, sums: Mapping[str, TimedSums], seed: int) -> Callable[[], Round | SharedKeyRound]:
    if setting.approach in sums:
        channel = update_channel(setting.live, BITS)
        return lambda: sums[setting.approach].sum(channel)
    shared = SharedKeySums(CHAINS[setting.approach])
    # Once outside of what is timed: SEAL's memory pools are filled then.
    shared.sum({1: silo_values(seed, 1, TINY)})
    return lambda: shared.sum({silo: silo_values(seed, silo, setting.live) for silo in range(1, setting.silos + 1)})


def _take_turns(calls: Mapping[Setting, Callable[[], Any]], times: int) -> dict[Setting, list[Any]]:
    costs: dict[Setting, list[Any]] = {setting: [] for setting in calls}
    for turn in range(times):
        for setting, call in calls.items():
            began = time.perf_counter()
            costs[setting].append(call())
            took = time.perf_counter() - began
            print(f"turn {turn + 1} of {times}, {setting}: {took:.1f} s", file=sys.stderr, flush=True)
    return costs


def _record(setting: Setting, seed: int, costs: Sequence[Any]) -> Record:
    facts = {**asdict(setting), "live": setting.live, "bits": BITS, "seed": seed, "repetitions": len(costs)}
    if setting.approach == OURS:
        return facts | {"parameters": _parameters(setting)} | _sum_record(CKKS, costs)
    if setting.approach == PATH:
        words = word_count((update_channel(setting.live, BITS),), setting.silos)
        return facts | {"parameters": {"words": words}} | _sum_record(MASKED, costs)
    return facts | {"parameters": _chain_facts(CHAINS[setting.approach])} | _shared_key_record(costs)


def _parameters(setting: Setting) -> Record:
    channels = (update_channel(setting.live, BITS),)
    chosen = parameters_for(channels, setting.silos)
    return {
        "degree": DEGREE,
        "modulus_bits": chosen.modulus_bits,
        "coefficient_bytes": chosen.coefficient_bytes,
        "scale": chosen.scale,
        "smudging_steps": chosen.smudging,
        "smudging_ratio": chosen.smudging_ratio,
        "field_bits": chosen.width,
        "ciphertexts": polynomials_of(channels, setting.silos),
    }


def _chain_facts(chain: Chain) -> Record:
    return {"degree": 8192, "coeff_mod_bit_sizes": chain.sizes, "scale": 2.0**40, "symmetric": chain.symmetric}


def _pooled(costs: Iterable[StageCost], clock: str) -> float:
    """Median over all answers of all silos, s."""
    return statistics.median([value for cost in costs for value in getattr(cost, clock).values()])


def _sum_record(protocol: Protocol, costs: Sequence[Round]) -> Record:
    def stage(name: str) -> list[StageCost]:
        return [cost.stages[name] for cost in costs]

    def size(name: str, way: str) -> int:
        return round(statistics.mean(getattr(costs[-1].stages[name], way).values()))

    silos = len(costs[0].silos)
    coordinator = {
        f"a silo's {name}": statistics.median(cost.read for cost in stage(name)) / silos for name in protocol.stages
    }
    coordinator["requests"] = statistics.median(
        sum(cost.stages[name].prepare for name in protocol.stages) for cost in costs
    )
    coordinator["read"] = statistics.median(cost.opening for cost in costs)
    return {
        "client": {name: _pooled(stage(name), "seconds") for name in protocol.stages},
        "client_cpu": {name: _pooled(stage(name), "cpu") for name in protocol.stages},
        "client_cpu_by_turn": [
            sum(statistics.median(cost.stages[name].cpu.values()) for name in protocol.stages) for cost in costs
        ],
        "coordinator": coordinator,
        "coordinator_total": statistics.median(
            cost.opening + sum(cost.stages[name].prepare + cost.stages[name].read for name in protocol.stages)
            for cost in costs
        ),
        "up": {name: size(name, "up") for name in protocol.stages},
        "down": {name: size(name, "down") for name in protocol.stages},
        "exact": True,
    }


def _shared_key_record(costs: Sequence[SharedKeyRound]) -> Record:
    add = statistics.median(value for cost in costs for value in cost.add)
    finish = statistics.median(cost.finish for cost in costs)
    return {
        "client": {
            "encrypt": statistics.median(value for cost in costs for value in cost.encrypt),
            "decrypt": statistics.median(cost.decrypt for cost in costs),
        },
        "client_cpu": {
            "encrypt": statistics.median(value for cost in costs for value in cost.encrypt_cpu),
            "decrypt": statistics.median(cost.decrypt_cpu for cost in costs),
        },
        "coordinator": {"a silo's encrypt": add, "finish": finish},
        "coordinator_total": statistics.median(sum(cost.add) + cost.finish for cost in costs),
        "up": {"encrypt": round(statistics.mean(value for cost in costs for value in cost.up))},
        "down": {"aggregate": round(statistics.mean(cost.down for cost in costs))},
        "exact": False,
        "error": max(cost.error for cost in costs),
    }


def _set_up_record(protocol: Protocol, first: Round, second: Round) -> Record:
    """Keys for `SLOTS` sums: what the stages before the first sum take, and what its first stage has on top."""
    stages = [name for name in first.stages if name not in protocol.stages]
    delivery = protocol.stages[0]

    def middle(cost: Round, name: str, clock: str) -> float:
        return _pooled([cost.stages[name]], clock)

    def size(cost: Round, name: str, way: str) -> float:
        return statistics.mean(getattr(cost.stages[name], way).values())

    record: Record = {}
    for clock in ("seconds", "cpu"):
        record[clock] = {name: middle(first, name, clock) for name in stages}
        record[clock]["delivery"] = max(0.0, middle(first, delivery, clock) - middle(second, delivery, clock))
    for way in ("up", "down"):
        record[way] = {name: round(size(first, name, way)) for name in stages}
        record[way]["delivery"] = round(size(first, delivery, way) - size(second, delivery, way))
    record["coordinator"] = sum(first.stages[name].prepare + first.stages[name].read for name in stages)
    record["tiny_sum"] = {name: middle(second, name, "seconds") for name in protocol.stages}
    record["tiny_sum_cpu"] = {name: middle(second, name, "cpu") for name in protocol.stages}
    return record
