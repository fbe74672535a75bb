"""Small federations: the real command line, the real protocol, silos inside this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.federation import client_app
from autoflip_secure.sim import main

RunSim = Callable[..., dict[str, Any]]

SMALL = ("--dataset", "digits", "--model", "mlp", "--silos", "6", "--rounds", "5", "--workers", "0", "--quiet")


@pytest.fixture(autouse=True)
def _fresh_process_state() -> None:
    """Silos opened by an earlier test belong to folders of that test."""
    client_app.close_silos()


@pytest.fixture
def run_sim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunSim:
    """run_sim(*options, name="run", small=SMALL, report=False) -> summary; the run directory is tmp_path / name."""

    def run(*options: str, name: str = "run", small: tuple[str, ...] = SMALL, report: bool = False) -> dict[str, Any]:
        given = [*small, *options, "--report" if report else "--no-report"]
        code = main([*given, "--run-dir", str(tmp_path / name), "--summary", "json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        summary = json.loads(printed.out.splitlines()[-1])
        assert summary == json.loads((tmp_path / name / "summary.json").read_text())
        return summary

    return run
