"""Learning which of a network's fixed parameters live: FedMask's local training.

FedMask (Li et al. 2021, SenSys, doi 10.1145/3485730.3485929): parameters stay as they were initialised, each device
learns a binary mask over them by way of a real-valued one, and only binary masks travel. The real-valued mask is
binarised on the way forward and gets the gradient as if it had not been on the way back (straight-through estimator).

What could be read of the paper is its abstract and notes of others on it, which are silent on the fixed parameters'
size, on the optimiser, on where the real-valued mask starts and on the form of the term that makes it sparse. Chosen
here, by trying: `FIXED_GAIN`, without which networks learn late or never; Adam at `MASK_RATE`; the start that
`start_of` says; and a small term, the same for all layers, since the budget of FLOPs is met by whole units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.models.losses import LOSSES
from autoflip_secure.training.local import batches

__all__ = ["FIXED_GAIN", "learn_mask", "start_of"]

CONFIDENCE = 0.5
"""Real-valued mask of a weight that all silos kept; minus this where none did."""

MASK_RATE = 0.15
"""Adam's learning rate: four steps in one direction change what all silos agreed on."""

FIXED_GAIN = math.sqrt(6.0)
"""Factor of the initial weights that a mask is learnt over.

Those of `models.initial` have variance 1 / (3 fan in). With the factor the half of them that masks keep, or about that,
has variance 1 / fan in of what is kept, and carries a signal on at its strength (scaled initialisation of Ramanujan et
al. 2020, arXiv 1911.13299, without the part for ReLU)."""

SPARSITY = 0.03
"""Weight of the mean of the real-valued masks' sigmoids: a mask lets go of weights that the loss does not need.

Adam takes the same step however small a gradient is, so a heavier term empties large networks, of whose single weights
the loss says little, until no signal passes."""


def start_of(votes: Tensor) -> Tensor:
    """Real-valued masks that a round starts from, of the share of silos that kept each weight: 0 at one half."""
    return CONFIDENCE * (2 * votes - 1)


class _Binary(torch.autograd.Function):
    """1 where the real-valued mask is 0 or more, else 0; its gradient is that of the sigmoid."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, real: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        return (real >= 0).to(real.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (real,) = cast(tuple[Tensor, ...], ctx.saved_tensors)  # type: ignore[attr-defined]
        soft = torch.sigmoid(real)
        return gradients[0] * soft * (1 - soft)


_binary = cast(Callable[[Tensor], Tensor], _Binary.apply)


def learn_mask(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    votes: Tensor,
    maskable: Tensor,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    loss: str = "cross_entropy",
) -> Tensor:
    """The binary mask after `steps` steps, bool of shape (parameters,), on the CPU. The module is left as it is.

    Parameters
    ----------
    votes : float tensor, shape (parameters,)
        Share of silos that kept each parameter in the round before, within [0, 1].
    maskable : bool tensor, shape (parameters,)
        Weights that a mask may take; all other parameters live.
    generator : torch.Generator
        CPU generator of the batches.
    """
    device = next(module.parameters()).device
    real = torch.where(maskable, start_of(votes), torch.full_like(votes, CONFIDENCE)).to(device)
    real.requires_grad_()
    fixed, held = maskable.to(device), torch.ones_like(real)
    parts = list(ParameterLayout.of(module).slices())
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    optimiser = torch.optim.Adam([real], lr=MASK_RATE)
    for indices in batches(len(x), batch_size, steps, generator):
        chosen = indices.to(x.device)
        mask = torch.where(fixed, _binary(real), held)
        masked = {name: weights[name] * mask[part].view(shape) for name, part, shape in parts}
        outputs = torch.func.functional_call(module, masked, (x[chosen],))
        optimiser.zero_grad()
        sparse = SPARSITY * torch.sigmoid(real)[fixed].mean()
        torch.autograd.backward(LOSSES[loss](outputs, y[chosen]) / len(chosen) + sparse, inputs=[real])
        optimiser.step()
    return torch.where(fixed, real.detach() >= 0, fixed.logical_not()).cpu()
