"""The flat parameter vector: every trainable parameter of a module, in `named_parameters()` order, one after another.

Updates, deviations, masks, guidance and optimiser state are all vectors in this order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["ParameterLayout", "flatten_parameters", "load_flat_parameters"]


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named tensor lies in the flat vector.

    Attributes
    ----------
    names : tuple of str
        Parameter names, in order.
    shapes : tuple of tuple of int
        Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> ParameterLayout:
        """Layout of a module's trainable parameters; an Opacus wrapper's `_module.` prefix is dropped."""
        named = [(name.removeprefix("_module."), p) for name, p in module.named_parameters() if p.requires_grad]
        return cls(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))

    @property
    def size(self) -> int:
        """Number of scalar parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    def slices(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """(name, slice of the flat vector, shape) of each tensor."""
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + math.prod(shape)
            yield name, slice(start, stop), shape
            start = stop


def flatten_parameters(module: nn.Module) -> Tensor:
    """Copy of the trainable parameters as one vector, shape (layout.size,), on the CPU."""
    return torch.cat([p.detach().reshape(-1).cpu() for p in module.parameters() if p.requires_grad])


def load_flat_parameters(module: nn.Module, vector: Tensor) -> None:
    """Copy a flat vector into the module's trainable parameters, in place.

    Raises
    ------
    ValueError
        The vector's length is not the number of parameters.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    size = sum(p.numel() for p in parameters)
    if vector.shape != (size,):
        raise ValueError(f"a vector of shape {tuple(vector.shape)} does not fit a model of {size} parameters")
    start = 0
    with torch.no_grad():
        for p in parameters:
            p.copy_(vector[start : start + p.numel()].view_as(p))
            start += p.numel()
