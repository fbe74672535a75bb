"""Which parameters belong to which unit, read off torch-pruning's dependency graph.

The graph says which layers give out or take in the channels of a unit, through normalisations, flattening, depthwise
convolutions, squeeze-and-excitation and residual sums. A layer that gives out a channel has a row of each of its
tensors for it, one that takes it in a column of its weight.
"""

from __future__ import annotations

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import nn

from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.models.spec import UnitLayer

__all__ = ["IndexedNetwork", "flat_indices"]

Indices = NDArray[np.int64]


def flat_indices(net: nn.Module) -> dict[str, Indices]:
    """Of each parameter tensor, by name, the flat indices of its elements, in its shape."""
    slices = ParameterLayout.of(net).slices()
    return {name: np.arange(where.start, where.stop).reshape(shape) for name, where, shape in slices}


class IndexedNetwork:
    """A network, on any device, with the flat indices of its parameters and its dependency graph."""

    def __init__(self, net: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._net = net
        self._names = {module: name for name, module in net.named_modules()}
        self._indices = flat_indices(net)
        self._size = sum(indices.size for indices in self._indices.values())
        first = next(net.parameters())
        example = torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device)
        with torch.enable_grad():
            self._graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=example, verbose=False)

    def units_of(self, layer: UnitLayer) -> tuple[list[Indices], list[Indices]]:
        """(incoming, outgoing): a list each of the units' flat indices, ascending.

        Incoming is what produces a unit: its weights, bias and normalisation, and those of layers coupled to it by a
        residual sum. Outgoing is what reads it.
        """
        root = self._net.get_submodule(layer.module)
        prune = self._graph.get_pruner_of_module(root).prune_out_channels
        group = self._graph.get_pruning_group(root, prune, list(range(layer.width)))
        incoming: list[tuple[Indices, Indices]] = []
        outgoing: list[tuple[Indices, Indices]] = []
        for item in group:
            if item.dep.target.module not in self._names:
                continue
            name = self._names[item.dep.target.module]
            tensors = {key: self._indices[key] for key in (f"{name}.weight", f"{name}.bias") if key in self._indices}
            channels = np.asarray(item.idxs, np.int64)
            units = np.asarray(item.root_idxs, np.int64) // layer.granularity
            if self._graph.is_out_channel_pruning_fn(item.dep.handler):
                incoming += [(units, tensor[channels]) for tensor in tensors.values()]
            elif tensors:
                outgoing.append((units, np.swapaxes(tensors[f"{name}.weight"], 0, 1)[channels]))
        return self._by_unit(incoming, layer.units), self._by_unit(outgoing, layer.units)

    def _by_unit(self, parts: list[tuple[Indices, Indices]], units: int) -> list[Indices]:
        """Gather (unit of each row, rows of flat indices) by unit."""
        keys = [(unit[:, None] * self._size + rows.reshape(len(rows), -1)).ravel() for unit, rows in parts]
        ordered = np.sort(np.concatenate(keys))  # not np.unique, which hashes: twenty times as slow
        starts = np.searchsorted(ordered, np.arange(1, units) * self._size)
        return np.split(ordered % self._size, starts)
