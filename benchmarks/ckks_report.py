"""Markdown and figure of benchmarks/ckks.py, from its records alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckks_rows import BITS, CHAINS, OURS, PATH, SLOTS
from ckks_targets import (
    MB,
    MOST_MEGABYTES,
    MOST_SECONDS,
    NVFLARE_NAME,
    client_seconds,
    downloaded,
    find_rows,
    per_million,
    targets,
    uploaded,
)
from secagg_federation import TINY, update_channel
from secagg_report import lines_of, ms, verdict

from autoflip_secure.ckks.parameters import parameters_for, value_widths

__all__ = ["draw", "report"]

Results = dict[str, Any]
Row = dict[str, Any]
MIB = 1 << 20
USUAL_SILOS = 10
BITS_SHOWN = (8, 12, 16, 20, 24, 32)
MOST_SILOS = 1000
TRUST = {
    OURS: "all silos of the sum together, the sum alone, once; one missing at `open` ends the attempt",
    PATH: "the coordinator, the sum alone, with what t silos reveal; silos may drop at any stage",
    NVFLARE_NAME: "every client, every ciphertext; the coordinator with one client",
}
NOTE = f"""One core. Seconds are medians: a silo's over all answers of all silos and repetitions, the coordinator's over
repetitions; approaches and sparsities of one number of silos take turns in one process. CPU time is beside the clock,
since other processes may run. All approaches sum the same float32 values. CKKS and masked sums are the real halves:
`answer` of a silo with its messages, signatures, BLAKE3, SQLite on disk and rounding to {BITS} bits; in process, so no
network and no training. Every one of their sums was compared word by word with the plain sum. TenSEAL's sums are
`ckks_vector`, `serialize`, `ckks_vector_from`, nothing signed or stored, all values one layer; they are approximate.
Only live values are sent. Download: requests, and the new model as float32 of live values with its mask as bits (CKKS,
masked), or the encrypted aggregate instead of the model (TenSEAL). MB are 10^6 bytes. Keys of {SLOTS} sums are extra,
see key set-up."""
GROWTH_HEAD = "Bytes of a value in a ciphertext, and as many in a part"


def seconds(value: float) -> str:
    """Seconds with three digits."""
    return f"{value:.3g}"


def megabytes(value: float) -> str:
    """10^6 bytes."""
    return f"{value / MB:.2f}"


def usual(rows: Sequence[Row]) -> Row:
    """The row of ten silos, or of the most."""
    return next((row for row in rows if row["silos"] == USUAL_SILOS), rows[-1])


def approaches(results: Results) -> list[Row]:
    """One dense row an approach, of the same number of silos."""
    chosen = []
    for name in (OURS, *CHAINS, PATH):
        try:
            chosen.append(usual(find_rows(results, name)))
        except LookupError:
            continue
    return chosen


def targets_table(results: Results) -> list[str]:
    """Every target with its figure."""
    rows = [(t.name, t.figure, t.limit, verdict(t)) for t in targets(results)]
    return lines_of(("target", "figure", "limit", ""), rows)


def approaches_table(results: Results) -> list[str]:
    """Ours beside the others, for 10^6 values."""
    rows, shown = [], approaches(results)
    ours = shown[0]
    for row in shown:
        first, *later = [per_million(row, value) for value in row["client"].values()]
        up, down = uploaded(row), downloaded(row)
        rows.append(
            (
                row["approach"],
                seconds(first),
                seconds(sum(later)),
                seconds(first + sum(later)),
                seconds(per_million(row, client_seconds(row, "client_cpu"))),
                seconds(per_million(row, row["coordinator_total"])),
                megabytes(per_million(row, up)),
                megabytes(per_million(row, down)),
                f"{per_million(row, up) / per_million(ours, uploaded(ours)):.2f}",
                f"{per_million(row, up + down) / per_million(ours, uploaded(ours) + downloaded(ours)):.2f}",
                TRUST.get(row["approach"], TRUST[NVFLARE_NAME]),
            )
        )
    head = (f"n = {ours['silos']}, 10^6 values", "client: encrypt or mask, s", "open, decrypt or confirm + unmask, s")
    head += (
        "client, s",
        "client CPU, s",
        "coordinator, s",
        "up, MB",
        "down, MB",
        "up over ours",
        "up + down over ours",
    )
    return lines_of((*head, "who opens what"), rows)


def ours_table(results: Results) -> list[str]:
    """Every row of CKKS sums."""
    rows = []
    dense = {row["silos"]: row for row in find_rows(results, OURS)}
    for row in find_rows(results, OURS, None):
        chosen, coordinator, base = row["parameters"], row["coordinator"], dense.get(row["silos"])
        share = f"{uploaded(row) / uploaded(base):.4f}" if base else "-"
        rows.append(
            (
                row["silos"], f"{row['sparsity']:.0%}", row["live"], chosen["ciphertexts"], chosen["modulus_bits"],
                *(seconds(row["client"][name]) for name in ("encrypt", "open")),
                seconds(client_seconds(row, "client_cpu")),
                *(ms(coordinator[f"a silo's {name}"]) for name in ("encrypt", "open")),
                ms(coordinator["read"]), seconds(row["coordinator_total"]),
                *(megabytes(row["up"][name]) for name in ("encrypt", "open")), megabytes(uploaded(row)),
                f"{uploaded(row) / row['live']:.2f}", share, sum(row["down"].values()), megabytes(downloaded(row)),
            )
        )  # fmt: skip
    head = ("n", "pruned", "live values", "ciphertexts", "modulus, bits", "encrypt, s", "open, s", "client CPU, s")
    head += ("add ciphertexts of a silo, ms", "add part of a silo, ms", "combine and read, ms", "coordinator, s")
    head += ("up ciphertexts, MB", "up part, MB", "up, MB", "B a live value", "up over dense")
    return lines_of((*head, "requests, B", "requests and model, MB"), rows)


def others_table(results: Results) -> list[str]:
    """Every row of the other approaches."""
    rows = []
    for row in sorted(results["rows"], key=lambda row: (row["approach"], row["silos"], row["sparsity"])):
        if row["approach"] == OURS:
            continue
        client = ", ".join(f"{name} {seconds(value)}" for name, value in row["client"].items())
        error = "exact" if row["exact"] else f"{row['error']:.1e}"
        rows.append(
            (
                row["approach"], row["silos"], f"{row['sparsity']:.0%}", client, ms(row["coordinator_total"]),
                megabytes(uploaded(row)), f"{uploaded(row) / row['live']:.2f}", megabytes(downloaded(row)), error,
            )
        )  # fmt: skip
    head = ("approach", "n", "pruned", "client, s", "coordinator, ms", "up, MB", "B a live value", "down, MB")
    return lines_of((*head, "largest error of the sum"), rows)


def set_up_table(results: Results) -> list[str]:
    """Key set-up of a silo, CKKS beside masks."""
    rows = []
    for group in results["groups"]:
        for name, made in group["set_up"].items():
            up, down = sum(made["up"].values()), sum(made["down"].values())
            cpu = sum(made["cpu"].values())
            tiny = sum(made["tiny_sum"].values())
            times = (ms(sum(made["seconds"].values())), ms(cpu), ms(made["coordinator"]))
            rows.append((name, group["silos"], *times, up, down, f"{(up + down) / group['slots']:.0f}", ms(tiny)))
    head = ("approach", "n", "a silo, ms", "CPU, ms", "coordinator, all silos, ms", "up, B", "down, B")
    return lines_of((*head, "B a sum", "smallest sum: a silo, ms"), rows)


def parts_table(results: Results) -> list[str]:
    """Inner computations."""
    found = results["parts"]
    order = list(dict.fromkeys(part["of"] for part in found["parts"]))
    parts = sorted(found["parts"], key=lambda part: order.index(part["of"]))
    return lines_of(("of", "computation", "ms"), [(part["of"], part["what"], ms(part["seconds"])) for part in parts])


def modulus_table() -> list[str]:
    """Where a value takes one byte more; from the parameters' own rule, nothing measured."""
    rows = []
    for bits in BITS_SHOWN:
        spans: list[list[int]] = []
        for silos in range(3, MOST_SILOS + 1):
            chosen = parameters_for((update_channel(1, bits),), silos)
            size = chosen.coefficient_bytes * len(value_widths(bits, silos))
            if spans and spans[-1][0] == size:
                spans[-1][2] = silos
            else:
                spans.append([size, silos, silos])
        rows.append((bits, "; ".join(f"{size} for n = {low} to {high}" for size, low, high in spans)))
    return lines_of(("bits a value", "bytes"), rows)


