"""summary.json: every key that other tools rely on, and figures that agree with the run's own records."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import numpy as np
import pytest

from autoflip_secure.federation import client_app
from autoflip_secure.federation import summary as summary_module
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.dropout import drops
from autoflip_secure.federation.engines import run_federation
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.federation.finish import finish
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.summary import ledger_summaries, promise_holds
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.plan import accounting_delta

KEYS = [
    "schema",
    "run",
    "dataset",
    "model",
    "task",
    "silos",
    "rounds",
    "rounds_aborted",
    "aggregation",
    "dp_trust",
    "engine",
    "seed",
    "accuracy",
    "auroc",
    "c_index",
    "loss",
    "epsilon_target",
    "epsilon_spent",
    "delta",
    "params_dense",
    "params_live",
    "params_ratio",
    "flops_dense",
    "flops_live",
    "flops_ratio",
    "upload_bytes_per_silo",
    "upload_bytes_dense_fp32",
    "training_flops_ratio",
    "upload_ratio",
    "upload_bytes_total_per_silo",
    "download_bytes_per_silo",
    "rounds_to_target",
    "upload_bytes_to_target",
    "agreement_final",
    "seconds_total",
    "seconds_training",
    "seconds_secure_sum",
    "package_versions",
]

Run = tuple[dict[str, Any], RunFolder, Any, Any]


@pytest.fixture
def run(make_config, make_federation):
    """run(public_test=True, name="run", **options) -> summary, folder, configuration, outcome of a finished run."""

    def go(public_test: bool = True, name: str = "run", **options: Any) -> Run:
        client_app.close_silos()
        config = make_config(**options)
        folder = make_federation(config, public_test=public_test, name=name)
        outcome = run_federation(folder, config, lambda line: None)
        return finish(folder, config, outcome), folder, config, outcome

    yield go
    client_app.close_silos()


def test_every_promised_key_is_there(run) -> None:
    summary, folder, *_ = run(prune="autoflip", silos=6)
    assert set(KEYS) <= set(summary)
    assert json.loads(folder.summary.read_text()) == summary


def test_figures_agree_with_the_run_s_records(run) -> None:
    summary, folder, config, _ = run(prune="autoflip", silos=6, rounds=6, target_accuracy=0.01, evaluate_every=1)
    rows = list(read_json_lines(folder.metrics))
    last = rows[-1]
    for name in ("dataset", "model", "silos", "aggregation", "engine", "seed", "partition", "prune", "colluders"):
        assert summary[name] == getattr(config, name), name
    assert (summary["run"], summary["task"], summary["rounds"]) == (folder.path.name, "multiclass", 6)
    for name in ("accuracy", "loss", "params_dense", "params_live", "flops_dense", "upload_bytes_per_silo",
                 "upload_bytes_total_per_silo", "upload_bytes_dense_fp32", "download_bytes_per_silo"):  # fmt: skip
        assert summary[name] == last[name], name
    assert summary["flops_live"] == last["flops"] <= 0.5 * summary["flops_dense"]
    assert summary["params_ratio"] == last["params_live"] / last["params_dense"] < 1
    assert summary["flops_ratio"] == last["flops"] / last["flops_dense"]
    steps = [config.explore_steps / config.local_steps, *[1.0] * 5]
    networks = [summary["flops_dense"], *(row["flops"] for row in rows[:-1])]
    assert summary["training_flops_ratio"] == pytest.approx(np.dot(steps, networks) / 6 / summary["flops_dense"])
    assert summary["upload_ratio"] == last["upload_bytes_per_silo"] / (6 * 4 * last["params_dense"])
    assert summary["upload_ratio_total"] == last["upload_bytes_total_per_silo"] / (6 * 4 * last["params_dense"])
    assert summary["upload_ratio"] < summary["upload_ratio_total"]
    assert (summary["rounds_to_target"], summary["upload_bytes_to_target"]) == (1, rows[0]["upload_bytes_per_silo"])
    assert summary["agreement_final"] == last["agreement_average"]
    assert 0 < summary["seconds_training"] < summary["seconds_total"]
    assert summary["seconds_secure_sum"] > 0


@pytest.mark.parametrize("prune", ["none", "random"])
def test_uploads_are_compared_with_fedavg_of_as_many_silos(run, prune: str) -> None:
    everybody, *_ = run(prune=prune, silos=6, rounds=4, aggregation="none", name="all")
    half, folder, *_ = run(prune=prune, silos=6, rounds=4, aggregation="none", participation=0.5, colluders=0)
    assert [row["silos"] for row in read_json_lines(folder.metrics)] == [3] * 4
    assert half["upload_bytes_dense_fp32"] == 4 * half["params_dense"] * 4 * 3 / 6
    # Fields of a smaller sum are a bit narrower, and that is all.
    assert half["upload_ratio"] == pytest.approx(everybody["upload_ratio"], rel=0.1)


def test_needless_noise_is_gone_from_every_round_s_sum(run) -> None:
    summary, folder, *_ = run(aggregation="none", silos=6, rounds=2, dp_epsilon=8.0, colluders=0)
    assert [row["noise_over_least"] for row in read_json_lines(folder.metrics)] == pytest.approx([1.0, 1.0], abs=1e-9)
    assert summary["noise_over_least"] == pytest.approx({"mean": 1.0, "largest": 1.0}, abs=1e-9)


def test_a_silo_that_vanishes_late_leaves_its_noise_and_the_summary_says_so(run) -> None:
    def away(seed: int, round: int, stage: str) -> list[int]:
        return [s for s in range(1, 7) if drops("secagg", 0.05, seed, silo=s, round=round, attempt=0, stage=stage)]

    seed = next(
        seed
        for seed in range(10_000)
        if not away(seed, 0, "masked") and len(away(seed, 0, "unmask")) == 1 and not away(seed, 1, "unmask")
    )
    options = {"silos": 6, "rounds": 2, "dp_epsilon": 8.0, "dropout": 0.05, "colluders": 0, "seed": seed}
    summary, folder, *_ = run(aggregation="secagg", **options)
    found = [row["noise_over_least"] for row in read_json_lines(folder.metrics)]
    # Five of six silos would do, so the one that vanished keeps noise for a sum of five.
    largest = (5 + 6 / 5) / 6
    assert found == pytest.approx([largest, 1.0], abs=1e-9)
    assert summary["noise_over_least"] == pytest.approx({"mean": (largest + 1) / 2, "largest": largest})


def test_without_dp_nothing_is_promised(run) -> None:
    summary, *_ = run()
    assert (summary["dp_trust"], summary["epsilon_target"], summary["epsilon_spent"], summary["delta"]) == (
        "none", None, None, None
    )  # fmt: skip
    assert summary["noise_over_least"] is None
    assert {row["epsilon"] for row in summary["ledgers"]} == {None}
    assert [(row["silo"], row["dataset"], row["lines"]) for row in summary["ledgers"]] == [
        (silo, "train", 4) for silo in range(1, 5)
    ]
    assert "No differential privacy" in summary["privacy"]["promise"]


def test_a_promise_is_made_only_where_it_holds(make_config) -> None:
    private = {"dp_epsilon": 4.0, "aggregation": "secagg"}
    assert promise_holds(make_config(**private))
    assert promise_holds(make_config(**{**private, "aggregation": "none"}, dp_trust="local"))
    for broken in ({"dp_epsilon": None}, {"aggregation": "none"}, {"insecure_reproducible_noise": True}):
        assert not promise_holds(make_config(**{**private, **broken}))


def test_spending_is_read_from_the_ledgers(run) -> None:
    summary, folder, config, outcome = run(dp_epsilon=4.0, dp_trust="local", local_steps=1, rounds=3)
    plan = outcome.coordinator.plan
    spent = epsilon(
        [Mechanism(config.sampling_rate, plan.privacy.noise_multiplier, 3)],
        accounting_delta("local", config.dp_delta),
    )
    assert summary["privacy"]["holds"] is True
    assert summary["epsilon_spent"] == pytest.approx(spent, rel=1e-6)
    assert summary["epsilon_spent"] < summary["epsilon_target"] == 4.0
    assert summary["delta"] == config.dp_delta
    assert summary["insecure_reproducible_noise"] is False
    assert list(read_json_lines(folder.metrics))[-1]["epsilon"] == pytest.approx(spent, rel=1e-6)
    with sqlite3.connect(silo_folder(folder.path, 3) / "state.sqlite") as database:
        lines = database.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone()
    assert lines == (3,)
    rows = ledger_summaries(folder, config, plan)
    assert summary["epsilon_spent"] == max(row["epsilon"] for row in rows)


def test_the_silo_that_spent_most_is_reported(run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, config, outcome = run(rounds=1)
    private = config.model_copy(update={"dp_epsilon": 4.0, "dp_trust": "local"})
    rows = [{"silo": n, "dataset": "train", "lines": 1, "epsilon": e} for n, e in ((1, 0.5), (2, 1.5), (3, 1.0))]
    monkeypatch.setattr(summary_module, "ledger_summaries", lambda *_: rows)
    summary = finish(folder, private, outcome)
    assert (summary["epsilon_spent"], summary["ledgers"]) == (1.5, rows)


def test_private_scores_come_with_a_loss(run) -> None:
    summary, *_ = run(public_test=False, rounds=2)
    assert 0 <= summary["accuracy"] <= 1
    assert 0 < summary["loss"] < 4
    assert (summary["auroc"], summary["c_index"]) == (None, None)
    assert [row["dataset"] for row in summary["ledgers"]] == ["train", "holdout"] * 4


def test_versions_name_what_computed_it(run) -> None:
    import numpy
    import torch

    versions = run(rounds=1)[0]["package_versions"]
    assert versions["numpy"] == numpy.__version__
    assert torch.__version__.startswith(versions["torch"].split("+")[0])
    assert {"opacus", "flwr", "cryptography", "dp-accounting", "autoflip-secure"} <= set(versions)
