"""Score rules: each against its own formula, and the ways they differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.autoflip.guidance import Guidance
from autoflip_secure.autoflip.score_rules import RULES, Evidence, keep_scores
from autoflip_secure.autoflip.scores import EnergyAccumulator
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.spec import ModelSpec
from autoflip_secure.sums.channels import Aggregate

UNITS = UnitMap.of(ModelSpec("mlp", (5,), 2, (6, 4)))
WEIGHTS = UNITS.prunable


@pytest.fixture
def evidence() -> Evidence:
    draw = np.random.default_rng(0)
    sums = [Aggregate(0, 0, 4, {"update": draw.normal(size=UNITS.size)})]
    guidance = replace(
        Guidance.start(draw.random(UNITS.size), UNITS), agreement_average=draw.random(UNITS.count), rounds=3
    )
    return Evidence(
        weights=draw.normal(size=UNITS.size),
        start=draw.normal(size=UNITS.size),
        explored=draw.normal(size=UNITS.size),
        guidance=guidance,
        energy=EnergyAccumulator.empty(UNITS.size).add(sums),
        own=EnergyAccumulator.empty(UNITS.size).add_exact(draw.random(UNITS.size)),
    )


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_finite_not_negative_and_rank_something(rule: str, evidence: Evidence) -> None:
    scores = keep_scores(rule, evidence, UNITS)
    for values, count in ((scores.parameters, UNITS.size), (scores.units, UNITS.count)):
        assert values.shape == (count,)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert np.unique(values).size > 3


def of_each_unit(values: np.ndarray) -> list[np.ndarray]:
    return [values[incoming[WEIGHTS[incoming]]] for incoming in UNITS.incoming]


def test_each_rule_is_its_formula(evidence: Evidence) -> None:
    def scores(rule: str) -> tuple[np.ndarray, np.ndarray]:
        found = keep_scores(rule, evidence, UNITS)
        return found.parameters, found.units

    parameters, units = scores("magnitude")
    np.testing.assert_allclose(parameters, np.abs(evidence.weights))
    np.testing.assert_allclose(units, [np.linalg.norm(w) for w in of_each_unit(evidence.weights)])
    parameters, units = scores("snip")
    np.testing.assert_allclose(parameters, np.abs(evidence.start * evidence.explored))
    np.testing.assert_allclose(units, [w.sum() for w in of_each_unit(parameters)])
    parameters, units = scores("energy")
    np.testing.assert_allclose(parameters, np.sqrt(evidence.energy.energy))
    np.testing.assert_allclose(units**2, [evidence.energy.energy[incoming].sum() for incoming in UNITS.incoming])
    parameters, units = scores("guidance")
    np.testing.assert_allclose(parameters, evidence.guidance.values)
    np.testing.assert_allclose(units, [w.mean() for w in of_each_unit(parameters)], rtol=1e-6)
    size, energy = (scores(rule)[1] for rule in ("magnitude", "energy"))
    product = scores("product")[1]
    np.testing.assert_allclose(product, size * energy)
    parameters, units = scores("own-energy")
    np.testing.assert_allclose(parameters, np.sqrt(evidence.own.energy))
    np.testing.assert_allclose(units**2, [evidence.own.energy[incoming].sum() for incoming in UNITS.incoming])
    np.testing.assert_allclose(scores("own-product")[1], size * units)
    parameters, of_units = scores("hybrid")
    np.testing.assert_allclose(parameters, np.abs(evidence.weights) * np.sqrt(evidence.energy.energy))
    np.testing.assert_allclose(of_units, units)
    parameters, units = scores("guidance")
    agreement = evidence.guidance.agreement
    np.testing.assert_allclose(scores("product-agreement")[1], product * (1 + agreement) / 2)
    np.testing.assert_allclose(scores("guidance-agreement")[1], units * agreement, rtol=1e-6)


@pytest.mark.parametrize(("rule", "sign"), [("hybrid-agreement", 1), ("hybrid-disagreement", -1)])
def test_agreement_ranks_units_of_a_layer_anew_and_layers_stay_as_wide(
    rule: str, sign: int, evidence: Evidence
) -> None:
    plain, voted = (keep_scores(name, evidence, UNITS) for name in ("hybrid", rule))
    np.testing.assert_array_equal(voted.parameters, plain.parameters)
    ranked = plain.units * (1 + sign * evidence.guidance.agreement)
    for layer in (0, 1):
        of_layer = UNITS.layer == layer
        np.testing.assert_array_equal(np.sort(voted.units[of_layer]), np.sort(plain.units[of_layer]))
        np.testing.assert_array_equal(np.argsort(voted.units[of_layer]), np.argsort(ranked[of_layer]))
    assert (voted.units != plain.units).any()
    # Silos that are of one mind about all units have no say in which of them stay.
    guidance = replace(evidence.guidance, agreement_average=np.full(UNITS.count, 0.5))
    np.testing.assert_array_equal(keep_scores(rule, replace(evidence, guidance=guidance), UNITS).units, plain.units)
    unmeasured = replace(evidence, guidance=replace(evidence.guidance, rounds=0))
    np.testing.assert_array_equal(keep_scores(rule, unmeasured, UNITS).units, plain.units)


def test_without_a_round_of_agreement_it_has_no_vote(evidence: Evidence) -> None:
    unmeasured = replace(evidence, guidance=replace(evidence.guidance, rounds=0))
    with_vote, without = (keep_scores("product-agreement", e, UNITS).units for e in (evidence, unmeasured))
    np.testing.assert_array_equal(without, keep_scores("product", evidence, UNITS).units)
    assert (with_vote != without).any()


def test_before_any_update_size_alone_ranks(evidence: Evidence) -> None:
    nothing = EnergyAccumulator.empty(UNITS.size)
    early = replace(evidence, energy=nothing, own=nothing)
    size = keep_scores("magnitude", early, UNITS)
    fan_in = np.array([incoming.size for incoming in UNITS.incoming])
    for rule in ("product", "own-product"):
        np.testing.assert_allclose(keep_scores(rule, early, UNITS).units, size.units * np.sqrt(fan_in))
    hybrid = keep_scores("hybrid", early, UNITS)
    np.testing.assert_allclose(hybrid.parameters, size.parameters)
    np.testing.assert_allclose(hybrid.units, np.sqrt(fan_in))


def test_where_no_updates_were_summed_weights_go_by_own_energy(evidence: Evidence) -> None:
    explored = replace(evidence, energy=EnergyAccumulator.empty(UNITS.size))
    found = keep_scores("hybrid", explored, UNITS).parameters
    np.testing.assert_allclose(found, np.abs(evidence.weights) * np.sqrt(evidence.own.energy))


def test_diverged_weights_are_refused(evidence: Evidence) -> None:
    with pytest.raises(EncodingError, match="not finite"):
        keep_scores("magnitude", replace(evidence, weights=np.full(UNITS.size, np.nan)), UNITS)
