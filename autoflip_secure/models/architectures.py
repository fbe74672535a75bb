"""The registry of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from autoflip_secure.models.names import MODEL_DESCRIPTIONS
from autoflip_secure.models.networks import chains, recurrent, residual
from autoflip_secure.models.networks.architecture import (
    Architecture,
    Builder,
    Shape,
    UnitLayer,
    check_any,
    check_image,
    check_sequence,
)

__all__ = ["MODELS", "Architecture", "UnitLayer"]


def _image(name: str, layers: tuple[UnitLayer, ...], builder: Builder, scattering: bool = False) -> Architecture:
    return Architecture(MODEL_DESCRIPTIONS[name], lambda: layers, check_image, builder, scattering)


def _torchvision(name: str) -> Architecture:
    def find_layers() -> tuple[UnitLayer, ...]:
        from autoflip_secure.models.networks.published import published_layers

        return published_layers(name)

    def build(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Module:
        from autoflip_secure.models.networks.published import published

        return published(name, input_shape, outputs, widths)

    return Architecture(MODEL_DESCRIPTIONS[name], find_layers, check_image, build)


MODELS: Mapping[str, Architecture] = MappingProxyType(
    {
        "cnn-tanh": _image("cnn-tanh", chains.CNN_TANH_LAYERS, chains.tanh_cnn),
        "cnn6": _image("cnn6", chains.CNN6_LAYERS, chains.six_layer_cnn),
        "femnist-cnn": _image("femnist-cnn", chains.FEMNIST_LAYERS, chains.femnist_cnn),
        "resnet-small": _image("resnet-small", residual.RESNET_SMALL_LAYERS, residual.resnet_small),
        "resnet18": _torchvision("resnet18"),
        "mobilenet-v2": _torchvision("mobilenet-v2"),
        "efficientnet-b3": _torchvision("efficientnet-b3"),
        "scatter": _image("scatter", chains.SCATTER_LAYERS, chains.pointwise_tanh, scattering=True),
        "char-lstm": Architecture(
            MODEL_DESCRIPTIONS["char-lstm"], lambda: recurrent.CHAR_LSTM_LAYERS, check_sequence, recurrent.char_lstm
        ),
        "mlp": Architecture(MODEL_DESCRIPTIONS["mlp"], lambda: chains.MLP_LAYERS, check_any, chains.mlp),
    }
)
