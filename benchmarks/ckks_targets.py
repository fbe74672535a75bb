"""The targets of benchmarks/ckks.py, worked out from the records of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ckks_peers import NVFLARE
from ckks_rows import CHAINS, OURS
from secagg_targets import Target

__all__ = [
    "MB",
    "MOST_MEGABYTES",
    "MOST_SECONDS",
    "NVFLARE_NAME",
    "client_seconds",
    "downloaded",
    "find_rows",
    "per_million",
    "targets",
    "uploaded",
]

Row = dict[str, Any]
Results = dict[str, Any]
MILLION = 10**6
MB = 1e6
NVFLARE_NAME = next(name for name, chain in CHAINS.items() if chain is NVFLARE)
MODEL_BYTES = 4
"""Of a live value of the model that the coordinator sends to every silo, float32; and one bit a value for the mask."""
MOST_MEGABYTES, MOST_SECONDS, TIMES_SMALLER, MOST_OFF = 33.0, 2.0, 2.0, 0.02


def find_rows(results: Results, approach: str, sparsity: float | None = 0.0) -> list[Row]:
    """Rows of an approach, ascending by silos and sparsity; of one sparsity unless None.

    Raises
    ------
    LookupError
        There is none.
    """
    rows = [row for row in results["rows"] if row["approach"] == approach and sparsity in (None, row["sparsity"])]
    if not rows:
        raise LookupError(f"no row of {approach}")
    return sorted(rows, key=lambda row: (row["silos"], row["sparsity"]))


def per_million(row: Row, amount: float) -> float:
    """An amount of a row for 10^6 values sent."""
    return amount * MILLION / row["live"]


def uploaded(row: Row) -> int:
    """Bytes a silo sends in a sum."""
    return sum(row["up"].values())


def downloaded(row: Row) -> float:
    """Bytes a silo receives for a sum: requests and the new model, or the encrypted aggregate instead of the model."""
    requests = sum(row["down"].values())
    return requests if row["approach"] in CHAINS else requests + MODEL_BYTES * row["live"] + row["values"] / 8


def client_seconds(row: Row, clock: str = "client") -> float:
    """A silo's time in a sum, s."""
    return sum(row[clock].values())


def _worst(rows: Sequence[Row], figure: Callable[[Row], float], largest: bool = True) -> tuple[float, int]:
    chosen = max(rows, key=figure) if largest else min(rows, key=figure)
    return figure(chosen), chosen["silos"]


def _silos(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(str(row["silos"]) for row in rows))


def _upload(results: Results) -> list[Target]:
    rows = find_rows(results, OURS)
    size, at = _worst(rows, lambda row: per_million(row, uploaded(row)) / MB)
    name = f"client upload, ciphertexts and parts, 10^6 values, worst of n = {_silos(rows)}"
    return [Target(name, f"{size:.2f} MB (n = {at})", f"≤ {MOST_MEGABYTES:g} MB", size <= MOST_MEGABYTES)]


def _time(results: Results) -> list[Target]:
    rows = find_rows(results, OURS)
    seconds, at = _worst(rows, lambda row: per_million(row, client_seconds(row)))
    cpu = max(per_million(row, client_seconds(row, "client_cpu")) for row in rows)
    name = f"client time, encrypt and open, 10^6 values, one thread, worst of n = {_silos(rows)}"
    figure = f"{seconds:.2f} s (n = {at}; CPU {cpu:.2f} s)"
    return [Target(name, figure, f"≤ {MOST_SECONDS:g} s", seconds <= MOST_SECONDS)]


def _fewer_bytes(results: Results) -> list[Target]:
    theirs = {row["silos"]: row for row in find_rows(results, NVFLARE_NAME)}
    rows = [row for row in find_rows(results, OURS) if row["silos"] in theirs]

    def line(name: str, size: Callable[[Row], float]) -> Target:
        times, at = _worst(rows, lambda row: size(theirs[row["silos"]]) / size(row), largest=False)
        title = f"{name}: times fewer bytes than {NVFLARE_NAME}, worst of n = {_silos(rows)}"
        return Target(title, f"{times:.2f} (n = {at})", f"≥ {TIMES_SMALLER:g}", times >= TIMES_SMALLER)

    return [
        line("upload", uploaded),
        line("upload and download", lambda row: uploaded(row) + downloaded(row)),
    ]


def _in_proportion(results: Results) -> list[Target]:
    dense = {row["silos"]: row for row in find_rows(results, OURS)}
    rows = [row for row in find_rows(results, OURS, None) if row["sparsity"] > 0 and row["silos"] in dense]
    if not rows:
        raise LookupError("no pruned row")

    def off(row: Row, allowed: float) -> float:
        expected = uploaded(dense[row["silos"]]) * row["live"] / dense[row["silos"]]["live"]
        return max(0.0, abs(uploaded(row) - expected) - allowed * _one_ciphertext(row)) / expected

    beyond, at = _worst(rows, lambda row: off(row, 1.0))
    raw = max(off(row, 0.0) for row in rows)
    name = "upload against live share: off proportion beyond one ciphertext and its part, worst of n and sparsity"
    figure = f"{100 * beyond:.2f} % (n = {at}; {100 * raw:.2f} % with that rounding)"
    return [Target(name, figure, f"≤ {100 * MOST_OFF:g} %", beyond <= MOST_OFF)]


def _one_ciphertext(row: Row) -> int:
    chosen = row["parameters"]
    return 2 * int(chosen["degree"] * chosen["coefficient_bytes"])


def targets(results: Results) -> list[Target]:
    """All lines; what was not measured says so."""
    lines: list[Target] = []
    for part in (_upload, _time, _fewer_bytes, _in_proportion):
        try:
            lines += part(results)
        except LookupError as error:
            lines.append(Target(part.__name__.strip("_").replace("_", " "), f"not measured: {error}", "-", None))
    return lines
