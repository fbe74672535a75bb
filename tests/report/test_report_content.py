"""What the report says: the run's own figures, its warnings, and its limits."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.errors import DataError
from autoflip_secure.federation.client_app import STAGES
from autoflip_secure.report import text
from autoflip_secure.report.html import write_report
from autoflip_secure.report.record import load_record
from autoflip_secure.report.text import STAGE_MEANING

DROPS_OF_CKKS = {"keys": 1, "encrypt": 7, "open": 2}


def words_of(run: Any) -> str:
    html = write_report(run.path, run.summary).read_text(encoding="utf-8")
    html = re.sub(r"<(svg|style).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def figures_of(run: Any) -> list[str]:
    html = write_report(run.path, run.summary).read_text(encoding="utf-8")
    return [unescape(label) for label in re.findall(r'<svg role="img" aria-label="([^"]+)"', html)]


def test_headline_figures_are_those_of_the_summary(make_run: Any) -> None:
    words = words_of(make_run())
    for expected in (
        "Accuracy 0.941 after round 200",
        "AUROC 0.971",
        "Epsilon spent 7.920 of 8, delta 1e-05",
        "Live parameters 55.0 % 14,300 of 26,010",
        "FLOPs 50.0 %",
        "Training FLOPs 52.5 %",
        "Upload of a silo 8.26 MB 39.7 % of plain FedAvg's 20.8 MB",
    ):
        assert expected in words


def test_privacy_section_has_promise_terms_and_spending_by_silo(make_run: Any) -> None:
    run = make_run()
    run.summary["ledgers"].append({"silo": 3, "dataset": "holdout", "lines": 12, "epsilon": 5.0004})
    words = words_of(run)
    assert run.summary["privacy"]["promise"] in words
    assert "Trust mode distributed Colluding silos borne 1" in words
    assert "Silo Epsilon, train records Ledger lines, train Epsilon, holdout records Ledger lines, holdout" in words
    assert "3 7.890 200 5.001 12" in words
    assert "What this run does not promise" in words


def test_spending_is_not_shown_without_a_promise(make_run: Any) -> None:
    run = make_run(dp=False)
    run.summary["ledgers"] = [{"silo": 1, "dataset": "train", "lines": 3, "epsilon": math.inf}]
    words = words_of(run)
    assert "Terms of the promise" not in words
    assert "not bounded" in words
    assert "Ledger lines" not in words
    assert "Epsilon none no differential privacy" in words


def test_alternative_texts_tell_the_course_of_each_figure(make_run: Any) -> None:
    scores, agreement, size, traffic = figures_of(make_run())
    assert "Accuracy: 0.361 after round 10" in scores
    assert "0.941 after round 200" in scores
    assert "Epsilon spent: 1.771 after round 10, 7.920 after round 200." in scores
    assert "Whole model: 0.400 after round 1" in agreement
    assert "Dense1: " in agreement
    assert "FLOPs: 100.0 % after round 1, 50.0 % after round 200." in size
    assert "Plain FedAvg: 104 kB after round 1, 20.8 MB after round 200." in traffic


@pytest.mark.parametrize(
    ("options", "figures", "sentences"),
    [
        ({"dp": False}, 4, ["no differential privacy"]),
        ({"prune": False}, 2, ["Agreement of the silos was not measured", "Nothing was pruned in this run"]),
        ({"drops": False}, 4, ["No silo dropped out and no attempt at a sum was aborted."]),
    ],
)
def test_missing_parts_are_said_in_words(
    make_run: Any, options: dict[str, Any], figures: int, sentences: list[str]
) -> None:
    run = make_run(**options)
    assert len(figures_of(run)) == figures
    for sentence in sentences:
        assert sentence in words_of(run)


def test_runs_without_any_score_and_with_null_scores(make_run: Any) -> None:
    run = make_run(rounds=20, dp=False)
    kept = [{k: v for k, v in line.items() if k not in ("accuracy", "loss", "auroc")} for line in run.lines]
    run.write_metrics("".join(json.dumps(line) + "\n" for line in kept))
    run.summary.update(accuracy=None, auroc=None, loss=None)
    assert "Accuracy – no round was scored" in words_of(run)  # noqa: RUF001
    assert "No round was scored." in words_of(run)
    scored = [{**line, "accuracy": None, "auroc": None, "loss": None} for line in run.lines]
    run.write_metrics("".join(json.dumps(line) + "\n" for line in scored))
    assert "No round was scored." in words_of(run)


def test_agreement_without_layers_or_averages(make_run: Any) -> None:
    run = make_run(rounds=20)
    kept = [{**line, "layers": [], "agreement_average": None} for line in run.lines]
    run.write_metrics("".join(json.dumps(line) + "\n" for line in kept))
    _, agreement, _ = figures_of(run)
    assert agreement.startswith("Measured agreement: 0.")
    assert "Layers with prunable units" not in words_of(run)


def test_drops_and_aborts_are_listed_with_reasons(make_run: Any) -> None:
    words = words_of(make_run())
    assert "masked 23 model vector: not in this round's sum; nothing else is lost silo 1 (3x)" in words
    assert "3 more silent (23x)" in words
    assert "31 train 1 masked 6 of 10 silos of a cohort sent a masked vector, 8 are needed 4" in words
    assert "Silo 4 masked unsigned vector" in words


def test_ckks_sums_are_reported_for_what_they_are(make_run: Any) -> None:
    run = make_run()
    of_ckks = (
        "Sums were protected by ckks: of what the silos sent, the coordinator, alone or together with up to 1 silo, "
        "could read sums over cohorts of silos only, never one silo's vector. Each sum was encrypted under keys of all "
        "its silos and opened by all of them together",
        "a silo that sends a wrong part of an opening, or none, stops every sum it is in",
        "Model vectors and openings of sums, upload",
    )
    words = words_of(run)
    assert "Sums were protected by secagg" in words
    assert "Model vectors, upload" in words
    assert not any(sentence in words for sentence in of_ckks)
    run.summary["aggregation"] = "ckks"
    words = words_of(run)
    assert all(sentence in words for sentence in of_ckks)
    assert "Warning: the coordinator saw every silo" not in words


def test_drops_at_the_stages_of_ckks_are_explained_in_order(make_run: Any) -> None:
    run = make_run()
    kept = [{**line, "drops": {"open": 2, "encrypt": 7, "keys": 1}} for line in run.lines]
    run.write_metrics("".join(json.dumps(line) + "\n" for line in kept))
    (run.path / "events.jsonl").unlink()
    words = words_of(run)
    places = [words.index(f"{stage} {times} {STAGE_MEANING[stage]}") for stage, times in DROPS_OF_CKKS.items()]
    assert places == sorted(places)


def test_every_stage_that_a_silo_answers_has_a_meaning() -> None:
    assert set(STAGE_MEANING) == set(STAGES)


def test_only_the_first_aborts_are_listed_and_the_rest_counted(make_run: Any) -> None:
    run = make_run(rounds=20, prune=False)
    abort = {"event": "abort", "phase": "train", "round": 3, "attempt": 0, "stage": "masked", "reason": "too few"}
    (run.path / "events.jsonl").write_text((json.dumps(abort) + "\n") * 130)
    words = words_of(run)
    assert words.count("too few") == 100
    assert "30 more are listed in events.jsonl." in words


def test_drop_counts_survive_the_loss_of_the_event_log(make_run: Any) -> None:
    run = make_run()
    (run.path / "events.jsonl").unlink()
    assert "masked 23 model vector" in words_of(run)


def test_last_measured_agreement_of_a_layer_is_the_last_that_was_measured(make_run: Any) -> None:
    run = make_run()
    measured = [row["layers"][0]["agreement_raw"] for row in run.lines if row["layers"][0]["agreement_raw"] is not None]
    assert f"conv1 8 648 0.150 {measured[-1]:.3f}" in words_of(run)


ALARMS = {
    "saw": "Warning: the coordinator saw every silo",
    "noise": "Warning: the privacy noise is reproducible",
    "spoilt": "Warning: some silos spoilt the sums on purpose",
    "rotates": "Warning: the sums of this run together may show single silos",
    "void": "Warning: the differential-privacy promise does not hold",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"dp": False}, set()),
        ({"dp": False, "aggregation": "none"}, {"saw"}),
        ({"aggregation": "none"}, {"saw", "void"}),
        ({"aggregation": "none", "dp_trust": "local"}, {"saw"}),
        ({"insecure_reproducible_noise": True}, {"noise", "void"}),
        ({"dp_trust": "local", "insecure_reproducible_noise": True}, {"noise", "void"}),
        ({"epsilon_spent": 8.2}, {"void"}),
        ({"bad_silos": "noise:0.2"}, {"spoilt"}),
        ({"dp": False, "cohort_rotation": "cohorts rotate"}, {"rotates"}),
        ({"cohort_rotation": "cohorts rotate"}, set()),
        ({"epsilon_spent": 8.0}, set()),
    ],
)
def test_warnings(make_run: Any, changes: dict[str, Any], expected: set[str]) -> None:
    run = make_run(rounds=20, prune=False, **changes)
    words = words_of(run)
    assert {name for name, title in ALARMS.items() if title in words} == expected
    assert ("The statement below does not hold" in words) == ("void" in expected)
    assert ("the promise does not hold" in words) == ("void" in expected)
    assert text.privacy_sentence(run.summary).startswith("DOES NOT HOLD") == ("void" in expected)
    first = words.find("Warning:")
    assert first < words.find("Headline figures")


def test_noise_beyond_the_promise_is_stated(make_run: Any) -> None:
    words = words_of(make_run(noise_over_least={"mean": 1.01234, "largest": 1.0286}))
    assert "the rest had 1.012 times the least variance that keeps the promise, 1.029 times in the worst round" in words
    for missing in (None, {}, {"mean": None, "largest": 1.0}, 7):
        assert text.noise_sentence({"noise_over_least": missing}) is None


def test_limits_speak_of_the_run_at_hand(make_run: Any) -> None:
    distributed = " ".join(text.limits(make_run().summary))
    assert "more colluding silos" in distributed
    local = " ".join(text.limits({"dp_trust": "local"}))
    assert "more colluding silos" not in local
    assert "several silos" in local
    assert "--dp-epsilon bounds that" in " ".join(text.limits({"dp_trust": "none"}))


def test_what_differences_of_sums_tell_is_said() -> None:
    for block, words in ((1, "which classes it treats"), (3, "blocks of 3 or more")):
        assert words in " ".join(text.limits({"dp_trust": "local", "block": block}))
    assert "show its update" in " ".join(text.limits({"dp_trust": "none"}))


def test_a_round_recorded_twice_counts_once_as_the_resumed_run_did_it(make_run: Any) -> None:
    run = make_run(rounds=20)
    lines = [json.dumps(line) for line in run.lines]
    lines.insert(12, json.dumps({**run.lines[11], "accuracy": 0.123}))
    run.write_metrics("".join(line + "\n" for line in lines) + '{"round": 20, "cut sh')
    record = load_record(run.path)
    assert [row["round"] for row in record.rounds] == list(range(20))
    assert record.rounds[11]["accuracy"] == 0.123


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", None),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '{"round": 0, "pha{"round": 1}\n'),
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", '{"phase": "train"}\n'),
        ("events.jsonl", "not json\n"),
        ("config.toml", None),
        ("config.toml", "silos = = 3\n"),
        ("config.toml", b"\xff\xfe"),
    ],
)
def test_a_damaged_run_directory_is_named_and_the_earlier_report_kept(
    make_run: Any, name: str, content: str | bytes | None
) -> None:
    run = make_run(rounds=20, prune=False)
    report: Path = write_report(run.path, run.summary)
    before = report.read_bytes()
    file = run.path / name
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(str(file))) as caught:
        write_report(run.path, run.summary)
    assert "\n" not in str(caught.value)
    assert report.read_bytes() == before
