"""/metrics in Prometheus' text format: unfinished runs and the newest finished one, or the silo itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from autoflip_secure.dashboard.homes import Home

__all__ = ["CONTENT_TYPE_LATEST", "metrics_text"]

PREFIX = "autoflip_secure"

RUN_GAUGES = {
    "round_seconds": ("seconds", "Seconds the newest round took"),
    "silos_in_sum": ("silos", "Silos in the sums of the newest round"),
    "agreement": ("agreement_average", "Agreement of the silos' updates, average over rounds"),
    "params_live": ("params_live", "Live parameters"),
    "params_dense": ("params_dense", "Parameters of the dense network"),
    "flops": ("flops", "FLOPs of the compacted network"),
    "flops_dense": ("flops_dense", "FLOPs of the dense network"),
    "loss": ("loss", "Loss as last scored"),
}
RUN_COUNTERS = {
    "upload_bytes": ("upload_bytes_total_per_silo", "Bytes sent by a silo so far, mean"),
    "upload_vector_bytes": ("upload_bytes_per_silo", "Bytes of protected vectors sent by a silo so far, mean"),
    "upload_dense_fp32_bytes": ("upload_bytes_dense_fp32", "Bytes plain float32 FedAvg would have sent so far"),
    "download_bytes": ("download_bytes_per_silo", "Bytes received by a silo so far, mean"),
    "aborted_attempts": ("aborts", "Attempts that gave no sum"),
}
"""Metric: the field of metrics.jsonl it is read from, and what it is."""

CAPS = {"total": "epsilon_cap", "year": "epsilon_per_year_cap", "run": "epsilon_per_run_cap"}


def metrics_text(home: Home) -> bytes:
    """The whole exposition."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(home))
    return generate_latest(registry)


class _Collector:
    def __init__(self, home: Home) -> None:
        self._home = home

    def collect(self) -> Iterator[Metric]:
        if self._home.silo is not None:
            yield from _silo_metrics(self._home.silo.figures())
        else:
            yield from _run_metrics(self._watched())

    def _watched(self) -> list[tuple[str, dict[str, Any]]]:
        found = [(run.name, run.figures()) for run in self._home.runs()]
        done = [each for each in found if each[1]["state"] == "finished"]
        newest = max(done, key=lambda each: each[1]["changed"] or 0, default=None)
        return [each for each in found if each[1]["state"] != "finished" or each is newest]


def _gauge(name: str, help_text: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=labels)


def _counter(name: str, help_text: str, labels: tuple[str, ...]) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}_{name}", help_text, labels=labels)


def _run_metrics(runs: list[tuple[str, dict[str, Any]]]) -> Iterator[Metric]:
    for name, (field, help_text) in RUN_GAUGES.items():
        yield _of_runs(_gauge(name, help_text, ("run",)), {run: f["last"].get(field) for run, f in runs})
    for name, (field, help_text) in RUN_COUNTERS.items():
        yield _of_runs(_counter(name, help_text, ("run",)), {run: f["last"].get(field) for run, f in runs})
    yield _of_runs(_counter("rounds", "Rounds done", ("run",)), {run: f["rounds"] for run, f in runs})
    planned = {run: f["config"].get("rounds") for run, f in runs}
    yield _of_runs(_gauge("rounds_planned", "Rounds of the run", ("run",)), planned)
    epsilon = {run: f["epsilon"] for run, f in runs}
    help_text = "Epsilon of a silo that was in every round so far, as planned; each silo's own ledger is what counts"
    yield _of_runs(_gauge("epsilon_planned", help_text, ("run",)), epsilon)
    target = {run: f["config"].get("dp_epsilon") for run, f in runs}
    yield _of_runs(_gauge("epsilon_target", "Epsilon the run promises", ("run",)), target)
    last = {run: f["changed"] for run, f in runs}
    yield _of_runs(_gauge("last_change_timestamp_seconds", "Time of the last sign of life", ("run",)), last)

    state = _gauge("run_state", "1 for the state the run is in", ("run", "state"))
    score = _gauge("score", "Score the task is judged by, as last measured", ("run", "score"))
    up = _gauge("silo_up", "1 where a silo answered the last stage it was asked in", ("run", "silo", "name"))
    dropped = _counter("silo_drops", "Attempts in which a silo was missed", ("run", "silo", "name"))
    drops = _counter("drops", "Silos missed, by the stage they were first missed at", ("run", "stage"))
    events = _counter("events", "Events, by kind", ("run", "event"))
    agreement = _gauge("layer_agreement", "Agreement by layer", ("run", "layer"))
    live = _gauge("layer_params_live", "Live parameters by layer", ("run", "layer"))
    units = _gauge("layer_units", "Units by layer", ("run", "layer"))
    for run, figures in runs:
        state.add_metric((run, figures["state"]), 1)
        if figures["score"]:
            score.add_metric((run, figures["score"]["name"]), figures["score"]["value"])
        for silo in figures["silos"]:
            labels = (run, str(silo["silo"]), silo["name"])
            if silo["up"] is not None:
                up.add_metric(labels, float(silo["up"]))
            dropped.add_metric(labels, silo["drops"])
        for stage, times in figures["drops"].items():
            drops.add_metric((run, stage), times)
        for event, times in figures["counts"].items():
            events.add_metric((run, event), times)
        for layer in figures["layers"]:
            for family, field in ((agreement, "agreement"), (live, "live"), (units, "units")):
                if layer[field] is not None:
                    family.add_metric((run, layer["layer"]), layer[field])
    yield from (state, score, up, dropped, drops, events, agreement, live, units)


def _of_runs(family: GaugeMetricFamily | CounterMetricFamily, values: dict[str, Any]) -> Metric:
    for run, value in values.items():
        if isinstance(value, int | float):
            family.add_metric((run,), value)
    return family


def _silo_metrics(figures: dict[str, Any]) -> Iterator[Metric]:
    ledger = figures["ledger"]
    spent = _gauge("ledger_epsilon", "Epsilon spent of a record set", ("records", "within"))
    cap = _gauge("ledger_epsilon_cap", "Largest epsilon that is allowed", ("records", "within"))
    for each in ledger.get("datasets", []):
        records = each["dataset"]
        for within, field in (("total", "epsilon"), ("year", "epsilon_year")):
            if each[field] is not None:
                spent.add_metric((records, within), each[field])
        for within, field in CAPS.items():
            if each[field] is not None:
                cap.add_metric((records, within), each[field])
    readable = _gauge("ledger_readable", "0 where the ledger is damaged or cannot be read", ())
    readable.add_metric((), float(ledger["status"] != "error"))
    lines = _gauge("ledger_lines", "Lines of the ledger", ())
    if "lines" in ledger:
        lines.add_metric((), ledger["lines"])
    sent = _counter("messages_sent", "Lines of the audit log", ("kind", "stage"))
    sent_bytes = _counter("sent_bytes", "Bytes that left", ("kind", "stage"))
    for each in figures["sent"]:
        sent.add_metric((each["kind"], each["stage"]), each["lines"])
        sent_bytes.add_metric((each["kind"], each["stage"]), each["bytes"])
    runs = _gauge("runs_asked", "Runs this silo was asked to join, by what its officer said", ("state",))
    for state in ("pending", "approved", "denied"):
        runs.add_metric((state,), sum(run["state"] == state for run in figures["approvals"].get("runs", [])))
    yield from (runs, spent, cap, readable, lines, sent, sent_bytes)
