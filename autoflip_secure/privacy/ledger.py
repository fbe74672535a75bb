"""A silo's durable record of privacy spent: a line is on disk before the records it pays for are touched.

The file keeps the lines of all sessions, so next month's run counts last month's. Lines are only ever added: triggers
abort updates and deletes, and each line carries a hash over itself and the line before, so lost or altered lines show.
What a session may spend is written, and hashed, with the first line it charges.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from autoflip_secure.errors import BudgetExhausted, ConfigError
from autoflip_secure.privacy.accounting import Accountant, Mechanism, check_delta, epsilon, merged
from autoflip_secure.privacy.ledger_caps import Cap, caps_of, composition
from autoflip_secure.privacy.ledger_lines import LedgerLine
from autoflip_secure.privacy.ledger_reading import read_entries
from autoflip_secure.privacy.ledger_schema import prepare_tables
from autoflip_secure.privacy.ledger_store import append, last_line, reading, snapshot, transaction
from autoflip_secure.privacy.ledger_terms import LedgerTerms
from autoflip_secure.privacy.ledger_units import check_patient_lines
from autoflip_secure.privacy.plan import UNITS
from autoflip_secure.privacy.verified import Composition, verified

__all__ = ["Ledger", "LedgerLine"]

HEADROOM = (64, 16, 4, 0)
"""Further uses tried along with a charge, largest first, so that one evaluation serves many charges."""


class Ledger:
    """The ledger of one silo, on the connection of `storage.open_silo_database`.

    Parameters
    ----------
    connection : sqlite3.Connection
        In autocommit mode; the tables are made where they are missing.
    silo : str
        Name of the silo; a file belongs to one.
    session : bytes
        Session that charges.
    budgets : mapping of str to float
        Epsilon each data set may cost over ALL sessions of this file; infinite where no promise is made.
    delta : float
        Delta the accountant works at.
    accountant : str
        prv, rdp or pld.
    per_run, per_year : float
        Epsilon a data set may cost by this session alone, and within 365 days (`ledger_caps`).
    trust : str
        Trust mode of the session, for the record.
    unit : str
        Whose loss the session's lines bound: record or patient (`ledger_units`).
    colluders : int
        Silos the session's noise bears as colluders, for the record; why fewer in earlier lines refuse nothing is said
        in `ledger_adversaries`.

    Raises
    ------
    StorageError
        The tables are damaged, of another version, or another silo's.
    BudgetExhausted
        The unit is the patient, and lines of a capped data set bound a record's loss only; nothing was written.
    ConfigError
        A budget, delta, the unit or the number of colluders is out of its range.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        silo: str,
        session: bytes,
        budgets: Mapping[str, float],
        delta: float,
        accountant: Accountant = "prv",
        per_run: float = math.inf,
        per_year: float = math.inf,
        trust: str = "",
        unit: str = "record",
        colluders: int = 0,
    ) -> None:
        check_delta(delta)
        if unit not in UNITS or colluders < 0:
            raise ConfigError(f"no ledger has the unit {unit!r} with {colluders} colluders")
        limits = {**budgets, "a run": per_run, "a year": per_year}
        wrong = [f"{name}: {budget}" for name, budget in limits.items() if not budget > 0]
        if wrong:
            raise ConfigError(f"a privacy budget is not positive ({', '.join(wrong)}); set it with --dp-epsilon")
        self._connection = connection
        self._silo = silo
        self._session = session
        self._budgets = dict(budgets)
        self._delta = delta
        self._accountant: Accountant = accountant
        self._per_run, self._per_year, self._trust = per_run, per_year, trust
        self._unit, self._colluders = unit, colluders
        with transaction(self._connection, self._silo):
            prepare_tables(connection, silo)
            self.lines()
            for dataset in self._budgets:
                self._check_unit(dataset)

    def charge(self, line: LedgerLine) -> None:
        """Write a line, on disk when this returns, provided that it and the lines before it stay within every cap.

        Raises
        ------
        BudgetExhausted
            They do not, or lines that came since the opening bound less; nothing was written, and nothing may be
            touched.
        ConfigError
            The line is another session's, or its data set has no budget.
        StorageError
            The file cannot be written; nothing was.
        """
        if line.session != self._session:
            raise ConfigError("a ledger line of another session cannot be charged here; open that session's ledger")
        caps = self._caps(line.dataset, line.time)
        with transaction(self._connection, self._silo):
            self._check_unit(line.dataset)
            for cap in caps:
                spent = self._composition(line.dataset, cap.condition, cap.values)
                if not self._fits(spent, line.mechanism, cap.limit):
                    raise self._exhausted(line.dataset, cap, spent, spent + _composition([line.mechanism]))
            self._append(line)

    def expect(self, dataset: str, mechanisms: Sequence[Mechanism], now: float | None = None) -> None:
        """Check once that all this session plans to do to a data set fits every cap, other sessions counted.

        Charges within the plan then need no further evaluation. Uses this session has already charged count as
        planned; those that the plan does not name count beside it.

        Parameters
        ----------
        now : float, optional
            Seconds since 1970; the clock's if absent.

        Raises
        ------
        BudgetExhausted
            The plan does not fit; nothing was written.
        """
        for cap in self._caps(dataset, time.time() if now is None else now):
            own = self._composition(dataset, "session = ?", (self._session,))
            others = self._composition(dataset, f"{cap.condition} AND session <> ?", (*cap.values, self._session))
            planned = others + (own | _composition(mechanisms))
            known = verified(cap.limit, self._delta, self._accountant)
            if known.covers(planned):
                continue
            if epsilon(_mechanisms(planned), self._delta, self._accountant) > cap.limit:
                raise self._exhausted(dataset, cap, others + own, planned)
            known.add(planned)

    def spent(self, dataset: str | None = None) -> float:
        """Epsilon over all sessions of a data set, or of the one that cost most; infinite after an unnoised use."""
        if dataset is not None:
            return epsilon(self.mechanisms(dataset), self._delta, self._accountant)
        with reading(self._silo):
            rows = self._connection.execute("SELECT DISTINCT dataset FROM privacy_ledger").fetchall()
        return max((self.spent(name) for (name,) in rows), default=0.0)

    def mechanisms(self, dataset: str) -> tuple[Mechanism, ...]:
        """Everything done to a data set over all sessions, equal mechanisms added up."""
        return _mechanisms(self._composition(dataset))

    def session_uses(self, dataset: str, sampling_rate: float, noise_multiplier: float) -> int:
        """How often this session has used one mechanism on a data set."""
        with reading(self._silo):
            (count,) = self._connection.execute(
                "SELECT COALESCE(SUM(count), 0) FROM privacy_ledger "
                "WHERE session = ? AND dataset = ? AND sampling_rate = ? AND noise_multiplier = ?",
                (self._session, dataset, sampling_rate, noise_multiplier),
            ).fetchone()
        return int(count)

    def releases(self) -> int:
        """Uses of all data sets over all sessions."""
        with reading(self._silo):
            (count,) = self._connection.execute("SELECT COALESCE(SUM(count), 0) FROM privacy_ledger").fetchone()
        return int(count)

    def lines(self) -> tuple[LedgerLine, ...]:
        """All lines of all sessions, in order.

        Raises
        ------
        StorageError
            A line is missing, altered or malformed.
        """
        with reading(self._silo), snapshot(self._connection):
            return tuple(entry.line for entry in read_entries(self._connection, self._silo))

    def __repr__(self) -> str:
        return f"Ledger(silo={self._silo!r}, budgets={self._budgets}, delta={self._delta:g})"

    def _caps(self, dataset: str, now: float) -> tuple[Cap, ...]:
        if dataset not in self._budgets:
            raise ConfigError(f"record set {dataset!r} of {self._silo} has no privacy budget; nothing was touched")
        return caps_of(self._session, now, self._budgets[dataset], self._per_run, self._per_year)

    def _check_unit(self, dataset: str) -> None:
        capped = min(self._budgets[dataset], self._per_year) < math.inf
        if self._unit == "patient" and capped:
            check_patient_lines(self._connection, self._silo, dataset)

    def _fits(self, spent: Composition, use: Mechanism, budget: float) -> bool:
        known = verified(budget, self._delta, self._accountant)
        if known.covers(spent + _composition([use])):
            return True
        for extra in HEADROOM:
            tried = spent + _composition([use, Mechanism(use.sampling_rate, use.noise_multiplier, extra)])
            if epsilon(_mechanisms(tried), self._delta, self._accountant) <= budget:
                known.add(tried)
                return True
        return False

    def _exhausted(self, dataset: str, cap: Cap, spent: Composition, tried: Composition) -> BudgetExhausted:
        before, after = (epsilon(_mechanisms(each), self._delta, self._accountant) for each in (spent, tried))
        return BudgetExhausted(
            f"privacy budget of the {dataset} records of {self._silo} is exhausted: spent epsilon {before:.3f} of "
            f"{cap.limit:g} {cap.words} ({cap.option}) at delta {self._delta:g}, this would make it {after:.3f}; no "
            f"record was touched and nothing was charged; end the run here, or raise this silo's {cap.option}"
        )

    def _composition(self, dataset: str, condition: str = "1", values: tuple[object, ...] = ()) -> Composition:
        with reading(self._silo):
            return composition(self._connection, dataset, condition, values)

    def _append(self, line: LedgerLine) -> None:
        number = last_line(self._connection)[0] + 1
        total = self._budgets[line.dataset]
        run, year = min(self._per_run, total), min(self._per_year, total)
        terms = LedgerTerms(
            number, line.session, line.dataset, line.time, self._trust, self._unit, self._colluders, self._delta,
            self._accountant, total, run, year,
        )  # fmt: skip
        append(self._connection, line, terms)


def _composition(mechanisms: Sequence[Mechanism]) -> Composition:
    return Counter({(m.sampling_rate, m.noise_multiplier): m.count for m in merged(mechanisms)})


def _mechanisms(composition: Composition) -> tuple[Mechanism, ...]:
    return merged(Mechanism(rate, noise, count) for (rate, noise), count in composition.items())
