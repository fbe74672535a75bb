"""The caps a charge is held against, and which lines of the ledger count towards each.

The total counts every line, the cap of a run the lines of its session, the cap of a year the lines of the last 365
days. Lines are ordered by the chain and not by their dates, so a year begins with the FIRST line dated within it and
all lines after that one count, whatever date they bear:

- a line written while the clock ran behind is younger than the line before it and counts as long as that one does;
- a line dated in the future, from a clock that ran ahead, counts;
- a clock that runs behind now makes the year begin earlier, and more lines count.

Each error is towards too much. That a clock runs ahead now, or ran behind from the first line of a year on, cannot be
seen from within: the year then forgets too early. The total cap does not depend on clocks and still holds.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Any

from autoflip_secure.privacy.verified import Composition

__all__ = ["YEAR_SECONDS", "Cap", "caps_of", "composition"]

YEAR_SECONDS = 365 * 24 * 3600.0


@dataclass(frozen=True)
class Cap:
    """A largest epsilon, and the condition on lines that count towards it.

    Attributes
    ----------
    option : str
        What sets it in policy.toml.
    words : str
        What it limits.
    limit : float
        Epsilon.
    condition : str
        SQL on columns of the ledger.
    values : tuple
        Values of the condition's question marks.
    """

    option: str
    words: str
    limit: float
    condition: str
    values: tuple[Any, ...]


def caps_of(session: bytes, now: float, total: float, per_run: float, per_year: float) -> tuple[Cap, ...]:
    """All caps that can bind: what is capped in total needs no smaller part held against the same number.

    Parameters
    ----------
    session : bytes
        Session that charges.
    now : float
        Seconds since 1970.
    total, per_run, per_year : float
        Epsilon.
    """
    caps = [Cap("epsilon", "over all runs", total, "1", ())]
    if per_run < total:
        caps.append(
            Cap("epsilon_per_run", "by this run, by policy or its own promise", per_run, "session = ?", (session,))
        )
    if per_year < total:
        in_year = "line >= (SELECT MIN(line) FROM privacy_ledger WHERE time >= ?)"
        caps.append(Cap("epsilon_per_year", "within 365 days", per_year, in_year, (now - YEAR_SECONDS,)))
    return tuple(caps)


def composition(connection: sqlite3.Connection, dataset: str, condition: str, values: tuple[Any, ...]) -> Composition:
    """Uses of a record set by the lines that meet a condition."""
    rows = connection.execute(
        "SELECT sampling_rate, noise_multiplier, SUM(count) FROM privacy_ledger "
        f"WHERE dataset = ? AND ({condition}) GROUP BY sampling_rate, noise_multiplier",
        (dataset, *values),
    )
    return Counter({(rate, noise): count for rate, noise, count in rows})
