"""Which parameters belong to which hidden unit of a recurrent network; torch-pruning does not know LSTM cells.

A hidden unit of an LSTM layer is one row in each of the four gates, of the weights from the input, of those from the
hidden state and of both biases. It is read by its column in the weights from the hidden state of its own layer, and in
whatever comes next. With all its rows at zero its candidate is tanh(0) = 0, so that its cell and its state stay 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.autoflip.dependencies import flat_indices
from autoflip_secure.models.networks.recurrent import CharLSTM
from autoflip_secure.models.spec import UnitLayer

__all__ = ["RecurrentNetwork"]

Indices = NDArray[np.int64]

GATES = 4
READERS = {"lstm1": "lstm2.ih.weight", "lstm2": "fc.weight"}


class RecurrentNetwork:
    """The counterpart of `dependencies.IndexedNetwork` for `CharLSTM`. Dimensions of its embedding are no units."""

    def __init__(self, net: CharLSTM) -> None:
        self._indices = flat_indices(net)

    def units_of(self, layer: UnitLayer) -> tuple[list[Indices], list[Indices]]:
        """(incoming, outgoing): a list each of the hidden units' flat indices, ascending."""
        names = [f"{layer.module}.{side}.{kind}" for side in ("ih", "hh") for kind in ("weight", "bias")]
        gates = [self._indices[name].reshape(GATES, layer.width, -1) for name in names]
        produced = np.concatenate([np.swapaxes(tensor, 0, 1).reshape(layer.width, -1) for tensor in gates], axis=1)
        readers = [self._indices[f"{layer.module}.hh.weight"], self._indices[READERS[layer.module]]]
        read = np.concatenate([tensor.T for tensor in readers], axis=1)
        return list(np.sort(produced, axis=1)), list(np.sort(read, axis=1))
