"""The report's figures. Each takes the run's record and gives a `Plot`, or None where there is nothing to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from autoflip_secure.report.panels import (
    Line,
    course,
    draw_legend,
    draw_lines,
    draw_range,
    known_lines,
    new_panels,
    nth_line,
    shading_note,
    thinned,
)
from autoflip_secure.report.record import RunRecord
from autoflip_secure.report.svg import INK, SERIES, draw_svg
from autoflip_secure.report.units import byte_unit, bytes_text, epsilon, percent, score

__all__ = ["Plot", "agreement_plot", "score_plot", "size_plot", "traffic_plot"]

MOST_LAYER_LINES = len(SERIES)
"""Above this many layers their range is drawn: more lines could not be told apart."""


@dataclass(frozen=True)
class Plot:
    """One figure of the page: SVG with its alternative text inside, and the caption below it."""

    svg: str
    caption: str


def score_plot(record: RunRecord, epsilon_target: float | None) -> Plot | None:
    """Scores by round, and below them the privacy spent by then."""
    names = (
        ("accuracy", "accuracy"), ("auroc", "AUROC"), ("balanced_accuracy", "balanced accuracy"),
        ("c_index", "C-index"),
    )  # fmt: skip
    scores = known_lines(nth_line(i, label, record.column(column)) for i, (column, label) in enumerate(names))
    spent = Line("epsilon spent", record.column("epsilon"), SERIES[4], step=True)
    privacy = bool(spent.known.any())
    if not scores and not privacy:
        return None

    def draw(figure: Figure) -> None:
        panels = new_panels(figure, [2.2] * bool(scores) + [1.3] * privacy, record)
        if scores:
            draw_lines(panels[0], record, scores, "score")
        if privacy:
            draw_lines(panels[-1], record, [spent], "epsilon")
            if epsilon_target is not None:
                panels[-1].axhline(epsilon_target, color=INK, linestyle=":", label=f"target {epsilon(epsilon_target)}")
                draw_legend(panels[-1])
            panels[-1].set_ylim(bottom=0)

    alt = " ".join([course(record, line, score) for line in scores] + [course(record, spent, epsilon)]).strip()
    title = "Scores" + " and privacy spent" * privacy if scores else "Privacy spent"
    svg = draw_svg(draw, name="score", height=2.2 * bool(scores) + 1.5 * privacy + 0.5, alt=alt)
    return Plot(svg, f"{title} by round.{shading_note(record)}")


def agreement_plot(record: RunRecord) -> Plot | None:
    """Agreement of the silos' updates, whole model and by layer."""
    overall = Line("whole model", record.column("agreement_average"), INK, width=2.8)
    measured = record.column("agreement")
    layers = known_lines(
        nth_line(i, name, record.layer_column(name, "agreement")) for i, name in enumerate(record.layer_names())
    )
    if not (overall.known.any() or layers or np.isfinite(measured).any()):
        return None

    def draw(figure: Figure) -> None:
        (panel,) = new_panels(figure, [1.0], record)
        dots = thinned(np.flatnonzero(np.isfinite(measured)))
        panel.plot(record.numbers[dots], measured[dots], "o", color=INK, alpha=0.45, label="measured")
        if len(layers) > MOST_LAYER_LINES:
            draw_range(panel, record, layers)
        else:
            draw_lines(panel, record, layers, "agreement")
        if overall.known.any():
            draw_lines(panel, record, [overall], "agreement")
        panel.set_ylabel("agreement")
        draw_legend(panel)

    said = known_lines([overall, *layers]) or [Line("measured agreement", measured, INK)]
    alt = " ".join(course(record, line, score) for line in said)
    caption = (
        "Agreement of the silos' updates by round: 1 where they pull the same way, 0 where they are unrelated, below 0 "
        "where they pull apart. Lines are running averages; dots are single measurements of the whole model."
    )
    return Plot(draw_svg(draw, name="agreement", height=3.2, alt=alt), caption + shading_note(record))


def size_plot(record: RunRecord) -> Plot | None:
    """Live parameters and FLOPs as shares of the dense model; None where nothing was pruned."""
    lines = [
        Line("live parameters", record.column("params_live") / record.column("params_dense"), SERIES[0], step=True),
        Line("FLOPs", record.column("flops") / record.column("flops_dense"), SERIES[1], "--", step=True),
    ]
    shares = np.concatenate([line.values for line in lines])
    if not np.any(shares[np.isfinite(shares)] < 1.0):
        return None

    def draw(figure: Figure) -> None:
        (panel,) = new_panels(figure, [1.0], record)
        draw_lines(
            panel, record, [Line(x.label, 100 * x.values, x.colour, x.dash, x.step) for x in lines], "% of dense"
        )
        panel.set_ylim(0, 105)

    alt = " ".join(course(record, line, percent) for line in lines)
    caption = f"Live parameters and FLOPs by round, as shares of the unpruned model.{shading_note(record)}"
    return Plot(draw_svg(draw, name="size", height=2.8, alt=alt), caption)


def traffic_plot(record: RunRecord) -> Plot | None:
    """Bytes a silo has uploaded by each round, beside what plain FedAvg would have sent."""
    lines = known_lines(
        [
            Line("plain FedAvg", record.column("upload_bytes_dense_fp32"), INK, ":"),
            Line("everything", record.column("upload_bytes_total_per_silo"), SERIES[1], "--"),
            Line("model vectors", record.column("upload_bytes_per_silo"), SERIES[0]),
        ]
    )
    if not lines:
        return None
    divisor, unit = byte_unit(max(float(np.nanmax(line.values)) for line in lines))

    def draw(figure: Figure) -> None:
        (panel,) = new_panels(figure, [1.0], record)
        scaled = [Line(line.label, line.values / divisor, line.colour, line.dash) for line in lines]
        draw_lines(panel, record, scaled, f"{unit} sent by a silo")
        panel.set_ylim(bottom=0)

    alt = " ".join(course(record, line, bytes_text) for line in lines)
    caption = (
        "Bytes uploaded by one silo, added up over the rounds, aborted attempts included. Everything: model vectors "
        f"with all other messages of the protocol. Plain FedAvg sends the unpruned model in float32."
        f"{shading_note(record)}"
    )
    return Plot(draw_svg(draw, name="traffic", height=3.0, alt=alt), caption)
