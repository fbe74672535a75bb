"""The settings benchmarks/secagg.py measures, and how one of them is measured."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secagg_bounds import coordinator_times, information_bytes, silo_times
from secagg_federation import Federation, Round, update_channel

from autoflip_secure.parties.rules import share_threshold
from autoflip_secure.secagg.graph import MAX_COMPLETE
from autoflip_secure.sums.encoding import word_count

__all__ = ["SLOTS", "Setting", "full_settings", "guess_seconds", "measure_group", "quick_settings", "silo_seconds"]

SLOTS = 64
ROUND = ("masked", "confirm", "unmask")
SPARSE_HOLDERS = 70


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes
    ----------
    silos, coordinates, bits : int
    dropout : float
        Part of the silos that is gone before stage masked, rounded down.
    sparsity : float
        Part of the coordinates that is pruned, hence not sent.
    """

    silos: int
    coordinates: int
    dropout: float = 0.0
    sparsity: float = 0.0
    bits: int = 16

    @property
    def live(self) -> int:
        """Coordinates that are sent."""
        return max(1, round((1 - self.sparsity) * self.coordinates))

    @property
    def dropped(self) -> tuple[int, ...]:
        """The silos that drop."""
        return tuple(range(1, int(self.dropout * self.silos + 1e-9) + 1))

    @property
    def possible(self) -> bool:
        """Whether enough silos stay for the threshold, and any drop where some are to."""
        enough = self.silos - len(self.dropped) >= share_threshold(self.silos)
        return enough and (self.dropout == 0 or bool(self.dropped))

    def __str__(self) -> str:
        return (
            f"n = {self.silos}, d = {self.coordinates}, {self.bits} bits, "
            f"{self.dropout:.0%} dropped, {self.sparsity:.0%} pruned"
        )


def quick_settings() -> list[Setting]:
    """Every target up to 10^6 coordinates."""
    return [
        *(Setting(10, d) for d in (10**4, 10**5, 10**6)),
        Setting(10, 10**6, 0.1),
        Setting(10, 10**6, 0.3),
        Setting(10, 10**6, 0.0, 0.8),
        Setting(10, 10**6, bits=20),
        Setting(3, 10**5),
        Setting(30, 10**5),
        Setting(100, 10**5),
        Setting(100, 10**5, 0.3),
    ]


def full_settings() -> list[Setting]:
    """Slices by size, by silos and dropouts, and by sparsity; and the sparse share graph."""
    slices = [
        *(Setting(10, 10**power) for power in range(4, 9)),
        *(Setting(n, d, drop) for n in (3, 10, 30, 100) for d in (10**5, 10**6) for drop in (0.0, 0.1, 0.3)),
        *(Setting(10, 10**6, drop, pruned) for pruned in (0.5, 0.8) for drop in (0.0, 0.3)),
        Setting(10, 10**6, bits=20),
        *(Setting(1000, 10**4, drop) for drop in (0.0, 0.1)),
        Setting(1000, 10**5),
    ]
    return [setting for setting in dict.fromkeys(slices) if setting.possible]


def repetitions_of(setting: Setting, wanted: int) -> int:
    """Fewer for what takes long."""
    if setting.silos > MAX_COMPLETE:
        return 1
    work = setting.silos * setting.live
    return min(wanted, 2) if work > 5 * 10**8 or setting.silos >= 100 else wanted


def guess_seconds(settings: Iterable[Setting], wanted: int) -> float:
    """Rough duration on a core of 2.6 GHz, s: set-up by silos, and rounds by silos, masks and words."""
    settings, total = list(settings), 0.0
    for n in {setting.silos for setting in settings}:
        total += 0.00018 * n * n if n <= MAX_COMPLETE else 0.35 * n
        total += 2 * 0.1 * n if n > MAX_COMPLETE else 0.02 * n
    for setting in settings:
        n, words = setting.silos, setting.live / (3 if setting.silos < 32 else 2)
        masks = min(n, 2 * SPARSE_HOLDERS)
        one = n * (2.5e-9 * words * (masks + 20) + (0.02 if n <= MAX_COMPLETE else 0.1))
        one += 2.5e-9 * words * n * (1 + len(setting.dropped))
        total += one * repetitions_of(setting, wanted) + 1.5 + 40e-9 * words * masks
    return total


def silo_seconds(costs: Iterable[Round], stage: str) -> float:
    """A silo's time in a stage: median over the silos, of the best repetition, s."""
    return min(statistics.median(cost.stages[stage].seconds.values()) for cost in costs)


def _bytes_of(cost: Round, direction: str, stages: Iterable[str]) -> dict[str, int]:
    return {stage: round(statistics.mean(getattr(cost.stages[stage], direction).values())) for stage in stages}


