"""Where ledgers lie, and what stands beside them: a silo's policy, the plans it joined, the figures a run claims.

Reads only, and imports neither Flower nor torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoflip_secure.errors import ConfigError, ProtocolError, StorageError
from autoflip_secure.federation.join import JoinRequest, Planned
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.privacy.ledger_reading import open_read_only
from autoflip_secure.privacy.ledger_report import Limits
from autoflip_secure.privacy.plan import accounting_delta

__all__ = ["Claim", "claims_of", "joined_plans", "ledger_files", "policy_limits"]

STATE = "state.sqlite"


@dataclass(frozen=True)
class Claim:
    """What summary.json says of one silo's record set; epsilon is None where the run promises nothing."""

    silo: str
    dataset: str
    lines: int
    epsilon: float | None


def ledger_files(path: Path) -> tuple[Path, ...]:
    """State files at a path: the file itself, a silo's, or those of all silos of a run directory.

    Raises
    ------
    ConfigError
        There is none, or a silo of the run lacks its own.
    """
    if path.is_dir() and (path / "silos").is_dir():
        files = tuple(folder / STATE for folder in sorted((path / "silos").iterdir()) if folder.is_dir())
    else:
        files = (path / STATE if path.is_dir() else path,)
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise ConfigError(
            f"{missing[0] if missing else path}: is not there; give a silo's folder, its {STATE}, or the directory of "
            "a run that has begun"
        )
    return files


def policy_limits(state: Path, trust: str) -> Limits | None:
    """Caps of the policy.toml beside a state file, as of today; None where there is no such file.

    Parameters
    ----------
    trust : str
        Trust mode of the last session; empty where unknown.

    Raises
    ------
    ConfigError
        It is malformed.
    """
    file = state.parent / "policy.toml"
    if not file.exists():
        return None
    policy = SiloPolicy.read(file)
    delta = accounting_delta(trust or "distributed", policy.delta)
    total, per_run, per_year = policy.budget(trust), policy.budget_per_run(trust), policy.budget_per_year(trust)
    return Limits(delta, total, per_run, per_year, "policy.toml")


def joined_plans(state: Path) -> dict[bytes, Planned | None] | None:
    """By session, what a silo agreed to when it joined; None where the file holds a ledger only.

    A session's plan is None where its statement cannot be read, as that of another version may be.
    """
    with open_read_only(state) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchone():
            return None
        rows = connection.execute("SELECT session, request FROM sessions").fetchall()
    return {session: _planned(request) for session, request in rows}


def _planned(statement: bytes) -> Planned | None:
    try:
        return JoinRequest.from_body(statement).planned
    except ProtocolError:
        return None


def claims_of(path: Path) -> tuple[Claim, ...] | None:
    """What the summary.json of a run directory says about ledgers; None where the run has none (yet).

    Raises
    ------
    StorageError
        It is malformed.
    """
    file = path / "summary.json"
    if not file.is_file():
        return None
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text())["ledgers"]
        return tuple(Claim(str(row["silo"]), row["dataset"], int(row["lines"]), row["epsilon"]) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{file}: is not a run's summary ({type(error).__name__}: {error})") from error
