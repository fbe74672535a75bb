"""Agreement: both estimators against loops over silos, their null, their one, and noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.autoflip.agreement import Agreement, cross_cohort, moments, update_variance
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.sums.channels import Aggregate

SMALL = UnitMap.of(ModelSpec("mlp", (5,), 2, (6, 4)))


def draw(seed: int, silos: int, units: UnitMap = SMALL, shared: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(silos, units.size)) + shared * generator.normal(size=units.size)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_moments_is_the_mean_inner_product_of_different_silos(seed: int, silos: int) -> None:
    updates = draw(seed, silos, shared=1.0)
    energy = np.sum([SMALL.unit_sum(row**2) for row in updates], axis=0)
    aggregate = Aggregate(0, 0, silos, {"update": updates.sum(axis=0), "unit_energy": energy}, minimum=2)
    agreement = moments([aggregate], SMALL)
    for unit, incoming in enumerate(SMALL.incoming):
        slices = updates[:, incoming]
        pairs = [slices[i] @ slices[j] for i in range(silos) for j in range(silos) if i != j]
        expected = np.mean(pairs) / np.mean([row @ row for row in slices])
        assert np.isclose(agreement.rho[unit], expected)
        assert -1 / (silos - 1) - 1e-9 <= agreement.rho[unit] <= 1 + 1e-9
    assert np.isclose(agreement.overall, (agreement.rho * energy).sum() / energy.sum())
    for layer in range(2):
        of = SMALL.layer == layer
        assert np.isclose(agreement.per_layer[layer], (agreement.rho * energy)[of].sum() / energy[of].sum())


def test_moments_of_cohorts_are_those_of_all_their_silos(make_aggregate: Callable[..., Aggregate]) -> None:
    """Two cohorts that agree within and not with each other: the first one alone would tell of full agreement."""
    mine, yours = draw(1, 2)
    apart = [make_aggregate([mine] * 3, SMALL), make_aggregate([yours] * 2, SMALL, cohort=1)]
    whole = make_aggregate([mine] * 3 + [yours] * 2, SMALL)
    for live in (None, np.random.default_rng(0).random(SMALL.size) < 0.6):
        found, expected = moments(apart, SMALL, live, 0.01), moments([whole], SMALL, live, 0.01)
        np.testing.assert_allclose(found.rho, expected.rho)
        np.testing.assert_allclose(found.variance, expected.variance)
        assert found.overall == pytest.approx(expected.overall)
    assert moments(apart[:1], SMALL).overall == pytest.approx(1)
    assert moments(apart, SMALL).overall < 0.8


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.booleans())
def test_update_variance_is_the_silos_variance_coordinate_by_coordinate(seed: int, silos: int, masked: bool) -> None:
    updates = draw(seed, 2 * silos, shared=1.0)
    live = np.random.default_rng(seed).random(SMALL.size) < (0.6 if masked else 1.0)
    updates[:, ~live] = 0.0
    cohorts = [
        Aggregate(
            0, cohort, silos, {"update": rows.sum(axis=0), "unit_energy": sum(SMALL.unit_sum(row**2) for row in rows)},
            minimum=2,
        )
        for cohort, rows in enumerate((updates[:silos], updates[silos:]))
    ]  # fmt: skip
    counted = live & (SMALL.owner < SMALL.count)
    expected = updates.var(axis=0)[counted].sum() / counted.sum()
    assert np.isclose(update_variance(cohorts, SMALL, live), expected)


def test_update_variance_of_one_mind_is_nothing(make_aggregate: Callable[..., Aggregate]) -> None:
    same = make_aggregate([draw(0, 1)[0]] * 5, SMALL)
    assert np.isclose(update_variance([same], SMALL, np.ones(SMALL.size, np.bool_)), 0, atol=1e-9)


def test_identical_silos_agree_fully(make_aggregate: Callable[..., Aggregate]) -> None:
    update = draw(0, 1)[0]
    same = make_aggregate([update] * 5, SMALL)
    for agreement in (moments([same], SMALL), cross_cohort([make_aggregate([update] * m) for m in (3, 4, 3)], SMALL)):
        np.testing.assert_allclose(agreement.rho, 1.0)
        np.testing.assert_allclose(agreement.per_layer, 1.0)
        assert np.isclose(agreement.overall, 1.0)


def test_opposed_silos_reach_the_lower_bound_and_are_clipped(make_aggregate: Callable[..., Aggregate]) -> None:
    update = draw(0, 1)[0]
    agreement = moments([make_aggregate([update, -update], SMALL)], SMALL)
    np.testing.assert_allclose(agreement.rho, -1.0)
    np.testing.assert_array_equal(agreement.clipped, 0.0)


def z_score(values: list[np.ndarray]) -> float:
    """Largest standardised mean over units."""
    stacked = np.array(values)
    return float(np.abs(stacked.mean(axis=0) / (stacked.std(axis=0) / np.sqrt(len(stacked)))).max())


def test_independent_silos_have_mean_zero(make_aggregate: Callable[..., Aggregate]) -> None:
    by_moments, by_cohorts = [], []
    for seed in range(1500):
        updates = draw(seed, 6)
        by_moments.append(moments([make_aggregate(updates, SMALL)], SMALL).rho)
        cohorts = [make_aggregate(updates[:3]), make_aggregate(updates[3:])]
        by_cohorts.append(cross_cohort(cohorts, SMALL).rho)
    assert z_score(by_moments) < 4.2
    assert z_score(by_cohorts) < 4.2
    # The biased form ||S||^2 / (n Q) would sit at 1/n: the test must be able to tell.
    assert z_score([rho + 1 / 6 for rho in by_moments]) > 10


def noised_cohorts(seed: int, signal: np.ndarray, sizes: tuple[int, ...], std: float) -> list[Aggregate]:
    generator = np.random.default_rng(seed)
    return [
        Aggregate(
            0,
            cohort,
            silos,
            {"update": np.where(signal != 0, silos * signal + generator.normal(0, std, signal.size), 0.0)},
            {"update": std},
        )
        for cohort, silos in enumerate(sizes)
    ]


@pytest.mark.parametrize("sizes", [(3, 3), (3, 5, 4)])
def test_pure_noise_reads_as_no_agreement(sizes: tuple[int, ...]) -> None:
    tiny = np.full(SMALL.size, 1e-12)
    results = [cross_cohort(noised_cohorts(seed, tiny, sizes, 3.0), SMALL) for seed in range(1500)]
    assert z_score([result.rho for result in results]) < 4.2
    assert z_score([np.array([result.overall]) for result in results]) < 4.2
    spread = np.std([result.rho for result in results])
    assert 0.5 / (3 * np.sqrt(len(sizes) - 1)) < spread < 1.3 / (3 * np.sqrt(len(sizes) - 1))


def test_known_noise_does_not_hide_full_agreement() -> None:
    """Cohorts that share one signal agree at about 1 although noise holds a quarter of the energy."""
    signal = np.random.default_rng(0).normal(size=SMALL.size)
    results = [cross_cohort(noised_cohorts(seed, signal, (4, 4, 4), 2.0), SMALL) for seed in range(400)]
    assert abs(np.mean([result.overall for result in results]) - 1) < 0.02
    blind = [
        cross_cohort([Aggregate(0, 0, 4, a.channels) for a in noised_cohorts(seed, signal, (4, 4, 4), 2.0)], SMALL)
        for seed in range(50)
    ]
    assert np.mean([result.overall for result in blind]) < 0.9


def test_noise_that_hides_every_unit_does_not_hide_the_whole_model() -> None:
    """Signals far below the floor of a single unit: pooled before the ratio, layer and model still read about 1."""
    units = UnitMap.of(ModelSpec("mlp", (20,), 2, (60, 30)))
    signal = np.random.default_rng(0).normal(0, 0.35, units.size)
    results = [cross_cohort(noised_cohorts(seed, signal, (4, 4), 4.0), units) for seed in range(300)]
    assert np.mean([result.rho for result in results]) < 0.5
    assert abs(np.mean([result.overall for result in results]) - 1) < 0.15
    assert np.mean([result.per_layer for result in results], axis=0).min() > 0.7


@pytest.mark.parametrize(("scale", "least", "most"), [(0.02, 0.9, 1.35), (1.0, 0.8, 1.3)])
def test_the_stated_variance_is_that_of_the_estimate(scale: float, least: float, most: float) -> None:
    """In noise alone, where the floor is the denominator, and for a signal well above it."""
    units = UnitMap.of(ModelSpec("mlp", (60,), 2, (10, 8)))
    signal = scale * np.random.default_rng(1).normal(size=units.size)
    results = [cross_cohort(noised_cohorts(seed, signal, (4, 5), 2.0), units) for seed in range(1500)]
    wide = units.layer == 0
    seen = np.var([result.rho[wide] for result in results], axis=0).mean()
    stated = np.mean([result.variance[wide] for result in results])
    assert least * seen < stated < most * seen
    silent = moments([Aggregate(0, 0, 3, {"update": signal, "unit_energy": units.unit_sum(signal**2)})], units)
    assert not silent.variance.any()


def silos_with_own_noise(seed: int, signal: np.ndarray, units: UnitMap, std: float) -> Aggregate:
    """Five silos that all move by `signal`, each with noise of its own (trust local)."""
    updates = signal + np.random.default_rng(seed).normal(0, std, (5, signal.size))
    energy = np.sum([units.unit_sum(row**2) for row in updates], axis=0)
    return Aggregate(0, 0, 5, {"update": updates.sum(axis=0), "unit_energy": energy})


def test_the_silos_own_noise_does_not_hide_full_agreement() -> None:
    signal = np.random.default_rng(0).normal(size=SMALL.size)
    sums = [silos_with_own_noise(seed, signal, SMALL, 1.0) for seed in range(400)]
    assert abs(np.mean([moments([a], SMALL, silo_variance=1.0).overall for a in sums]) - 1) < 0.05
    assert np.mean([moments([a], SMALL).overall for a in sums]) < 0.6
    nothing = [silos_with_own_noise(seed, 0 * signal, SMALL, 2.0) for seed in range(1500)]
    assert z_score([moments([a], SMALL, silo_variance=4.0).rho for a in nothing]) < 4.2


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_the_stated_variance_counts_the_silos_own_noise(scale: float) -> None:
    units = UnitMap.of(ModelSpec("mlp", (60,), 2, (10, 8)))
    signal = scale * np.random.default_rng(1).normal(size=units.size)
    sums = [silos_with_own_noise(seed, signal, units, 2.0) for seed in range(1000)]
    results = [moments([a], units, silo_variance=4.0) for a in sums]
    wide = units.layer == 0
    seen = np.var([result.rho[wide] for result in results], axis=0).mean()
    stated = np.mean([result.variance[wide] for result in results])
    assert 0.8 * seen < stated < 1.45 * seen


def test_masked_coordinates_carry_no_noise_of_silos() -> None:
    live = np.random.default_rng(2).random(SMALL.size) < 0.5
    signal = np.random.default_rng(0).normal(size=SMALL.size)
    updates = (signal + np.random.default_rng(3).normal(0, 1.0, (300, 5, signal.size))) * live
    overall = []
    for five in updates:
        energy = np.sum([SMALL.unit_sum(row**2) for row in five], axis=0)
        sums = Aggregate(0, 0, 5, {"update": five.sum(axis=0), "unit_energy": energy})
        overall.append(moments([sums], SMALL, live, 1.0).overall)
    assert abs(np.mean(overall) - 1) < 0.1


def slow_cross_cohort(cohorts: list[Aggregate], live: np.ndarray) -> list[float]:
    m = len(cohorts)
    rho = []
    for incoming in SMALL.incoming:
        means = [a.channels["update"][incoming] / a.silos for a in cohorts]
        shared = sum(means[i] @ means[j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        variances = [(a.noise_std["update"] / a.silos) ** 2 for a in cohorts]
        alive = int(live[incoming].sum())
        energy = sum(mean @ mean for mean in means) / m - alive * sum(variances) / m
        floor = 3 * (2 * alive * sum(v**2 for v in variances)) ** 0.5 / m
        below = max(energy, floor)
        rho.append(shared / below if below > 0 else 0.0)
    return rho


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(3, 9), min_size=2, max_size=4), st.floats(0.1, 10))
def test_cross_cohort_against_a_loop(seed: int, sizes: list[int], std: float) -> None:
    live = np.random.default_rng(seed).random(SMALL.size) < 0.6
    live[SMALL.incoming[3]] = False
    cohorts = noised_cohorts(seed, np.where(live, draw(seed, 1)[0], 0.0), tuple(sizes), std)
    agreement = cross_cohort(cohorts, SMALL, live)
    np.testing.assert_allclose(agreement.rho, slow_cross_cohort(cohorts, live), rtol=1e-9, atol=1e-12)
    assert agreement.rho[3] == 0
    assert agreement.energy[3] == 0


def test_masked_units_have_no_agreement_and_no_weight(make_aggregate: Callable[..., Aggregate]) -> None:
    updates = draw(1, 4, shared=1.0)
    dead = np.zeros(SMALL.count, np.bool_)
    dead[[1, 7]] = True
    updates[:, SMALL.parameters_of(dead)] = 0.0
    agreement: Agreement = moments([make_aggregate(updates, SMALL)], SMALL)
    assert (agreement.rho[dead] == 0).all()
    assert (agreement.energy[dead] == 0).all()
    alive = ~dead
    expected = (agreement.rho * agreement.energy)[alive].sum() / agreement.energy[alive].sum()
    assert np.isclose(agreement.overall, expected)
    still = moments([make_aggregate(np.zeros((4, SMALL.size)), SMALL)], SMALL)
    assert still.overall == 0
    assert not still.per_layer.any()


def test_what_cannot_be_estimated_is_refused(make_aggregate: Callable[..., Aggregate]) -> None:
    updates = draw(0, 3)
    with pytest.raises(EncodingError, match="sum of one silo has none"):
        moments([make_aggregate(updates[:1], SMALL)], SMALL)
    with pytest.raises(EncodingError, match="does not protect squares"):
        moments([make_aggregate(updates, SMALL, noise_std=1.0)], SMALL)
    with pytest.raises(EncodingError, match="no channel unit_energy"):
        moments([make_aggregate(updates)], SMALL)
    with pytest.raises(EncodingError, match="at least two cohort sums, got 1"):
        cross_cohort([make_aggregate(updates)], SMALL)
