"""A silo's ledger over several runs, through the command line: the next run counts what the last one spent."""

from __future__ import annotations

import csv
import os
import shutil
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from autoflip_secure.cli import main as autoflip_secure
from autoflip_secure.federation.client_app import close_silos, silo_folder
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.privacy.ledger_reading import LedgerRecord, read_ledger
from autoflip_secure.sim import main as sim

SILOS = 3
OPTIONS = (
    "--dataset", "digits", "--model", "mlp", "--silos", str(SILOS), "--rounds", "2",
    "--colluders", "0", "--prune", "none", "--workers", "0", "--dp-epsilon", "2", "--quiet", "--no-report",
)  # fmt: skip


def change_policies(run: Path, **caps: float) -> None:
    for silo in range(1, SILOS + 1):
        path = silo_folder(run, silo) / "policy.toml"
        path.write_text(tomli_w.dumps({**tomllib.loads(path.read_text()), **caps}))
    close_silos()


def begin_next_run(run: Path) -> None:
    """The same silos, keys, records and ledgers, and a coordinator that starts another session from nothing."""
    close_silos()
    shutil.rmtree(run / "checkpoint")
    for name in ("summary.json", "metrics.jsonl", "events.jsonl", "model.safetensors", "federation/epoch"):
        (run / name).unlink(missing_ok=True)
    (run / "federation" / "session").write_bytes(os.urandom(16))


def resume(run: Path) -> int:
    code = sim(["--resume", str(run), "--quiet"])
    close_silos()
    return code


def records_of(run: Path) -> list[LedgerRecord]:
    return [read_ledger(silo_folder(run, silo) / "state.sqlite") for silo in range(1, SILOS + 1)]


def contents(run: Path) -> list[tuple[bytes, list[Any]]]:
    """State file and ledger tables of each silo, byte for byte."""
    found = []
    for silo in range(1, SILOS + 1):
        state = silo_folder(run, silo) / "state.sqlite"
        with sqlite3.connect(f"{state.as_uri()}?mode=ro&immutable=1", uri=True) as database:
            tables = [
                database.execute(f"SELECT * FROM {t}").fetchall() for t in ("privacy_ledger", "privacy_ledger_terms")
            ]
        found.append((state.read_bytes(), tables))
    return found


@pytest.fixture
def first_month(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    assert sim([*OPTIONS, "--run-dir", str(run)]) == 0
    close_silos()
    return run


@pytest.mark.slow
def test_next_month_counts_last_month_and_every_cap_stops_a_run_before_training(
    first_month: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = first_month
    begin_next_run(run)
    before = contents(run)
    contribute = Contributor.contribute
    monkeypatch.setattr(Contributor, "contribute", lambda *_: pytest.fail("the records were touched"))
    for caps, option in (
        ({"epsilon": 2.0}, "epsilon"),
        ({"epsilon": 9.0, "epsilon_per_year": 2.1}, "epsilon_per_year"),
        ({"epsilon": 9.0, "epsilon_per_year": 9.0, "epsilon_per_run": 1.5}, "epsilon_per_run"),
    ):
        change_policies(run, **caps)
        capsys.readouterr()
        assert resume(run) == 3
        error = capsys.readouterr().err
        assert "ledger does not cover this run; nothing was trained and nothing was spent" in error
        assert error.count("\n") == 1
        last = (silo_folder(run, 1) / "silo.log").read_text().strip().splitlines()[-1]
        assert f"({option})" in last
        assert "spent epsilon" in last
        assert "would make it" in last
        assert contents(run) == before, f"{option}: the ledger changed"
    monkeypatch.setattr(Contributor, "contribute", contribute)

    change_policies(run, epsilon=9.0, epsilon_per_year=9.0, epsilon_per_run=2.0)
    assert resume(run) == 0
    assert autoflip_secure(["ledger", "verify", str(run)]) == 0
    for record, (_, (lines, _)) in zip(records_of(run), before, strict=True):
        assert len(record.entries) == 2 * len(lines) == 4
        assert len({entry.line.session for entry in record.entries}) == 2
    capsys.readouterr()
    assert autoflip_secure(["ledger", "export", str(run)]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 4 * SILOS
    assert {row["epsilon_per_year_cap"] for row in rows} == {"2.0", "9.0"}
