"""The four ways of running that every attack is tried on, and runs of the command line in them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autoflip_secure.attacks.simulated import simulated

__all__ = ["IN_BLOCKS", "SETTINGS", "area_of_epsilon", "bound_of_epsilon", "epsilon_of", "run_federation"]

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


def epsilon_of(setting: str) -> float | None:
    """Epsilon that a setting promises; None without DP."""
    options = SETTINGS[setting]
    return float(options[options.index("--dp-epsilon") + 1]) if "--dp-epsilon" in options else None


def bound_of_epsilon(epsilon: float, delta: float, false_positives: float) -> float:
    """Largest true-positive rate of a test for one patient at a false-positive rate, under (epsilon, delta)-DP.

    Kairouz, Oh and Viswanath 2015, theorem 2.1: min over both directions of adding or removing the patient.
    """
    import math

    up = math.exp(epsilon) * false_positives + delta
    down = 1 - math.exp(-epsilon) * (1 - delta - false_positives)
    return min(up, down, 1.0)


def area_of_epsilon(epsilon: float, delta: float) -> float:
    """Largest area under the ROC curve of a test for one patient, under (epsilon, delta)-DP.

    It is the largest probability, too, of telling two runs apart that differ by one patient: that a score is larger in
    the run with the patient has the probability of that area.
    """
    steps = 10_000
    return sum(bound_of_epsilon(epsilon, delta, (step + 0.5) / steps) for step in range(steps)) / steps


def run_federation(
    options: str, setting: str, seed: int, run: Path, *, data: Path | None = None, program: str | None = None
) -> dict[str, Any]:
    """One run of the command line on one core, with everything recorded that the coordinator sees; its summary.

    Parameters
    ----------
    options : str
        Of the command line, beside those of the setting.
    run : Path
        The run's folder; must not exist.
    data : Path, optional
        --data-dir.
    program : str, optional
        Python to run in place of the command line, such as one with a defence taken out.

    Raises
    ------
    RuntimeError
        The run failed; the message is its own.
    """
    given = [*shlex.split(options), *SETTINGS[setting], "--seed", str(seed), "--run-dir", str(run)]
    given += ["--record-server-view", "--workers", "0", "--summary", "json", "--quiet", "--no-report"]
    given += ["--data-dir", str(data)] if data is not None else []
    if program is None:
        code, said, complained = simulated(given)
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, *given]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        code, said, complained = ended.returncode, ended.stdout, ended.stderr
    if code:
        raise RuntimeError(f"python -m autoflip_secure.sim {shlex.join(given)}: {complained.strip()}")
    summary: dict[str, Any] = json.loads(said.splitlines()[-1])
    return summary
