"""Numbers as people read them. A missing value (None, NaN) is a dash; nothing here rounds a privacy cost down."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

__all__ = [
    "MISSING",
    "byte_unit",
    "bytes_text",
    "count",
    "count_of",
    "duration",
    "epsilon",
    "main_score",
    "number",
    "percent",
    "score",
]

MISSING = "–"  # noqa: RUF001
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
EPSILON_DECIMALS = 3


def number(value: Any) -> float | None:
    """`value` as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        known = float(value)
    except OverflowError:  # of an integer; JSON has no largest one
        return None
    return known if math.isfinite(known) else None


def score(value: Any) -> str:
    """Accuracy, AUROC, C-index, agreement: three decimals."""
    known = number(value)
    return MISSING if known is None else f"{known:.3f}"


def main_score(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Name and value of the score that a task is judged by first."""
    survival = summary.get("task") == "survival"
    return ("C-index" if survival else "accuracy"), score(summary.get("c_index" if survival else "accuracy"))


def epsilon(value: Any) -> str:
    """Privacy cost, rounded up to three decimals; `not bounded` where it is infinite."""
    if isinstance(value, float) and math.isinf(value):
        return "not bounded"
    known = number(value)
    if known is None:
        return MISSING
    # The small allowance keeps 7.9, which is 7900.000000000001 thousandths in binary, at 7.9.
    thousandths = math.ceil(known * 10**EPSILON_DECIMALS - 1e-6)
    whole = thousandths % 10**EPSILON_DECIMALS == 0
    return f"{thousandths / 10**EPSILON_DECIMALS:.{0 if whole else EPSILON_DECIMALS}f}"


def percent(ratio: Any) -> str:
    """`0.531` -> `53.1 %`; small ratios keep two digits."""
    known = number(ratio)
    if known is None:
        return MISSING
    hundredths = 100 * known
    return f"{hundredths:.1f} %" if hundredths >= 1 or hundredths == 0 else f"{hundredths:.2g} %"


def count(value: Any) -> str:
    """Whole number with commas between thousands."""
    known = number(value)
    return MISSING if known is None else f"{round(known):,}"


def count_of(items: int | Collection[Any], noun: str) -> str:
    """`3 silos`, `1 silo`."""
    size = items if isinstance(items, int) else len(items)
    return f"{size:,} {noun}" + ("" if size == 1 else "s")


def byte_unit(largest: float) -> tuple[float, str]:
    """Divisor and name of the decimal unit in which `largest` bytes is below 1000."""
    power = min(max(0, int(math.log10(max(largest, 1.0)) // 3)), len(BYTE_UNITS) - 1)
    return 1000.0**power, BYTE_UNITS[power]


def bytes_text(value: Any) -> str:
    """Bytes in decimal units: `12.3 MB`."""
    known = number(value)
    if known is None:
        return MISSING
    divisor, unit = byte_unit(known)
    return f"{known:.0f} B" if unit == "B" else f"{known / divisor:.3g} {unit}".replace("1e+03", "1000")


def duration(seconds: Any) -> str:
    """`4 s`, `2 min 10 s`, `3 h 05 min`."""
    known = number(seconds)
    if known is None or known < 0:
        return MISSING
    if known < 1:
        return "under 1 s"
    whole = round(known)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
