"""The module that is exported: records in, the model's outputs out, of operations that every exporter knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoflip_secure.export.scattering import ScatteringFeatures
from autoflip_secure.models.architectures import MODELS
from autoflip_secure.models.networks.recurrent import CharLSTM, LSTMLayer
from autoflip_secure.models.spec import ModelSpec

__all__ = ["example_records", "inference_network", "reads_symbols"]


def reads_symbols(spec: ModelSpec) -> bool:
    """Whether records are rows of symbols' numbers (int64) and not of measurements (float32)."""
    return spec.name == "char-lstm"


def example_records(spec: ModelSpec, count: int, generator: torch.Generator) -> Tensor:
    """Random records of the shape and type the exported model takes, shape (count, *input_shape)."""
    if reads_symbols(spec):
        return torch.randint(spec.outputs, (count, *spec.input_shape), generator=generator)
    return torch.randn(count, *spec.input_shape, generator=generator)


def inference_network(spec: ModelSpec, net: nn.Module) -> nn.Module:
    """`net` as it is exported, in evaluation mode: with its fixed features in front, and LSTM layers as torch's own."""
    if isinstance(net, CharLSTM):
        net = _SymbolNetwork(net)
    elif MODELS[spec.name].scattering:
        net = nn.Sequential(ScatteringFeatures(spec.input_shape), net)
    return net.eval().requires_grad_(False)


class _SymbolNetwork(nn.Module):
    """`CharLSTM` of int64 symbols, shape (records, length), without its check of them, whose branch no graph can hold.

    torch.nn.LSTM, which exporters write as the one operation every runtime has, computes what `LSTMLayer` does.
    """

    def __init__(self, net: CharLSTM) -> None:
        super().__init__()
        self.embedding = net.embedding
        self.lstm1, self.lstm2 = _as_torchs(net.lstm1), _as_torchs(net.lstm2)
        self.fc = net.fc

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm1(self.embedding(x))
        states, _ = self.lstm2(states)
        logits: Tensor = self.fc(states[:, -1])
        return logits


@torch.no_grad()
def _as_torchs(layer: LSTMLayer) -> nn.LSTM:
    made = nn.LSTM(layer.ih.in_features, layer.hidden_size, batch_first=True)
    values = (layer.ih.weight, layer.hh.weight, layer.ih.bias, layer.hh.bias)
    for parameter, value in zip(made.parameters(), values, strict=True):
        parameter.copy_(value)
    return made
