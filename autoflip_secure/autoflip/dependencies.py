"""Which parameters belong to which unit, read off torch-pruning's dependency graph.

Every parameter of a network is set to its own index in the flat vector; what a pruning operation takes away from a
tensor then names the flat indices it would remove. Nothing here knows how convolutions, normalisations, flattening or
residual sums map channels to parameters: torch-pruning does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import nn

from autoflip_secure.models.layout import ParameterLayout, load_flat_parameters
from autoflip_secure.models.spec import UnitLayer

__all__ = ["IndexedNetwork"]

Indices = NDArray[np.int64]


class IndexedNetwork:
    """A copy of a network whose parameters are their own flat indices, with its dependency graph."""

    def __init__(self, net: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._net = copy.deepcopy(net).double()
        size = ParameterLayout.of(self._net).size
        load_flat_parameters(self._net, torch.arange(size, dtype=torch.float64))
        example = torch.zeros(1, *input_shape, dtype=torch.float64)
        with torch.enable_grad():
            self._graph = torch_pruning.DependencyGraph().build_dependency(
                self._net, example_inputs=example, verbose=False
            )

    def units_of(self, layer: UnitLayer) -> Iterator[tuple[Indices, Indices]]:
        """(incoming, outgoing) flat indices of each unit of a layer, ascending.

        Incoming is what removing the unit takes from tensors that produce it: its weights, bias and normalisation,
        and those of layers coupled to it by a residual sum. Outgoing is what it takes from tensors that read it.
        """
        root = self._net.get_submodule(layer.module)
        prune = self._graph.get_pruner_of_module(root).prune_out_channels
        group = self._graph.get_pruning_group(root, prune, list(range(layer.width)))
        operations = [item for item in group if next(_parameters(item.dep.target.module), None) is not None]
        for unit in range(layer.units):
            incoming: list[Indices] = [np.empty(0, np.int64)]
            outgoing: list[Indices] = [np.empty(0, np.int64)]
            for item in operations:
                channels = [
                    channel
                    for channel, origin in zip(item.idxs, item.root_idxs, strict=True)
                    if origin // layer.granularity == unit
                ]
                produced = self._graph.is_out_channel_pruning_fn(item.dep.handler)
                (incoming if produced else outgoing).append(_removed_by(item.dep, channels))
            yield np.unique(np.concatenate(incoming)), np.unique(np.concatenate(outgoing))


def _parameters(module: nn.Module | nn.Parameter) -> Iterator[torch.Tensor]:
    yield from (module,) if isinstance(module, torch.Tensor) else module.parameters()


def _values(module: nn.Module | nn.Parameter) -> Indices:
    tensors = [parameter.detach().reshape(-1) for parameter in _parameters(module)]
    return cast(Indices, torch.cat(tensors).numpy().astype(np.int64))


def _removed_by(operation: Any, channels: list[int]) -> Indices:
    """Flat indices that one pruning operation on `channels` takes from its target, tried on a copy."""
    module = operation.target.module
    return np.setdiff1d(
        _values(module), _values(operation.handler(copy.deepcopy(module), channels)), assume_unique=True
    )
