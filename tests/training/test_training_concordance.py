"""The C-index against its definition, and what a histogram keeps of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.errors import DataError
from autoflip_secure.training import concordance as module
from autoflip_secure.training.concordance import (
    RISK_EDGES,
    concordance,
    concordance_from_cells,
    survival_cells,
    survival_shape,
)

PATIENTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


def by_definition(risk, time, event):
    """Harrell's C-index pair by pair."""
    concordant = pairs = 0.0
    for first in range(len(risk)):
        for other in range(len(risk)):
            later = time[other] > time[first] or (time[other] == time[first] and not event[other])
            if event[first] and later:
                pairs += 1
                concordant += 1.0 if risk[first] > risk[other] else 0.5 if risk[first] == risk[other] else 0.0
    return concordant / pairs if pairs else None


@given(PATIENTS, st.integers(1, 50))
def test_it_is_harrell_s_with_ties_and_in_any_blocks(patients, at_once):
    risk, time, event = (np.array(column) for column in zip(*patients, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAIRS_AT_ONCE", at_once)
        found = concordance(risk.astype(float), time.astype(float), event)
    expected = by_definition(risk, time, event)
    assert found == (None if expected is None else pytest.approx(expected))


def test_known_values():
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True])
    assert concordance(np.array([4.0, 3.0, 2.0, 1.0]), time, event) == 1.0
    assert concordance(np.array([1.0, 2.0, 3.0, 4.0]), time, event) == 0.0
    assert concordance(np.zeros(4), time, event) == 0.5
    assert concordance(np.zeros(4), time, np.zeros(4, bool)) is None


def test_shapes_that_do_not_match():
    with pytest.raises(DataError, match="do not match"):
        concordance(np.zeros(3), np.zeros(3), np.zeros(2, bool))


@given(PATIENTS, st.sampled_from([(2.5,), (1.5, 4.5), (0.5, 1.5, 2.5, 3.5, 4.5, 5.5)]))
def test_cells_count_the_pairs_of_different_intervals(patients, cuts):
    """From the cells: Harrell's index of binned risks and interval numbers, without pairs of one interval."""
    edge = (0.0, *RISK_EDGES)
    risk, time, event = (np.array(column) for column in zip(*patients, strict=True))
    theta = np.array([edge[i % len(edge)] for i in risk]) + 0.1
    cells = np.bincount(survival_cells(theta, time.astype(float), event, cuts), minlength=np.prod(survival_shape(cuts)))
    bins, interval = np.searchsorted(RISK_EDGES, theta, side="right"), np.searchsorted(cuts, time, side="right")
    concordant = pairs = 0.0
    for first in np.flatnonzero(event):
        later = interval > interval[first]
        pairs += later.sum()
        concordant += (later & (bins[first] > bins)).sum() + 0.5 * (later & (bins[first] == bins)).sum()
    index, found = concordance_from_cells(cells, cuts)
    assert found == pairs
    assert np.isnan(index) if not pairs else index == pytest.approx(concordant / pairs)


def test_finer_bins_than_ties_lose_nothing():
    """Where each risk has its own bin and each time its own interval, the cells tell all but censoring ties."""
    generator = np.random.default_rng(0)
    risk, time = generator.choice([-1.2, -0.7, -0.2, 0.2, 0.7, 1.2], 200), generator.choice([0.5, 1.5, 2.5], 200)
    event = generator.random(200) < 0.6
    cuts = (1.0, 2.0)
    event[time == 0.5] = True  # nobody is censored in an interval in which others have the event
    event[time == 1.5] = True
    event[time == 2.5] = False
    cells = np.bincount(survival_cells(risk, time, event, cuts), minlength=np.prod(survival_shape(cuts)))
    assert concordance_from_cells(cells, cuts)[0] == pytest.approx(concordance(risk, time, event))


def test_a_risk_that_is_no_number_has_a_cell():
    cells = survival_cells(np.array([np.nan, np.inf, -np.inf, 0.0]), np.ones(4), np.ones(4, bool), (2.0,))
    assert cells[0] == cells[3]
    assert len(set(cells.tolist())) == 3
