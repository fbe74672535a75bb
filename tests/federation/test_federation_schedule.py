"""Plans of rounds: public, fixed before the run, and never a sum that a silo would refuse to open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.schedule import Schedule, cohort_minimum, default_colluders, round_half_up
from autoflip_secure.federation.terms import deviation_channel, energy_channel, update_channel
from autoflip_secure.parties.rules import HARD_FLOOR, most_colluders, released_moments, share_threshold

silo_counts = st.integers(3, 100)


@st.composite
def settings_of_a_schedule(draw: Callable[..., Any], participation: st.SearchStrategy[float]) -> dict[str, Any]:
    silos = draw(silo_counts)
    return {
        "silos": silos,
        "colluders": draw(st.integers(0, most_colluders(silos))),
        "cohorts": draw(st.integers(1, 6)),
        "participation": draw(participation),
        "min_cohort": draw(st.sampled_from([0.5, 0.8, 1.0])),
        "aggregation": draw(st.sampled_from(["secagg", "ckks"])),
        "dp_epsilon": draw(st.sampled_from([None, 8.0])),
        "prune": draw(st.sampled_from(["autoflip", "magnitude", "none"])),
        "block": draw(st.sampled_from([1, 1, 3, 5])),
        "explore_every": draw(st.sampled_from([0, 5])),
        "explore_participation": draw(st.sampled_from([None, 0.5])),
        "rounds": 12,
        "agreement_every": draw(st.sampled_from([0, 1, 3])),
        "warm_start": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
    }


@pytest.fixture(scope="module")
def make(make_config) -> Callable[..., ResolvedConfig]:
    """Vary one resolved configuration: resolving anew would let defaults depend on what is drawn."""
    base = make_config(silos=10, rounds=12, dp_epsilon=8.0, prune="autoflip").model_dump()

    def change(**options: Any) -> ResolvedConfig:
        return ResolvedConfig.create(**{**base, "explore_rounds": 3, **options})

    return change


def check_plan(config: ResolvedConfig, schedule: Schedule, round: int) -> None:
    plan = schedule.plan(round)
    members = [silo for cohort in plan.cohorts for silo in cohort]
    assert len(set(members)) == len(members), "a silo is in two cohorts"
    for group in groups_of(schedule):
        # The same share of each cohort is drawn, also in rounds that sum all of them together.
        fraction = config.participation
        if schedule.is_exploration(round) and config.explore_participation is not None:
            fraction = config.explore_participation
        blocks = [set(block) for block in schedule.blocks if set(block) <= group]
        share = max(1, math.floor(fraction * len(blocks) + 0.5))
        assert sum(block <= set(members) for block in blocks) == min(share, len(blocks))
        assert all(block <= set(members) or not block & set(members) for block in blocks)
    assert set(members) <= set(range(1, config.silos + 1))
    assert all(list(cohort) == sorted(cohort) for cohort in plan.cohorts)
    for cohort, least in zip(plan.cohorts, plan.minimum, strict=True):
        if config.aggregation == "ckks":
            assert 2 * least > len(cohort) + config.colluders, "two lists of a slot might share colluders only"
        assert HARD_FLOOR <= least <= len(cohort)
        assert least >= config.min_cohort * len(cohort) - 1e-9
        assert least - config.colluders >= 2 + released_moments(channels_of(config, schedule, round))
        if config.block > 1:
            sizes = [len(block) for block in plan.blocks if set(block) <= set(cohort)]
            assert sum(sizes) == len(cohort)
            assert least in sizes_of_unions(sizes)
        elif len(cohort) == config.silos:
            assert least >= share_threshold(config.silos)
    assert plan.blocks if config.block > 1 else plan.blocks == ()
    again = config.explore_every and round % config.explore_every == 0
    explores = config.prune != "none" and (round < config.explore_rounds or again)
    assert plan.phase == ("explore" if explores else "train")


def sizes_of_unions(sizes: list[int]) -> set[int]:
    """All blocks but one have the same size, so how many of these is all that counts."""
    usual, last = min(sizes), max(sizes)
    return {usual * i + last * j for i in range(len(sizes)) for j in (0, 1)}


def groups_of(schedule: Schedule) -> list[set[int]]:
    """The cohorts of the whole run."""
    return [set(group) for group in schedule._groups]


def channels_of(config: ResolvedConfig, schedule: Schedule, round: int) -> list[Any]:
    """What such a round sends: see Coordinator._channels."""
    update = update_channel(config, 5)
    if config.trust == "distributed" or not schedule.is_exploration(round):
        return [update, energy_channel(2)] if schedule.sends_energy else [update]
    deviations = [deviation_channel(5)] if config.prune == "autoflip" else []
    return deviations if deviations and not schedule.sums_explored_updates(round) else [*deviations, update]


@settings(max_examples=200, deadline=None)
@given(options=settings_of_a_schedule(st.just(1.0)))
def test_every_plan_obeys_every_rule(make, options: dict[str, Any]) -> None:
    config = make(**options)
    try:
        schedule = Schedule(config)
    except ConfigError:
        return
    for round in range(config.rounds):
        check_plan(config, schedule, round)
        assert schedule.plan(round) == Schedule(config).plan(round)
    everybody = schedule.whole()
    assert everybody.cohorts == (tuple(range(1, config.silos + 1)),)
    assert everybody.minimum[0] >= config.colluders + 3
    assert everybody.minimum[0] >= share_threshold(config.silos) or config.block > 1


@settings(max_examples=100, deadline=None)
@given(options=settings_of_a_schedule(st.floats(0.1, 1)))
def test_drawn_participants_obey_every_rule(make, options: dict[str, Any]) -> None:
    config = make(**options)
    try:
        schedule = Schedule(config)
    except ConfigError:
        return
    for round in range(config.rounds):
        check_plan(config, schedule, round)
        assert schedule.plan(round) == Schedule(config).plan(round)


def test_a_schedule_that_was_accepted_has_a_plan_for_every_round(make) -> None:
    config = make(silos=20, participation=0.5, cohorts=2, colluders=0, rounds=200, explore_rounds=50, seed=1)
    schedule = Schedule(config)
    for round in range(config.rounds):
        check_plan(config, schedule, round)


@settings(max_examples=200, deadline=None)
@given(options=settings_of_a_schedule(st.just(1.0)))
def test_what_is_refused_could_not_be_opened(make, options: dict[str, Any]) -> None:
    """The other half: nothing that works is refused."""
    options |= {"explore_participation": None, "block": 1}
    config = make(**options)
    in_cohorts = config.prune == "autoflip" and config.cohorts > 1 and config.agreement_every > 0
    smallest = config.silos // config.cohorts if in_cohorts else config.silos
    squares = config.prune == "autoflip" and config.trust != "distributed"
    for_squares = max(share_threshold(config.silos), math.ceil(config.min_cohort * config.silos), config.colluders + 4)
    moments = 2 if squares and (config.warm_start or for_squares <= config.silos) else 1
    needed = max(HARD_FLOOR, math.ceil(config.min_cohort * smallest), config.colluders + 2 + moments)
    whole = max(share_threshold(config.silos), config.colluders + 2 + moments)
    fits = needed <= smallest and whole <= config.silos
    if fits:
        Schedule(config)
    else:
        with pytest.raises(ConfigError, match="--colluders"):
            Schedule(config)


@given(silo_counts, silo_counts, st.integers(0, 40), st.floats(0.01, 1), st.integers(1, 2))
def test_cohort_minimum_is_the_largest_of_its_rules(size, silos, colluders, fraction, moments) -> None:
    least = cohort_minimum(size, silos, colluders, fraction, moments)
    rules = [math.ceil(fraction * size), 3, colluders + 2 + moments]
    if size == silos:
        rules.append(2 * silos // 3 + 1)
    assert least == max(rules)


@given(silo_counts, st.sampled_from([1, 2]))
def test_default_colluders_are_borne(silos: int, moments: int) -> None:
    colluders = default_colluders(silos, moments)
    assert 0 <= colluders <= max(1, silos // 10)
    assert 2 * share_threshold(silos) > silos + colluders
    # One more would be refused, or is more than a tenth of the silos.
    more = colluders + 1
    least = cohort_minimum(silos, silos, more, 0.8, moments)
    assert more > max(1, silos // 10) or least > silos or 2 * share_threshold(silos) <= silos + more


def test_too_many_colluders_are_refused(make) -> None:
    with pytest.raises(ConfigError, match=r"--colluders 4: with 10 silos .* at most 3"):
        Schedule(make(silos=10, colluders=4, cohorts=1))


def test_exploration_must_end_before_the_run(make) -> None:
    with pytest.raises(ConfigError, match="--explore-rounds 12: must be below --rounds 12"):
        Schedule(make(explore_rounds=12))
    Schedule(make(explore_rounds=12, prune="none"))
    Schedule(make(explore_rounds=11))


def test_agreement_is_measured_at_its_rhythm(make) -> None:
    schedule = Schedule(make(cohorts=2, explore_rounds=3, agreement_every=5))
    assert [len(schedule.plan(round).cohorts) for round in range(12)] == [2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 2, 1]
    never = Schedule(make(cohorts=2, explore_rounds=3, agreement_every=0))
    assert [len(never.plan(round).cohorts) for round in range(5)] == [1, 1, 1, 1, 1]
    alone = Schedule(make(cohorts=1, explore_rounds=3, agreement_every=5))
    assert {len(alone.plan(round).cohorts) for round in range(12)} == {1}


def test_cohorts_stay_the_same_and_depend_on_the_seed(make) -> None:
    schedule = Schedule(make(cohorts=2, agreement_every=5))
    assert schedule.plan(0).cohorts == schedule.plan(5).cohorts
    others = [Schedule(make(cohorts=2, seed=seed)).plan(0).cohorts for seed in range(5)]
    assert len(set(others)) > 1


def test_participants_change_from_round_to_round(make) -> None:
    schedule = Schedule(make(cohorts=1, participation=0.6, colluders=0))
    drawn = [schedule.plan(round).cohorts[0] for round in range(12)]
    assert {len(cohort) for cohort in drawn} == {6}
    assert len(set(drawn)) > 6
    assert {silo for cohort in drawn for silo in cohort} == set(range(1, 11))


def test_energy_is_sent_where_noise_does_not_forbid_it(make) -> None:
    assert not Schedule(make()).sends_energy
    for options in ({"dp_epsilon": None}, {"dp_trust": "local"}):
        assert Schedule(make(**options, cohorts=1)).sends_energy
        assert not Schedule(make(**options, cohorts=1, prune="none")).sends_energy
    assert (Schedule(make()).moments, Schedule(make(dp_epsilon=None)).moments) == (1, 2)


@pytest.mark.parametrize(("value", "whole"), [(2.5, 3), (2.49, 2), (3.5, 4), (0.5, 1), (7.0, 7)])
def test_halves_go_up(value: float, whole: int) -> None:
    assert round_half_up(value) == whole
