"""The cohort filter: honest cohorts keep their weight, one that is spoilt loses it, and nothing loses all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoflip_secure.autoflip.cohort_filter import filtered, geometric_median, judge
from autoflip_secure.autoflip.pooling import pooled_mean
from autoflip_secure.errors import EncodingError
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Aggregate

SIZE = 400


def honest(seed: int, cohorts: int, spread: float = 0.5) -> np.ndarray:
    """Means that share a direction; each differs from it by `spread` of its length."""
    draw = stream(seed, "cohorts")
    shared = draw.normal(size=SIZE)
    return shared + spread * draw.normal(size=(cohorts, SIZE))


cohort_counts = st.integers(4, 12)
seeds = st.integers(0, 10_000)


@settings(max_examples=60, deadline=None)
@given(seeds, cohort_counts, st.floats(0, 0.7))
def test_honest_cohorts_keep_their_weight(seed: int, cohorts: int, spread: float) -> None:
    assert judge(honest(seed, cohorts, spread)).weights.min() > 0.9


@settings(max_examples=60, deadline=None)
@given(seeds, cohort_counts, st.sampled_from(["flipped", "huge", "noisy"]))
def test_one_spoilt_cohort_loses_its_weight_and_no_other_does(seed: int, cohorts: int, how: str) -> None:
    means, draw = honest(seed, cohorts), stream(seed, "spoilt")
    index = int(draw.integers(cohorts))
    norm = np.linalg.norm(means[index])
    if how == "noisy":
        noise = draw.normal(size=SIZE)
        means[index] = 8 * norm * noise / np.linalg.norm(noise)
    else:
        means[index] *= {"flipped": -1, "huge": 1e6}[how]
    verdict = judge(means)
    assert verdict.weights[index] < 0.05
    assert np.delete(verdict.weights, index).min() > 0.9
    assert verdict.z[index] == verdict.z.max()


@settings(max_examples=60, deadline=None)
@given(seeds, cohort_counts)
def test_the_order_of_cohorts_says_nothing(seed: int, cohorts: int) -> None:
    means = honest(seed, cohorts)
    means[0] *= -3
    order = stream(seed, "order").permutation(cohorts)
    straight, turned = judge(means), judge(means[order])
    np.testing.assert_allclose(turned.weights, straight.weights[order], atol=1e-6)
    np.testing.assert_allclose(turned.z, straight.z[order], rtol=1e-4, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float64, st.tuples(cohort_counts, st.integers(1, 5)), elements=st.floats(-1e150, 1e150)),
    st.floats(0, 1e3),
)
def test_weights_are_weights_whatever_comes(means: np.ndarray, noise: float) -> None:
    verdict = judge(means, np.full(len(means), noise))
    assert np.isfinite(verdict.weights).all()
    assert verdict.weights.min() >= 0
    assert 0 < verdict.weights.max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_cohorts_weigh_the_same(value: float) -> None:
    verdict = judge(np.full((5, SIZE), value))
    assert verdict.weights.tolist() == [1.0] * 5
    assert not verdict.z.any()


def test_a_cohort_that_moves_while_others_rest_loses_its_weight() -> None:
    means = np.zeros((5, SIZE))
    means[3] = 1
    assert judge(means).weights.tolist() == [1, 1, 1, 0, 1]


def test_noise_in_most_cohorts_does_not_pass_as_the_rule() -> None:
    """Three of five are spoilt: order statistics of all five would take them for the rule."""
    means = honest(3, 5)
    means[:3] += 3 * stream(3, "most").normal(size=(3, SIZE))
    verdict = judge(means)
    assert verdict.weights[:3].max() < 0.4
    assert verdict.weights[3:].min() > 0.9


def test_privacy_noise_alone_is_no_sign() -> None:
    """Equal noise on every cohort, hardly any signal: nobody stands out."""
    for seed in range(20):
        noise = stream(seed, "privacy").normal(size=(5, SIZE))
        assert judge(noise, np.ones(5)).weights.min() > 0.8


def test_the_filtered_sums_pool_to_the_weighted_mean() -> None:
    means, silos = honest(1, 5), [4, 4, 5, 4, 3]
    means[2] *= -1
    means[4] *= 2
    sums = [Aggregate(0, i, n, {"update": n * means[i]}, {"update": 0.5}) for i, n in enumerate(silos)]
    verdict = judge(means)
    assert verdict.weights[2] == 0
    assert 0 < verdict.weights[4] < 1
    kept = filtered(sums, verdict)
    assert [a.cohort for a in kept] == [0, 1, 3, 4]
    mean, variance = pooled_mean(kept, "update", SIZE)
    weight = verdict.weights * silos
    np.testing.assert_allclose(mean, weight @ means / weight.sum())
    assert variance == pytest.approx((verdict.weights**2 * 0.25)[[0, 1, 3, 4]].sum() / weight.sum() ** 2)


def test_the_geometric_median_is_not_dragged_away() -> None:
    points = np.zeros((5, 3))
    points[0] = 1e6
    assert np.linalg.norm(geometric_median(points @ points.T) @ points) < 1.0


def median_of(points: np.ndarray, steps: int = 30) -> np.ndarray:
    """Weiszfeld's iteration on the points themselves."""
    centre = points.mean(axis=0)
    least = max(1e-9 * float(np.linalg.norm(points, axis=1).max()), 1e-150)
    for _ in range(steps):
        weights = 1.0 / np.maximum(np.linalg.norm(points - centre, axis=1), least)
        centre = (weights / weights.sum()) @ points
    return centre


