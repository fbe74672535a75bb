"""What an audit is asked for, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoflip_secure.errors import ConfigError

__all__ = ["SETTINGS", "AuditReport", "AuditSettings"]

SETTINGS = ("white-box", "black-box")
TRUSTS = ("distributed", "local")
FEWEST_CANARIES = 10
CANARIES = {"white-box": 10_000, "black-box": 1_000}
SLACK = 1e-3
"""Relative error of solved noise: an audited value this little above the promise breaks nothing."""


@dataclass(frozen=True)
class AuditSettings:
    """One audit.

    Attributes
    ----------
    epsilon, delta : float
        The promise to be tried.
    trust : str
        distributed or local.
    setting : str
        white-box or black-box.
    canaries : int or None
        10,000 white-box, 1,000 black-box.
    silos : int
    rounds, sampling_rate : int and float, or None
        Those of a private run on the embedded images.
    colluders : int or None
        As a run chooses them.
    absent : int
        Silos missing from every sum; fewer survivors have less of their noise removed.
    aggregation : str
        none adds the silos' words in clear, which are those of the protected path; secagg runs the protocol too, with
        every silo honest and present.
    confidence : float
        Of the lower bound.
    """

    epsilon: float = 8.0
    delta: float = 1e-5
    trust: str = "distributed"
    setting: str = "white-box"
    canaries: int | None = None
    silos: int = 10
    rounds: int | None = None
    sampling_rate: float | None = None
    colluders: int | None = None
    absent: int = 0
    aggregation: str = "none"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise ConfigError(f"--setting {self.setting!r} is unknown; take {' or '.join(SETTINGS)}")
        if self.trust not in TRUSTS:
            raise ConfigError(f"--trust {self.trust!r} is unknown; take {' or '.join(TRUSTS)}")
        if self.count < FEWEST_CANARIES:
            raise ConfigError(f"--canaries {self.canaries}: fewer than {FEWEST_CANARIES} show nothing")
        if self.absent < 0:
            raise ConfigError(f"--absent {self.absent} is negative")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"--confidence {self.confidence} is not within (0, 1)")

    @property
    def count(self) -> int:
        """Number of canaries."""
        return CANARIES[self.setting] if self.canaries is None else self.canaries


@dataclass(frozen=True)
class AuditReport:
    """What came out of one audit.

    Attributes
    ----------
    settings : AuditSettings
    releases : int
        Sums or updates the adversary got before the silo's ledger refused (white-box), or rounds of the run.
    planned : int
        Sums or updates the plan pays for.
    sampling_rate, noise_multiplier : float
        Of one release, as promised.
    honest : int
        Silos whose noise the adversary cannot subtract.
    audited : float
        Lower bound on epsilon.
    guesses, right : int
    saw : str
        What the adversary saw, in words.
    seconds : float
    """

    settings: AuditSettings
    releases: int
    planned: int
    sampling_rate: float
    noise_multiplier: float
    honest: int
    audited: float
    guesses: int
    right: int
    saw: str
    seconds: float

    @property
    def broken(self) -> bool:
        """Whether more was learnt than the promise allows."""
        return self.audited > self.settings.epsilon * (1.0 + SLACK)

    @property
    def ratio(self) -> float:
        """Audited over claimed."""
        return self.audited / self.settings.epsilon

    def to_json(self) -> dict[str, Any]:
        """Every setting and figure."""
        figures = {name: value for name, value in vars(self).items() if name != "settings"}
        return {**vars(self.settings), **figures, "canaries": self.settings.count, "claimed": self.settings.epsilon,
                "ratio": self.ratio, "broken": self.broken}  # fmt: skip
