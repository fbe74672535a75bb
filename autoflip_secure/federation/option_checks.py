"""Which options have an effect in which runs; what was given and would be ignored is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoflip_secure.attacks.bad_silos import BadSilos
from autoflip_secure.ckks.parameters import MODULUS_BITS
from autoflip_secure.config import ResolvedConfig, RunConfig, flag_of
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.schedule import UNEXPLORED

__all__ = ["check_ckks", "check_options", "check_robustness", "given_options"]

OWN_SCORES = ("own-energy", "own-product", "hybrid", "hybrid-agreement", "hybrid-disagreement")
GUIDED_SCORES = ("guidance", "guidance-agreement")
SCORED = ("autoflip", "magnitude", "snip", "prunefl")
"""Methods that explore, keep by scores (`score_rules.RULES`) and decide again as training goes on."""


NEUTRAL: dict[str, object] = {
    "warm_start": False,
    "explore_rounds": 1,
    "explore_steps": 1,
    "prune_threshold": 0.0,
    "prune_hysteresis": 0.0,
    "prune_flops": 1.0,
    "prune_floor": 0.0,
    "prune_steps": 1,
    "agreement_every": 0,
    "cohorts": 1,
}
"""Values that say that there is none of this, or that it is done once: where an option has no effect they are true, and
the run is the one without them. Defaults that say so are not listed."""


@dataclass(frozen=True)
class Use:
    """What it takes for options to have an effect.

    Attributes
    ----------
    options : tuple of str
        Fields of RunConfig.
    has_effect : function of a RunConfig
    why_not : str
        Says why they have none, and what to do; `{prune}` and `{score}` stand for the run's own.
    """

    options: tuple[str, ...]
    has_effect: Callable[[RunConfig], bool]
    why_not: str


def _explores(config: RunConfig) -> bool:
    return bool(config.warm_start) if config.prune == "fedmask" else config.prune not in UNEXPLORED


def draws_silos(config: RunConfig) -> bool:
    """Whether rounds draw some of the silos, the same share of each cohort."""
    return config.participation < 1 or (_explores(config) and (config.explore_participation or 1) < 1)


# A mask that is not scored again has no threshold to hover around. Random weights are drawn once, from a dense mask:
# hysteresis then does no more than move an absolute threshold.
USES = (
    Use(
        ("score",),
        lambda config: config.prune == "autoflip",
        "is a choice of --prune autoflip, not of {prune}",
    ),
    Use(
        ("eta", "guidance_level"),
        lambda config: config.prune == "autoflip",
        "--prune {prune} has no guidance; leave it out",
    ),
    # The map is kept in importance.safetensors whatever the score, but no mask is chosen by it.
    Use(
        ("eta", "guidance_level"),
        lambda config: config.score in GUIDED_SCORES,
        "moves guidance, by which --score {score} keeps nothing; leave it out, or give --score guidance-agreement",
    ),
    Use(
        ("warm_start",),
        lambda config: config.prune not in UNEXPLORED,
        "--prune {prune} explores nothing that training could go on from; leave it out",
    ),
    Use(
        ("explore_rounds", "explore_steps", "explore_participation"),
        lambda config: config.prune not in UNEXPLORED,
        "--prune {prune} explores nothing; leave it out",
    ),
    Use(
        ("explore_rounds", "explore_steps", "explore_participation"),
        _explores,
        "--prune {prune} explores with --warm-start only; give both or neither",
    ),
    Use(
        ("explore_steps",),
        lambda config: config.trust != "distributed",
        "distributed noise covers one gradient sum a round, exploring or not; leave it out",
    ),
    Use(
        ("explore_every",),
        lambda config: config.trust != "distributed",
        "under distributed noise every round's sum refines the map; leave it out",
    ),
    Use(
        ("explore_every",),
        lambda config: config.prune != "fedmask",
        "--prune fedmask has its parameters once; leave it out",
    ),
    Use(
        ("explore_every",),
        lambda config: config.prune in (*SCORED, "feddst"),
        "--prune {prune} explores nothing; leave it out",
    ),
    Use(
        ("prune_threshold",),
        lambda config: config.prune in (*SCORED, "random", "feddst"),
        "--prune {prune} takes no share of single weights; leave it out",
    ),
    Use(
        ("prune_threshold_kind",),
        lambda config: config.prune != "feddst",
        "--prune feddst keeps a share of each layer; leave it out",
    ),
    Use(
        ("prune_threshold_kind",),
        lambda config: config.prune in (*SCORED, "random"),
        "--prune {prune} takes no --prune-threshold; leave it out",
    ),
    Use(
        ("prune_hysteresis",),
        lambda config: (
            config.prune in SCORED or (config.prune == "random" and config.prune_threshold_kind == "absolute")
        ),
        "--prune {prune} holds no score against a threshold twice; leave it out",
    ),
    Use(
        ("prune_flops", "prune_floor", "prune_round_to"),
        lambda config: config.prune != "none",
        "--prune none removes nothing; leave it out",
    ),
    Use(
        ("prune_round_to",),
        lambda config: config.prune_flops != 1,
        "--prune-flops 1 removes no channels whose number could be rounded; leave it out",
    ),
    Use(
        ("prune_steps",),
        lambda config: config.prune in (*SCORED, "feddst", "fedmask"),
        "--prune {prune} does not approach its target in steps; leave it out",
    ),
    Use(
        ("agreement_every",),
        lambda config: config.prune in SCORED,
        "--prune {prune} neither measures agreement nor chooses its mask at that rhythm; leave it out",
    ),
    Use(
        ("cohorts",),
        lambda config: config.prune == "autoflip" or config.cohort_filter or draws_silos(config),
        "--prune {prune} measures no agreement between cohorts; leave it out, or give --cohort-filter",
    ),
)


def given_options(config: RunConfig) -> frozenset[str]:
    """Options that somebody chose: those set to something else than their default, but for what a preset or the record
    of an earlier run says (`options.config_from`). A resolved configuration was filled in: nothing of it was chosen."""
    if isinstance(config, ResolvedConfig):
        return frozenset()
    fields = RunConfig.model_fields
    return frozenset(name for name in config.model_fields_set if getattr(config, name) != fields[name].default)


def check_options(config: RunConfig) -> None:
    """Refuse what would have no effect, and what contradicts the method or the noise.

    Raises
    ------
    ConfigError
        Names the option.
    """
    given = given_options(config)
    for use in USES:
        for name in use.options:
            value = getattr(config, name)
            if name in given and value != NEUTRAL.get(name) and not use.has_effect(config):
                why = use.why_not.format(prune=config.prune, score=config.score)
                raise ConfigError(f"{_as_given(name, value)}: {why}")
    if config.trust != "none":
        _check_privacy(config)
    if config.prune == "feddst" and config.prune_threshold == 0:
        raise ConfigError("--prune-threshold 0: --prune feddst trains a sparse network; give the share that is masked")
    if config.prune == "fedmask":
        _check_mask_training(config)
    _check_proofs(config)
    if config.local_epochs is not None and config.local_steps is not None:
        raise ConfigError(f"--local-epochs {config.local_epochs}: give either it or --local-steps")


def _check_proofs(config: RunConfig) -> None:
    if config.prove_models and config.aggregation != "secagg":
        # A tag is a word modulo 2^64; CKKS adds up numbers of some thirty bits, which would show the carries between.
        raise ConfigError(f"--prove-models: sums by {config.aggregation} carry no tags; give --aggregation secagg")


def _as_given(name: str, value: object) -> str:
    if isinstance(value, bool):
        return flag_of(name) if value else f"--no-{flag_of(name)[2:]}"
    return f"{flag_of(name)} {value}"


def _refuse_unusual(config: RunConfig, names: tuple[str, ...], why: str) -> None:
    """Refuse options that are not at their default, whoever said them: a preset and a record cannot be left out."""
    for name in names:
        value, usual = getattr(config, name), RunConfig.model_fields[name].default
        if value != usual:
            raise ConfigError(f"{_as_given(name, value)}: {why}; give {_as_given(name, usual)}")


def _refuse_update_norm(config: RunConfig, why: str) -> None:
    if config.update_norm is not None:
        raise ConfigError(f"--update-norm {config.update_norm}: {why}; leave it out")


def _check_privacy(config: RunConfig) -> None:
    _refuse_unusual(config, ("optimizer", "prox_mu"), "with --dp-epsilon silos take plain DP-SGD steps")
    _refuse_update_norm(config, "with --dp-epsilon the clip bounds what a patient adds")
    unnoised = {"feddst": "regrows weights by gradients", "fedmask": "adds up masks"}
    if config.prune in unnoised:
        raise ConfigError(
            f"--prune {config.prune}: {unnoised[config.prune]} that no noise is planned for; leave out --dp-epsilon, "
            "or prune by autoflip or magnitude"
        )
    if config.score in OWN_SCORES:
        raise ConfigError(
            f"--score {config.score}: it needs squares of the silos' own updates, which are noise under --dp-epsilon; "
            "use product-agreement or product"
        )


def _check_mask_training(config: RunConfig) -> None:
    why = "--prune fedmask sums masks, not updates of weights"
    _refuse_unusual(config, ("optimizer", "prox_mu", "cohort_filter", "server_optimizer"), why)
    _refuse_update_norm(config, why)
    if config.bad_silos is not None and not config.bad_silos.startswith("label-flip"):
        raise ConfigError(f"--bad-silos {config.bad_silos}: {why}; leave it out")


def check_ckks(config: ResolvedConfig) -> None:
    """Refuse CKKS sums on a machine that cannot take them: its silos would find out in the first round.

    Raises
    ------
    NotAvailable
        SEAL, or what it needs of the system, is not there.
    """
    if config.aggregation == "ckks":
        from autoflip_secure.ckks.ring import ring

        for bits in MODULUS_BITS:
            ring(bits)


def check_robustness(config: RunConfig, task: Task, silos: int) -> None:
    """Refuse bad silos that there are not, and rotation without what rotates.

    Raises
    ------
    ConfigError
        Names the option.
    """
    if config.allow_cohort_rotation and not config.cohort_filter:
        raise ConfigError("--allow-cohort-rotation: rotates the cohorts of --cohort-filter; give both or neither")
    if config.bad_silos is None:
        return
    bad = BadSilos.parse(config.bad_silos)
    if bad.fraction > 0 and not bad.silos(config.seed, silos):
        raise ConfigError(f"--bad-silos {config.bad_silos}: that part of {silos} silos is none; give a larger fraction")
    if bad.kind == "label-flip" and task.kind == "survival":
        raise ConfigError(f"--bad-silos {config.bad_silos}: {task.name} has no labels to flip; use noise or scaling")
    if bad.kind == "backdoor" and (len(task.input_shape) != 3 or task.kind == "survival"):
        raise ConfigError(
            f"--bad-silos {config.bad_silos}: the trigger is a square in an image, and {task.name} has none; use "
            "label-flip, noise or scaling"
        )