def growth(results: Results) -> list[str]:
    """How cost grows, in sentences with this run's figures."""
    dense = find_rows(results, OURS)
    row = usual(dense)
    group = next(group for group in results["groups"] if group["silos"] == row["silos"])
    pruned = [r for r in find_rows(results, OURS, None) if r["silos"] == row["silos"] and r["sparsity"] > 0]
    lines = [_by_silos(dense[0], dense[-1])] if len(dense) > 1 else []
    lines += [_by_values(row, pruned[-1], group)] if pruned else []
    lines.append(_by_rounds(row, group))
    return [*lines, "", f"{GROWTH_HEAD}:", "", *modulus_table()]


def _by_silos(few: Row, many: Row) -> str:
    low, high = (f"n = {row['silos']}" for row in (few, many))
    sizes = [f"{uploaded(row) / row['live']:.2f} B a value" for row in (few, many)]
    client = [f"{client_seconds(row, 'client_cpu'):.2f} s" for row in (few, many)]
    coordinator = [f"{ms(row['coordinator_total'] / row['silos'])} ms" for row in (few, many)]
    return (
        f"- Silos: a client sends {sizes[0]} at {low} and {sizes[1]} at {high}: only the modulus depends on n (below). "
        f"It takes {client[0]} and {client[1]} of CPU time; what grows is one key agreement a silo (masked key, see "
        f"inner computations). The coordinator's time is proportional to n, with one reading of the sum on top: "
        f"{coordinator[0]} a silo at {low}, {coordinator[1]} at {high}."
    )


