"""A silo's own policy: the least protection it accepts, whatever the coordinator asks. Default deny.

The rules it implies are named and explained in `policy_rules`.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.silo_folder import HOLDOUT_FILE, TRAIN_FILE
from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.federation.blocks import block_size, least_block
from autoflip_secure.federation.outflow import run_channels
from autoflip_secure.federation.policy_rules import Rule, refusal
from autoflip_secure.federation.rotation import cohorts_change
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.parties.rules import HARD_FLOOR, share_threshold
from autoflip_secure.sums.channels import CHANNEL_NAMES, TAG_CHANNEL
from autoflip_secure.sums.manifest import TRUST_MODES, Manifest

__all__ = ["LONGEST_HOLD", "USUAL_CHANNELS", "SiloPolicy"]

LONGEST_HOLD = 60.0
"""Largest `reply_every`: a coordinator waits a minute and two for the answer to a join."""

USUAL_HOLD = 2.0
"""Seconds that hide the work of a small hospital's round, and cost a run of a hundred rounds some three minutes."""

LINEAR_CHANNELS = frozenset({"update", "count", "metric", "clip_bits"})
"""What distributed noise covers: squares of under-noised vectors are outside the promise of the sum."""

USUAL_CHANNELS = ("update", "count", "metric")
"""What a federation needs to learn and to score at all."""

AGGREGATIONS = ("secagg", "ckks", "none")
DIGEST_DIGITS = 64

DATA_FOLDER = "data"
"""Where a silo's records lie, in its folder."""


