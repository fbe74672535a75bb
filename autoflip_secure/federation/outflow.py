"""What leaves a silo in a run, told from configuration and task alone: phases, rounds, channels, numbers, bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sum_proof import PROVED_PHASES
from autoflip_secure.sums.chain_ends import END_WORDS
from autoflip_secure.sums.channels import TAG_CHANNEL
from autoflip_secure.sums.encoding import WORD_BITS
from autoflip_secure.sums.sum_tag import TAG_WORDS

if TYPE_CHECKING:
    from autoflip_secure.data.task import Task
    from autoflip_secure.privacy.accounting import Mechanism

__all__ = ["Outflow", "OutflowChannel", "outflows", "round_channels", "run_channels"]

SCORED = "evaluate"


def round_channels(config: ResolvedConfig, schedule: Schedule, round: int) -> tuple[str, ...]:
    """Names of the channels that leave in an exploring or training round."""
    exploring = schedule.is_exploration(round)
    if config.prune == "fedmask" and not exploring:
        return ("mask",)
    if config.trust != "distributed" and exploring:
        deviations = ("deviation",) if schedule.sums_squares else ()
        summed = not deviations or schedule.sums_explored_updates(round)
        return (*deviations, "update") if summed else deviations
    more = {
        "gradient": schedule.is_readjustment(round),
        "unit_energy": schedule.sends_energy,
        "clip_bits": config.adaptive_clip is not None,
    }
    return ("update", *(name for name, leaves in more.items() if leaves))


def run_channels(
    config: ResolvedConfig, schedule: Schedule, *, counted: bool = False, scored: bool = False
) -> frozenset[str]:
    """Names of all channels that leave in a run.

    Parameters
    ----------
    counted : bool
        The task does not say how many records there are, so silos are asked.
    scored : bool
        Held-out records are scored.
    """
    names = {name for round in _kinds(schedule) for name in round_channels(config, schedule, round)}
    return frozenset(names | ({"count"} if counted else set()) | ({"metric"} if scored else set()))


def _kinds(schedule: Schedule) -> Iterator[int]:
    """One round of each kind."""
    yield from schedule.kinds
    yield from schedule.readjustments[:1]


@dataclass(frozen=True)
class OutflowChannel:
    """One vector that leaves in a round: `numbers` at most, since pruning only makes it shorter, `bits` each."""

    name: str
    numbers: int
    bits: int


@dataclass(frozen=True)
class Outflow:
    """What leaves in rounds of one kind.

    Attributes
    ----------
    phase : str
        As in manifests: census, explore, train or evaluate.
    rounds : int or None
        How many; None where the coordinator decides (scores without DP).
    channels : tuple of OutflowChannel
    cohorts : tuple of int
        Sizes of the cohorts that are summed.
    minimum : tuple of int
        Fewest silos whose sum may be opened, of each.
    """

    phase: str
    rounds: int | None
    channels: tuple[OutflowChannel, ...]
    cohorts: tuple[int, ...]
    minimum: tuple[int, ...]


def outflows(config: ResolvedConfig, task: Task, planned: Mapping[str, list[Mechanism]]) -> tuple[Outflow, ...]:
    """All kinds of rounds of a run, in the order of their first.

    Attempts that are retried send again what they say; so do rounds that are planned in reserve.
    """
    schedule, specs = Schedule(config), _specs(config, task)
    rounds: dict[tuple[str, tuple[str, ...], tuple[int, ...], tuple[int, ...]], int | None] = {}
    everybody = schedule.whole()
    whole = ((len(everybody.cohorts[0]),), everybody.minimum)
    if not task.nominal_records:
        rounds["census", ("count",), *whole] = 1
    for round in range(schedule.rounds):
        plan = schedule.plan(round)
        sizes = tuple(len(cohort) for cohort in plan.cohorts)
        kind = (plan.phase, round_channels(config, schedule, round), sizes, plan.minimum)
        rounds[kind] = (rounds.get(kind) or 0) + 1
    if config.trust == "none":
        rounds[SCORED, ("metric",), *whole] = None
    elif scored := sum(mechanism.count for mechanism in planned.get("holdout", [])):
        rounds[SCORED, ("metric",), *whole] = scored
    places = max(max(map(len, schedule.plan(kind).cohorts)) for kind in schedule.kinds)
    ends = places * END_WORDS if config.trust == "distributed" else 0
    tag = (OutflowChannel(TAG_CHANNEL, ends + TAG_WORDS, WORD_BITS),) if config.prove_models else ()
    return tuple(
        Outflow(
            phase, count, (*(specs[name] for name in names), *(tag if phase in PROVED_PHASES else ())), sizes, minimum
        )
        for (phase, names, sizes, minimum), count in rounds.items()
    )


def _specs(config: ResolvedConfig, task: Task) -> dict[str, OutflowChannel]:
    """By name, the longest channel that the run can ask for."""
    from autoflip_secure.autoflip.units import UnitMap
    from autoflip_secure.federation import terms
    from autoflip_secure.federation.initial_model import initial_model
    from autoflip_secure.models.spec import dense_spec
    from autoflip_secure.training.metric_form import MetricForm

    units = UnitMap.of(dense_spec(config.model, task.input_shape, task.outputs))
    # Drawn units stay as they are; other methods may let any parameter live at some time.
    live = int(initial_model(config, task).mask.sum()) if config.prune == "random" else units.size
    scores = MetricForm(task.kind, task.classes, task.expected_cuts).length
    longest = (
        terms.update_channel(config, live),
        terms.gradient_channel(config, units.size),
        terms.mask_channel(int(units.prunable.sum())),
        terms.deviation_channel(live),
        terms.energy_channel(units.count),
        terms.count_channel(0.0),
        terms.metric_channel(scores, 0.0),
        terms.clip_bits_channel(1.0, 1.0),
    )
    return {channel.name: OutflowChannel(channel.name, channel.length, channel.bits) for channel in longest}
