"""RunConfig: every option once, typed, documented, validated.

The command line, TOML files, the run directory and the manifest's configuration hash are all read from this class.
A field that is None is filled in by `federation.defaults.resolve` once the data set is known.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoflip_secure.errors import ConfigError

__all__ = ["LOCAL_ONLY_FIELDS", "ConfigFile", "ResolvedConfig", "RunConfig", "flag_of", "load_config_file"]

LOCAL_ONLY_FIELDS = frozenset(
    {"data_dir", "run_dir", "engine", "device", "workers", "record_server_view", "stage_timeout", "join_timeout"}
)
"""Fields that say where a run happens, not what it computes; they are not part of the configuration hash."""


RECORD_MARK = "# The record of a run of autoflip-secure: every option it came to, whether somebody chose it or not."
"""First line of a run's config.toml, known word for word. A comment, so neither an option nor part of any digest."""


class RunConfig(BaseModel):
    """Options of one training run. Defaults of None depend on the data set and the trust mode."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # What is trained, on what
    dataset: str = Field("mnist5k", description="data set by name, or folder:PATH for your own")
    data_dir: Path | None = Field(None, description="folder that holds the data sets that are not embedded")
    model: str | None = Field(None, description="network (default: by data set)")
    silos: int | None = Field(
        None,
        ge=3,
        le=2000,
        description="number of silos [10; natural: as many as there are; with fewer, whole ones are put together]",
    )
    partition: str | None = Field(
        None,
        description="iid | dirichlet:ALPHA | pathological:CLASSES | natural [natural where the data have silos, "
        "else dirichlet:0.5]",
    )
    rounds: int | None = Field(None, ge=1, le=100_000, description="rounds of the run, exploration included")
    local_steps: int | None = Field(
        None, ge=1, le=10_000, description="gradient steps a silo takes in a round [distributed: 1]"
    )
    local_epochs: int | None = Field(
        None, ge=1, le=1000, description="in place of --local-steps: passes over a silo's nominal share of the records"
    )
    participation: float = Field(1.0, gt=0, le=1, description="fraction of the silos drawn for each round")
    batch_size: int | None = Field(None, ge=1, description="records a local step uses without DP")
    learning_rate: float | None = Field(None, gt=0, description="learning rate")
    momentum: float | None = Field(
        None, ge=0, lt=1, description="momentum (under DP the server's, else the silos' own)"
    )
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate from each round to the next")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="sgd | adam: how silos train without DP")
    prox_mu: float = Field(
        0.0, ge=0, description="weight of FedProx' pull towards the round's model, without DP (Li et al. 2020)"
    )
    server_optimizer: Literal["average", "adam"] = Field(
        "average", description="average | adam (FedAdam, Reddi et al. 2021): how the mean update moves the model"
    )
    server_learning_rate: float = Field(0.01, gt=0, description="step of --server-optimizer adam")
    target_accuracy: float | None = Field(
        None, gt=0, le=1, description="report the rounds and bytes needed to reach this accuracy"
    )

    # How sums are protected
    aggregation: Literal["secagg", "ckks", "none"] = Field(
        "secagg",
        description="secagg | ckks (homomorphic; all silos of a sum have to open it together) | none (the coordinator "
        "sees every silo; baselines only)",
    )
    colluders: int | None = Field(
        None, ge=0, description="silos that may collude with the coordinator without weakening any promise"
    )
    min_cohort: float = Field(
        0.8, gt=0, le=1, description="fraction of a cohort that must survive for its sum to be opened"
    )
    block: int = Field(
        1,
        ge=1,
        description="silos that are summed together or not at all: the first of 3, 6, 12, ... that is so many, and "
        "colluders + 2 or more. Differences of sums then tell no single silo; one that drops out takes its block along "
        "[autoflip-secure run: 3]",
    )
    epoch_slots: int = Field(64, ge=1, le=1024, description="rounds served by one key set-up")
    prove_models: bool = Field(
        False,
        description="silos compute each model themselves from the opened sums before it, and contribute to no other "
        "[autoflip-secure run: yes]",
    )
    bits: int = Field(16, ge=8, le=24, description="bits of one encoded value")
    update_limit: float = Field(1.0, gt=0, description="public range of one coordinate of a local update")
    update_norm: float | None = Field(
        None,
        gt=0,
        description="without DP: largest L2 norm of a silo's update; silos scale down to it, and the coordinator a sum "
        "that is longer than so many silos' together",
    )

    # Privacy
    dp_epsilon: float | None = Field(
        None, gt=0, description="privacy budget of every silo for the whole run (absent: no DP)"
    )
    dp_delta: float = Field(1e-5, gt=0, lt=1, description="failure probability of the promise")
    dp_trust: Literal["distributed", "local"] = Field(
        "distributed",
        description="distributed: noise adds up inside the secure sum | local: each silo alone meets the budget",
    )
    clip: float | None = Field(None, gt=0, description="L2 norm to which a patient's gradient is clipped")
    adaptive_clip: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the clip follows this quantile of the gradient norms, from --clip on (distributed)",
    )
    sampling_rate: float | None = Field(None, gt=0, le=1, description="Poisson sampling rate of a patient in a step")
    reserve: float = Field(
        0.04, ge=0, le=1, description="share of rounds paid for in advance so that aborted attempts can be retried"
    )
    evaluations: int | None = Field(
        None, ge=1, le=10_000, description="scores through a noised sum where no public test data exists"
    )
    insecure_reproducible_noise: bool = Field(
        False, description="tests only: draw privacy noise from the seed; the report is marked"
    )

    # Pruning
    prune: Literal["autoflip", "random", "none", "magnitude", "snip", "prunefl", "feddst", "eflprune", "fedmask"] = (
        Field(
            "autoflip",
            description="autoflip | random (units drawn at first) | none | magnitude | snip | prunefl | feddst | "
            "eflprune | fedmask",
        )
    )
    score: Literal[
        "usual",
        "guidance",
        "guidance-agreement",
        "energy",
        "product",
        "product-agreement",
        "own-energy",
        "own-product",
        "hybrid",
        "hybrid-agreement",
        "hybrid-disagreement",
    ] = Field("usual", description="what autoflip keeps by [hybrid; with DP product-agreement]")
    prune_threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="lowest part of the parameters that dies [0.3; distributed: 0.6; random: 0]",
    )
    prune_flops: float | None = Field(
        None,
        gt=0,
        le=1,
        description="largest fraction of the dense FLOPs to keep [0.5]",
    )
    prune_threshold_kind: Literal["quantile", "absolute"] = Field(
        "quantile", description="quantile | absolute: what --prune-threshold is of the scores"
    )
    prune_hysteresis: float = Field(
        0.1, ge=0, lt=1, description="half-width of the band around the threshold in which a parameter keeps its state"
    )
    prune_floor: float = Field(0.1, ge=0, le=1, description="least fraction of a layer's units that lives")
    prune_round_to: int = Field(
        1,
        ge=1,
        le=64,
        description="layers keep multiples of so many channels, which processors work off faster (8 or 16), where they "
        "have twice as many",
    )
    explore_rounds: int | None = Field(
        None, ge=1, description="rounds of exploration before the first mask [distributed: 20, else 1]"
    )
    explore_steps: int | None = Field(None, ge=1, description="local steps of an exploring silo")
    explore_participation: float | None = Field(
        None, gt=0, le=1, description="fraction of the silos that explore [--participation]"
    )
    explore_every: int = Field(
        0,
        ge=0,
        description="explore anew every so many rounds, without distributed noise (0: once); feddst: rounds between "
        "readjustments (0: 10, fewer in short runs)",
    )
    cohorts: int | None = Field(
        None,
        ge=1,
        le=16,
        description="cohorts summed apart in rounds that measure agreement, with DP [1; filter: of 4]",
    )
    agreement_every: int | None = Field(
        None, ge=0, description="measure agreement by cohorts every so many rounds (0: never)"
    )
    cohort_filter: bool = Field(
        False, description="sum fixed cohorts apart in every round and weigh down one that disagrees with the rest"
    )
    allow_cohort_rotation: bool = Field(
        False,
        description="with --cohort-filter: draw the cohorts anew each round; without DP their sums then show single "
        "silos after a few rounds, how many is printed",
    )
    eta: float = Field(0.1, ge=0, le=1, description="rate at which guidance follows the model")
    guidance_level: Literal["usual", "unit", "parameter"] = Field(
        "usual",
        description="unit | parameter: what a round tells apart as it moves guidance [parameter; with DP unit]",
    )
    prune_steps: int | None = Field(
        None, ge=1, le=100, description="mask decisions on the way to the target [one, or three]"
    )
    warm_start: bool | None = Field(
        None, description="go on from the explored model instead of the common start [with DP: yes]"
    )

    # Where and how it runs
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that a silo drops in a round, at a random stage")
    bad_silos: str | None = Field(
        None,
        description="simulation only: KIND:FRACTION of the silos spoil the sum (noise:0.2 | label-flip:0.4 | "
        "scaling:0.1 | backdoor:0.2 | free-riding:0.2 | huge-count:0.1 | wild-words:0.1); the report is marked",
    )
    engine: Literal["local", "ray"] = Field("local", description="local | ray (Flower's simulation)")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto | cpu | cuda")
    workers: int | None = Field(
        None, ge=0, le=256, description="processes the silos run in (0: inside this one) [one a core]"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything that is not secret")
    evaluate_every: int = Field(10, ge=1, description="rounds between evaluations on public test data")
    run_dir: Path | None = Field(None, description="where the run is kept [runs/DATASET-TIME]")
    record_server_view: bool = Field(False, description="keep every byte the coordinator received")
    stage_timeout: float = Field(600.0, gt=0, description="seconds to wait for the silos' replies in one stage")
    join_timeout: float = Field(
        0.0, ge=0, description="seconds to wait for silos that are away or have not approved the run yet (0: none)"
    )

    @property
    def trust(self) -> str:
        """none, local or distributed: what the privacy terms of a manifest say."""
        return self.dp_trust if self.dp_epsilon is not None else "none"

    def rate(self, round: int) -> float:
        """Learning rate of a round: --learning-rate decayed once a round; 0 while it is not set."""
        return (self.learning_rate or 0.0) * self.lr_decay**round

    def digest(self) -> bytes:
        """SHA-256 of what the run computes, for the manifest."""
        data = self.model_dump(mode="json", exclude=set(LOCAL_ONLY_FIELDS))
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()

    def to_toml(self) -> str:
        """The configuration as a TOML file that `--config` reads."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def create(cls, **options: Any) -> Self:
        """Validate options.

        Raises
        ------
        ConfigError
            One line that names the first wrong option, as a flag, and what would be right.
        """
        return cls._validated(options)

    @classmethod
    def _validated(cls, options: dict[str, Any]) -> Self:
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "configuration"
            raise ConfigError(_explain(name, first)) from None


