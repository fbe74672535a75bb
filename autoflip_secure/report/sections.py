"""The sections of the report about results and privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoflip_secure.report import text
from autoflip_secure.report.figures import score_plot
from autoflip_secure.report.markup import Html, cards, details, figure, items, paragraph, section, side_by_side, table
from autoflip_secure.report.record import RunRecord
from autoflip_secure.report.units import (
    MISSING,
    bytes_text,
    count,
    count_of,
    duration,
    epsilon,
    main_score,
    number,
    percent,
    score,
)

__all__ = ["headline_section", "learning_section", "privacy_section"]

MOST_ROWS = 100
"""Rows shown of the table of scored rounds; longer runs are thinned evenly, the last row is always there."""

FOLDED_ROWS = 25
"""Above this many rows that table starts folded."""

FOLDED_SILOS = 12
"""Above this many silos the table of their spending starts folded."""

Summary = Mapping[str, Any]


def headline_section(summary: Summary, record: RunRecord) -> Html:
    """The figures most readers come for."""
    return section("figures", "Headline figures", cards(_headlines(summary, record)))


def _headlines(summary: Summary, record: RunRecord) -> list[tuple[str, str, str]]:
    last_scored = next((row["round"] + 1 for row in reversed(record.rounds) if "accuracy" in row), None)
    when = "no round was scored" if last_scored is None else f"after round {last_scored}"
    name, value = main_score(summary)
    found = [(name[0].upper() + name[1:], value, when)]
    if number(summary.get("auroc")) is not None:
        found.append(("AUROC", score(summary["auroc"]), when))
    if number(summary.get("loss")) is not None:
        found.append(("Loss", score(summary["loss"]), when))
    found.append(_privacy_card(summary))
    plain_fedavg = bytes_text(summary.get("upload_bytes_dense_fp32"))
    live, dense = summary.get("params_live"), summary.get("params_dense")
    found += [
        ("Live parameters", percent(summary.get("params_ratio")), f"{count(live)} of {count(dense)}"),
        ("FLOPs", percent(summary.get("flops_ratio")), "of the unpruned model's, measured"),
        (
            "Upload of a silo",
            bytes_text(summary.get("upload_bytes_per_silo")),
            f"{percent(summary.get('upload_ratio'))} of plain FedAvg's {plain_fedavg}",
        ),
    ]
    training = summary.get("training_flops_ratio")
    if number(training) is not None:
        found.append(("Training FLOPs", percent(training), "of as many dense rounds', exploration included"))
    if number(summary.get("agreement_final")) is not None:
        found.append(("Agreement", score(summary["agreement_final"]), "of the silos' updates; 1 is full agreement"))
    found.append(("Rounds", count(summary.get("rounds")), f"by {count_of(int(summary.get('silos') or 0), 'silo')}"))
    if number(summary.get("rounds_to_target")) is not None:
        needed = f"rounds, {bytes_text(summary.get('upload_bytes_to_target'))} uploaded by a silo"
        found.append(("Target accuracy after", count(summary["rounds_to_target"]), needed))
    seconds = f"of which {duration(summary.get('seconds_secure_sum'))} in sums with the silos"
    found.append(("Time", duration(summary.get("seconds_total")), seconds))
    return found


def _privacy_card(summary: Summary) -> tuple[str, str, str]:
    if summary.get("dp_trust", "none") == "none" or summary.get("epsilon_target") is None:
        return "Epsilon", "none", "no differential privacy"
    delta = number(summary.get("delta"))
    note = f"of {epsilon(summary['epsilon_target'])}" + ("" if delta is None else f", delta {delta:g}")
    if text.promise_broken(summary) is not None:
        note += "; the promise does not hold"
    return "Epsilon spent", epsilon(summary.get("epsilon_spent")), note


def privacy_section(summary: Summary) -> Html:
    """The promise, who it holds against, what was spent, and what is not promised."""
    private = summary.get("dp_trust", "none") != "none"
    promise = (summary.get("privacy") or {}).get("promise") or f"This run: {text.privacy_sentence(summary)}."
    broken = text.promise_broken(summary)
    return section(
        "privacy",
        "What was promised about privacy",
        paragraph(f"The statement below does not hold: {broken}.") if broken else None,
        paragraph(promise),
        paragraph(text.protection(summary)),
        paragraph(noise) if (noise := text.noise_sentence(summary)) else None,
        side_by_side(_terms_table(summary), _ledger_table(summary.get("ledgers") or [])) if private else None,
        Html("<h3>What this run does not promise</h3>"),
        items(text.limits(summary)),
    )


def _terms_table(summary: Summary) -> Html:
    privacy = summary.get("privacy") or {}
    rows: list[tuple[str, Any]] = [
        ("Trust mode", summary["dp_trust"]),
        ("Colluding silos borne", count(summary.get("colluders"))),
        ("Epsilon promised", epsilon(summary.get("epsilon_target"))),
        ("Epsilon spent, largest of the silos", epsilon(summary.get("epsilon_spent"))),
        ("Delta", MISSING if number(summary.get("delta")) is None else f"{summary['delta']:g}"),
    ]
    for name, label in (
        ("noise_multiplier", "Noise multiplier of training"),
        ("evaluation_noise_multiplier", "Noise multiplier of scoring"),
        ("census_noise_multiplier", "Noise multiplier of the count of records"),
    ):
        value = number(privacy.get(name))
        if value:
            rows.append((label, f"{value:.4g}"))
    if number(privacy.get("planned_steps")):
        rows.append(("Noised training steps paid for", count(privacy["planned_steps"])))
    return table("Terms of the promise", ["Term", "Value"], rows)


def _ledger_table(ledgers: Sequence[Mapping[str, Any]]) -> Html | None:
    if not ledgers:
        return None
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in ledgers))
    cells = {(row["silo"], str(row["dataset"])): row for row in ledgers}
    head = ["Silo", *(title for name in datasets for title in (f"Epsilon, {name} records", f"Ledger lines, {name}"))]

    def silo_row(silo: Any) -> list[str]:
        found = [cells.get((silo, name), {}) for name in datasets]
        return [str(silo), *(c for cell in found for c in (epsilon(cell.get("epsilon")), count(cell.get("lines"))))]

    silos = list(dict.fromkeys(row["silo"] for row in ledgers))
    caption = "Spent by each silo, from its own ledger. Record sets hold different patients, so they do not add up."
    content = table(caption, head, map(silo_row, silos), numeric=range(1, len(head)))
    return details(f"Spending of {count_of(silos, 'silo')}", content, opened=len(silos) <= FOLDED_SILOS)


def learning_section(summary: Summary, record: RunRecord) -> Html:
    """Scores and privacy by round, as a figure and as a table."""
    note = summary.get("note")
    plot = figure(score_plot(record, number(summary.get("epsilon_target"))), "No round was scored.")
    return section(
        "learning",
        "Learning",
        side_by_side(plot, _scores_table(record)),
        paragraph(f"About the data: {note}") if note else None,
    )


def _scores_table(record: RunRecord) -> Html | None:
    scored = [row for row in record.rounds if "accuracy" in row]
    if not scored:
        return None
    columns = {
        "Accuracy": ("accuracy", score),
        "Balanced accuracy": ("balanced_accuracy", score),
        "AUROC": ("auroc", score),
        "C-index": ("c_index", score),
        "Loss": ("loss", score),
        "Epsilon": ("epsilon", epsilon),
        "Live": ("params_live", count),
        "Upload": ("upload_bytes_per_silo", bytes_text),
    }
    used = {title: c for title, c in columns.items() if any(row.get(c[0]) is not None for row in scored)}
    stride = -(-len(scored) // MOST_ROWS)
    shown = scored[::-1][::stride][::-1]
    rows = [[row["round"] + 1, *(words(row.get(name)) for name, words in used.values())] for row in shown]
    caption = "Scored rounds: live parameters, and bytes a silo had uploaded" + f"; one in {stride}" * (stride > 1)
    content = table(caption, ["Round", *used], rows, numeric=range(1, len(used) + 1))
    return details(f"The same as a table ({count_of(shown, 'row')})", content, opened=len(shown) <= FOLDED_ROWS)
