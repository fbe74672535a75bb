"""Markdown and figure of benchmarks/secagg.py, from its records alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from secagg_targets import Target, targets

__all__ = ["draw", "report"]

Results = dict[str, Any]
MIB = 1 << 20
TIMES_NOTE = """Milliseconds, one core, best of the repetitions. A silo's figure is the median over the silos.
`encode + mask` makes and drops the words; `masked` is the whole answer (mask keys, words, BLAKE3, signature,
SQLite commits that wait for the disk). `keystream`: as many bare AES-256-CTR keystreams as a silo has masks (n) of as
many words, by `update_into` on one 64 KB buffer. Coordinator: `receive` reads, hashes, checks and adds all replies;
`confirm`, `unmask` are its messages of these stages; `open` is secrets from shares, key agreements and masks off the
sum; `(b)` is all of it from the first masked reply to the open sum, silos' time left out. `(a)` is the arithmetic
alone: adding the replies and taking all masks off. `sum + n keystreams`: n vectors added in memory and n bare
keystreams, whatever dropped. Every row's sums were compared word by word with the silos' own. In-process exchange: no
network, no training. Pruned coordinates are simply not there, taking them out of the model is not timed."""
PEERS_NOTE = """Same float32 vectors, n = 10 on one core, best round; a client's figure is the mean over clients, in
milliseconds. SecAgg-S: real halves, clients with SQLite on disk; encoding, receipts and signatures are in; one round
in 64 makes keys, so a 64th of a key set-up is in the whole round and its upload. Flower: its own client mod and
workflow, all four stages, keys are made every round; (de)serialisation of messages and signatures of its transport are
left out, quantising is in, nothing is kept on disk; its grid is finer than ours with 16 bits and coarser than with 20
(see the grid's step, the vectors are within ±1). TenSEAL: encrypt with serialisation, add, decrypt; one run; all
clients share one key, so it has no threshold and no dropout handling to pay for. Plain FedAvg: copying and adding
float32, no protection."""

MEMORY_NOTE = """MiB of anonymous memory at its peak, n = 3, in a fresh process without workers: a silo that answers
part by part from a memory-mapped file into a file, and the coordinator of the same sum."""


def lines_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A markdown table."""
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return out + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def ms(seconds: float | None) -> str:
    """Milliseconds with three digits, or a dash."""
    return "-" if seconds is None else (f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}")


def verdict(target: Target) -> str:
    """The last column of the targets."""
    return "-" if target.met is None else ("met" if target.met else "**not met**")


def targets_table(results: Results) -> list[str]:
    """Every target with its figure."""
    rows = [(t.name, t.figure, t.limit, verdict(t)) for t in targets(results)]
    return lines_of(("target", "figure", "limit", ""), rows)


def setting_cells(row: dict[str, Any]) -> tuple[object, ...]:
    """The columns that name a row."""
    s = row["setting"]
    return s["silos"], f"{s['coordinates']:.0e}".replace("e+0", "e"), s["bits"], row["dropped"], f"{s['sparsity']:.0%}"


SETTING_HEAD = ("n", "d", "bits", "dropped", "pruned")


def times_table(results: Results) -> list[str]:
    """Seconds of silo and coordinator."""
    rows: list[tuple[object, ...]] = []
    for row in results["rows"]:
        if "error" in row:
            rows.append((*setting_cells(row), f"failed: {row['error']}", *[""] * 11))
            continue
        silo, coordinator, bounds = row["silo"], row["coordinator"], row["bounds"]
        floor = bounds["sum"] + bounds["keystreams"] if "sum" in bounds else None
        times = [silo.get("encode_mask"), bounds.get("keystream"), silo["masked"], silo["confirm"], silo["unmask"]]
        times += [coordinator[key] for key in ("receive", "confirm", "unmask_messages", "open", "total")]
        times += [coordinator.get("arithmetic"), floor]
        rows.append((*setting_cells(row), *map(ms, times)))
    head = (*SETTING_HEAD, "encode + mask", "keystream", "masked", "confirm", "unmask", "receive", "confirm", "unmask")
    return lines_of((*head, "open", "(b)", "(a)", "sum + n keystreams"), rows)


def bytes_table(results: Results) -> list[str]:
    """Bytes of a silo and round by stage."""
    rows = []
    for row in results["rows"]:
        if "error" in row:
            continue
        cells = [f"{row[way][stage]}" for way in ("up", "down") for stage in ("masked", "confirm", "unmask")]
        per = sum(row["up"].values()) / row["live"]
        rows.append((*setting_cells(row), *cells, f"{per:.3f}", f"{row['bounds']['bytes'] / row['live']:.3f}"))
    stages = [f"{way} {stage}" for way in ("up", "down") for stage in ("masked", "confirm", "unmask")]
    return lines_of((*SETTING_HEAD, *stages, "upload a live coordinate", "bound"), rows)


def setup_table(results: Results) -> list[str]:
    """Key set-up of a silo."""
    rows = []
    stages = ("advertise", "share", "delivery")
    for record in results["setup"]:
        if "error" in record:
            rows.append((record["silos"], f"failed: {record['error']}", *[""] * 10))
            continue
        cpu = [ms(record["cpu"][stage]) for stage in stages]
        size = [record[way][stage] for way in ("up", "down") for stage in stages]
        total, all_ms = ms(sum(record["cpu"].values())), ms(record["coordinator"])
        rows.append((record["silos"], record["slots"], *cpu, total, *size, all_ms))
    sizes = [f"{way} {stage}" for way in ("up", "down") for stage in stages]
    return lines_of(("n", "rounds", *(f"CPU {stage}" for stage in stages), "CPU", *sizes, "coordinator"), rows)


def peers_table(results: Results) -> list[str]:
    """Ours beside the peers."""
    rows = []
    for record in results["peers"]:
        if "failed" in record:
            rows.append((record["name"], record["coordinates"], f"failed: {record['failed']}", *[""] * 6))
            continue
        client, server = sum(record["client"].values()), sum(record["server"].values())
        times = map(ms, (record["vector_seconds"], client, server, record["whole_seconds"]))
        per = record["contribution_bytes"] / record["coordinates"]
        step = "-" if record["grid_step"] is None else f"{record['grid_step']:.1e}"
        rows.append((record["method"], record["coordinates"], step, *times, f"{per:.2f}", record["upload_bytes"]))
    head = (
        "method",
        "d",
        "grid's step",
        "stage with the vector",
        "client",
        "server",
        "client + server",
        "B a coordinate",
    )
    return lines_of((*head, "upload of a round, B"), rows)


def memory_table(results: Results) -> list[str]:
    """Peak memory in a process of its own."""
    rows = []
    for row in results["memory"]:
        if "error" in row:
            rows.append((row["coordinates"], f"failed: {row['error']}", "", "", ""))
            continue
        parts = (row[key] / MIB for key in ("silo_extra", "coordinator_peak", "sums_bytes", "reply_bytes"))
        extra = row["coordinator_extra"] / MIB
        rows.append((row["coordinates"], *(f"{part:.1f}" for part in parts), f"{extra:.1f}"))
    return lines_of(("d", "silo's peak", "coordinator's peak", "sums", "one reply", "coordinator's beyond both"), rows)


def workers_line(results: Results) -> str:
    """Gain of worker processes."""
    found = results["workers"]
    if not found:
        return "Worker processes were not measured."
    if "error" in found:
        return f"Worker processes: failed, {found['error']}"
    parts = []
    for who, what in (("silo", "encode + mask"), ("coordinator", "taking 28 masks off")):
        one, every = found[f"{who}_one"], found[f"{who}_all"]
        parts.append(f"{what} {ms(one)} ms by one, {ms(every)} ms by all ({one / every:.2f} times as fast)")
    return (
        f"Worker processes (`AUTOFLIP_MASK_WORKERS`), d = {found['coordinates']}, n = 10, "
        f"{found['processes']} processes: {'; '.join(parts)}."
    )


def report(results: Results, command: str) -> str:
    """The whole markdown page."""
    parts = [
        ["## Targets", "", *targets_table(results)],
        ["## Time of a round", "", TIMES_NOTE, "", *times_table(results), "", workers_line(results)],
        ["## Bytes of a silo and round, by stage", "", *bytes_table(results)],
        ["## Key set-up of a silo", "", "CPU milliseconds (median over silos) and bytes for so many rounds; the"
         " coordinator's milliseconds are for all silos.", "", *setup_table(results)],
        ["## Beside peers", "", PEERS_NOTE, "", *peers_table(results)],
        ["## Memory", "", MEMORY_NOTE, "",
         *memory_table(results)],
    ]  # fmt: skip
    foot = (
        f"Made by `{command}`, seed {results['seed']}, {results['seconds']:.0f} s, on {json.dumps(results['machine'])}."
    )
    return "\n\n".join("\n".join(part) for part in parts) + f"\n\n{foot}\n"


def draw(results: Results, path: Path) -> None:
    """Time and bytes by size at n = 10, with bounds and peers; nothing where no such row was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    usual = {"silos": 10, "dropout": 0.0, "sparsity": 0.0, "bits": 16}
    rows = [r for r in results["rows"] if "error" not in r and usual.items() <= r["setting"].items()]
    if not rows:
        return
    rows.sort(key=lambda row: row["live"])
    d = [row["live"] for row in rows]
    figure, (times, sizes) = plt.subplots(1, 2, figsize=(11, 4.8))
    curves = {
        "silo: masked stage": ("C0o-", [r["silo"]["masked"] for r in rows]),
        "silo: encode + mask": ("C0s--", [r["silo"]["encode_mask"] for r in rows]),
        "bound: n keystreams": ("C0:", [r["bounds"]["keystream"] for r in rows]),
        "coordinator: whole round": ("C1o-", [r["coordinator"]["total"] for r in rows]),
        "bound: sum + n keystreams": ("C1:", [r["bounds"]["sum"] + r["bounds"]["keystreams"] for r in rows]),
    }
    for name, (style, values) in curves.items():
        times.plot(d, values, style, label=name, markersize=4)
    sizes.plot(d, [sum(r["up"].values()) / r["live"] for r in rows], "C0o-", label="SecAgg-S, round's upload")
    sizes.plot(d, [r["bounds"]["bytes"] / r["live"] for r in rows], "C0:", label="information bound")
    peers = [r for r in results["peers"] if "failed" not in r and not r["name"].startswith("SecAgg-S")]
    for index, name in enumerate(dict.fromkeys(record["name"] for record in peers)):
        mine = sorted((r for r in peers if r["name"] == name), key=lambda record: record["coordinates"])
        x, colour = [r["coordinates"] for r in mine], f"C{index + 2}"
        times.plot(x, [r["vector_seconds"] for r in mine], "^-", color=colour, label=f"{name}: client")
        times.plot(x, [sum(r["server"].values()) for r in mine], "v--", color=colour, label=f"{name}: server")
        sizes.plot(x, [r["upload_bytes"] / r["coordinates"] for r in mine], "^-", color=colour, label=name)
    times.set(title="time, n = 10, one core", xlabel="coordinates", ylabel="s", xscale="log", yscale="log")
    sizes.set(title="upload of a silo, n = 10", xlabel="coordinates", ylabel="bytes a coordinate", xscale="log")
    sizes.set_yscale("log")
    sizes.set_yticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    sizes.minorticks_off()
    for axes in (times, sizes):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
