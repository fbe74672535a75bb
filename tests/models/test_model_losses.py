"""The survival loss is a likelihood, a sum over records, and finite wherever a network may go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from autoflip_secure.data.follow_up import FollowUp
from autoflip_secure.models.losses import LARGEST_EXPONENT, LOSSES
from autoflip_secure.training.scores import record_losses

survival = LOSSES["survival"]
FOLLOW_UP = FollowUp((1.0, 3.0), (0.1, 0.4, 0.2))


def as_tensors(theta, expected, event):
    return torch.tensor(theta, dtype=torch.float64)[:, None], torch.tensor(np.array([expected, event], float)).T


@given(st.floats(-3, 3), st.floats(0.01, 9), st.booleans())
def test_it_is_the_piecewise_exponential_likelihood(theta, time, event):
    """-log of density (event) or survivor function, from the hazard itself, but for the term without theta."""
    interval = int(np.searchsorted(FOLLOW_UP.cuts, time, side="right"))
    cumulative = float(FOLLOW_UP.expected_events(np.array([time]))[0])
    hazard = FOLLOW_UP.hazards[interval] * math.exp(theta)
    log_likelihood = event * math.log(hazard) - cumulative * math.exp(theta)
    without_theta = event * math.log(FOLLOW_UP.hazards[interval])
    assert float(survival(*as_tensors([theta], [cumulative], [event]))) == pytest.approx(without_theta - log_likelihood)


def test_its_minimum_is_the_observed_over_the_expected():
    """Without features the best hazard ratio is events over expected events (Holford 1980)."""
    generator = np.random.default_rng(0)
    expected, event = generator.exponential(0.4, 500), generator.integers(0, 2, 500).astype(float)
    best = minimize_scalar(lambda theta: float(survival(*as_tensors(np.full(500, theta), expected, event))))
    assert math.exp(best.x) == pytest.approx(event.sum() / expected.sum(), rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_are_sums_over_records(name):
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(5, 1 if name == "survival" else 3, generator=generator, dtype=torch.float64)
    targets = {
        "cross_entropy": torch.tensor([0, 2, 1, 1, 0]),
        "squared_error": torch.randn(5, 3, generator=generator, dtype=torch.float64),
        "survival": torch.rand(5, 2, generator=generator, dtype=torch.float64),
    }[name]
    parts = sum(float(LOSSES[name](outputs[i : i + 1], targets[i : i + 1])) for i in range(5))
    assert float(LOSSES[name](outputs, targets)) == pytest.approx(parts)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9), st.floats(0, 100, width=32), st.booleans())
def test_it_stays_finite_and_goes_up_from_its_minimum(thetas, expected, event):
    theta = torch.tensor(thetas, dtype=torch.float32)[:, None].requires_grad_()
    targets = torch.tensor([[expected, float(event)]] * len(thetas), dtype=torch.float32)
    loss = survival(theta, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(theta.grad).all()
    above = theta.detach() > LARGEST_EXPONENT
    assert (theta.grad[above] >= expected * math.exp(LARGEST_EXPONENT) * (1 - 1e-5) - event).all()


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(0, 9), st.booleans()), min_size=1, max_size=20))
def test_scores_use_the_same_loss(records):
    theta, expected, event = (np.array(column, float) for column in zip(*records, strict=True))
    losses = record_losses(theta[:, None], np.stack([expected, event], axis=1), "survival")
    assert losses.sum() == pytest.approx(float(survival(*as_tensors(theta, expected, event))), rel=1e-9, abs=1e-9)


def test_filling_of_zeros_adds_nothing():
    outputs = torch.tensor([[0.3], [2.0]], requires_grad=True)
    loss = survival(outputs, torch.zeros(2, 2))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not outputs.grad.any()
