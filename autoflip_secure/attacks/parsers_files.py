"""Parsers of files of a run and of a simulated silo, and of options that are texts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from autoflip_secure.attacks.parser_calls import Call, Parser, a_file, as_text, in_folder
from autoflip_secure.attacks.parser_edits import ITEMS
from autoflip_secure.attacks.parser_samples import Samples, function_of
from autoflip_secure.parties.identity import Identity

__all__ = ["file_parsers"]


def file_parsers(s: Samples) -> Iterator[Parser]:
    """Files of a run and of a simulated silo."""
    silo = "silos/silo-001"
    yield Parser("config:load_config_file", s.file("config.toml"), a_file("config.toml"))
    yield Parser("config:ResolvedConfig.create", [s.join_request.config.model_dump_json().encode()], _options)
    yield Parser("federation.policy:SiloPolicy.read", s.file(f"{silo}/policy.toml"), a_file("policy.toml"))
    yield Parser("parties.identity:Identity.load", s.file(f"{silo}/identity.key"), a_file("identity.key"))
    yield Parser("data.task:Task.from_json", s.file("task.json"), as_text)
    yield Parser("models.spec:ModelSpec.from_json", [s.view.asked[0].model.spec.to_json().encode()], as_text)
    yield Parser("federation.provisioning:load_task", s.file("task.json"), _task)
    yield Parser("federation.events:read_json_lines", s.file("events.jsonl"), a_file("events.jsonl"))
    lines = {name: s.file(name)[0] for name in ("metrics.jsonl", "events.jsonl", "config.toml")}
    for name in lines:
        yield Parser("report.record:load_record", [lines[name]], in_folder(name, lines), name)
    page = {**lines, "summary.json": s.file("summary.json")[0], "federation/roster.bin": s.roster.to_bytes()}
    for name in page:
        yield Parser("dashboard.run_view:RunView", [page[name]], _page(name, page), name)
    home = {name: s.file(f"{silo}/{name}")[0] for name in ("audit.jsonl", "policy.toml", "roster.bin")}
    for name in home:
        yield Parser("dashboard.homes:open_home", [home[name]], _silo_page(name, home), name)
    checkpoint = {p.name: p.read_bytes() for p in (s.run / "checkpoint").iterdir()}
    for name in checkpoint:
        yield Parser("federation.run_state:load_checkpoint", [checkpoint[name]], in_folder(name, checkpoint), name)
    yield Parser("federation.audit_chain:read_log", [home["audit.jsonl"][:6000]], _audit_log)
    yield Parser("federation.audit_cross:verify_logs", [home["audit.jsonl"][:6000]], _audit_logs(s))
    identity = Identity.load(s.run / silo / "identity.key")
    yield Parser(
        "federation.audit_log:AuditLog", [home["audit.jsonl"][:6000]],
        lambda f, data, folder: a_file("audit.jsonl")(lambda path: f(path, identity, "silo 1").refresh(), data, folder),
    )  # fmt: skip
    yield Parser("privacy.ledger_reading:read_ledger", s.ledger, a_file("state.sqlite"))
    yield Parser("privacy.ledger_reading:read_ledger", [bytes(16)], _cell(s.ledger[0]), "one cell")
    yield Parser(
        "federation.run_review:read_admission", s.file(f"{silo}/roster.bin"),
        lambda f, data, folder: in_folder("roster.bin", {"policy.toml": home["policy.toml"], "task.json": b"{}"})(
            lambda place: f(place, None), data, folder
        ),
    )  # fmt: skip
    yield Parser("attacks.bad_silos:BadSilos.parse", [b"noise:0.2:3", b"label-flip:0.4"], as_text)
    yield Parser("data.partition:parse_partition", [b"dirichlet:0.5", b"pathological:2", b"iid"], as_text)


def _options(function: Any, data: bytes, _: Path) -> object:
    try:
        options = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return function(**options) if isinstance(options, dict) and "cls" not in options else None


def _task(function: Any, data: bytes, folder: Path) -> object:
    run_folder = function_of("federation.provisioning:RunFolder")
    return in_folder("task.json", {})(lambda place: function(run_folder(place)), data, folder)


def _page(name: str, others: dict[str, bytes]) -> Call:
    def page(function: Any, folder: Path) -> object:
        view = function(folder)
        return json.dumps([view.overview(), view.page()], allow_nan=False)

    return lambda f, data, folder: in_folder(name, others)(lambda place: page(f, place), data, folder)


def _silo_page(name: str, others: dict[str, bytes]) -> Call:
    def page(function: Any, folder: Path) -> object:
        home = function(folder)
        return json.dumps(home.silo.page(), allow_nan=False)

    return lambda f, data, folder: in_folder(name, others)(lambda place: page(f, place), data, folder)


def _cell(database: bytes) -> Call:
    """A ledger in which the input says which cell holds what: another value, or one of another type."""

    def call(function: Any, data: bytes, folder: Path) -> object:
        path, (table, row, column, item, *_) = folder / "state.sqlite", (*data, 0, 0, 0, 0)
        path.write_bytes(database)
        with closing(sqlite3.connect(path)) as connection:
            tables = ("privacy_ledger", "privacy_ledger_terms", "sqlite_sequence", "privacy_ledger_owner")
            name = tables[table % len(tables)]
            with suppress(sqlite3.Error, OverflowError):
                columns = [each[1] for each in connection.execute(f"PRAGMA table_info({name})")]
                value = (*(i for i in ITEMS if i is None or isinstance(i, int | float | str | bytes)), data)[item % 12]
                where = f"rowid = (SELECT rowid FROM {name} LIMIT 1 OFFSET {row % 3})"
                connection.execute(f"UPDATE {name} SET {columns[column % len(columns)]} = ? WHERE {where}", (value,))
                connection.commit()
        return function(path)

    return call


def _audit_log(function: Any, data: bytes, folder: Path) -> object:
    names = function_of("federation.audit_files:Names")({}, {}, frozenset())
    return a_file("audit.jsonl")(lambda path: function(path, names), data, folder)


def _audit_logs(s: Samples) -> Call:
    other = s.run / "federation" / "audit.jsonl"
    return lambda f, data, folder: a_file("silo/audit.jsonl")(lambda path: f([path, other]), data, folder)