def _by_values(dense: Row, thin: Row, group: Row) -> str:
    tiny = group["set_up"][OURS]
    waits = sum(tiny["tiny_sum"].values()), sum(tiny["tiny_sum_cpu"].values())
    return (
        f"- Parameters: all is proportional to the live values, in steps of one ciphertext of "
        f"{dense['parameters']['degree']} values. At n = {dense['silos']}, {thin['live'] / dense['live']:.0%} of the "
        f"values take {uploaded(thin) / uploaded(dense):.1%} of the bytes, "
        f"{client_seconds(thin, 'client_cpu') / client_seconds(dense, 'client_cpu'):.1%} of a client's CPU time and "
        f"{thin['coordinator_total'] / dense['coordinator_total']:.1%} of the coordinator's. A sum of one ciphertext "
        f"takes a client {ms(waits[0])} ms, {ms(waits[1])} ms of them CPU."
    )


def _by_rounds(row: Row, group: Row) -> str:
    made, turns = group["set_up"][OURS], row["client_cpu_by_turn"]
    size = sum(made["up"].values()) + sum(made["down"].values())
    text = (
        f"- Rounds: linear. Keys are made once for {group['slots']} sums, {ms(sum(made['seconds'].values()))} ms and "
        f"{size} B of a silo at n = {row['silos']}; nothing is carried from one sum to the next but a row of SQLite."
    )
    if len(turns) > 1:
        text += f" A client's CPU time in repetition {len(turns)} was {turns[-1] / turns[0]:.2f} times the first's."
    return text


