"""UnitMap: every unit of a network as index sets into the flat parameter vector, and reductions over them.

Units (neurons, filters, normalisation groups) are numbered through the unit layers in forward order. The neurons of the
output layer follow with the numbers after the last unit: they own parameters too but are never removed. `owner` gives
each parameter the unit or output whose incoming it is part of, so a reduction is one `np.bincount`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autoflip_secure.autoflip.dependencies import IndexedNetwork
from autoflip_secure.autoflip.recurrent import RecurrentNetwork
from autoflip_secure.errors import ConfigError, EncodingError
from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.models.networks.recurrent import CharLSTM
from autoflip_secure.models.spec import ModelSpec, input_shape_of, layout_of, skeleton, unit_layers

__all__ = ["UnitMap"]

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class UnitMap:
    """The units of one spec. All arrays are read-only.

    Attributes
    ----------
    spec : ModelSpec
    layout : ParameterLayout
    layer : int64 (units,)
        Index of each unit's layer among `unit_layers(spec)`.
    incoming, outgoing : tuple of int64 arrays
        By unit, ascending flat indices: weights, bias and normalisation that produce it; weights that read it.
    owner : int64 (size,)
        Unit that each parameter is incoming to; `count + k` for parameters of output neuron k, and, where symbols go
        in and out, for the embedding of symbol k.
    prunable : bool (size,)
        Weights of convolutions, linear and recurrent layers. Biases and normalisation follow their unit; embeddings
        stay.
    """

    spec: ModelSpec
    layout: ParameterLayout
    layer: Indices
    incoming: tuple[Indices, ...]
    outgoing: tuple[Indices, ...]
    owner: Indices
    prunable: Flags

    @classmethod
    def of(cls, spec: ModelSpec) -> UnitMap:
        """The map of a spec; computed once per spec and process."""
        return _unit_map(spec)

    def __repr__(self) -> str:
        return f"UnitMap({self.spec.name}, {self.count} units, {self.size} parameters)"

    @property
    def count(self) -> int:
        """Number of units, the output neurons not included."""
        return len(self.incoming)

    @property
    def groups(self) -> int:
        """Number of units and output neurons together."""
        return self.count + self.spec.outputs

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.owner.size

    @property
    def layer_sizes(self) -> Indices:
        """Units of each layer, shape (layers,)."""
        return np.bincount(self.layer, minlength=len(self.spec.widths))

    def group_sum(self, vector: NDArray[np.generic]) -> Values:
        """Sum over the incoming parameters of each unit and each output neuron, shape (groups,)."""
        if vector.shape != (self.size,):
            raise EncodingError(f"a vector of shape {vector.shape} does not fit a network of {self.size} parameters")
        return _add_up(self.owner, vector, self.groups)

    def unit_sum(self, vector: NDArray[np.generic]) -> Values:
        """Sum over the incoming parameters of each unit, shape (units,)."""
        return self.group_sum(vector)[: self.count]

    def layer_sum(self, unit_values: NDArray[np.generic]) -> Values:
        """Sum over the units of each layer, shape (layers,)."""
        return _add_up(self.layer, unit_values, len(self.spec.widths))

    def layer_mean(self, unit_values: Values) -> Values:
        """Mean over the units of each layer, shape (layers,)."""
        return self.layer_sum(unit_values) / self.layer_sizes

    def spread(self, unit_values: NDArray[np.generic], outputs: float) -> Values:
        """Give every parameter its unit's value and those of the output layer `outputs`, shape (size,)."""
        return np.concatenate([unit_values, np.full(self.spec.outputs, outputs)])[self.owner]

    def read_elsewhere(self, unit: int) -> Indices:
        """Outgoing parameters of a unit that are not incoming to it too, as those of a residual sum may be."""
        outgoing = self.outgoing[unit]
        return outgoing[self.owner[outgoing] != unit]

    def parameters_of(self, units: Flags) -> Flags:
        """Parameters that go when the given units go, incoming and outgoing, shape (size,)."""
        if units.shape != (self.count,):
            raise EncodingError(f"flags of shape {units.shape} do not fit a network of {self.count} units")
        gone = np.zeros(self.size, np.bool_)
        for unit in np.flatnonzero(units):
            gone[self.incoming[unit]] = True
            gone[self.outgoing[unit]] = True
        return gone


def _add_up(slot: Indices, values: NDArray[np.generic], slots: int) -> Values:
    return np.bincount(slot, weights=values.astype(np.float64), minlength=slots).astype(np.float64, copy=False)


@lru_cache(maxsize=8)  # one of ten million parameters takes 300 MB
def _unit_map(spec: ModelSpec) -> UnitMap:
    layout = layout_of(spec)
    net = skeleton(spec)
    network = RecurrentNetwork(net) if isinstance(net, CharLSTM) else IndexedNetwork(net, input_shape_of(spec))
    pairs = [network.units_of(layer) for layer in unit_layers(spec)]
    incoming = tuple(indices for produced, _ in pairs for indices in produced)
    outgoing = tuple(indices for _, read in pairs for indices in read)
    layer = np.repeat(np.arange(len(pairs)), [layer.units for layer in unit_layers(spec)])
    owner = _owners(spec, layout, incoming)
    weights = _weights(net)
    prunable = np.concatenate([np.full(s.stop - s.start, name in weights) for name, s, _ in layout.slices()])
    for array in (layer, owner, prunable, *incoming, *outgoing):
        array.setflags(write=False)
    return UnitMap(spec, layout, layer, incoming, outgoing, owner, prunable)


def _weights(net: nn.Module) -> set[str]:
    """Names of the weights of convolutions and linear layers, of which recurrent layers consist too."""
    return {f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def _owners(spec: ModelSpec, layout: ParameterLayout, incoming: tuple[Indices, ...]) -> Indices:
    """Owner of each parameter; what no unit owns must have a row an output, as the output layer has.

    So has the embedding of a network whose outputs are the symbols that go in: a symbol's go with its output neuron.
    """
    owner = np.full(layout.size, -1, np.int64)
    for unit, indices in enumerate(incoming):
        owner[indices] = unit
    for name, where, shape in layout.slices():
        rest = owner[where] < 0
        if not rest.any():
            continue
        if not rest.all() or shape[0] != spec.outputs:
            raise ConfigError(f"network {spec.name}: parameter {name} belongs to no unit and is not the output layer's")
        owner[where] = np.repeat(len(incoming) + np.arange(spec.outputs), rest.size // spec.outputs)
    return owner
