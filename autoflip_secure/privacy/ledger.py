"""A silo's durable record of privacy spent: a line is on disk before the records it pays for are touched.

The file keeps the lines of all sessions, so next month's run counts last month's. Lines are only ever added: triggers
abort updates and deletes, and each line carries a hash over itself and the line before, so lost or altered lines show.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from autoflip_secure.errors import BudgetExhausted, ConfigError, StorageError
from autoflip_secure.privacy.accounting import Accountant, Mechanism, check_delta, epsilon, merged
from autoflip_secure.privacy.ledger_lines import LedgerLine, chain_hash
from autoflip_secure.privacy.ledger_schema import COLUMNS, prepare_tables
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

    Raises
    ------
    StorageError
        The tables are damaged, of another version, or another silo's.
    ConfigError
        A budget or delta is out of its range.
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
    ) -> None:
        check_delta(delta)
        wrong = [f"{dataset}: {budget}" for dataset, budget in budgets.items() if not budget > 0]
        if wrong:
            raise ConfigError(f"a privacy budget is not positive ({', '.join(wrong)}); set it with --dp-epsilon")
        self._connection = connection
        self._silo = silo
        self._session = session
        self._budgets = dict(budgets)
        self._delta = delta
        self._accountant: Accountant = accountant
        with self._transaction():
            prepare_tables(connection, silo)
        self.lines()

    def charge(self, line: LedgerLine) -> None:
        """Write a line, on disk when this returns, provided that it and all lines before it stay within the budget.

        Raises
        ------
        BudgetExhausted
            They do not; nothing was written, and nothing may be touched.
        ConfigError
            The line is another session's, or its data set has no budget.
        StorageError
            The file cannot be written; nothing was.
        """
        if line.session != self._session:
            raise ConfigError("a ledger line of another session cannot be charged here; open that session's ledger")
        budget = self._budget(line.dataset)
        with self._transaction():
            spent = self._composition(line.dataset)
            if not self._fits(spent, line.mechanism, budget):
                raise self._exhausted(line.dataset, spent, [line.mechanism])
            self._append(line)

    def expect(self, dataset: str, mechanisms: Sequence[Mechanism]) -> None:
        """Check once that all this session plans to do to a data set fits what other sessions have left.

        Charges within the plan then need no further evaluation. Uses this session has already charged count as planned.

        Raises
        ------
        BudgetExhausted
            The plan does not fit; nothing was written.
        """
        budget = self._budget(dataset)
        others = self._composition(dataset, but=self._session)
        planned = others + _composition(mechanisms)
        known = verified(budget, self._delta, self._accountant)
        if known.covers(planned):
            return
        if epsilon(_mechanisms(planned), self._delta, self._accountant) > budget:
            raise self._exhausted(dataset, others, mechanisms)
        known.add(planned)

    def spent(self, dataset: str | None = None) -> float:
        """Epsilon over all sessions of a data set, or of the one that cost most; infinite after an unnoised use."""
        if dataset is not None:
            return epsilon(self.mechanisms(dataset), self._delta, self._accountant)
        with self._reading():
            rows = self._connection.execute("SELECT DISTINCT dataset FROM privacy_ledger").fetchall()
        return max((self.spent(name) for (name,) in rows), default=0.0)

    def mechanisms(self, dataset: str) -> tuple[Mechanism, ...]:
        """Everything done to a data set over all sessions, equal mechanisms added up."""
        return _mechanisms(self._composition(dataset))

    def session_uses(self, dataset: str, sampling_rate: float, noise_multiplier: float) -> int:
        """How often this session has used one mechanism on a data set."""
        with self._reading():
            (count,) = self._connection.execute(
                "SELECT COALESCE(SUM(count), 0) FROM privacy_ledger "
                "WHERE session = ? AND dataset = ? AND sampling_rate = ? AND noise_multiplier = ?",
                (self._session, dataset, sampling_rate, noise_multiplier),
            ).fetchone()
        return int(count)

    def releases(self) -> int:
        """Uses of all data sets over all sessions."""
        with self._reading():
            (count,) = self._connection.execute("SELECT COALESCE(SUM(count), 0) FROM privacy_ledger").fetchone()
        return int(count)

    def lines(self) -> tuple[LedgerLine, ...]:
        """All lines of all sessions, in order.

        Raises
        ------
        StorageError
            A line is missing, altered or malformed.
        """
        with self._reading():
            rows = self._connection.execute(
                f"SELECT line, {COLUMNS}, chain FROM privacy_ledger ORDER BY line"
            ).fetchall()
            last = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'privacy_ledger'").fetchone()
        lines, chain = [], b""
        for number, (index, *values, stored) in enumerate(rows, start=1):
            line = LedgerLine.from_row(number, values)
            chain = chain_hash(chain, line)
            if index != number or stored != chain:
                raise StorageError(
                    f"the privacy ledger of {self._silo} is damaged at line {number} (missing or altered); nothing was "
                    "released; restore the file from a backup"
                )
            lines.append(line)
        if len(lines) != (last[0] if last else 0):
            raise StorageError(
                f"the privacy ledger of {self._silo} lost its last lines ({len(lines)} of {last[0] if last else 0} are "
                "there); nothing was released; restore the file from a backup"
            )
        return tuple(lines)

    def __repr__(self) -> str:
        return f"Ledger(silo={self._silo!r}, budgets={self._budgets}, delta={self._delta:g})"

    def _budget(self, dataset: str) -> float:
        if dataset not in self._budgets:
            raise ConfigError(f"record set {dataset!r} of {self._silo} has no privacy budget; nothing was touched")
        return self._budgets[dataset]

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

    def _exhausted(self, dataset: str, spent: Composition, more: Sequence[Mechanism]) -> BudgetExhausted:
        before = epsilon(_mechanisms(spent), self._delta, self._accountant)
        after = epsilon(_mechanisms(spent + _composition(more)), self._delta, self._accountant)
        return BudgetExhausted(
            f"privacy budget of the {dataset} records of {self._silo} is exhausted: spent epsilon {before:.3f} of "
            f"{self._budgets[dataset]:g} at delta {self._delta:g}, this would make it {after:.3f}; no record was "
            "touched and nothing was charged; end the run here, or raise this silo's budget"
        )

    def _composition(self, dataset: str, but: bytes | None = None) -> Composition:
        with self._reading():
            rows = self._connection.execute(
                "SELECT sampling_rate, noise_multiplier, SUM(count) FROM privacy_ledger "
                "WHERE dataset = ? AND session IS NOT ? GROUP BY sampling_rate, noise_multiplier",
                (dataset, but),
            ).fetchall()
        return Counter({(rate, noise): count for rate, noise, count in rows})

    def _append(self, line: LedgerLine) -> None:
        row = self._connection.execute("SELECT chain FROM privacy_ledger ORDER BY line DESC LIMIT 1").fetchone()
        chain = chain_hash(row[0] if row else b"", line)
        values = (*line.to_row(), chain)
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT INTO privacy_ledger ({COLUMNS}, chain) VALUES ({marks})", values)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot read the privacy ledger of {self._silo}: {error}; nothing was released"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, on disk at the end; the lock keeps two processes from both taking the last of a budget."""
        if self._connection.in_transaction:
            raise StorageError(
                "the privacy ledger commits by itself; end the open transaction of the silo's state first"
            )
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot write the privacy ledger of {self._silo}: {error}; nothing was charged or released"
            ) from error
        finally:
            if self._connection.in_transaction:
                self._connection.rollback()


def _composition(mechanisms: Sequence[Mechanism]) -> Composition:
    return Counter({(m.sampling_rate, m.noise_multiplier): m.count for m in merged(mechanisms)})


def _mechanisms(composition: Composition) -> tuple[Mechanism, ...]:
    return merged(Mechanism(rate, noise, count) for (rate, noise), count in composition.items())
