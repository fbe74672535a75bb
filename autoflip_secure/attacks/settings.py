"""The four ways of running that every attack is tried on, runs of the command line in them, and what DP proves then."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.simulated import simulated
from autoflip_secure.privacy.accounting import Mechanism, deltas, epsilon, merged

__all__ = [
    "IN_BLOCKS", "SETTINGS", "PrivacyProfile", "charges_of", "command_line", "epsilon_of", "run_federation",
    "run_federations", "summaries",
]  # fmt: skip

SETTINGS = MappingProxyType(
    {
        "plain": ("--aggregation", "none"),
        "sum": (),
        "sum + DP 8": ("--dp-epsilon", "8"),
        "sum + DP 1": ("--dp-epsilon", "1"),
    }
)
"""Options of each: AutoFLIP as published, through the secure sum, and that with patient-level DP."""

IN_BLOCKS: Mapping[str, Any] = MappingProxyType({"block": 3, "colluders": 0, "min_cohort": 0.6})
"""The smallest blocks that a policy accepts unless it is changed; of three blocks the sum of any two may be opened."""

PROFILE_POINTS = 50
"""Epsilons of a profile; a thousand lower no bound of a usual plan by half a percent."""
AREA_STEPS = 10_000


def epsilon_of(setting: str) -> float | None:
    """Epsilon that a setting promises; None without DP."""
    options = SETTINGS[setting]
    return float(options[options.index("--dp-epsilon") + 1]) if "--dp-epsilon" in options else None


@dataclass(frozen=True, eq=False)
class PrivacyProfile:
    """What DP proves about one training record: delta at every epsilon, and so the best that any test for it can do.

    A run promises one pair (epsilon, delta), but its mechanisms keep one for every smaller epsilon, too. Each bounds
    the true-positive rate at a false-positive rate f twice, by e^epsilon f + delta and, from the same pair for what the
    test says of non-members, by 1 - e^-epsilon (1 - delta - f) (Kairouz, Oh and Viswanath 2015, theorem 2.1). Both hold
    for all pairs at once, and the least of all is the curve that no test is above (Dong, Roth and Su 2022). Either way
    round: the accountant takes the larger delta of adding and of removing the record. The least of lines is concave,
    so it bounds means over several records and runs, too.

    Attributes
    ----------
    epsilons : float64 array, shape (points,)
        Rising from 0 to what was spent.
    deltas : float64 array, shape (points,)
        Within [0, 1].
    """

    epsilons: NDArray[np.float64]
    deltas: NDArray[np.float64]

    @classmethod
    def of(cls, charges: Iterable[Sequence[Mechanism]], delta: float) -> PrivacyProfile:
        """Profile of several silos at once: as if one had been charged for all that any of them was.

        Parameters
        ----------
        charges : iterable of sequence of Mechanism
            Of each silo, as `charges_of` reads them.
        delta : float
            --dp-delta, of which the accountant leaves the grid of distributed noise its share. That share is enough at
            the promised epsilon and all smaller ones (`discrete_noise.discretisation_delta`), and is added to each.

        Raises
        ------
        ValueError
            Something was charged that has no noise, or no finite epsilon.
        """
        from autoflip_secure.privacy.plan import accounting_delta

        most: Counter[tuple[float, float]] = Counter()
        for charged in charges:
            most |= Counter({(m.sampling_rate, m.noise_multiplier): m.count for m in merged(charged)})
        uses = [Mechanism(rate, noise, count) for (rate, noise), count in most.items()]
        accounted = accounting_delta("distributed", delta)
        spent = epsilon(uses, accounted)
        if not np.isfinite(spent):
            raise ValueError("records were used without noise: nothing is proved about tests for one")
        epsilons = np.linspace(0.0, spent, PROFILE_POINTS)
        profile = deltas(uses, epsilons) + (delta - accounted)
        profile[-1] = min(profile[-1], delta)  # what the run reports, by another accountant than the profile's
        return cls(epsilons, np.minimum(profile, 1.0))

    @property
    def promise(self) -> str:
        """What the bounds rest on, for the tables."""
        return f"epsilon {self.epsilons[-1]:.2f} for one record, whole privacy profile"

    def true_positives(self, false_positives: float) -> float:
        """Largest true-positive rate of a test for one record, at a false-positive rate within [0, 1]."""
        return float(self._curve(np.array([false_positives]))[0])

    def area(self) -> float:
        """Largest area under the ROC curve of a test for one record.

        It is the largest probability, too, of telling two runs apart that differ by one record: that a score is larger
        in the run with the record has the probability of that area. The midpoint rule errs upwards on a concave curve.
        """
        return float(self._curve((np.arange(AREA_STEPS) + 0.5) / AREA_STEPS).mean())

    def _curve(self, false_positives: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest true-positive rates, shape (rates,) like the false-positive rates."""
        rates = false_positives[:, None]
        up = np.exp(self.epsilons) * rates + self.deltas
        down = 1.0 - np.exp(-self.epsilons) * (1.0 - self.deltas - rates)
        least: NDArray[np.float64] = np.minimum(up, down).min(axis=1)
        return np.minimum(least, 1.0)


