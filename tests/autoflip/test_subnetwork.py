"""The server's whole network: which part is sent, and what becomes of the rest."""

from __future__ import annotations

import numpy as np
import pytest

from autoflip_secure.autoflip.flops import flops
from autoflip_secure.autoflip.settings import PruneSettings
from autoflip_secure.autoflip.subnetwork import WholeNetwork, positions
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.spec import dense_spec
from autoflip_secure.seeds import stream

SPEC = dense_spec("mlp", (5,), 2)
UNITS = UnitMap.of(SPEC)
HALF = PruneSettings(threshold=0.0, flops_kept=0.5, layer_floor=0.1)


@pytest.fixture
def whole() -> WholeNetwork:
    """Even units are ten times as large as odd ones."""
    draw = stream(0, "whole").uniform(0.5, 1, UNITS.size)
    large = UNITS.spread(np.arange(UNITS.count) % 2 == 0, outputs=0.0)
    return WholeNetwork(SPEC, np.where(large, 10 * draw, draw).astype(np.float32))


def test_the_largest_units_are_sent(whole: WholeNetwork) -> None:
    part = whole.select(HALF)
    assert flops(part.spec) <= 0.5 * flops(SPEC)
    odd = part.kept_units % 2 == 1
    even = np.count_nonzero(~odd)
    assert even > 0
    # Where any odd unit of a layer was sent, all its even ones were.
    for layer in (0, 1):
        members = np.flatnonzero(UNITS.layer == layer)
        sent = np.isin(members, part.kept_units)
        assert sent[members % 2 == 0].all() or not sent[members % 2 == 1].any()


def test_what_was_not_sent_keeps_its_value_and_may_come_back(whole: WholeNetwork) -> None:
    part = whole.select(HALF)
    trained = np.full(part.kept.size, 1e-3, np.float32)
    after = whole.rebuilt(part.kept, trained)
    rest = np.setdiff1d(np.arange(UNITS.size), part.kept)
    np.testing.assert_array_equal(after.weights[rest], whole.weights[rest])
    np.testing.assert_array_equal(after.weights[part.kept], trained)
    np.testing.assert_array_equal(whole.select(HALF).kept, part.kept)  # the old one is left as it was
    again = after.select(HALF)
    assert np.setdiff1d(again.kept_units, part.kept_units).size > 0, "units that were never sent are now the largest"


def test_places_in_an_earlier_selection() -> None:
    assert positions(np.array([1, 3, 4]), np.array([0, 1, 4, 6])).tolist() == [1, -1, 2]
    assert positions(np.array([0, 9]), np.array([2, 5])).tolist() == [-1, -1]


def test_another_number_of_parameters_is_refused(whole: WholeNetwork) -> None:
    with pytest.raises(EncodingError, match="do not fit"):
        whole.rebuilt(np.arange(3), np.zeros(4, np.float32))