class ResolvedConfig(RunConfig):
    """A configuration with every option set, as the coordinator and the silos of a run know it."""

    model: str
    silos: int
    partition: str
    rounds: int
    local_steps: int
    batch_size: int
    learning_rate: float
    momentum: float
    colluders: int
    clip: float
    sampling_rate: float
    evaluations: int
    prune_threshold: float
    prune_flops: float
    explore_rounds: int
    explore_steps: int
    cohorts: int
    agreement_every: int
    prune_steps: int
    warm_start: bool

    def to_toml(self) -> str:
        """The configuration as a TOML file that says it is a run's record."""
        return f"{RECORD_MARK}\n{super().to_toml()}"

    @classmethod
    def create(cls, **options: Any) -> Self:
        """Validate; the ranges are those of RunConfig."""
        RunConfig.create(**options)
        return cls._validated(options)


def flag_of(field: str) -> str:
    """`dp_epsilon` -> `--dp-epsilon`."""
    return "--" + field.replace("_", "-")


def _explain(name: str, error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown option {name!r} in the configuration; `--help` lists the options"
    given = f" (given: {error['input']!r})" if error.get("input") is not None else ""
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{flag_of(name)}: {message}{given}"


@dataclass(frozen=True)
class ConfigFile:
    """A TOML file of options.

    Attributes
    ----------
    options : dict
        By field, unvalidated.
    is_marked : bool
        Whether it bears `RECORD_MARK`, as the records of runs do.
    """

    options: dict[str, Any]
    is_marked: bool

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read a file once: it may be a pipe.

        Raises
        ------
        ConfigError
            The file is missing or is not TOML; the message names line and column.
        """
        text = _text_of(path)
        try:
            options = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also of numbers that are too long, or of nesting
            raise ConfigError(f"--config: {path} is not TOML: {error}") from None
        marked = RECORD_MARK in map(str.strip, text.splitlines())
        return cls({key.replace("-", "_"): value for key, value in options.items()}, marked)

    @property
    def is_record(self) -> bool:
        """Whether a run wrote it. Records older than the mark are known by how much they say, two thirds of all options
        or more, so that a line that was taken out or an option that is new changes nothing."""
        said = self.options.keys() & RunConfig.model_fields.keys()
        return self.is_marked or 3 * len(said) >= 2 * len(RunConfig.model_fields)


def load_config_file(path: Path) -> dict[str, Any]:
    """Options of a TOML file, unvalidated; raises as `ConfigFile.read`."""
    return ConfigFile.read(path).options


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config: {path} is not UTF-8 text") from None
