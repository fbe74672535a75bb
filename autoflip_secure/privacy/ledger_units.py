"""Whose loss the lines of a ledger bound: one record's, or a patient's with all records at the silo.

A line of unit record bounds the loss of a patient with k records only by group privacy: up to k times its epsilon, at a
larger delta (Dwork and Roth 2014, theorem 2.2). A cap that promises something to patients therefore cannot count it at
face value. The reverse can be counted: what bounds a patient's loss bounds that of each of the patient's records.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from autoflip_secure.errors import BudgetExhausted
from autoflip_secure.privacy.ledger_reading import LedgerEntry

__all__ = ["bounds_patient", "check_patient_lines", "unit_of"]

# Terms in force are the last that the line's session wrote for the record set, as in ledger_reading.
UNIT_OF_LINE = """(SELECT unit FROM privacy_ledger_terms AS terms
    WHERE terms.session = lines.session AND terms.dataset = lines.dataset AND terms.line <= lines.line
    ORDER BY terms.line DESC LIMIT 1)"""


def bounds_patient(entry: LedgerEntry) -> bool:
    """Whether the line says that it bounds a patient's loss; lines of the first version do not say."""
    return entry.terms is not None and entry.terms.unit == "patient"


def unit_of(entries: Iterable[LedgerEntry]) -> str:
    """Whose loss the lines bound together: patient only where each of them does."""
    return "patient" if all(map(bounds_patient, entries)) else "record"


def check_patient_lines(connection: sqlite3.Connection, silo: str, dataset: str) -> None:
    """Check that every line of a record set bounds a patient's loss.

    Raises
    ------
    BudgetExhausted
        Some bound a record's, or do not say whose.
    """
    uses, first = connection.execute(
        "SELECT COALESCE(SUM(count), 0), MIN(line) FROM privacy_ledger AS lines "
        f"WHERE dataset = ? AND COALESCE({UNIT_OF_LINE}, '') <> 'patient'",
        (dataset,),
    ).fetchone()
    if uses:
        raise BudgetExhausted(
            f"the unit of this run is the patient, but {uses} uses of the {dataset} records of {silo} (from line "
            f"{first} on) are recorded with unit record or none, and may have cost a patient with k records k times "
            "their epsilon at a larger delta; no record was touched and nothing was charged; keep the record "
            "as the unit, or begin an empty state file and take what those uses cost a patient off this silo's epsilon"
        )
