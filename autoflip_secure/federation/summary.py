"""summary.json: the figures of a finished run, under the names other tools rely on."""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.federation.plan import SessionPlan, describe
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.rotation import rotation_bound
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.spending import spent_after
from autoflip_secure.privacy.ledger import Ledger
from autoflip_secure.privacy.plan import DATASETS
from autoflip_secure.storage import open_silo_database

__all__ = ["build_summary", "ledger_summaries", "promise_holds"]

SCHEMA = 1
PACKAGES = ("autoflip-secure", "torch", "opacus", "flwr", "cryptography", "numpy", "dp-accounting", "torch-pruning")


def build_summary(
    folder: RunFolder, config: ResolvedConfig, plan: SessionPlan, facts: dict[str, Any]
) -> dict[str, Any]:
    """Figures of a finished run.

    `upload_bytes_per_silo` counts the protected vectors of all rounds, with ckks the parts of their openings too, which
    are as long: a silo's mean. `upload_bytes_total_per_silo` adds keys, shares, confirmations and unmasking; both
    include aborted attempts.
    `upload_ratio` is the first over what plain float32 FedAvg of the dense model sends in as many rounds, each with as
    many silos, and `upload_ratio_total` the second. `flops_ratio` is of the final network, `training_flops_ratio` of
    all training steps, exploration's too, over those of as many dense rounds without one. `noise_over_least` is the
    variance of the distributed noise really in the sums of the rounds over the least that keeps the promise with as
    many survivors.
    """
    rows = list(read_json_lines(folder.metrics))
    last = rows[-1]
    scored = [row for row in rows if "accuracy" in row]
    ledgers = ledger_summaries(folder, config, plan)
    agreements = [row["agreement_average"] for row in rows if row["agreement_average"] is not None]
    excess = [row["noise_over_least"] for row in rows if row.get("noise_over_least")]
    dense_bytes = last["upload_bytes_dense_fp32"]
    target = facts.get("target") or {}
    best = scored[-1] if scored else {}
    return {
        "schema": SCHEMA,
        "run": folder.path.name,
        "dataset": config.dataset,
        "partition": config.partition,
        "model": config.model,
        "task": facts["task_kind"],
        "silos": config.silos,
        "rounds": facts["round"],
        "rounds_aborted": facts["attempts_aborted"],
        "drops": last["drops"],
        "aggregation": config.aggregation,
        "block": config.block,
        "prune": config.prune,
        "dp_trust": config.trust,
        "engine": config.engine,
        "seed": config.seed,
        "accuracy": best.get("accuracy"),
        "auroc": best.get("auroc"),
        "c_index": best.get("c_index"),
        "loss": best.get("loss"),
        "epsilon_target": config.dp_epsilon,
        "epsilon_spent": _epsilon_spent(ledgers, config, plan, facts) if promise_holds(config) else None,
        "delta": config.dp_delta if config.trust != "none" else None,
        "colluders": config.colluders,
        "params_dense": last["params_dense"],
        "params_live": last["params_live"],
        "params_ratio": last["params_live"] / last["params_dense"],
        "flops_dense": last["flops_dense"],
        "flops_live": last["flops"],
        "flops_ratio": last["flops"] / last["flops_dense"],
        "training_flops_ratio": _training_flops(rows, plan) / last["flops_dense"],
        "upload_bytes_per_silo": last["upload_bytes_per_silo"],
        "upload_bytes_dense_fp32": dense_bytes,
        "upload_ratio": last["upload_bytes_per_silo"] / dense_bytes,
        "upload_bytes_total_per_silo": last["upload_bytes_total_per_silo"],
        "upload_ratio_total": last["upload_bytes_total_per_silo"] / dense_bytes,
        "download_bytes_per_silo": last["download_bytes_per_silo"],
        "rounds_to_target": target.get("rounds"),
        "upload_bytes_to_target": target.get("upload_bytes"),
        "agreement_final": agreements[-1] if agreements else None,
        "noise_over_least": {"mean": sum(excess) / len(excess), "largest": max(excess)} if excess else None,
        "seconds_total": facts["seconds_total"],
        "seconds_training": facts["seconds_training"],
        "seconds_secure_sum": facts["seconds_secure_sum"],
        "ledgers": ledgers,
        "insecure_reproducible_noise": config.insecure_reproducible_noise,
        "bad_silos": config.bad_silos,
        "cohort_filter": config.cohort_filter,
        "cohort_rotation": rotation_bound(Schedule(config)).sentence() if config.allow_cohort_rotation else None,
        "note": facts["task_note"],
        "privacy": {**describe(plan), "holds": promise_holds(config), "grid_delta": facts.get("grid_delta", 0.0)},
        "package_versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _training_flops(rows: list[dict[str, Any]], plan: SessionPlan) -> float:
    """FLOPs of the network that was trained, in the mean over all rounds and weighted by their steps over a usual
    round's: exploration may have more steps, and trains the dense network."""
    usual, exploring = (plan.train_terms(explores).steps for explores in (False, True))
    weights = {"explore": exploring / usual, "train": 1.0}
    # Of rounds before `flops_trained` was kept: the network after them.
    total: float = sum(weights[row["phase"]] * row.get("flops_trained", row["flops"]) for row in rows)
    return total / len(rows)


def _epsilon_spent(
    ledgers: list[dict[str, Any]], config: ResolvedConfig, plan: SessionPlan, facts: dict[str, Any]
) -> float | None:
    """The largest of a simulation's ledgers; where those lie at the silos, what the rounds imply for a silo in all."""
    if ledgers:
        return float(max(row["epsilon"] for row in ledgers))
    return spent_after(plan, Schedule(config), facts["round"], facts["spare_steps"])


def promise_holds(config: ResolvedConfig) -> bool:
    """Whether an epsilon may be reported: not where sums in clear show each silo's small part of distributed noise,
    nor where the noise can be drawn again from the seed."""
    in_clear = config.aggregation == "none" and config.trust == "distributed"
    return config.trust != "none" and not in_clear and not config.insecure_reproducible_noise


def ledger_summaries(folder: RunFolder, config: ResolvedConfig, plan: SessionPlan) -> list[dict[str, Any]]:
    """Each silo's spending by record set, read from its own ledger. Only a simulator can see them: else none."""
    rows: list[dict[str, Any]] = []
    if not (folder.path / "silos").is_dir():
        return rows
    for number in range(1, config.silos + 1):
        ledger = _open_ledger(silo_folder(folder.path, number), number, folder.session(), plan)
        for dataset in DATASETS:
            lines = [line for line in ledger.lines() if line.dataset == dataset]
            if lines:
                epsilon = ledger.spent(dataset) if config.trust != "none" else None
                rows.append({"silo": number, "dataset": dataset, "lines": len(lines), "epsilon": epsilon})
    return rows


def _open_ledger(home: Path, number: int, session: bytes, plan: SessionPlan) -> Ledger:
    return Ledger(
        open_silo_database(home / "state.sqlite"),
        silo=str(number),
        session=session,
        budgets=dict.fromkeys(DATASETS, math.inf),
        delta=plan.privacy.accounting_delta,
    )
