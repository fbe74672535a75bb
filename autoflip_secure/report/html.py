"""Writes a run's report.html: one file without scripts or anything loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoflip_secure.report import run_sections, sections
from autoflip_secure.report.markup import Html, join, notice, text
from autoflip_secure.report.record import RunRecord, load_record
from autoflip_secure.report.style import style_sheet
from autoflip_secure.report.text import alarms
from autoflip_secure.report.units import count_of
from autoflip_secure.storage import write_atomically

__all__ = ["write_report"]

REPORT = "report.html"

CONTENTS = {
    "figures": "Figures",
    "privacy": "Privacy",
    "learning": "Learning",
    "pruning": "Pruning",
    "traffic": "Traffic",
    "drops": "Drops and aborts",
    "settings": "Settings",
}


def write_report(run_path: Path, summary: dict[str, Any]) -> Path:
    """Write RUN/report.html from the run's files and its summary; returns its path.

    Parameters
    ----------
    run_path : Path
        Run directory with metrics.jsonl and config.toml; events.jsonl where there is one.
    summary : dict
        summary.json. Figures that are None or absent are shown as dashes or left out.

    Raises
    ------
    DataError
        A file of the run is missing or damaged.
    StorageError
        The report cannot be written; an earlier one is kept.
    """
    record = load_record(run_path)
    path = run_path / REPORT
    write_atomically(path, _page(summary, record).encode("utf-8"))
    return path


def _page(summary: Mapping[str, Any], record: RunRecord) -> str:
    title = text(f"{summary.get('run', 'Run')}: federated training report")
    main = join(
        *(notice(*alarm) for alarm in alarms(summary)),
        sections.headline_section(summary, record),
        sections.privacy_section(summary),
        sections.learning_section(summary, record),
        run_sections.pruning_section(record),
        run_sections.traffic_section(summary, record),
        run_sections.trouble_section(record),
        run_sections.settings_section(summary, record),
    )
    links = "".join(f'<li><a href="#{name}">{text(words)}</a></li>' for name, words in CONTENTS.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style_sheet()}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the report</a>
<header>
<h1>{text(summary.get("run", "Run"))}</h1>
<p class="lead">{_lead(summary)}</p>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main id="content">
{main}
</main>
<footer>
<p>Rounds and attempts are counted from 1 here, from 0 in metrics.jsonl and events.jsonl. This page loads nothing from
elsewhere; <code>autoflip-secure report</code> makes it anew from the run directory.</p>
</footer>
</body>
</html>
"""


def _lead(summary: Mapping[str, Any]) -> Html:
    parts = [
        f"Federated training of {summary.get('model', 'a model')} on {summary.get('dataset', 'a data set')}",
        f"by {count_of(int(summary.get('silos') or 0), 'silo')}",
        f"(partition {summary['partition']})" if summary.get("partition") else "",
        f"in {count_of(int(summary.get('rounds') or 0), 'round')};",
        f"sums: {summary.get('aggregation', 'unknown')}, pruning: {summary.get('prune', 'unknown')}.",
    ]
    return text(" ".join(part for part in parts if part))
