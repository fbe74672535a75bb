"""Cost of a network, measured: floating-point operations of one forward pass, and parameters.

Counted by torch.utils.flop_counter on the network that is really built, one record at a time. It counts convolutions
and matrix products, 2 operations a multiply-add; biases, activations, normalisation and pooling count 0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from autoflip_secure.models.spec import ModelSpec, input_shape_of, layout_of, skeleton

__all__ = ["flops", "parameter_flops", "parameters"]


@lru_cache(maxsize=256)
def _measure(spec: ModelSpec) -> dict[str, int]:
    """Operations by module name; "" is the whole network."""
    net = skeleton(spec)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, *input_shape_of(spec), device="meta"))
    root = type(net).__name__
    counts = counter.get_flop_counts()
    measured = {"": sum(counts["Global"].values())}
    for name, _ in net.named_modules():
        if name:
            measured[name] = sum(counts.get(f"{root}.{name}", {}).values())
    return measured


def flops(spec: ModelSpec) -> int:
    """Operations of one forward pass of one record; fixed features in front of the network are not counted."""
    return _measure(spec)[""]


def parameters(spec: ModelSpec) -> int:
    """Number of parameters."""
    return layout_of(spec).size


@lru_cache(maxsize=32)
def parameter_flops(spec: ModelSpec) -> NDArray[np.float64]:
    """Operations each parameter takes part in, shape (size,), read-only: its layer's measured cost, shared equally.

    A weight of a convolution or linear layer is used once a position, so the cost of a layer is proportional to the
    weights it has left, and the sum over the parameters a compaction keeps is the measured cost of the result.
    """
    measured = _measure(spec)
    costs = np.zeros(layout_of(spec).size)
    for name, where, shape in layout_of(spec).slices():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(shape) > 1:
            costs[where] = measured[module] / (where.stop - where.start)
    costs.setflags(write=False)
    return costs
