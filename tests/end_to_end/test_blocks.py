"""Whole runs in which silos drop out and every opened sum is over whole blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.federation.blocks import deal_blocks

BLOCKS = [set(block) for block in deal_blocks(9, 3)]


def opened(folder: Path) -> list[set[int]]:
    """Silos of every sum of a run."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [set(silos) for line in lines if line["event"] == "sum" for silos in line["silos"]]


def happened(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["secagg", "ckks", "none"])
def test_silos_that_drop_out_take_their_block_along(aggregation: str, run_sim, tmp_path: Path) -> None:
    options = ("--silos", "9", "--rounds", "8", "--dp-epsilon", "8", "--dropout", "0.06", "--aggregation", aggregation)
    run_sim(*options, "--block", "3", "--min-cohort", "0.6", "--reserve", "1")
    sums = opened(tmp_path / "run")
    assert all(block <= silos or not block & silos for silos in sums for block in BLOCKS)
    assert {len(silos) for silos in sums} == {6, 9}, "some blocks were left out, and the run went on"
    in_vain = happened(tmp_path / "run", "block_incomplete")
    # Sums in clear have no desk that tells.
    assert bool(in_vain) == (aggregation != "none")
    assert not any(block <= set(line["silos"]) for line in in_vain for block in BLOCKS)
    run_sim(*options, "--min-cohort", "0.6", "--reserve", "1", name="single")
    alone = opened(tmp_path / "single")
    assert any(0 < len(block & silos) < 3 for silos in alone for block in BLOCKS), "drops as before"
