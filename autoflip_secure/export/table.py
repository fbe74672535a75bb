"""The figures of an export for the terminal."""

from __future__ import annotations

from typing import Any

__all__ = ["figures_text"]


def figures_text(figures: dict[str, Any]) -> str:
    """Pruned beside dense, and the size of each file; some ten lines."""
    pruned, dense = figures["pruned"], figures["dense"]
    rows = [(name.replace("_", " "), pruned[name], dense[name]) for name in ("parameters", "parameters_live", "flops")]
    lines = [f"{figures['model']}{'':<{max(0, 22 - len(figures['model']))}}{'pruned':>14}{'dense':>14}{'ratio':>8}"]
    lines += [f"{name:<22}{one:>14,}{other:>14,}{one / other:>8.3f}" for name, one, other in rows]
    for batch, one in pruned["latency_ms"].items():
        other = dense["latency_ms"][batch]
        lines.append(f"{f'ms, batch {batch}':<22}{one:>14.3f}{other:>14.3f}{one / other:>8.3f}")
    lines += [f"{name:<22}{file['bytes']:>14,} bytes" for name, file in figures["files"].items()]
    lines.append(f"times are medians on this processor, {figures['threads']} thread(s), measured in turn")
    return "\n".join(lines)
