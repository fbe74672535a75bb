"""Fixed cohorts along one axis: spoilt ones are found by their places, honest ones never, and nothing is guessed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.autoflip.cohort_axis import SETTLING, CohortAxis
from autoflip_secure.autoflip.cohort_filter import judge
from autoflip_secure.seeds import stream

SIZE, SILOS = 3000, 4


def rounds(bad: list[int], seed: int, count: int, *, chance: float = 0.5, learning: float = 1.0) -> list[np.ndarray]:
    """Cohort means by round: honest silos move along h, bad ones along f, each with a chance of its own a round.

    `learning` is the length of what honest silos share when they still learn; at 0 honest and bad silos balance.
    """
    draw = stream(seed, "cohort axis")
    part = np.array(bad)[:, None] / SILOS
    honest, spoilt = (draw.normal(size=SIZE) for _ in range(2))
    towards = learning * honest + part * (spoilt - honest)
    if not learning:
        towards = towards - towards.mean(axis=0)
    return [towards + chance * draw.normal(size=(len(bad), SIZE)) for _ in range(count)]


def axis_after(means: list[np.ndarray]) -> CohortAxis:
    axis = CohortAxis.of(len(means[0]))
    for each in means:
        axis.add(each @ each.T)
    return axis


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 9))
def test_honest_cohorts_have_no_axis(seed: int, cohorts: int) -> None:
    axis = axis_after(rounds([0] * cohorts, seed, 8))
    assert axis.weights() is None
    assert axis.share < 1.3 / (cohorts - 1)


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
    assert weights[np.array(bad) > 0].max() < 0.2


@pytest.mark.parametrize("bad", [[0, 2, 1, 0, 1], [1, 1, 0, 1, 1], [2, 1, 3, 1, 1, 2], [1, 1, 1, 0, 0, 2, 2]])
def test_where_most_cohorts_are_spoilt_the_better_half_stays(bad: list[int]) -> None:
    """The majority of silos says which end is clean, though most cohorts are at the other."""
    weights = axis_after(rounds(bad, 1, 5, chance=0.2)).weights()
    assert weights is not None
    assert (weights == 1.0).sum() == (len(bad) + 1) // 2
    order = np.argsort(-weights, kind="stable")
    assert sorted(np.array(bad)[order[: (len(bad) + 1) // 2]]) == sorted(bad)[: (len(bad) + 1) // 2]


def test_one_silo_cannot_set_more_than_half_of_the_cohorts_aside() -> None:
    """It sends more of what all send: its cohort agrees best with the average, and honest ones differ from it alike."""
    means = rounds([0] * 5, 6, 6, chance=0.2)
    for each in means:
        each[3] *= 1.4
    weights = axis_after(means).weights()
    assert weights is not None
    assert weights[3] == 1.0
    assert (weights == 1.0).sum() == 3


def test_what_was_told_while_the_model_learnt_is_kept_when_it_has_settled() -> None:
    bad = [0, 2, 0, 0, 1]
    axis = axis_after([*rounds(bad, 2, SETTLING), *rounds(bad, 2, 20, learning=0.0)])
    assert kept(axis) == [True, False, True, True, False]


def test_a_settled_model_alone_tells_no_end() -> None:
    axis = axis_after(rounds([0, 2, 1, 0, 1], 2, 20, learning=0.0, chance=0.2))
    assert axis.share > 0.5
    assert axis.weights() is None


def test_nobody_is_judged_at_once() -> None:
    assert axis_after(rounds([0, 4, 0, 0, 0], 3, SETTLING - 1)).weights() is None
    assert CohortAxis.of(5).weights() is None


def test_rounds_in_which_nothing_differs_are_none() -> None:
    axis = axis_after([np.ones((5, SIZE)), np.zeros((5, SIZE))])
    assert (axis.rounds, axis.share) == (0, 0.0)


def test_a_checkpoint_keeps_it() -> None:
    means = rounds([0, 2, 1, 0, 1], 4, 6)
    half = axis_after(means[:3])
    resumed = CohortAxis.from_json(json.loads(json.dumps(half.to_json())))
    for each in means[3:]:
        resumed.add(each @ each.T)
    np.testing.assert_array_equal(resumed.weights(), axis_after(means).weights())


def test_the_filter_goes_by_the_axis_and_by_lengths() -> None:
    axis, bad = CohortAxis.of(5), [0, 2, 0, 0, 1]
    means = rounds(bad, 5, SETTLING + 2)
    verdicts = [judge(each, None, axis) for each in means]
    assert not verdicts[0].along_axis
    assert verdicts[-1].along_axis
    assert (verdicts[-1].weights > 0.5).tolist() == [True, False, True, True, False]
    means[-1][0] *= 100  # what is far too long is judged by that too, and the axis does not learn from it
    known = axis.rounds
    last = judge(means[-1], None, axis)
    assert last.along_axis
    assert (last.weights > 0.5).tolist() == [False, False, True, True, False]
    assert axis.rounds == known
    assert not judge(means[-1], None, CohortAxis.of(5)).along_axis
