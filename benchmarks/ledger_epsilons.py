"""Epsilon of a finished simulation from the lines of its ledgers alone, by two accountants that share no code."""

from __future__ import annotations

from pathlib import Path

from autoflip_secure.privacy.ledger_checks import recompute
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.privacy.ledger_report import datasets, limits_of, mechanisms

__all__ = ["largest_epsilons"]


def largest_epsilons(run: Path) -> dict[str, float]:
    """`prv` (Opacus) and `pld` (dp-accounting) of the silo and record set that spent most, at the ledger's delta."""
    found = [
        recompute(mechanisms(record.of(dataset)), limits_of(record, dataset, None).delta)
        for record in (read_ledger(path) for path in sorted(run.glob("silos/*/state.sqlite")))
        for dataset in datasets(record)
    ]
    most = max(found, key=lambda epsilons: epsilons.prv)
    return {"prv": most.prv, "pld": most.pld, "delta": most.delta}
