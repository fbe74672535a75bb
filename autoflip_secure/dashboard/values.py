"""Makes values from files fit for JSON and for a page: finite numbers, short texts, short lists."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["plain"]

LONGEST_TEXT = 400
MOST_ITEMS = 60
DEEPEST = 4


def plain(value: Any, depth: int = 0) -> Any:
    """The same value, with what is too long cut and what JSON cannot say as None."""
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + "…"
    if depth >= DEEPEST:
        return "…"
    if isinstance(value, dict):
        shown = list(value.items())[:MOST_ITEMS]
        return {plain(str(name)): plain(item, depth + 1) for name, item in shown}
    if isinstance(value, list | tuple):
        shown = [plain(item, depth + 1) for item in value[:MOST_ITEMS]]
        return shown if len(value) <= MOST_ITEMS else [*shown, f"… {len(value) - MOST_ITEMS} more"]
    return str(value)[:LONGEST_TEXT]