def memory_table(results: Results) -> list[str]:
    """Peak memory in a process of its own."""
    rows = []
    for found in results["memory"]:
        if "error" in found:
            rows.append((found["approach"], f"failed: {found['error']}", ""))
            continue
        steps = {name: peak for name, peak in found["peaks"].items() if name != "coordinator"}
        shown = ", ".join(f"{name} {peak / MIB:.0f}" for name, peak in steps.items() if peak >= MIB // 2)
        rows.append((found["approach"], shown, f"{found['peaks']['coordinator'] / MIB:.0f}"))
    return lines_of(("approach", "silo's steps, MiB", "coordinator, MiB"), rows)


def report(results: Results, command: str) -> str:
    """The whole markdown page."""
    parts, memory = results["parts"], results["memory"]
    set_up_note = (
        f"For {SLOTS} sums. A silo's figures are medians over silos; the delivery of keys with the first sum is in. "
        f"The smallest sum is one ciphertext, or {TINY} masked values."
    )
    parts_note = (
        f"Of CKKS sums, n = {parts['silos']}, {parts['values']} values, one thread; without messages, signatures and "
        "state. Medians."
    )
    memory_note = (
        f"n = {memory[0]['silos']}, {memory[0]['values']} values, a fresh process each: highest resident memory over "
        "what the process had when the step began (the coordinator: the sum), the reply included."
    )
    pages = [
        ["## Targets", "", *targets_table(results)],
        ["## By approach", "", NOTE, "", *approaches_table(results)],
        ["## CKKS sums by silos and sparsity", "", *ours_table(results)],
        ["## The others by silos and sparsity", "", *others_table(results)],
        ["## How cost grows", "", *growth(results)],
        ["## Key set-up", "", set_up_note, "", *set_up_table(results)],
        ["## Inner computations", "", parts_note, "", *parts_table(results)],
        ["## Memory", "", memory_note, "", *memory_table(results)],
    ]
    loads = ", ".join(f"{group['machine']['load_before']}" for group in results["groups"])
    foot = (
        f"Load of the machine before each number of silos: {loads}. Made by `{command}`, seed {results['seed']}, "
        f"{results['repetitions']} repetitions, on {json.dumps(results['machine'])}."
    )
    return "\n\n".join("\n".join(page) for page in pages) + f"\n\n{foot}\n"


def draw(results: Results, path: Path) -> None:
    """Bytes and seconds by approach, and upload by live share."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = approaches(results)
    figure, (sizes, times, pruned) = plt.subplots(1, 3, figsize=(15, 4.8))
    names = [row["approach"].replace(" [", "\n[").replace(" (", "\n(").replace(", a", ",\na") for row in shown]
    places = range(len(shown))
    for offset, way in ((-0.2, "up"), (0.2, "down")):
        _bytes_bars(sizes, shown, [place + offset for place in places], way)
    sizes.axhline(MOST_MEGABYTES, color="grey", linestyle=":", label=f"target for upload, {MOST_MEGABYTES:g} MB")
    _time_bars(times, shown, list(places))
    times.axhline(MOST_SECONDS, color="grey", linestyle=":", label=f"target for a client, {MOST_SECONDS:g} s")
    n = shown[0]["silos"]
    for axes, title, unit in ((sizes, "bytes of a silo", "MB"), (times, "time, one core", "s")):
        axes.set(title=f"{title}, n = {n}, 10^6 values", ylabel=unit)
        axes.set_xticks(list(places), names, fontsize=7)
        axes.set_ylim(0, 1.08 * max(bar.get_y() + bar.get_height() for bar in axes.patches))
    for index, name in enumerate((OURS, NVFLARE_NAME, PATH)):
        rows = [row for row in results["rows"] if row["approach"] == name and row["silos"] == n]
        rows.sort(key=lambda row: row["sparsity"])
        if not rows:
            continue
        x = [100 * row["sparsity"] for row in rows]
        pruned.plot(x, [uploaded(row) / MB for row in rows], "o", color=f"C{index}", label=name, markersize=5)
        line = [uploaded(rows[0]) / MB * (1 - share) / (1 - rows[0]["sparsity"]) for share in (0.0, 1.0)]
        pruned.plot([0, 100], line, ":", color=f"C{index}")
    pruned.set(title=f"upload of a silo, n = {n} (dotted: in proportion)", xlabel="pruned, %", ylabel="MB")
    for axes in (sizes, times, pruned):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bytes_bars(axes: Any, rows: Sequence[Row], places: Sequence[float], way: str) -> None:
    if way == "down":
        heights = [per_million(row, downloaded(row)) / MB for row in rows]
        axes.bar(places, heights, 0.36, color="C7", label="down")
        return
    first = [per_million(row, next(iter(row["up"].values()))) / MB for row in rows]
    rest = [per_million(row, uploaded(row)) / MB - start for row, start in zip(rows, first, strict=True)]
    axes.bar(places, first, 0.36, color="C0", label="up: ciphertexts or masked words")
    axes.bar(places, rest, 0.36, bottom=first, color="C1", label="up: parts of the opening")


def _time_bars(axes: Any, rows: Sequence[Row], places: Sequence[int]) -> None:
    first = [per_million(row, next(iter(row["client"].values()))) for row in rows]
    rest = [per_million(row, client_seconds(row)) - start for row, start in zip(rows, first, strict=True)]
    left, right = [place - 0.2 for place in places], [place + 0.2 for place in places]
    axes.bar(left, first, 0.36, color="C0", label="client: encrypt or mask")
    axes.bar(left, rest, 0.36, bottom=first, color="C1", label="client: open, decrypt or unmask")
    total = [per_million(row, row["coordinator_total"]) for row in rows]
    axes.bar(right, total, 0.36, color="C7", label="coordinator, all silos")
