"""matplotlib figures as inline SVG: text stays text, colours are names that the page's light or dark theme fills in."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["GRID", "INK", "SERIES", "draw_svg"]

INK = "#fe0100"
GRID = "#fe0200"
SERIES = tuple(f"#fe00{index:02x}" for index in range(1, 7))
"""Stand-ins that occur nowhere else: they are replaced by the theme's own colours."""

THEME = {
    INK: "currentColor",
    GRID: "var(--rule)",
    **{mark: f"var(--series-{i})" for i, mark in enumerate(SERIES, start=1)},
}

WIDTH = 5.4
"""Inches, 389 units of the SVG: about a phone's width, so that 10-unit text stays legible there."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "autoflip-secure",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.use": True,
}


def draw_svg(draw: Callable[[Figure], None], *, name: str, height: float, alt: str) -> str:
    """Draw a figure of `height` inches and return it as an SVG element for an HTML page.

    Parameters
    ----------
    draw : callable
        Draws on the empty figure it is given, in the colours `INK`, `GRID` and `SERIES` only.
    name : str
        Unique in the page; prefixes every id of the figure.
    alt : str
        What the figure shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own style sheet must not bring other colours in
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH, height))
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue(), name, alt)


def _for_page(svg: str, name: str, alt: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for mark, colour in THEME.items():
        body = body.replace(mark, colour)
    view = re.search(r'viewBox="[^"]+"', body)
    assert view is not None
    label = escape(alt, quote=True)
    opening = f'<svg role="img" aria-label="{label}" {view[0]}>'
    body = re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1)
    return re.sub(r">\s+<(?!/?t)", "><", body).strip()
