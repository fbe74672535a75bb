"""Simulated dropout: the rate that was asked for, spread evenly over the stages, the same on every run."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autoflip_secure.federation.dropout import DROPPING_STAGES, drops, likely_dropout

STAGES = {
    "secagg": ("advertise", "share", "masked", "confirm", "unmask"),
    "ckks": ("keys", "encrypt", "open"),
    "none": ("clear",),
}
TRIALS = 4000


def away_stages(aggregation: str, probability: float, silo: int, attempt: int = 0, seed: int = 0) -> tuple[str, ...]:
    return tuple(
        stage
        for stage in STAGES[aggregation]
        if drops(aggregation, probability, seed, silo=silo, round=3, attempt=attempt, stage=stage)
    )


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("aggregation", STAGES)
def test_rate_and_stages(aggregation: str, probability: float) -> None:
    first = Counter(away_stages(aggregation, probability, silo)[:1] for silo in range(TRIALS))
    stages = DROPPING_STAGES[aggregation]
    spread = 5 * (TRIALS * probability) ** 0.5
    assert abs(TRIALS - first[()] - TRIALS * probability) < spread
    for stage in stages:
        assert abs(first[stage,] - TRIALS * probability / len(stages)) < spread
    assert set(first) == {(), *((stage,) for stage in stages)}


@given(st.integers(1, 100), st.floats(0.1, 0.9), st.integers(0, 100))
def test_who_dropped_stays_away(silo: int, probability: float, seed: int) -> None:
    away = away_stages("secagg", probability, silo, seed=seed)
    assert away in {(), ("unmask",), ("confirm", "unmask"), ("masked", "confirm", "unmask")}
    assert away == away_stages("secagg", probability, silo, seed=seed)
    assert away_stages("ckks", probability, silo, seed=seed) in {(), ("open",), ("encrypt", "open")}


def test_nobody_drops_at_probability_zero_or_from_key_set_up() -> None:
    for aggregation, key_stages in (("secagg", {"advertise", "share"}), ("ckks", {"keys"})):
        assert {away_stages(aggregation, 0.0, silo) for silo in range(100)} == {()}
        assert not any(key_stages & set(away_stages(aggregation, 0.99, silo)) for silo in range(100))


def test_draws_differ_by_round_attempt_silo_and_seed() -> None:
    def pattern(**changed: int) -> list[bool]:
        where = {"round": 0, "attempt": 0, "seed": 0, **changed}
        seed = where.pop("seed")
        return [drops("none", 0.5, seed, silo=silo, stage="clear", **where) for silo in range(64)]

    patterns = [pattern(), pattern(round=1), pattern(attempt=1), pattern(seed=1)]
    assert len({tuple(p) for p in patterns}) == 4
    assert pattern() == pattern()
    assert 10 < sum(pattern()) < 54


@given(st.floats(0, 0.6), st.integers(101, 2000), st.integers(1, 5))
def test_a_round_bears_the_blocks_that_are_likely_to_be_missing(probability: float, silos: int, block: int) -> None:
    missing = 1 - (1 - probability) ** block
    likely = likely_dropout(probability, silos, block)
    capped = likely_dropout(probability, silos, block, silos * 9 // 10)
    assert capped == likely or capped <= 0.2
    assert likely >= max(missing, likely_dropout(probability, silos) - 1e-12)
    # Of so many blocks more are rarely missing (three standard deviations; few blocks have a heavier tail).
    blocks = silos // block
    assert stats.binom.sf(likely * blocks, blocks, missing) < 0.025
