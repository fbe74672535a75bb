"""Masks learnt over fixed parameters, and the gradient of weights that a mask holds at zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.seeds import torch_stream
from autoflip_secure.training.local import GRADIENT_BATCH, mean_gradient
from autoflip_secure.training.mask_training import learn_mask, start_of


def test_votes_start_a_real_valued_mask() -> None:
    assert start_of(torch.tensor([0.0, 0.5, 0.6, 1.0])).tolist() == pytest.approx([-0.5, 0.0, 0.1, 0.5])


@pytest.mark.parametrize(
    ("target", "votes", "steps", "lives"),
    [
        (0.0, 0.5, 1, False),  # the weight is 2: with it the output is too large, and one step takes 0 below 0
        (2.0, 0.5, 1, False),  # the output is right, so only the sparsity term moves the mask: below 0 as well
        (0.0, 1.0, 3, True),  # three steps of 0.15 from 0.5: still there
        (0.0, 1.0, 4, False),
        (2.0, 0.0, 3, False),  # the other way round, from -0.5
        (2.0, 0.0, 4, True),
    ],
)
def test_steps_of_one_weight(target: float, votes: float, steps: int, lives: bool) -> None:
    module = nn.Linear(1, 1, bias=False)
    load_flat_parameters(module, torch.tensor([2.0]))
    found = learn_mask(
        module, torch.ones(4, 1), torch.full((4, 1), target), votes=torch.tensor([votes]),
        maskable=torch.tensor([True]), steps=steps, batch_size=2, generator=torch_stream(0, "b"), loss="squared_error",
    )  # fmt: skip
    assert found.tolist() == [lives]
    assert flatten_parameters(module).tolist() == [2.0]


def test_a_mask_over_random_parameters_lowers_the_loss(make_network, clusters) -> None:
    x, y = clusters
    module = make_network()
    start = flatten_parameters(module)
    maskable = torch.cat([torch.full((p.numel(),), p.dim() > 1) for p in module.parameters()])

    def learnt() -> torch.Tensor:
        return learn_mask(
            module, x, y, votes=torch.ones(start.numel()), maskable=maskable, steps=60, batch_size=32,
            generator=torch_stream(0, "b"),
        )  # fmt: skip

    mask = learnt()
    assert torch.equal(mask, learnt())
    assert torch.equal(flatten_parameters(module), start)
    assert mask[~maskable].all()
    assert 0 < mask[maskable].sum() < maskable.sum()
    before = F.cross_entropy(module(x), y).item()
    load_flat_parameters(module, start * mask)
    assert F.cross_entropy(module(x), y).item() < 0.7 * before


def test_the_mean_gradient_is_that_of_the_mean_loss(make_network) -> None:
    """In pieces of a batch, for weights at zero too, and without a trace in the module."""
    module = make_network()
    draw = torch_stream(0, "records")
    records = 2 * GRADIENT_BATCH + 17
    x, y = torch.randn(records, 6, generator=draw), torch.randint(0, 3, (records,), generator=draw)
    start = flatten_parameters(module) * (torch.arange(sum(p.numel() for p in module.parameters())) % 3 > 0)
    load_flat_parameters(module, start)
    found = mean_gradient(module, x, y)
    assert all(parameter.grad is None for parameter in module.parameters())
    F.cross_entropy(module(x), y).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found[start == 0].abs().max() > 1e-3
