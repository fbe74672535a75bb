"""Fills in the options the user left open, from the task, the trust mode and the number of silos.

The hyper-parameters were chosen on the embedded, public data sets only, so choosing them cost no silo any privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.blocks import block_size, least_block
from autoflip_secure.federation.option_checks import check_options, check_robustness
from autoflip_secure.federation.schedule import (
    LEAST_FILTERED,
    UNEXPLORED,
    bears_two_moments,
    default_colluders,
    largest_cohorts,
    round_half_up,
)
from autoflip_secure.parties.roster import MAX_SILOS, MIN_SILOS

__all__ = ["resolve"]


TEXT_MODEL = "char-lstm"


@dataclass(frozen=True)
class _Training:
    """Hyper-parameters of one kind of run."""

    rounds: int
    local_steps: int
    learning_rate: float
    momentum: float
    clip: float
    sampling_rate: float
    batch_size: int = 32
    explore_rounds: int = 1
    explore_steps: int = 20
    evaluations: int = 5


# Without momentum: within ten steps on a skewed silo momentum of 0.9 drives tanh into saturation (two of three seeds
# on mnist5k, dirichlet:0.1, never learnt, pruned or not).
_IMAGES = {
    "none": _Training(60, 10, 0.3, 0.0, 1.0, 0.1),
    "local": _Training(100, 1, 2.0, 0.9, 0.1, 0.2, explore_steps=4),
    "distributed": _Training(200, 1, 4.0, 0.9, 0.1, 0.1, explore_rounds=20),
}
# Tables are small: two scores through a noised sum are less noisy than five.
_TABLES = {
    "none": _Training(40, 10, 0.1, 0.9, 1.0, 0.1),
    "local": _Training(60, 1, 0.5, 0.9, 0.1, 0.2, explore_steps=4, evaluations=2),
    "distributed": _Training(100, 1, 0.5, 0.9, 0.1, 0.2, explore_rounds=10, evaluations=2),
}
# Losses of survival have larger gradients where the event was seen. A clip of 1 ranks patients as well, but bends the
# model to a third of the deaths there are.
_SURVIVAL = {
    "none": _Training(40, 10, 0.1, 0.9, 1.0, 0.1),
    "local": _Training(60, 1, 0.05, 0.9, 3.0, 0.2, explore_steps=4, evaluations=2),
    "distributed": _Training(100, 1, 0.05, 0.9, 3.0, 0.2, explore_rounds=10, evaluations=2),
}


def resolve(config: RunConfig, task: Task, *, natural_silos: int | None) -> ResolvedConfig:
    """The same configuration with every option set.

    Raises
    ------
    ConfigError
        Options that contradict each other or the data set.
    """
    trust = config.trust
    partition = config.partition or ("natural" if natural_silos else "dirichlet:0.5")
    silos = _silos(config, partition, natural_silos)
    training = _defaults_for(task)[trust]
    if trust == "distributed" and config.local_steps not in (None, 1):
        raise ConfigError(
            f"--local-steps {config.local_steps}: distributed noise covers one gradient sum a round, so it is 1; "
            "more local steps need --dp-trust local"
        )
    check_options(config)
    if config.target_accuracy is not None and task.kind == "survival":
        raise ConfigError(f"--target-accuracy: {task.name} is scored by its C-index and has no accuracy; leave it out")
    if config.adaptive_clip is not None and trust != "distributed":
        raise ConfigError(
            f"--adaptive-clip {config.adaptive_clip}: the clip follows a noised sum over the silos; it needs "
            "--dp-epsilon with --dp-trust distributed"
        )
    check_robustness(config, task, silos)
    # With the cohort filter a cohort takes the place of the whole, and its sum comes without squares (see Schedule).
    smallest = _smallest_cohort(config, silos)
    squares = config.prune == "autoflip" or (config.prune == "prunefl" and bool(config.warm_start))
    moments = 2 if trust != "distributed" and squares and not config.cohort_filter else 1
    colluders = default_colluders(silos, moments, smallest) if config.colluders is None else config.colluders
    # A block that colluders are in still hides the others of it from each other.
    block = 1 if config.block == 1 else block_size(max(config.block, least_block(colluders, moments)))
    explore_rounds = training.explore_rounds if config.explore_rounds is None else config.explore_rounds
    if trust != "distributed" and explore_rounds != 1:
        raise ConfigError(
            f"--explore-rounds {explore_rounds}: without distributed noise silos explore once, for --explore-steps"
        )
    rounds = config.rounds or round(training.rounds * _rounds_factor(config.dp_epsilon))
    if config.explore_rounds is None:
        explore_rounds = max(1, min(explore_rounds, rounds // 4))
    chosen: dict[str, Any] = {
        "partition": partition,
        "silos": silos,
        "model": _model(config, task),
        "rounds": rounds,
        "local_steps": _local_steps(config, task, silos, training),
        "learning_rate": (
            training.learning_rate
            * _noise_factor(config.dp_epsilon)
            * _data_factor(config, task)
            * _clip_factor(config, training.clip)
        ),
        "momentum": training.momentum,
        "clip": training.clip,
        "sampling_rate": training.sampling_rate,
        "batch_size": training.batch_size,
        "colluders": colluders,
        "prune_threshold": _threshold(config),
        "prune_flops": 0.5,
        "explore_rounds": explore_rounds,
        "explore_steps": training.explore_steps,
        # One sum of everybody. Two would measure agreement under distributed noise too, but each tells of half as many
        # silos what they hold together (threat_models/label-sets.md), with 2.25 times the noise (10 silos) while they
        # last, and of units it is noise even at epsilon 8 (benchmarks/results/agreement.md).
        "cohorts": _filtered_cohorts(config, silos, block) if config.cohort_filter else 1,
        "agreement_every": 20,
        "prune_steps": _prune_steps(config),
        "warm_start": _goes_on_from_exploration(config, smallest, silos, colluders),
        "evaluations": training.evaluations,
    }
    given = config.model_dump()
    filled = {name: value for name, value in chosen.items() if given[name] is None}
    if given["warm_start"] is None:
        filled["warm_start"] = chosen["warm_start"]
    elif trust == "distributed" and config.prune not in UNEXPLORED and not given["warm_start"]:
        raise ConfigError(
            "--no-warm-start: exploration under distributed noise is training that was paid for; it goes on"
        )
    # Epochs are steps by now: a record that said both would be refused where it is given as --config.
    return ResolvedConfig.create(**{**given, **filled, "local_epochs": None, "block": block})


def _prune_steps(config: RunConfig) -> int:
    """One decision where the scores say all at once: under distributed noise, for SNIP, and at a cold start, whose
    network has learnt nothing yet that pruning could disturb and does better by training small from the first round on
    (`make bench-ablations ARGS="--topic decisions"`). Else three, over the first half of the training."""
    if config.trust == "distributed" or config.prune == "snip":
        return 1
    cold = config.trust == "none" and not config.warm_start and config.prune in ("autoflip", "magnitude", "prunefl")
    return 1 if cold else 3


def _threshold(config: RunConfig) -> float:
    """Share of the weights that die. Random units are the baseline of whole units: weights only where that is said."""
    if config.prune == "random":
        return 0.0
    return 0.6 if config.trust == "distributed" else 0.3


def _local_steps(config: RunConfig, task: Task, silos: int, training: _Training) -> int:
    """Steps of a round. Epochs are of a silo's nominal share: a true count would tell how many records a silo has."""
    if config.local_epochs is None:
        return training.local_steps
    if config.trust == "distributed":
        raise ConfigError(f"--local-epochs {config.local_epochs}: distributed noise covers one step a round")
    if task.nominal_records is None:
        raise ConfigError(
            f"--local-epochs {config.local_epochs}: the number of records of {task.name} is not public; give "
            "--local-steps"
        )
    batch = config.batch_size or training.batch_size
    return max(1, math.ceil(config.local_epochs * (task.nominal_records // silos) / batch))


def _model(config: RunConfig, task: Task) -> str:
    model = config.model or task.default_model
    if model == TEXT_MODEL != task.default_model:
        raise ConfigError(f"--model {model}: it reads text and {task.name} is none; leave it out for the usual network")
    return model


def _defaults_for(task: Task) -> dict[str, _Training]:
    if task.kind == "survival":
        return _SURVIVAL
    return _TABLES if len(task.input_shape) == 1 else _IMAGES


def _noise_factor(epsilon: float | None) -> float:
    """Smaller steps under more noise: (epsilon / 8)^0.7, the curve through the best of a few rates at 8, 3 and 1."""
    return 1.0 if epsilon is None else min(1.0, (epsilon / 8.0) ** 0.7)


def _data_factor(config: RunConfig, task: Task) -> float:
    """Larger steps where more public records share the noise: (records / 4000)^0.7, from 4,000 records to 64,000.

    Found on 4,000 and 60,000 records of MNIST; a public total that is unknown counts as few.
    """
    if config.dp_epsilon is None:
        return 1.0
    return math.pow(min(16.0, max(1.0, (task.nominal_records or 0) / 4000.0)), 0.7)


def _rounds_factor(epsilon: float | None) -> float:
    """Fewer rounds below epsilon 2, (epsilon / 2)^0.7: there every round's share of the budget buys less than noise."""
    return 1.0 if epsilon is None else min(1.0, math.pow(epsilon / 2.0, 0.7))


def _clip_factor(config: RunConfig, usual: float) -> float:
    """With an adaptive clip steps are in units of the first one, which may be far off: the rate makes up for it."""
    return 1.0 if config.adaptive_clip is None or config.clip is None else usual / config.clip


def _goes_on_from_exploration(config: RunConfig, smallest: int, silos: int, colluders: int) -> bool:
    """With DP exploration is training that was paid for; its sum beside its squares needs a silo more."""
    if config.trust != "local":
        return config.trust == "distributed"
    return bears_two_moments(round_half_up(config.participation * smallest), silos, colluders, config.min_cohort)


def _silos(config: RunConfig, partition: str, natural_silos: int | None) -> int:
    if partition != "natural":
        return config.silos or 10
    if natural_silos is None:
        raise ConfigError(
            f"--partition natural: data set {config.dataset} has no natural silos; use iid or dirichlet:0.5"
        )
    if natural_silos < MIN_SILOS:
        raise ConfigError(
            f"--dataset {config.dataset}: a secure sum needs {MIN_SILOS} silos or more, it has {natural_silos}"
        )
    if config.silos is not None and config.silos > natural_silos:
        raise ConfigError(
            f"--silos {config.silos}: {config.dataset} has {natural_silos} natural silos; give at most {natural_silos}"
        )
    silos = config.silos or natural_silos
    if silos > MAX_SILOS:
        raise ConfigError(
            f"--dataset {config.dataset}: has {silos} natural silos, a secure sum takes {MAX_SILOS} at most; "
            "give --silos, and whole ones are put together"
        )
    return silos


def _filtered_cohorts(config: RunConfig, silos: int, block: int) -> int:
    """Cohorts of the filter, which are made of whole blocks: no more than there are."""
    if config.block == 1:
        return largest_cohorts(silos)
    return min(largest_cohorts(silos), max(LEAST_FILTERED, silos // block))


def _smallest_cohort(config: RunConfig, silos: int) -> int:
    """Silos of the smallest cohort that is summed apart."""
    if not config.cohort_filter:
        return silos
    if config.block > 1:
        return block_size(config.block)
    return silos // (config.cohorts or largest_cohorts(silos))