def _setup_record(silos: int, first: Round, second: Round, seconds: float) -> dict[str, Any]:
    """Key set-up a silo; the delivery is what the first stage masked had more than the second."""

    def middle(cost: Round, stage: str, clock: str) -> float:
        return statistics.median(getattr(cost.stages[stage], clock).values())

    record: dict[str, Any] = {"silos": silos, "slots": SLOTS, "seconds_of_everybody": seconds}
    for clock in ("cpu", "seconds"):
        by_stage = {stage: middle(first, stage, clock) for stage in ("advertise", "share")}
        by_stage["delivery"] = max(0.0, middle(first, "masked", clock) - middle(second, "masked", clock))
        record[clock] = by_stage
    for direction in ("up", "down"):
        record[direction] = _bytes_of(first, direction, ("advertise", "share"))
        delivered = _bytes_of(first, direction, ("masked",))["masked"]
        record[direction]["delivery"] = delivered - _bytes_of(second, direction, ("masked",))["masked"]
    early = [first.stages[stage] for stage in ("advertise", "share")]
    record["coordinator"] = sum(s.prepare + s.read for s in early) + first.stages["masked"].prepare
    return record


def _round_record(costs: list[Round]) -> dict[str, Any]:
    # A round in which keys were made anew carries deliveries: its requests are not a round's own.
    usual = min(costs, key=lambda cost: sum(cost.stages["masked"].down.values()))
    return {
        "silo": {stage: silo_seconds(costs, stage) for stage in ROUND},
        "coordinator": {
            "receive": min(cost.stages["masked"].read for cost in costs),
            "confirm": min(cost.stages["confirm"].prepare + cost.stages["confirm"].read for cost in costs),
            "unmask_messages": min(cost.stages["unmask"].prepare + cost.stages["unmask"].read for cost in costs),
            "open": min(cost.opening for cost in costs),
            "total": min(cost.coordinator for cost in costs),
        },
        "up": _bytes_of(usual, "up", ROUND),
        "down": _bytes_of(usual, "down", ROUND),
        "repetitions": len(costs),
        "silos_in_the_sum": len(costs[0].silos),
        "exact": True,
    }


def _add_bounds(record: dict[str, Any], setting: Setting, federation: Federation) -> None:
    """The same words by themselves, beside what no protocol of this kind can go below."""
    n, channel = setting.silos, update_channel(setting.live, setting.bits)
    words, budget = word_count((channel,), n), 1.0
    record["words"] = words
    record["bounds"] = {"bytes": information_bytes(setting.live, setting.bits, n)}
    # On the sparse graph a silo has a different number of peers, so there is no one figure to compare with.
    if n > MAX_COMPLETE:
        return
    silo = silo_times(federation.values(n, setting.live), channel, n, n, budget)
    record["silo"]["encode_mask"] = silo["encode_mask"]
    coordinator = coordinator_times(words, n, len(setting.dropped), budget)
    record["coordinator"]["arithmetic"] = coordinator.pop("arithmetic")
    record["bounds"] |= {"keystream": silo["keystream"], **coordinator}


def measure_group(
    settings: list[Setting], repetitions: int, seed: int, folder: Path, save: Callable[[dict[str, Any]], None]
) -> None:
    """All rows of one number of silos: they share a federation and take turns; a row that fails leaves the others.

    Parameters
    ----------
    save : callable
        save(record) for the set-up (it has a key "slots") and for each row (a key "setting").
    """
    n = settings[0].silos
    with tempfile.TemporaryDirectory(dir=folder) as databases:
        federation = Federation(n, Path(databases), slots=SLOTS, seed=seed)
        try:
            began, channel = time.perf_counter(), update_channel(settings[0].live, settings[0].bits)
            first, second = federation.set_up(channel if n > MAX_COMPLETE else None)
            took = time.perf_counter() - began
            save(_setup_record(n, first, second, took))
            print(f"n = {n}: keys made in {took:.0f} s", file=sys.stderr, flush=True)
            costs: dict[Setting, list[Round]] = {setting: [] for setting in settings}
            if n > MAX_COMPLETE:
                costs[settings[0]].append(second)
            failed = _take_turns(federation, costs, repetitions)
            for setting in settings:
                record: dict[str, Any] = {
                    "setting": asdict(setting),
                    "live": setting.live,
                    "dropped": len(setting.dropped),
                }
                try:
                    if setting not in failed:
                        record |= _round_record(costs[setting])
                        _add_bounds(record, setting, federation)
                except Exception as error:
                    failed[setting] = _told(setting, error)
                save(record | ({"error": failed[setting]} if setting in failed else {}))
        finally:
            federation.close()


def _take_turns(federation: Federation, costs: dict[Setting, list[Round]], repetitions: int) -> dict[Setting, str]:
    failed: dict[Setting, str] = {}
    most = max(repetitions_of(setting, repetitions) for setting in costs)
    for turn in range(most):
        print(f"n = {len(federation.silos)}: turn {turn + 1} of {most}", file=sys.stderr, flush=True)
        for setting, done in costs.items():
            if setting in failed or len(done) >= repetitions_of(setting, repetitions):
                continue
            try:
                done.append(federation.sum(update_channel(setting.live, setting.bits), setting.dropped))
            except Exception as error:
                federation.problems.clear()
                failed[setting] = _told(setting, error)
    return failed


def _told(setting: Setting, error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    print(f"{setting}: failed, {text}", file=sys.stderr, flush=True)
    return text