class SiloPolicy(BaseModel):
    """Limits one institution sets for itself. Each field's description says what it does.

    Networks and code are a matter of judgement rather than of size. With approval "each" an officer sees both for every
    run, so empty lists of them mean "what I approved, nothing else"; a list that is not empty binds also what is
    approved. With approval "standing" nobody looks, so both have to be listed: empty lists then refuse every run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    approval: Literal["each", "standing"] = Field(
        "each",
        description="each: an officer approves every run by `silo approve`; standing: any run within these limits",
    )
    code: tuple[str, ...] = Field(
        (),
        description="digests of the autoflip_secure code that may run here, as `silo policy check` prints them; empty: "
        "only the code that an approval names",
    )
    models: tuple[str, ...] = Field(
        (), description="networks that may be trained; empty: only the one that an approval names"
    )
    channels: tuple[str, ...] = Field(
        USUAL_CHANNELS,
        description="vectors that may leave, always as part of a sum: update, count, metric, deviation, unit_energy, "
        "gradient, mask, clip_bits",
    )
    data: Path = Field(
        Path("data"),
        description="folder that training may read, relative to the silo's own; records elsewhere are refused, also "
        "behind symbolic links",
    )
    aggregations: tuple[str, ...] = Field(
        ("secagg",), description="kinds of sums: secagg, ckks, none (the coordinator sees every silo)"
    )
    min_silos: int = Field(HARD_FLOOR, ge=HARD_FLOOR, description="fewest silos in a sum that may be opened")
    min_cohort: float = Field(
        0.6, gt=0, le=1, description="least fraction of a cohort that must survive; 0.8 and more where min_block is 1"
    )
    min_block: int = Field(
        HARD_FLOOR,
        ge=1,
        description="fewest silos that are summed together or not at all (--block): differences of a run's sums, "
        "whoever is said to be absent, then tell of so many silos together and not of this one alone. It takes others "
        "of the block who ask for it, too. 1: of single silos, under DP which classes one holds, and without DP its "
        "updates",
    )
    min_threshold: int = Field(
        HARD_FLOOR,
        ge=HARD_FLOOR,
        description="fewest key shares, each at another silo, that recover a secret of this silo",
    )
    colluders: int = Field(
        0, ge=0, description="silos that must be tolerated as colluders of the coordinator, at least"
    )
    trusts: tuple[str, ...] = Field(
        ("distributed", "local"),
        description="trust modes: distributed (noise adds up inside the sum), local (this silo's noise alone keeps the "
        "promise), none (no differential privacy)",
    )
    epsilon: float = Field(8.0, gt=0, description="largest privacy loss of a record set over all runs together")
    epsilon_per_run: float | None = Field(
        None, gt=0, description="largest loss by one run; absent: the total and what the run itself promises bind"
    )
    epsilon_per_year: float | None = Field(
        None,
        gt=0,
        description="largest loss within any 365 days, all runs together; absent: the total binds. All caps are held "
        "at the run's delta, and the least of them binds",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="largest failure probability of a run's promise")
    rotating_cohorts: bool = Field(
        False,
        description="cohorts and participants that change from round to round are accepted, although sums with and "
        "without this silo tell what it holds as a whole (which classes, for instance), also under DP, and without DP "
        "its updates",
    )
    proved_models: bool = Field(
        True,
        description="only runs with --prove-models are accepted: this silo computes each model itself from the sums "
        "before it, so a coordinator that works with no silo cannot make one up that shows single records or silos. "
        "false: models are taken as they come",
    )
    reply_every: float = Field(
        USUAL_HOLD,
        ge=0,
        le=LONGEST_HOLD,
        description="seconds, at most a minute: answers to a join and to stages that use records leave at whole "
        "multiples of so many seconds after they were asked for, so that how long they took tells nothing of how many "
        "records there are. 0: as soon as they are ready. It costs up to that much each time, so set it above what "
        "such a stage takes (silo.log says where one took longer) and far below the coordinator's --stage-timeout",
    )
    simulated: bool = Field(
        False,
        description="this is no institution but a part of a simulation: options that exist for tests are accepted "
        "(predictable noise, drops and spoilt updates on purpose, sums in clear under distributed noise), and code and "
        "initial model are not looked at",
    )

    @field_validator("channels", "aggregations", "trusts", "code")
    @classmethod
    def _known(cls, values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = {
            "channels": sorted(CHANNEL_NAMES),
            "aggregations": AGGREGATIONS,
            "trusts": sorted(TRUST_MODES),
        }
        for value in values:
            if info.field_name == "code":
                if len(value) != DIGEST_DIGITS or set(value) - set("0123456789abcdef"):
                    raise ValueError(f"{value!r} is not a digest of {DIGEST_DIGITS} lower-case hexadecimal digits")
            elif value not in known[info.field_name or ""]:
                raise ValueError(f"{value!r} is none of {', '.join(known[info.field_name or ''])}")
        return values

    @classmethod
    def accepting(cls, config: ResolvedConfig) -> SiloPolicy:
        """The policy of a simulated silo that agreed to exactly this run."""
        return cls(
            approval="standing",
            models=(config.model,),
            channels=tuple(sorted(run_channels(config, Schedule(config), counted=True, scored=True))),
            aggregations=(config.aggregation,),
            trusts=(config.trust,),
            **({} if config.dp_epsilon is None else {"epsilon": config.dp_epsilon}),
            delta=config.dp_delta,
            colluders=config.colluders,
            min_cohort=config.min_cohort,
            min_block=min(config.block, config.silos),
            rotating_cohorts=cohorts_change(config),
            proved_models=config.prove_models,
            reply_every=0.0,
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
        except (OSError, ValueError, RecursionError) as error:  # of UTF-8, TOML or a setting
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
        ConfigError
            No round can be planned with these options.
        """
        for refused in self.run_refusals(config):
            raise refused

    def run_refusals(
        self, config: ResolvedConfig, *, enrolled: int | None = None, counted: bool = False, scored: bool = False
    ) -> Iterator[PolicyRefusal]:
        """Why a run would be refused, each rule at most once.

        Parameters
        ----------
        enrolled : int, optional
            Silos in the roster, who share each key; by default those of the run.
        counted, scored : bool
            As for `outflow.run_channels`.

        Raises
        ------
        ConfigError
            No round can be planned with these options.
        """
        if config.aggregation not in self.aggregations:
            yield refusal(
                Rule.AGGREGATIONS,
                f"the run sums by {config.aggregation!r}",
                f"accepted are {_listed(self.aggregations)}",
            )
        schedule = Schedule(config)
        yield from self._privacy_refusals(config.trust, config.dp_delta, config.colluders)
        if config.dp_epsilon is not None and config.dp_epsilon > self.epsilon:
            yield refusal(Rule.EPSILON, f"the run asks for {config.dp_epsilon:g}", f"the cap is {self.epsilon:g}")
        if cohorts_change(config) and not self.rotating_cohorts:
            yield refusal(Rule.ROTATING_COHORTS, "sums with and without this silo tell what it holds as a whole")
        smallest = min(map(len, schedule.blocks))
        least = max(self.min_block, least_block(config.colluders, schedule.moments)) if self.min_block > 1 else 1
        if smallest < least:
            yield refusal(Rule.MIN_BLOCK, f"a block has {smallest} silos", f"the least is {least}")
        elif least > 1 and config.block != block_size(config.block):
            yield refusal(
                Rule.MIN_BLOCK,
                f"blocks of {config.block} are not made of those of other runs, and sums of both tell of single silos",
                f"{block_size(config.block)} would be",
            )
        if self.proved_models and not (config.prove_models and config.aggregation == "secagg"):
            yield refusal(Rule.PROVED_MODELS, "nothing shows where the models of the run come from, round 0's aside")
        if (self.models or self.approval == "standing") and config.model not in self.models:
            yield refusal(
                Rule.MODELS, f"the run trains the network {config.model!r}", f"accepted are {_listed(self.models)}"
            )
        plans = [*(schedule.plan(round) for round in schedule.kinds), schedule.whole()]
        sizes = [(len(c), least) for plan in plans for c, least in zip(plan.cohorts, plan.minimum, strict=True)]
        yield from self._size_refusals(sizes, share_threshold(enrolled or config.silos))
        yield from self._channel_refusals(run_channels(config, schedule, counted=counted, scored=scored))
        words = None if self.simulated else _only_simulated(config)
        if words is not None:
            yield refusal(Rule.SIMULATED, words)

    def check_manifest(self, manifest: Manifest) -> None:
        """Refuse one round.

        Raises
        ------
        PolicyRefusal
            Names the rule.
        """
        for refused in self._manifest_refusals(manifest):
            raise refused

    def _manifest_refusals(self, manifest: Manifest) -> Iterator[PolicyRefusal]:
        # A tag tells nothing beside the sum; the session takes none that the joined run does not have.
        terms, names = manifest.privacy, {channel.name for channel in manifest.channels} - {TAG_CHANNEL}
        yield from self._privacy_refusals(terms.trust, terms.delta, terms.colluders)
        sizes = [(len(c), least) for c, least in zip(manifest.cohorts, manifest.minimum, strict=True)]
        yield from self._size_refusals(sizes, manifest.threshold)
        yield from self._channel_refusals(names)
        if terms.trust == "distributed" and not names <= LINEAR_CHANNELS:
            yield refusal(
                Rule.LINEAR, f"distributed noise covers linear channels only, not {_listed(names - LINEAR_CHANNELS)}"
            )

    def _privacy_refusals(self, trust: str, delta: float, colluders: int) -> Iterator[PolicyRefusal]:
        if trust not in self.trusts:
            yield refusal(Rule.TRUSTS, f"trust mode {trust!r} is asked for", f"accepted are {_listed(self.trusts)}")
        if delta > self.delta:
            yield refusal(Rule.DELTA, f"delta {delta:g} is asked for", f"the cap is {self.delta:g}")
        if colluders < self.colluders:
            yield refusal(Rule.COLLUDERS, f"{colluders} tolerated", f"at least {self.colluders} are to be")

    def _size_refusals(self, sizes: list[tuple[int, int]], threshold: int) -> Iterator[PolicyRefusal]:
        """Refusals of cohorts given as (silos, fewest survivors)."""
        size, least = min(sizes, key=lambda each: each[1] - math.ceil(self.min_cohort * each[0]))
        if least < math.ceil(self.min_cohort * size):
            yield refusal(
                Rule.MIN_COHORT, f"{least} of {size} silos would do", f"at least {self.min_cohort:.0%} must survive"
            )
        fewest = min(least for _, least in sizes)
        if fewest < self.min_silos:
            yield refusal(Rule.MIN_SILOS, f"a sum over {fewest} silos may be opened", f"the least is {self.min_silos}")
        if threshold < self.min_threshold:
            yield refusal(
                Rule.MIN_THRESHOLD, f"{threshold} key shares recover a secret", f"the least is {self.min_threshold}"
            )

    def _channel_refusals(self, names: Set[str]) -> Iterator[PolicyRefusal]:
        if not names <= set(self.channels):
            yield refusal(
                Rule.CHANNELS,
                f"{_listed(names - set(self.channels))} would leave",
                f"accepted are {_listed(self.channels)}",
            )

    def check_data(self, folder: Path) -> None:
        """Refuse where the records of the silo in `folder` lie outside of what training may read.

        Raises
        ------
        PolicyRefusal
            Names the place.
        """
        for refused in self.data_refusals(folder):
            raise refused

    def data_refusals(self, folder: Path) -> Iterator[PolicyRefusal]:
        """What `check_data` raises, if anything."""
        # Not resolved itself: where it is a link, nobody said that what it points to may be read.
        allowed = Path(os.path.normpath(folder.resolve() / self.data))
        read = folder / DATA_FOLDER
        for path in (read, read / TRAIN_FILE, read / HOLDOUT_FILE):
            if not path.resolve().is_relative_to(allowed):
                yield refusal(Rule.DATA, f"{path} lies at {path.resolve()}", f"training reads {allowed} only")
                return


def _only_simulated(config: ResolvedConfig) -> str | None:
    """What is wrong with the run at an institution."""
    if config.insecure_reproducible_noise:
        return "noise drawn from a seed protects nobody"
    if config.bad_silos is not None:
        return "an institution does not spoil the sum on purpose"
    if config.dropout > 0:
        return "an institution does not drop out on purpose"
    if config.aggregation == "none" and config.trust == "distributed":
        return "sums in clear carry only one silo's small part of distributed noise"
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
