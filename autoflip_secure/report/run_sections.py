"""The sections of the report about the course of the run: pruning, traffic, drops, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autoflip_secure.report.figures import agreement_plot, size_plot, traffic_plot
from autoflip_secure.report.markup import Html, details, figure, join, paragraph, section, side_by_side, table
from autoflip_secure.report.record import RunRecord
from autoflip_secure.report.text import STAGE_MEANING
from autoflip_secure.report.units import MISSING, bytes_text, count, percent, score

__all__ = ["pruning_section", "settings_section", "traffic_section", "trouble_section"]

MOST_ABORTS = 100
MOST_SILOS = 6
"""Rows and silo ids shown; the rest is counted, and stands in events.jsonl."""

Summary = Mapping[str, Any]


def pruning_section(record: RunRecord) -> Html:
    """Agreement, size by round, and the layers at the end."""
    plots = side_by_side(
        figure(agreement_plot(record), "Agreement of the silos was not measured in this run."),
        figure(size_plot(record), "Nothing was pruned in this run: all parameters are live."),
    )
    return section("pruning", "Agreement and pruning", plots, _layer_table(record), _decision_table(record))


def _layer_table(record: RunRecord) -> Html | None:
    layers = record.last.get("layers") or []
    if not layers:
        return None
    measured = {
        name: next((v for v in reversed(record.layer_column(name, "agreement_raw")) if v == v), None)
        for name in record.layer_names()
    }
    rows = [
        (
            layer["layer"],
            count(layer.get("units")),
            count(layer.get("live")),
            score(layer.get("agreement")),
            score(measured[layer["layer"]]),
        )
        for layer in layers
    ]
    head = ["Layer", "Units left", "Live parameters", "Agreement, average", "Agreement, last measured"]
    return table("Layers with prunable units after the last round", head, rows, numeric=range(1, 5))


def _decision_table(record: RunRecord) -> Html | None:
    rows = [
        (
            _round(event),
            count(event.get("live_before")),
            count(event.get("live_after")),
            ", ".join(map(str, event.get("widths") or [])) or MISSING,
            percent(event.get("flops_ratio")),
        )
        for event in record.of_kind("pruned")
    ]
    if not rows:
        return None
    head = ["After round", "Live before", "Live after", "Units by layer", "FLOPs left"]
    return details("Pruning decisions", table("Pruning decisions", head, rows, numeric=(1, 2, 4)))


def traffic_section(summary: Summary, record: RunRecord) -> Html:
    """Bytes, beside plain FedAvg."""
    vectors = "Model vectors and openings of sums" if summary.get("aggregation") == "ckks" else "Model vectors"
    rows = [
        (f"{vectors}, upload", summary.get("upload_bytes_per_silo"), summary.get("upload_ratio")),
        ("Everything, upload", summary.get("upload_bytes_total_per_silo"), summary.get("upload_ratio_total")),
        ("Everything, download", summary.get("download_bytes_per_silo"), None),
        ("Plain FedAvg in float32, upload", summary.get("upload_bytes_dense_fp32"), 1.0),
    ]
    totals = table(
        "Bytes of one silo over the whole run",
        ["What", "Bytes", "Against plain FedAvg"],
        [(what, bytes_text(size), percent(ratio)) for what, size, ratio in rows],
        numeric=(1, 2),
    )
    plot = figure(traffic_plot(record), "The run recorded no bytes.")
    return section("traffic", "Traffic", side_by_side(plot, totals))


def trouble_section(record: RunRecord) -> Html:
    """Drops by stage, aborted attempts, silos that broke the protocol, sums that honest silos cannot have sent."""
    parts = [_drop_table(record), _abort_table(record), _misbehaviour_table(record), _bounds_table(record)]
    if not any(parts):
        return section(
            "drops", "Drops and aborts", paragraph("No silo dropped out and no attempt at a sum was aborted.")
        )
    return section("drops", "Drops and aborts", *parts)


def _drop_table(record: RunRecord) -> Html | None:
    absences = record.of_kind("absent")
    logged = Counter(str(event.get("stage")) for event in absences)
    # Counts of the last round are checkpointed with the model; around a crash an event may be logged twice.
    counts = {**logged, **(record.last.get("drops") or {})}
    counts = {stage: times for stage, times in counts.items() if times}
    if not counts:
        return None
    order = {stage: place for place, stage in enumerate(STAGE_MEANING)}
    rows = []
    for stage in sorted(counts, key=lambda stage: (order.get(stage, len(order)), stage)):
        here = [event for event in absences if str(event.get("stage")) == stage]
        silos = _most_common((f"silo {event.get('silo')}" for event in here), MOST_SILOS)
        why = _most_common((str(event.get("error") or event.get("status")) for event in here), MOST_SILOS)
        rows.append((stage, count(counts[stage]), STAGE_MEANING.get(stage, MISSING), silos, why))
    head = ["Stage", "Drops", "What the silo missed", "Silos", "Answer"]
    return table(
        "Drops by the stage at which a silo was first missed, aborted attempts included", head, rows, numeric=(1,)
    )


def _abort_table(record: RunRecord) -> Html | None:
    aborts = record.of_kind("abort")
    rows = [
        (
            _round(event),
            event.get("phase", MISSING),
            event.get("attempt", 0) + 1,
            event.get("stage", MISSING),
            event.get("reason", MISSING),
            ", ".join(map(str, event.get("blamed") or [])) or "nobody",
        )
        for event in aborts
    ]
    return _limited("Aborted attempts", ["Round", "Phase", "Attempt", "Stage", "Reason", "Blamed silos"], rows)


def _misbehaviour_table(record: RunRecord) -> Html | None:
    rows = [
        (f"Silo {event.get('silo')}", event.get("stage", MISSING), event.get("reason", MISSING))
        for event in record.of_kind("silo_misbehaved")
    ]
    return _limited("Answers that broke the protocol", ["Silo", "Stage", "Reason"], rows)


def _bounds_table(record: RunRecord) -> Html | None:
    rows = [
        (
            _round(event),
            event.get("phase", MISSING),
            event.get("channel", MISSING),
            ", ".join(map(str, (event.get("silos") or [])[:MOST_SILOS])) or MISSING,
            f"scaled by {score(event.get('factor'))}" if event.get("factor") else "left out",
        )
        for event in record.of_kind("sum_out_of_bounds")
    ]
    head = ["Round", "Phase", "Channel", "Silos of the sum", "What was done"]
    return _limited("Sums that honest silos do not add up to", head, rows)


def _limited(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html | None:
    if not rows:
        return None
    shown, left = rows[:MOST_ABORTS], len(rows) - MOST_ABORTS
    rest = paragraph(f"{left:,} more are listed in events.jsonl.") if left > 0 else None
    return join(table(f"{title} ({len(rows):,})", head, shown), rest)


def settings_section(summary: Summary, record: RunRecord) -> Html:
    """Options and versions, enough to repeat the run."""
    options = [(name, _option(value)) for name, value in sorted(record.config.items())]
    versions = sorted((summary.get("package_versions") or {}).items())
    return section(
        "settings",
        "Settings and versions",
        side_by_side(
            table("Options of the run (config.toml)", ["Option", "Value"], options),
            table("Package versions", ["Package", "Version"], versions) if versions else None,
        ),
    )


def _option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _round(event: Mapping[str, Any]) -> int | str:
    number = event.get("round")
    return number + 1 if isinstance(number, int) else MISSING


def _most_common(names: Iterable[str], limit: int) -> str:
    ranked = Counter(names).most_common()
    shown = [f"{name} ({times}x)" if times > 1 else name for name, times in ranked[:limit]]
    more = [f"{len(ranked) - limit} more"] if len(ranked) > limit else []
    return ", ".join(shown + more) or MISSING
