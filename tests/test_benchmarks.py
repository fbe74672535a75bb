"""The benchmarks' command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

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
