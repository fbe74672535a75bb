"""The targets of benchmarks/secagg.py, worked out from the records of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Target", "find_row", "targets"]

Results = dict[str, Any]
# What a process may take more for the longest vector than for the shortest and still be called constant, bytes.
SLACK_BYTES = 4 << 20
MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """One line of the table; `met` is None where a figure is only reported."""

    name: str
    figure: str
    limit: str
    met: bool | None


def find_row(results: Results, silos: int, coordinates: int, **other: float) -> dict[str, Any]:
    """The row of a setting.

    Raises
    ------
    LookupError
        It was not measured, or failed.
    """
    wanted = {"silos": silos, "coordinates": coordinates, "dropout": 0.0, "sparsity": 0.0, "bits": 16} | other
    for row in results["rows"]:
        if row["setting"] == wanted and "error" not in row:
            return row
    raise LookupError(f"no row for n = {silos}, d = {coordinates}, {other}")


def ratio(name: str, value: float, limit: float) -> Target:
    """A figure that is not to exceed its limit."""
    return Target(name, f"{value:.4g}", f"≤ {limit:g}", value <= limit)


def faster(name: str, value: float, limit: float) -> Target:
    """A figure that is to reach its limit."""
    return Target(name, f"{value:.4g}", f"≥ {limit:g}", value >= limit)


def encode_and_mask(results: Results) -> list[Target]:
    """Silo time over the bare keystream, and bytes over the information bound."""
    row = find_row(results, 10, 10**6)
    time = row["silo"]["encode_mask"] / row["bounds"]["keystream"]
    return [
        ratio("encode + mask over bare keystream (d = 10^6, n = 10, one core)", time, 2),
        ratio("masked upload over information bound", row["up"]["masked"] / row["bounds"]["bytes"], 1.07),
        ratio("whole round's upload over information bound", sum(row["up"].values()) / row["bounds"]["bytes"], 1.07),
    ]


def coordinator(results: Results) -> list[Target]:
    """The coordinator's time without and with dropouts."""
    plain, dropped = find_row(results, 10, 10**6), find_row(results, 10, 10**6, dropout=0.3)
    bound = plain["bounds"]["sum"] + plain["bounds"]["keystreams"]
    lines = []
    for key, name in (("arithmetic", "(a) arithmetic"), ("total", "(b) everything")):
        one, other = plain["coordinator"][key], dropped["coordinator"][key]
        lines += [
            ratio(f"coordinator {name}, no dropouts, over sum + n keystreams", one / bound, 2),
            ratio(f"coordinator {name}, 3 of 10 dropped, over the same without dropouts", other / one, 3.5),
            ratio(f"coordinator {name}, 3 of 10 dropped, over sum + n keystreams", other / bound, 3.5),
        ]
    return lines


def pruned(results: Results) -> list[Target]:
    """Time and bytes with 80 % of the coordinates pruned over those without."""
    dense, thin = find_row(results, 10, 10**6), find_row(results, 10, 10**6, sparsity=0.8)

    def over(part: str, key: str) -> float:
        return thin[part][key] / dense[part][key]

    return [
        ratio("80 % pruned: encode + mask over dense", over("silo", "encode_mask"), 0.22),
        ratio("80 % pruned: masked stage over dense (with receipt, signature, SQLite)", over("silo", "masked"), 0.22),
        ratio("80 % pruned: coordinator (a) over dense", over("coordinator", "arithmetic"), 0.22),
        ratio("80 % pruned: coordinator (b) over dense", over("coordinator", "total"), 0.22),
        ratio("80 % pruned: masked upload over dense", over("up", "masked"), 0.22),
    ]


def flower(results: Results) -> list[Target]:
    """How many times faster and smaller than Flower's SecAgg+."""
    records = {
        record["name"]: record
        for record in results["peers"]
        if (record["silos"], record["coordinates"]) == (10, 10**6) and "failed" not in record
    }
    if not {"SecAgg-S, 16 bits", "Flower SecAgg+"} <= set(records):
        raise LookupError("no peers at n = 10, d = 10^6")
    ours, theirs = records["SecAgg-S, 16 bits"], records["Flower SecAgg+"]
    # Flower's figure holds no disk and no signature, so the words alone are the like of it.
    words = theirs["vector_seconds"] / find_row(results, 10, 10**6)["silo"]["encode_mask"]
    lines = [faster("encode + mask alone: times faster than Flower SecAgg+'s masked stage of a client", words, 8)]
    for key, name, least in (
        ("vector_seconds", "whole masked stage of a client: times faster than Flower SecAgg+", 8.0),
        ("whole_seconds", "whole round (a client and the server): times faster than Flower SecAgg+", 8.0),
        ("contribution_bytes", "masked upload: times smaller than Flower SecAgg+", 2.9),
        ("upload_bytes", "whole round's upload: times smaller than Flower SecAgg+", 2.9),
    ):
        lines.append(faster(name, theirs[key] / ours[key], least))
    return lines


def memory(results: Results) -> list[Target]:
    """Growth of extra memory from the shortest to the longest vector."""
    rows = sorted((r for r in results["memory"] if "error" not in r), key=lambda row: row["coordinates"])
    if len(rows) < 2:
        raise LookupError("fewer than two sizes of memory")
    lines = []
    for key, name in (
        ("silo_extra", "silo's extra memory"),
        ("coordinator_extra", "coordinator's beyond sums and one reply"),
    ):
        small, large = rows[0][key], rows[-1][key]
        lines.append(
            Target(
                f"{name}, d = {rows[0]['coordinates']:.0e} to {rows[-1]['coordinates']:.0e}",
                f"{small / MIB:.1f} to {large / MIB:.1f} MiB",
                f"grows ≤ {SLACK_BYTES // MIB} MiB",
                large - small <= SLACK_BYTES,
            )
        )
    return lines


def set_up(results: Results) -> list[Target]:
    """CPU time of the key set-up at n = 100."""
    for record in results["setup"]:
        if record["silos"] == 100 and "error" not in record:
            figure = f"{sum(record['cpu'].values()):.3g} s"
            return [Target(f"key set-up CPU a silo, n = 100, {record['slots']} rounds", figure, "reported", None)]
    raise LookupError("no set-up of 100 silos")


def targets(results: Results) -> list[Target]:
    """All lines; what was not measured says so."""
    parts: tuple[Callable[[Results], list[Target]], ...] = (
        encode_and_mask, coordinator, memory, pruned, flower, set_up,
    )  # fmt: skip
    lines: list[Target] = []
    for part in parts:
        try:
            lines += part(results)
        except (LookupError, KeyError) as error:
            lines.append(Target(part.__name__.replace("_", " "), f"not measured: {error}", "-", None))
    return lines
