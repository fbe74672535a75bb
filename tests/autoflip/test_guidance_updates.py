"""Guidance: the update rule against a loop, pooling under noise, masking and compaction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.autoflip.agreement import Agreement
from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.guidance import Guidance, observed_guidance
from autoflip_secure.autoflip.pooling import min_max
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import ConfigError, EncodingError
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.sums.channels import Aggregate

UNITS = UnitMap.of(ModelSpec("mlp", (5,), 2, (6, 4)))


def agreement_of(rho: np.ndarray, overall: float = 0.3) -> Agreement:
    return Agreement(rho, np.ones(rho.size), overall, UNITS.layer_mean(rho), np.full(rho.size, 0.04))


def aggregate_of(total: np.ndarray, silos: int = 4, std: float = 0.0) -> Aggregate:
    return Aggregate(0, 0, silos, {"update": total}, {"update": std})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1), st.sampled_from(["unit", "parameter"]))
def test_update_against_a_loop(seed: int, rate: float, level: str) -> None:
    generator = np.random.default_rng(seed)
    start, total = generator.random(UNITS.size).astype(np.float32), generator.normal(size=UNITS.size)
    rho = generator.normal(size=UNITS.count)
    live = generator.random(UNITS.size) < 0.7
    total[~live] = 0
    after = Guidance.start(start, UNITS).update(
        [aggregate_of(total, std=0.5)], agreement_of(rho), UNITS, rate=rate, level=level, live=live
    )
    energy = (total / 4) ** 2 - (0.5 / 4) ** 2
    pooled = energy.copy()
    if level == "unit":
        for group in range(UNITS.groups):
            members = (UNITS.owner == group) & live
            pooled[members] = energy[members].mean() if members.any() else 0
    observed = min_max(np.maximum(pooled, 0), UNITS.layout, live)
    for index in range(UNITS.size):
        owner = UNITS.owner[index]
        a = min(max(rho[owner], 0), 1) if owner < UNITS.count else 0.3
        a = a if live[index] else 0.0
        expected = (1 - rate * a) * start[index] + rate * a * observed[index]
        assert np.isclose(after.values[index], expected, atol=1e-6)
    assert after.values.dtype == np.float32


def test_without_agreement_the_past_is_kept_and_with_it_the_round_is_taken() -> None:
    generator = np.random.default_rng(0)
    start = Guidance.start(generator.random(UNITS.size), UNITS)
    sums = [aggregate_of(generator.normal(size=UNITS.size))]
    kept = start.update(sums, agreement_of(np.full(UNITS.count, -0.2), overall=-0.1), UNITS, rate=1.0)
    np.testing.assert_array_equal(kept.values, start.values)
    taken = start.update(sums, agreement_of(np.ones(UNITS.count), overall=1.0), UNITS, rate=1.0)
    np.testing.assert_allclose(taken.values, observed_guidance(sums, UNITS, "parameter"), atol=1e-7)


def test_the_agreement_average_starts_as_a_mean_of_raw_values() -> None:
    sums = [aggregate_of(np.ones(UNITS.size))]
    guidance = Guidance.start(np.zeros(UNITS.size), UNITS)
    np.testing.assert_array_equal(guidance.agreement, 1.0)
    first, second = np.full(UNITS.count, -0.4), np.full(UNITS.count, 0.8)
    guidance = guidance.update(sums, agreement_of(first, -0.4), UNITS, agreement_rate=0.25)
    np.testing.assert_allclose(guidance.agreement_average, -0.4)
    np.testing.assert_array_equal(guidance.agreement, 0.0)
    guidance = guidance.update(sums, agreement_of(second, 0.8), UNITS, agreement_rate=0.25)
    np.testing.assert_allclose(guidance.agreement_average, 0.2)
    for value in (0.5, -0.1, 0.3):
        guidance = guidance.update(sums, agreement_of(np.full(UNITS.count, value), value), UNITS, agreement_rate=0.25)
    of_four = np.mean([-0.4, 0.8, 0.5, -0.1])
    np.testing.assert_allclose(guidance.agreement_average, 0.75 * of_four + 0.25 * 0.3)
    assert np.isclose(guidance.overall_average, 0.75 * of_four + 0.25 * 0.3)
    assert guidance.rounds == 5


def test_agreement_is_believed_as_far_as_it_stands_out_of_the_noise() -> None:
    generator = np.random.default_rng(0)
    units = UnitMap.of(ModelSpec("mlp", (5,), 2, (20, 15)))
    truth = units.layer_mean(generator.random(units.count))[units.layer] + 0.2 * generator.normal(size=units.count)
    sums = [Aggregate(0, 0, 4, {"update": np.ones(units.size)})]
    errors = {}
    for noise in (0.0, 0.1, 2.0):
        guidance = Guidance.start(np.zeros(units.size), units)
        for _ in range(4):
            rho = truth + noise * generator.normal(size=units.count)
            measured = Agreement(rho, np.ones(units.count), 0.5, units.layer_mean(rho), np.full(units.count, noise**2))
            guidance = guidance.update(sums, measured, units)
        np.testing.assert_allclose(guidance.agreement_variance, noise**2 / 4)
        believed = guidance.believed_agreement(units)
        errors[noise] = [np.abs(a - np.clip(truth, 0, 1)).mean() for a in (believed, guidance.agreement)]
        spread = [np.ptp(believed[units.layer == layer]) for layer in range(2)]
        assert (min(spread) > 0.2) == (noise < 1)
    assert errors[0.0][0] < 1e-6
    assert errors[2.0][0] < 0.75 * errors[2.0][1]


def test_pooling_over_units_finds_energy_that_single_parameters_hide() -> None:
    """Signal at half the noise: unit means rank the strong units first, single parameters do not."""
    units = UnitMap.of(ModelSpec("mlp", (200,), 2, (20, 4)))
    generator = np.random.default_rng(3)
    strong = np.arange(units.count) < 10
    signal = units.spread(np.where(strong, 1.0, 0.0), outputs=0.0)
    total = signal + generator.normal(0, 2.0, units.size)
    weights = next(where for name, where, _ in units.layout.slices() if name == "fc1.weight")
    hits = {}
    for level in ("unit", "parameter"):
        observed = observed_guidance([aggregate_of(total, std=2.0)], units, level)[weights]
        top = np.argsort(-observed, kind="stable")[: observed.size // 2]
        hits[level] = signal[weights][top].mean()
    assert hits["unit"] > 0.85
    assert hits["parameter"] < 0.7


def test_masked_parameters_keep_their_guidance() -> None:
    live = np.ones(UNITS.size, np.bool_)
    live[UNITS.incoming[2]] = False
    start = Guidance.start(np.full(UNITS.size, 0.6), UNITS)
    total = np.where(live, np.random.default_rng(0).normal(size=UNITS.size), 0.0)
    after = start.update([aggregate_of(total)], agreement_of(np.ones(UNITS.count), 1.0), UNITS, rate=1.0, live=live)
    np.testing.assert_array_equal(after.values[~live], np.float32(0.6))
    assert (after.values[live] != np.float32(0.6)).mean() > 0.9


def test_compaction_carries_guidance_along() -> None:
    generator = np.random.default_rng(0)
    noise = generator.random(UNITS.count)
    guidance = Guidance(generator.random(UNITS.size).astype(np.float32), generator.random(UNITS.count), 0.5, 3, noise)
    dead = np.zeros(UNITS.count, np.bool_)
    dead[[0, 4, 9]] = True
    compaction = compact(UNITS.spec, dead)
    small = guidance.compact(compaction)
    new = UnitMap.of(compaction.spec)
    assert (small.values.size, small.agreement_average.size) == (new.size, new.count)
    np.testing.assert_array_equal(small.agreement_average, guidance.agreement_average[~dead])
    np.testing.assert_array_equal(small.agreement_variance, noise[~dead])
    np.testing.assert_array_equal(
        small.values[new.incoming[0]], guidance.values[np.intersect1d(UNITS.incoming[1], compaction.kept)]
    )
    assert (small.rounds, small.overall_average) == (3, 0.5)


def test_nonsense_is_refused(make_aggregate: Callable[..., Aggregate]) -> None:
    with pytest.raises(EncodingError, match="within"):
        Guidance.start(np.full(UNITS.size, 1.2), UNITS)
    with pytest.raises(EncodingError, match="does not fit"):
        Guidance.start(np.zeros(3), UNITS)
    with pytest.raises(EncodingError, match="not finite"):
        Guidance(np.zeros(UNITS.size, np.float32), np.full(UNITS.count, np.nan))
    guidance = Guidance.start(np.zeros(UNITS.size), UNITS)
    sums = [make_aggregate(np.ones((3, UNITS.size)))]
    for wrong in ({"rate": -0.1}, {"rate": 1.5}, {"agreement_rate": -1.0}, {"level": "layer"}):
        with pytest.raises(ConfigError):
            guidance.update(sums, agreement_of(np.ones(UNITS.count)), UNITS, **wrong)