def cosines_of(means: np.ndarray, lengths: np.ndarray) -> list[float]:
    """Each mean's cosine with the median of the others, all cut to the lower quartile of lengths."""
    quiet = np.sort(lengths)[max(1, len(means) // 4)]
    cut = means * (quiet / np.maximum(lengths, quiet))[:, None]
    centres = [median_of(np.delete(cut, index, axis=0)) for index in range(len(cut))]
    return [m @ c / np.linalg.norm(m) / np.linalg.norm(c) for m, c in zip(cut, centres, strict=True)]


@settings(max_examples=60, deadline=None)
@given(seeds, cohort_counts, st.floats(0, 2), st.sampled_from([1e-9, 1.0, 1e9]), st.booleans())
def test_inner_products_tell_what_the_means_themselves_do(
    seed: int, cohorts: int, spread: float, scale: float, noisy: bool
) -> None:
    means = scale * honest(seed, cohorts, spread)
    means[0] *= -30
    verdict = judge(means, np.full(cohorts, 0.3 * scale * noisy))
    lengths = np.linalg.norm(means, axis=1)
    if noisy:
        lengths = np.sqrt(lengths**2 - SIZE * (0.3 * scale) ** 2)
    np.testing.assert_allclose(verdict.norms, lengths, rtol=1e-9)
    np.testing.assert_allclose(verdict.cosines, cosines_of(means, lengths), atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(3, 15), st.floats(0, 2))
def test_the_geometric_median_by_inner_products_is_that_of_the_points(seed: int, count: int, spread: float) -> None:
    points = honest(seed, count, spread)
    points[1] = points[0]
    found = geometric_median(points @ points.T) @ points
    assert np.linalg.norm(found - median_of(points)) < 1e-6 * np.linalg.norm(points[0])


def test_others_that_cancel_have_no_direction() -> None:
    """Opposite pairs around the first: their centre is nothing but rounding."""
    means = np.zeros((5, SIZE))
    means[0, 0] = 1.0
    for index in (1, 3):
        means[index] = stream(index, "pair").normal(size=SIZE) / np.sqrt(SIZE)
        means[index + 1] = -means[index]
    cosine = judge(means).cosines[0]
    assert abs(cosine) < 1e-3


@pytest.mark.parametrize("means", [np.ones((3, 4)), np.ones(4), np.full((4, 2), np.nan)])
def test_what_cannot_be_compared_is_refused(means: np.ndarray) -> None:
    with pytest.raises(EncodingError):
        judge(means)
