"""A silo's own policy: the least protection it accepts, whatever the coordinator asks. Default deny."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.sums.manifest import Manifest

__all__ = ["SiloPolicy"]

LINEAR_CHANNELS = frozenset({"update", "count", "metric", "clip_bits"})
"""What distributed noise covers: squares of under-noised vectors are outside the promise of the sum."""


class SiloPolicy(BaseModel):
    """Limits one institution sets for itself.

    Attributes
    ----------
    aggregations, trusts : which kinds of sum and trust modes are accepted.
    epsilon, delta : largest privacy loss of a record set over all sessions.
    epsilon_per_run : largest loss by one session; absent: only the total and what the run itself promises bind.
    epsilon_per_year : largest loss within any 365 days, sessions of all runs together; absent: only the total binds.
        Both are held at the run's delta, and the least of all caps binds.
    colluders : silos that must be tolerated as colluders, at least.
    min_cohort : least fraction of a cohort that must survive.
    rotating_cohorts : cohorts drawn anew each round are accepted without DP, although their sums together may show this
        silo's updates.
    simulated : this is no institution but a part of a simulation: options that exist for tests are accepted
        (predictable noise, drops and spoilt updates on purpose, sums in clear under distributed noise).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    aggregations: tuple[str, ...] = ("secagg",)
    trusts: tuple[str, ...] = ("distributed", "local")
    epsilon: float = Field(8.0, gt=0)
    epsilon_per_run: float | None = Field(None, gt=0)
    epsilon_per_year: float | None = Field(None, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    colluders: int = Field(0, ge=0)
    min_cohort: float = Field(0.8, gt=0, le=1)
    rotating_cohorts: bool = False
    simulated: bool = False

    @classmethod
    def accepting(cls, config: ResolvedConfig) -> SiloPolicy:
        """The policy of a simulated silo that agreed to exactly this run."""
        return cls(
            aggregations=(config.aggregation,),
            trusts=(config.trust,),
            **({} if config.dp_epsilon is None else {"epsilon": config.dp_epsilon}),
            delta=config.dp_delta,
            colluders=config.colluders,
            min_cohort=config.min_cohort,
            rotating_cohorts=config.allow_cohort_rotation,
            simulated=True,
        )

    @classmethod
    def read(cls, path: Path) -> SiloPolicy:
        """Read policy.toml.

        Raises
        ------
        ConfigError
            Missing or malformed; the silo then answers nothing.
        """
        try:
            return cls(**tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise ConfigError(f"cannot read the silo's policy {path}: {error}") from error

    def to_toml(self) -> str:
        """As a file."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def budget(self, trust: str) -> float:
        """Epsilon that a record set may cost; unbounded only for a run without DP that this silo accepts."""
        return math.inf if self._promises_nothing(trust) else self.epsilon

    def budget_per_run(self, trust: str, promised: float | None = None) -> float:
        """Epsilon that one session may cost: the policy's cap, and no more than the run itself promises."""
        if self._promises_nothing(trust):
            return math.inf
        return min(cap for cap in (self.epsilon, self.epsilon_per_run, promised) if cap is not None)

    def budget_per_year(self, trust: str) -> float:
        """Epsilon that the sessions of 365 days may cost together."""
        if self._promises_nothing(trust):
            return math.inf
        return min(cap for cap in (self.epsilon, self.epsilon_per_year) if cap is not None)

    def _promises_nothing(self, trust: str) -> bool:
        return trust == "none" and "none" in self.trusts

    def check_run(self, config: ResolvedConfig) -> None:
        """Refuse a run before anything of it starts.

        Raises
        ------
        PolicyRefusal
            Names the rule.
        """
        if config.aggregation not in self.aggregations:
            raise PolicyRefusal(f"policy aggregations: {config.aggregation!r} is not among {self.aggregations}")
        self._check_privacy(config.trust, config.dp_delta, config.colluders)
        if config.dp_epsilon is not None and config.dp_epsilon > self.epsilon:
            raise PolicyRefusal(f"policy epsilon: the run asks for {config.dp_epsilon}, the cap is {self.epsilon}")
        if config.allow_cohort_rotation and config.trust == "none" and not self.rotating_cohorts:
            raise PolicyRefusal("policy rotating_cohorts: without DP the sums of changing cohorts show single silos")
        if self.simulated:
            return
        if config.insecure_reproducible_noise:
            raise PolicyRefusal("policy simulated: noise drawn from a seed protects nobody")
        if config.bad_silos is not None:
            raise PolicyRefusal("policy simulated: an institution does not spoil the sum on purpose")
        if config.dropout > 0:
            raise PolicyRefusal("policy simulated: an institution does not drop out on purpose")
        if config.aggregation == "none" and config.trust == "distributed":
            raise PolicyRefusal("policy simulated: sums in clear carry only one silo's small part of distributed noise")

    def check_manifest(self, manifest: Manifest) -> None:
        """Refuse one round.

        Raises
        ------
        PolicyRefusal
            Names the rule.
        """
        terms = manifest.privacy
        self._check_privacy(terms.trust, terms.delta, terms.colluders)
        for cohort, least in zip(manifest.cohorts, manifest.minimum, strict=True):
            if least < math.ceil(self.min_cohort * len(cohort)):
                raise PolicyRefusal(
                    f"policy min_cohort: {least} of {len(cohort)} silos would do, at least "
                    f"{self.min_cohort:.0%} must survive"
                )
        names = {channel.name for channel in manifest.channels}
        if terms.trust == "distributed" and not names <= LINEAR_CHANNELS:
            raise PolicyRefusal(f"distributed noise covers linear channels only, not {sorted(names - LINEAR_CHANNELS)}")

    def _check_privacy(self, trust: str, delta: float, colluders: int) -> None:
        if trust not in self.trusts:
            raise PolicyRefusal(f"policy trusts: {trust!r} is not among {self.trusts}")
        if delta > self.delta:
            raise PolicyRefusal(f"policy delta: {delta} is above {self.delta}")
        if colluders < self.colluders:
            raise PolicyRefusal(f"policy colluders: {colluders} tolerated, at least {self.colluders} are asked for")
