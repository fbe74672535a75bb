"""Own energy from sums against the silos' updates that the sums are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.autoflip.own_energy import own_energy
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.sums.channels import Aggregate

UNITS = UnitMap.of(ModelSpec("mlp", (5,), 2, (6, 4)))
LIVE = np.ones(UNITS.size, np.bool_)


def summed(rows: np.ndarray) -> Aggregate:
    squares = np.sum([UNITS.unit_sum(row**2) for row in rows], axis=0)
    return Aggregate(0, 0, len(rows), {"update": rows.sum(axis=0), "unit_energy": squares}, {}, minimum=1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_units_add_up_to_the_mean_of_the_silos_squares(seed: int, silos: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(silos, UNITS.size))
    exact = (rows**2).mean(axis=0)
    np.testing.assert_allclose(UNITS.unit_sum(own_energy([summed(rows)], UNITS, LIVE)), UNITS.unit_sum(exact))


def test_cohorts_count_as_one_sum() -> None:
    rows = np.random.default_rng(1).normal(size=(8, UNITS.size))
    apart = own_energy([summed(rows[:3]), summed(rows[3:])], UNITS, LIVE)
    np.testing.assert_allclose(apart, own_energy([summed(rows)], UNITS, LIVE))


def test_deviations_are_taken_as_they_are(make_aggregate: Callable[..., Aggregate]) -> None:
    rows = np.random.default_rng(2).normal(size=(4, UNITS.size))
    live = np.arange(UNITS.size) % 3 > 0
    found = own_energy([make_aggregate(rows, UNITS)], UNITS, live)
    np.testing.assert_allclose(found, np.where(live, (rows**2).mean(axis=0), 0.0))


def test_updates_that_cancel_leave_their_energy_to_the_live_parameters() -> None:
    row = np.random.default_rng(3).normal(size=UNITS.size)
    live = np.ones(UNITS.size, np.bool_)
    live[UNITS.incoming[2][:2]] = False
    rows = np.where(live, np.stack([row, -row]), 0.0)
    found = own_energy([summed(rows)], UNITS, live)
    np.testing.assert_allclose(UNITS.unit_sum(found), UNITS.unit_sum(rows[0] ** 2))
    assert np.unique(found[UNITS.incoming[2][2:]]).size == 1
    assert not found[~live].any()


def test_agreement_undoes_what_cancelled() -> None:
    """The same silos' energy is found whether their updates point one way or different ways; the sum's differs."""
    row = np.random.default_rng(4).normal(size=UNITS.size)
    together, apart = np.stack([row] * 4), np.stack([row, row, row, -row])
    energies = [UNITS.unit_sum(own_energy([summed(rows)], UNITS, LIVE)) for rows in (together, apart)]
    np.testing.assert_allclose(*energies)
    assert UNITS.unit_sum(apart.mean(axis=0) ** 2) == pytest.approx(UNITS.unit_sum(row**2) / 4)