def charges_of(run: Path) -> list[tuple[Mechanism, ...]]:
    """What each silo of a simulated run was charged for its training records, by its own ledger.

    All that uses them is in it: rounds, exploration, retries, the count of patients. What was held back for scoring is
    other patients' (`privacy.plan`).

    Raises
    ------
    ConfigError
        The folder holds no silos, or one of them has no ledger.
    StorageError
        A ledger is damaged.
    """
    from autoflip_secure.federation.ledger_files import ledger_files
    from autoflip_secure.privacy.ledger_reading import read_ledger
    from autoflip_secure.privacy.ledger_report import mechanisms

    return [mechanisms(read_ledger(file).of("train")) for file in ledger_files(run)]


def command_line(options: str, setting: str, seed: int, run: Path, data: Path | None = None) -> list[str]:
    """Arguments of a run of a setting, with everything recorded that the coordinator sees; parameters as below."""
    given = [*shlex.split(options), *SETTINGS[setting], "--seed", str(seed), "--run-dir", str(run)]
    given += ["--record-server-view", "--workers", "0", "--summary", "json", "--quiet", "--no-report"]
    return given + (["--data-dir", str(data)] if data is not None else [])


def run_federations(
    options: str, setting: str, runs: Mapping[int, Path], *, data: Path | None = None
) -> list[dict[str, Any]]:
    """Runs of the command line that differ in their seeds, on one core, one after another; their summaries in order.

    Parameters
    ----------
    options : str
        Of the command line, beside those of the setting.
    runs : mapping of int to Path
        Folder of each seed's run; must not exist.
    data : Path, optional
        --data-dir.

    Raises
    ------
    RuntimeError
        A run failed; the message is its own.
    """
    return summaries([command_line(options, setting, seed, run, data) for seed, run in runs.items()])


def summaries(given: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Of runs of these command lines, one after another in one process.

    Raises
    ------
    RuntimeError
        A run failed; the message is its own.
    """
    return _summaries(given, *simulated(*given))


def run_federation(
    options: str, setting: str, seed: int, run: Path, *, data: Path | None = None, program: str | None = None
) -> dict[str, Any]:
    """One such run; its summary.

    Parameters
    ----------
    options, setting, data
        As for `run_federations`.
    run : Path
        The run's folder; must not exist.
    program : str, optional
        Python to run in place of the command line, such as one with a defence taken out.

    Raises
    ------
    RuntimeError
        The run failed; the message is its own.
    """
    if program is None:
        return run_federations(options, setting, {seed: run}, data=data)[0]
    given = command_line(options, setting, seed, run, data)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *given]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return _summaries([given], ended.returncode, ended.stdout, ended.stderr)[0]


def _summaries(given: Sequence[Sequence[str]], code: int, said: str, complained: str) -> list[dict[str, Any]]:
    """A run says one line, its summary, and nothing where it fails: so many lines, so many runs that ended well."""
    lines = said.splitlines()
    if code:
        failed = given[min(len(lines), len(given) - 1)]
        raise RuntimeError(f"python -m autoflip_secure.sim {shlex.join(failed)}: {complained.strip()}")
    return [json.loads(line) for line in lines[-len(given) :]]
