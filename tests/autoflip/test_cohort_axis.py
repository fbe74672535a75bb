"""Fixed cohorts along one axis: spoilt ones are found by their places, honest ones never, and nothing is guessed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.autoflip.cohort_axis import JUDGED_FROM, LEAST_SUPPORT, SETTLING, CohortAxis
from autoflip_secure.autoflip.cohort_filter import judge
from autoflip_secure.seeds import stream

SIZE, SILOS = 3000, 4


def rounds(bad: list[int], seed: int, count: int, *, chance: float = 0.3, learning: float = 1.0) -> list[np.ndarray]:
    """Cohort means by round: honest silos move along h, bad ones along f, each with a chance of its own a round.

    `learning` is the length of what honest silos share when they still learn; at 0 honest and bad silos balance.
    """
    draw = stream(seed, "cohort axis")
    part = np.array(bad)[:, None] / SILOS
    honest, other = (draw.normal(size=SIZE) for _ in range(2))
    spoilt = other - 0.5 * honest
    towards = learning * honest + part * (spoilt - honest)
    if not learning:
        towards = towards - towards.mean(axis=0)
    return [towards + chance * draw.normal(size=(len(bad), SIZE)) for _ in range(count)]


def axis_after(means: list[np.ndarray]) -> CohortAxis:
    axis = CohortAxis.of(len(means[0]))
    for each in means:
        axis.add(each @ each.T, np.ones(len(each), np.bool_))
    return axis


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 9))
def test_honest_cohorts_have_no_axis(seed: int, cohorts: int) -> None:
    axis = axis_after(rounds([0] * cohorts, seed, 8))
    assert axis.weights() is None
    assert axis.ratio < 1.3


@pytest.mark.parametrize("cohorts", [5, 10, 16])
def test_cohorts_of_skewed_silos_are_seldom_taken_for_spoilt(cohorts: int) -> None:
    """Ten classes differ from cohort to cohort along nine directions, in every round the same way."""
    told = 0
    for seed in range(20):
        draw = stream(seed, "skew")
        mixes = draw.dirichlet([2.0] * 10, size=cohorts)
        classes = draw.normal(size=(10, SIZE))
        told += axis_after([mixes @ classes + 0.3 * draw.normal(size=(cohorts, SIZE)) for _ in range(8)]).told
    assert told <= 2


def test_more_of_the_same_is_no_axis() -> None:
    """A cohort that sends twice what all send stands apart along the average, which lengths are judged by."""
    means = rounds([0] * 5, 6, 8, chance=0.2)
    for each in means:
        each[3] *= 2.0
    assert axis_after(means).weights() is None


def kept(axis: CohortAxis) -> list[bool]:
    weights = axis.weights()
    assert weights is not None
    return (weights > 0.5).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.permutations([0, 2, 0, 0, 1]))
def test_cohorts_with_bad_silos_lose_their_weight(seed: int, bad: list[int]) -> None:
    weights = axis_after(rounds(bad, seed, 5)).weights()
    assert weights is not None
    assert weights[np.array(bad) == 0].min() == 1.0
    assert weights[np.array(bad) > 0].max() < 0.5


@pytest.mark.parametrize("bad", [[0, 2, 1, 0, 1], [1, 1, 0, 1, 1], [2, 1, 3, 1, 1, 2], [1, 1, 1, 0, 0, 2, 2]])
def test_where_most_cohorts_are_spoilt_the_better_half_stays(bad: list[int]) -> None:
    """The majority of silos says which end is clean, though most cohorts are at the other."""
    weights = axis_after(rounds(bad, 1, 5, chance=0.2)).weights()
    assert weights is not None
    assert (weights == 1.0).sum() == (len(bad) + 1) // 2
    order = np.argsort(-weights, kind="stable")
    assert sorted(np.array(bad)[order[: (len(bad) + 1) // 2]]) == sorted(bad)[: (len(bad) + 1) // 2]


@pytest.mark.parametrize("more", [0.5, 1.0, 1.4, 4.0])
@pytest.mark.parametrize("own", [-1.0, 0.2, 1.0])
def test_one_silo_cannot_set_more_than_half_of_the_cohorts_aside(more: float, own: float) -> None:
    """Whether it sends more or less of what all send, with a direction of its own by which cohorts are told apart."""
    means, direction = rounds([0] * 5, 6, 8, chance=0.2), stream(7, "own").normal(size=SIZE)
    for each in means:
        each[3] = more * each[3] + own * direction
    weights = axis_after(means).weights()
    assert weights is None or (weights == 1.0).sum() >= 3


def test_what_was_told_while_the_model_learnt_is_kept_when_it_has_settled() -> None:
    bad = [0, 2, 0, 0, 1]
    axis = axis_after([*rounds(bad, 2, SETTLING), *rounds(bad, 2, 20, learning=0.0)])
    assert kept(axis) == [True, False, True, True, False]


def test_a_settled_model_alone_tells_no_end() -> None:
    axis = axis_after(rounds([0, 2, 1, 0, 1], 2, 20, learning=0.0, chance=0.2))
    assert axis.ratio > 3.0
    assert abs(np.linalg.eigh(axis.differences)[1][:, -1] @ axis.support) / SETTLING < LEAST_SUPPORT
    assert axis.weights() is None


def test_where_no_end_is_told_directions_within_a_round_are_not_asked() -> None:
    """The odd one of five cohorts may be the only clean one."""
    axis = axis_after(rounds([1, 1, 0, 1, 1], 2, 20, learning=0.0, chance=0.1))
    means = rounds([1, 1, 0, 1, 1], 3, 1, learning=0.0, chance=0.1)[0]
    assert judge(means).weights[2] == 0.0
    verdict = judge(means, None, axis)
    assert verdict.along_axis
    assert verdict.weights[2] > 0.1, "it is longer than the others, and loses no more than that"
    assert np.delete(verdict.weights, 2).min() > 0.9


def test_nobody_is_judged_at_once() -> None:
    assert axis_after(rounds([0, 4, 0, 0, 0], 3, JUDGED_FROM - 1)).weights() is None
    assert axis_after(rounds([0, 4, 0, 0, 0], 3, JUDGED_FROM)).weights() is not None
    assert CohortAxis.of(5).weights() is None


def test_rounds_in_which_nothing_differs_are_none() -> None:
    axis = axis_after([np.ones((5, SIZE)), np.zeros((5, SIZE))])
    assert (axis.rounds, axis.ratio) == (0, 0.0)


def test_a_loud_cohort_hides_no_other() -> None:
    """One that is left out of the comparison in every round leaves the others' places as they are."""
    axis = CohortAxis.of(6)
    for each in rounds([0, 2, 0, 0, 1, 0], 8, 6):
        each[5] = 30 * stream(9, "loud").normal(size=SIZE)
        axis.add(each @ each.T, np.arange(6) < 5)
    assert kept(axis)[:5] == [True, False, True, True, False]
    assert not axis.support[5]


