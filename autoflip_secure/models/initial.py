"""Initial values, distributed as torch's own defaults but drawn from a given generator."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["initialise"]


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator, recurrent_bound: float | None = None) -> None:
    """Set every parameter of a module, in place; one order of draws for one network.

    Convolutions and linear layers are uniform on +-1/sqrt(fan in), which is kaiming_uniform with a = sqrt(5); inside a
    recurrent layer (`recurrent_bound`) everything on +-1/sqrt(hidden units); embeddings are standard normal.
    """
    if isinstance(hidden := getattr(module, "hidden_size", None), int):
        recurrent_bound = 1 / math.sqrt(hidden)
    if isinstance(module, nn.Conv2d | nn.Linear):
        bound = recurrent_bound or 1 / math.sqrt(module.weight[0].numel())
        module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            module.bias.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, nn.Embedding):
        module.weight.normal_(generator=generator)
    elif isinstance(module, nn.GroupNorm):
        module.reset_parameters()
    elif own := list(module._parameters):
        raise NotImplementedError(f"no initial values for {', '.join(own)} of a {type(module).__name__}")
    for child in module.children():
        initialise(child, generator, recurrent_bound)
