"""Keep-scores against loops, and what they are for: finding the units that matter through noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.guidance import Guidance
from autoflip_secure.autoflip.scores import EnergyAccumulator, guidance_scores, product_scores
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.sums.channels import Aggregate

UNITS = UnitMap.of(ModelSpec("cnn6", (1, 8, 8), 3, (8, 4, 8, 4, 5)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_guidance_scores_against_a_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    guidance = Guidance(
        generator.random(UNITS.size).astype(np.float32), generator.normal(0.5, 0.5, UNITS.count), -0.1, 1
    )
    scores = guidance_scores(guidance, UNITS)
    for unit, incoming in enumerate(UNITS.incoming):
        a = min(max(guidance.agreement_average[unit], 0), 1)
        own = [float(guidance.values[i]) * a for i in incoming]
        np.testing.assert_allclose(scores.parameters[incoming], own)
        expected = np.mean([score for score, i in zip(own, incoming, strict=True) if UNITS.prunable[i]])
        assert np.isclose(scores.units[unit], expected)
    outputs = UNITS.owner >= UNITS.count
    np.testing.assert_allclose(scores.parameters[outputs], guidance.values[outputs])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_product_scores_against_a_loop(seed: int, with_agreement: bool) -> None:
    generator = np.random.default_rng(seed)
    weights, energy = generator.normal(size=UNITS.size), generator.normal(0.02, 1, UNITS.size)
    agreement = generator.random(UNITS.count) if with_agreement else None
    scores = product_scores(
        weights.astype(np.float32), EnergyAccumulator(energy, np.zeros(UNITS.size), 5), UNITS, agreement
    )
    for group in range(UNITS.groups):
        members = np.flatnonzero(UNITS.owner == group)
        factor = agreement[group] if agreement is not None and group < UNITS.count else 1.0
        pooled = max(energy[members].sum(), 0.0)
        expected = [abs(weights[i]) * (pooled / members.size) ** 0.5 * factor for i in members]
        np.testing.assert_allclose(scores.parameters[members], expected, rtol=1e-5)
        if group < UNITS.count:
            norm = sum(weights[i] ** 2 for i in members if UNITS.prunable[i]) ** 0.5
            assert np.isclose(scores.units[group], norm * pooled**0.5 * factor, rtol=1e-5)


def test_normalisation_gains_do_not_count_as_size() -> None:
    weights = np.ones(UNITS.size)
    energy = EnergyAccumulator(np.ones(UNITS.size), np.zeros(UNITS.size), 1)
    before = product_scores(weights, energy, UNITS).units
    weights[~UNITS.prunable] = 100.0
    np.testing.assert_array_equal(product_scores(weights, energy, UNITS).units, before)


def test_accumulator_adds_rounds_and_skips_masked_coordinates() -> None:
    generator = np.random.default_rng(0)
    accumulator, slow = EnergyAccumulator.empty(UNITS.size), np.zeros(UNITS.size)
    live = generator.random(UNITS.size) < 0.8
    for index in range(3):
        sums = [np.where(live, generator.normal(size=UNITS.size), 0.0) for _ in range(2)]
        cohorts = [Aggregate(index, c, 3 + c, {"update": s}, {"update": 1.0 + c}) for c, s in enumerate(sums)]
        accumulator = accumulator.add(cohorts, live)
        slow += np.where(live, ((sums[0] + sums[1]) / 7) ** 2 - (1.0 + 4.0) / 49, 0.0)
    np.testing.assert_allclose(accumulator.energy, slow)
    assert accumulator.rounds == 3
    assert not accumulator.energy[~live].any()
    dead = np.zeros(UNITS.count, np.bool_)
    dead[0] = True
    compaction = compact(UNITS.spec, dead)
    small = accumulator.compact(compaction)
    np.testing.assert_array_equal(small.energy, accumulator.energy[compaction.kept])
    assert small.rounds == 3


def test_the_product_ranks_units_through_noise_ten_times_the_signal() -> None:
    """After 40 rounds the units that receive gradient stand out, although no coordinate does in any round."""
    units = UnitMap.of(ModelSpec("mlp", (100,), 2, (20, 8)))
    generator = np.random.default_rng(1)
    strong = (np.arange(units.count) % 2 == 0) & (units.layer == 0)
    signal = units.spread(np.where(strong, 1.0, 0.0), outputs=0.0)
    accumulator = EnergyAccumulator.empty(units.size)
    for index in range(40):
        noised = 5 * signal + generator.normal(0, 10.0, units.size)
        accumulator = accumulator.add([Aggregate(index, 0, 5, {"update": noised}, {"update": 10.0})])
    scores = product_scores(np.ones(units.size), accumulator, units).units
    first = units.layer == 0
    assert scores[first & strong].min() > scores[first & ~strong].max()


def test_bad_vectors_are_refused() -> None:
    energy = EnergyAccumulator.empty(UNITS.size)
    with pytest.raises(EncodingError, match="do not fit"):
        product_scores(np.zeros(3), energy, UNITS)
    with pytest.raises(EncodingError, match="not finite"):
        product_scores(np.full(UNITS.size, np.inf), energy, UNITS)