def test_an_axis_that_told_goes_on_telling_a_little_below_where_it_started() -> None:
    axis = axis_after(rounds([0, 2, 0, 0, 1], 10, 6))
    assert axis.weights() is not None
    values, vectors = np.linalg.eigh(axis.differences)
    values[-1] = 1.6 * values[-2]
    fresh = CohortAxis(vectors * values @ vectors.T, axis.support, axis.rounds)
    assert fresh.weights() is None
    fresh.told = True
    assert fresh.weights() is not None


def test_a_checkpoint_keeps_it() -> None:
    means = rounds([0, 2, 1, 0, 1], 4, 6)
    half = axis_after(means[:3])
    resumed = CohortAxis.from_json(json.loads(json.dumps(half.to_json())))
    for each in means[3:]:
        resumed.add(each @ each.T, np.ones(5, np.bool_))
    np.testing.assert_array_equal(resumed.weights(), axis_after(means).weights())


def test_the_filter_goes_by_the_axis_and_by_lengths() -> None:
    axis, bad = CohortAxis.of(5), [0, 2, 0, 0, 1]
    means = rounds(bad, 5, JUDGED_FROM + 2)
    verdicts = [judge(each, None, axis) for each in means]
    assert not verdicts[0].along_axis
    assert verdicts[-1].along_axis
    assert (verdicts[-1].weights > 0.5).tolist() == [True, False, True, True, False]
    assert (verdicts[-1].z > 3).tolist() == [False, True, False, False, True]
    known = axis.rounds
    judge(means[-1], None, axis, learns=False)  # deviations are judged by what updates told
    assert axis.rounds == known
    means[-1][0] *= 100  # what is far too long is judged by that too, and the axis does not learn from it
    last = judge(means[-1], None, axis)
    assert last.along_axis
    assert (last.weights > 0.5).tolist() == [False, False, True, True, False]
    assert axis.rounds == known


def test_under_privacy_noise_there_is_no_axis() -> None:
    """A cohort of fewer silos has more noise on its mean: a direction of its own."""
    axis, deviations = CohortAxis.of(16), np.where(np.arange(16) == 2, 1.5, 1.0)
    draw = stream(11, "noise")
    for _ in range(8):
        verdict = judge(
            0.1 * draw.normal(size=SIZE) + deviations[:, None] * draw.normal(size=(16, SIZE)), deviations, axis
        )
        assert not verdict.along_axis
    assert axis.rounds == 0
