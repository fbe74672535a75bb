"""The recurrent network for text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoflip_secure.errors import DataError
from autoflip_secure.models.networks.architecture import Shape, UnitLayer

__all__ = ["CHAR_LSTM_LAYERS", "CharLSTM", "char_lstm"]

EMBEDDING = 8

CHAR_LSTM_LAYERS = (UnitLayer("lstm1", 256), UnitLayer("lstm2", 256))


def char_lstm(input_shape: Shape, outputs: int, widths: Sequence[int]) -> CharLSTM:
    """The network of LEAF's Shakespeare task: see `CharLSTM`."""
    return CharLSTM(outputs, *widths)


class LSTMLayer(nn.Module):
    """One LSTM layer (Hochreiter and Schmidhuber 1997, with forget gates), as torch.nn.LSTM computes it.

    Of linear layers, so that Opacus has per-sample gradients of it: the one from the input is called once for all
    steps, the one from the hidden state at each. The gates come in torch's order: input, forget, candidate, output.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.ih = nn.Linear(inputs, 4 * hidden)
        self.hh = nn.Linear(hidden, 4 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """States of all steps, shape (records, length, hidden), for x of shape (records, length, inputs)."""
        state = cell = x.new_zeros(len(x), self.hidden_size)
        states = []
        for fed in self.ih(x).unbind(dim=1):
            enter, keep, candidate, leave = (fed + self.hh(state)).chunk(4, dim=1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            state = leave.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, dim=1)


class CharLSTM(nn.Module):
    """Predicts the next symbol of a text (Caldas et al. 2018, arXiv 1812.01097; `models/shakespeare/stacked_lstm.py`).

    An embedding of 8, two LSTM layers of 256 and a linear layer on the last state: 819,920 parameters for 80 symbols.
    The LSTM layers have two biases, as in torch.

    Parameters
    ----------
    symbols : int
        Of the alphabet, in and out.
    first, second : int
        Hidden units of the two layers.
    """

    def __init__(self, symbols: int, first: int, second: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, EMBEDDING)
        self.lstm1 = LSTMLayer(EMBEDDING, first)
        self.lstm2 = LSTMLayer(first, second)
        self.fc = nn.Linear(second, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next symbol, shape (records, symbols), for numbers of symbols of shape (records, length).

        Raises
        ------
        DataError
            Something that is not the number of a symbol; a GPU would not survive looking it up.
        """
        tokens = x.long()
        known = (tokens == x) & (tokens >= 0) & (tokens < self.embedding.num_embeddings)
        if not x.is_meta and not bool(known.all()):
            raise DataError(
                f"--model char-lstm reads numbers of symbols, 0 to {self.embedding.num_embeddings - 1}; "
                "the records hold others, use a data set of texts or another --model"
            )
        states = self.lstm2(self.lstm1(self.embedding(tokens)))
        logits: Tensor = self.fc(states[:, -1])
        return logits
