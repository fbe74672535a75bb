"""The benchmarks' command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoflip_secure.attacks.outcome import Outcome
from autoflip_secure.attacks.registry import MODULES, load_attack
from autoflip_secure.attacks.settings import SETTINGS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_method_that_needs_its_own_learning_rate_gets_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pruning

    rates = set()
    for task in (*pruning.TASKS, pruning.QUICK):
        for facts, options in pruning.settings(task, tuple(pruning.STARTS), main=False):
            given = options.split().count("--learning-rate")
            rates.add((facts["method"], given))
            assert given <= 1, f"{facts}: {options}"
    assert {("FedMask, global mask", 1), ("magnitude", 0), ("magnitude", 1)} <= rates


@pytest.fixture
def threats_report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import threats_report

    return threats_report


def test_pages_of_threats_show_the_tables_that_the_attacks_made(threats_report: Any) -> None:
    shown = set()
    for path in sorted((BENCHMARKS.parent / "threat_models").glob("*.md")):
        for found in threats_report.MARKER.finditer(path.read_text()):
            name = found[1]
            assert load_attack(name).page == path.name
            table = threats_report.page_table(name, BENCHMARKS / "results")
            assert found[0] == f"<!-- results: {name} -->\n{table}<!-- /results -->", f"make bench-threats ({name})"
            assert table.count("\n|") > 2
            shown.add(name)
    assert shown == set(MODULES), "every attack has a page, and every page its table"


@pytest.mark.parametrize("name", MODULES)
def test_no_attack_in_the_committed_table_broke_a_promise(name: str, threats_report: Any) -> None:
    found = threats_report.results_of(name, BENCHMARKS / "results")
    assert found is not None
    outcomes = threats_report.outcomes_of(found[0])
    assert load_attack(name).name == name
    assert outcomes
    assert [(o.attack, o.setting) for o in outcomes if o.verdict == "broken"] == []
    measured = (BENCHMARKS / f"results/threats{'-quick' if found[1] else ''}.md").read_text()
    for outcome in outcomes:
        assert outcome.setting not in SETTINGS or f"| {outcome.attack} | {outcome.measure} |" in measured


def test_what_few_trials_leave_open_is_said_as_the_full_form_found_it(threats_report: Any) -> None:
    def rows(value: float, low: float, high: float, setting: str = "sum") -> dict[str, Any]:
        outcome = Outcome("reading", setting, "recall", value, low, high, 40, 0.2, 0.25, "chance + 0.05")
        return {"seconds": 1, "machine": {}, "rows": [outcome.to_json()]}

    few = {"label-sets": rows(0.2, 0.1, 0.3)}
    assert "full form" not in threats_report.markdown(few, quick=True)
    assert "full form" not in threats_report.markdown(few, quick=True, full={"label-sets": rows(0, 0, 0.1, "plain")})
    for value, verdict in ((0.2, "held"), (0.3, "**broken**")):
        said = threats_report.markdown(few, quick=True, full={"label-sets": rows(value, value - 0.02, value + 0.02)})
        assert f"has 1 of the 1 left open: 1 {verdict}." in said


def test_what_succeeds_in_a_simulation_is_refused_across_institutions_or_said_not_to_be(threats_report: Any) -> None:
    import threats_defaults

    found = [
        outcome
        for name in MODULES
        for outcome in threats_report.outcomes_of(threats_report.results_of(name, BENCHMARKS / "results")[0])
    ]
    succeeding = threats_defaults.attacks_with_a_way(found)
    assert {"label sets from retries", "backdoor"} <= set(succeeding)
    assert set(succeeding) <= set(threats_defaults.BY_DEFAULT)
    marked = {
        line.split(" | ")[0]
        for line in (BENCHMARKS / "results/threats-quick.md").read_text().splitlines()
        if "†" in line
    }
    stopped = {a for a in succeeding if isinstance(threats_defaults.BY_DEFAULT[a], threats_defaults.Tried)}
    assert {f"| {attack}" for attack in stopped} <= marked
    assert not any(f"| {attack}" in marked for attack in threats_defaults.BY_DEFAULT.keys() - stopped)
    said = (BENCHMARKS.parent / "threat_models/not-defended.md").read_text()
    for attack, default in threats_defaults.BY_DEFAULT.items():
        assert attack in {outcome.attack for outcome in found}
        if isinstance(default, threats_defaults.Unpromised):
            assert f"\n- **{default.entry}**" in said
            continue
        outcomes = default.outcomes(found)
        assert outcomes, attack
        for tried in outcomes:
            assert tried.verdict in {"held", "not refuted", "no gain shown"}, attack
            assert tried.attack not in succeeding or "reply_every" in default.setting


def test_choices_of_units_at_equal_widths_differ_in_which_units_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import agreement_levels as levels
    from levels_federation import units

    draw, of = np.random.default_rng(0), units()
    own = draw.random(of.count)
    kept = [levels.mask_of("widths", levels.reordered(own, order, own)) for order in (own, draw.random(of.count), -own)]
    alive = [np.isin(np.arange(of.count), of.owner[mask]) for mask in kept]
    widths = {tuple(of.layer_sum(each.astype(float))) for each in alive}
    assert len(widths) == 1
    assert 0 < alive[0].sum() < of.count
    assert not np.array_equal(alive[0], alive[1])
    for layer in range(len(of.layer_sizes)):
        members = of.layer == layer
        best, worst = own[members & alive[0]].min(), own[members & alive[2]].max()
        assert best >= own[members & ~alive[0]].max(initial=0.0)
        assert worst <= own[members & ~alive[2]].min(initial=1.0)


def test_a_task_without_dense_runs_is_held_against_those_that_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pruning_report as report

    def row(task: str, method: str, options: str, accuracy: float, seed: int = 0) -> dict[str, Any]:
        figures = {"accuracy": accuracy, "flops_ratio": 0.5, "params_ratio": 0.25, "upload_ratio_total": 0.5}
        facts = {"task": task, "method": method, "start": "", "flops": None if method == "FedAvg" else 0.5}
        return {**facts, "options": options, "seed": seed, "figures": figures}

    rows = [
        row("a", "FedAvg", "--rounds 4 --prune none", 0.9),
        row("b", "FedAvg", "--rounds 40 --prune none", 0.8),
        row("c", "magnitude", "--rounds 4 --prune-threshold 0.9 --prune magnitude", 0.7),
        row("c", "magnitude", "--rounds 4 --prune-threshold 0.9 --prune magnitude", 0.6, seed=1),
    ]
    assert [each["task"] for each in report.dense_of(rows, "c")] == ["a"]
    assert [each["task"] for each in report.dense_of(rows, "b")] == ["b"]
    table = report.task_table(rows, "c")
    assert "| -20.0 (1 seed) |" in table[-2]
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert report.against({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7}) == "**10.0 ± 0.0** (2 pairs)"


def test_each_silo_is_scored_with_the_mask_it_sent_for_the_classes_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import personal
    from run_table import run_simulation

    options = "--dataset digits --model mlp --silos 4 --colluders 0 --partition pathological:3 --rounds 4"
    masks = personal.METHODS["FedMask, a mask for each silo"].replace("0.48", "0.7")
    run_simulation(f"{options} {masks}", 0, tmp_path / "masked", data=False)
    found = personal.judged(tmp_path / "masked")
    models = personal.own_models(tmp_path / "masked")
    assert len({model.mask.tobytes() for model in models}) == len(models) == 4
    assert all((model.weights[~model.mask] == 0).all() for model in models)
    assert found["alone"] is None
    assert found["own"] > found["accuracy"]  # three classes of ten are told apart more easily, and each by its own mask
    assert found["trained"] > found["own"]
    assert 0.4 < found["flops"] <= 0.7
    assert 0.1 < found["parameters"] < found["flops"]
    run_simulation(f"{options} --prune none", 0, tmp_path / "dense", data=False)
    dense = personal.judged(tmp_path / "dense")
    assert dense["flops"] == dense["parameters"] == 1
    assert dense["alone"] > 0.9
    rows = [
        {"partition": "pathological:3", "method": method, "seed": 0, "figures": figures}
        for method, figures in (("FedAvg", dense), ("FedMask, a mask for each silo", found))
    ]
    table = personal.markdown(rows)
    assert "| pathological:3 | FedMask, a mask for each silo | 1 |" in table
    assert f"| pathological:3 | {personal.ALONE}, dense | 1 | - | {100 * dense['alone']:.1f} (1 seed) |" in table
