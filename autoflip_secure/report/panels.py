"""What the figures are drawn with: lines over rounds, panels, legends, and the same said in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from autoflip_secure.report.record import RunRecord
from autoflip_secure.report.svg import INK, SERIES

__all__ = [
    "Line",
    "course",
    "draw_legend",
    "draw_lines",
    "draw_range",
    "known_lines",
    "new_panels",
    "nth_line",
    "shading_note",
    "thinned",
]

Values = NDArray[np.float64]

MOST_POINTS = 300
"""Points drawn of one line; longer runs are thinned evenly."""

LEGEND_CHARACTERS, HANDLE_CHARACTERS = 62, 7
"""Width of a legend, and of the sample of a line beside its label, in characters."""

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
"""Line styles, so that no line is known by its colour alone."""


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    label: str
    values: Values
    colour: str
    dash: str | tuple[int, tuple[int, ...]] = "-"
    step: bool = False
    width: float = 1.8

    @property
    def known(self) -> NDArray[np.bool_]:
        """Rounds that have a value."""
        return np.isfinite(self.values)


def nth_line(index: int, label: str, values: Values) -> Line:
    """Line in the colour and dashes of its place."""
    return Line(label, values, SERIES[index % len(SERIES)], DASHES[index % len(DASHES)])


def known_lines(lines: Iterable[Line]) -> list[Line]:
    """Those that have a value in some round."""
    return [line for line in lines if line.known.any()]


def new_panels(figure: Figure, heights: Sequence[float], record: RunRecord) -> list[Axes]:
    """Panels of relative `heights` above one another, with one axis of rounds, the exploration phase shaded."""
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": list(heights)})
    panels: list[Axes] = list(grid[:, 0])
    last = record.numbers[-1]
    explored = record.exploration_rounds
    for panel in panels:
        panel.set_xlim(min(0.5, last - 0.5), last + max(0.5, 0.01 * last))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if explored:
            panel.axvspan(0, explored + 0.5, color=INK, alpha=0.07, linewidth=0)
    panels[-1].set_xlabel("round")
    return panels


def draw_lines(panel: Axes, record: RunRecord, lines: Sequence[Line], label: str) -> None:
    """Draw lines into a panel whose vertical axis is called `label`."""
    for line in lines:
        chosen = thinned(np.flatnonzero(line.known))
        marker = "o" if chosen.size <= 2 else None
        panel.plot(
            record.numbers[chosen],
            line.values[chosen],
            color=line.colour,
            linestyle=line.dash,
            linewidth=line.width,
            marker=marker,
            label=line.label,
            drawstyle="steps-post" if line.step else "default",
        )
    panel.set_ylabel(label)
    if lines:
        draw_legend(panel)


def draw_range(panel: Axes, record: RunRecord, layers: Sequence[Line]) -> None:
    """Fill the range between the lowest and the highest of many lines."""
    stack = np.stack([layer.values for layer in layers])
    chosen = thinned(np.flatnonzero(np.isfinite(stack).any(axis=0)))
    low, high = np.nanmin(stack[:, chosen], axis=0), np.nanmax(stack[:, chosen], axis=0)
    label = f"lowest to highest of {len(layers)} layers"
    panel.fill_between(record.numbers[chosen], low, high, color=SERIES[0], alpha=0.3, linewidth=0, label=label)


def draw_legend(panel: Axes) -> None:
    """Above the panel, where it hides no line, in as many columns as fit."""
    labels = panel.get_legend_handles_labels()[1]
    columns = max(1, LEGEND_CHARACTERS // (max(map(len, labels)) + HANDLE_CHARACTERS))
    panel.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=min(columns, len(labels)),
        borderaxespad=0,
        handlelength=2.4,
        columnspacing=1.2,
    )


def thinned(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `MOST_POINTS` of the indices, evenly chosen, with the first and the last."""
    if indices.size <= MOST_POINTS:
        return indices
    return indices[np.linspace(0, indices.size - 1, MOST_POINTS).round().astype(np.int64)]


def course(record: RunRecord, line: Line, words: Callable[[float], str]) -> str:
    """`Accuracy: 0.412 after round 10, highest 0.940 after round 180, 0.934 after round 200.`"""
    indices = np.flatnonzero(line.known)
    if not indices.size:
        return ""
    values, rounds = line.values[indices], record.numbers[indices].astype(int)
    name = line.label[:1].upper() + line.label[1:]
    parts = [f"{words(float(values[0]))} after round {rounds[0]}"]
    ends = (values[0], values[-1])
    for word, place in (("highest", int(np.argmax(values))), ("lowest", int(np.argmin(values)))):
        if values[place] not in ends:
            parts.append(f"{word} {words(float(values[place]))} after round {rounds[place]}")
    if indices.size > 1:
        parts.append(f"{words(float(values[-1]))} after round {rounds[-1]}")
    return f"{name}: {', '.join(parts)}."


def shading_note(record: RunRecord) -> str:
    """Sentence about the shaded part; empty where there is none."""
    explored = record.exploration_rounds
    return f" Shaded: the first {explored} rounds, exploration." if explored > 1 else " Shaded: exploration." * explored
