"""The networks themselves: how each is wired, which of its layers consist of units, and which inputs it takes.

Every architecture is a plain `nn.Sequential` of named layers, free of batch statistics and of in-place operations, as
per-sample gradients require (Opacus). Builders take the widths as arguments, so a compacted network is built by the
same code as a dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from autoflip_secure.errors import ConfigError
from autoflip_secure.models.names import MODEL_DESCRIPTIONS

__all__ = ["MODELS", "Architecture", "UnitLayer"]

Shape = tuple[int, ...]
Builder = Callable[[Shape, int, Sequence[int]], nn.Sequential]

SMALLEST_SIDE = 8
CHANNELS_PER_GROUP = 4
POOLED_SIDE = 4


@dataclass(frozen=True)
class UnitLayer:
    """A layer whose neurons or filters can be removed.

    Attributes
    ----------
    module : str
        Dotted name of the convolution or linear layer.
    width : int
        Its output channels.
    granularity : int
        Channels one unit consists of; above 1 where a unit is a whole normalisation group.
    """

    module: str
    width: int
    granularity: int = 1

    @property
    def units(self) -> int:
        """Number of units."""
        return self.width // self.granularity


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry.

    Attributes
    ----------
    description : str
        One line for users.
    layers : tuple of UnitLayer
        The unit layers in forward order, at their dense widths; the output layer is not among them.
    check_input : callable
        Raises ConfigError where the network cannot take inputs of a shape.
    builder : callable
        builder(input_shape, outputs, widths) -> module.
    scattering : bool
        Whether the network takes scattering features of a record in its place (`models.features`).
    """

    description: str
    layers: tuple[UnitLayer, ...]
    check_input: Callable[[Shape], None]
    builder: Builder
    scattering: bool = False


def _check_image(input_shape: Shape) -> None:
    if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST_SIDE:
        shown = "x".join(map(str, input_shape))
        raise ConfigError(
            f"--model: a convolutional network takes channels x height x width with sides of at least {SMALLEST_SIDE}, "
            f"the records are {shown}; nothing was started, use --model mlp"
        )


def _check_any(input_shape: Shape) -> None:
    if not input_shape:
        raise ConfigError("--model: records without features cannot be learnt from; nothing was started")


def _tanh_cnn(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Tanh CNN of Papernot et al. 2021 (arXiv 2007.14191), 26,010 parameters on MNIST.

    The second convolution is padded where the image is so small that nothing would be left after it.
    """
    channels, *sides = input_shape
    first, second, hidden = widths
    pooled = [(side + 2 * 3 - 8) // 2 + 1 - 1 for side in sides]
    padding = [max(0, -(-(6 - side) // 2)) for side in pooled]
    final = [(side + 2 * pad - 4) // 2 + 1 - 1 for side, pad in zip(pooled, padding, strict=True)]
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, first, kernel_size=8, stride=2, padding=3))
    net.add_module("tanh1", nn.Tanh())
    net.add_module("pool1", nn.MaxPool2d(2, stride=1))
    net.add_module("conv2", nn.Conv2d(first, second, kernel_size=4, stride=2, padding=(padding[0], padding[1])))
    net.add_module("tanh2", nn.Tanh())
    net.add_module("pool2", nn.MaxPool2d(2, stride=1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(second * final[0] * final[1], hidden))
    net.add_module("tanh3", nn.Tanh())
    net.add_module("fc2", nn.Linear(hidden, outputs))
    return net


def _six_layer_cnn(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Four normalised 3x3 convolutions, pooled after every second one, and two linear layers."""
    previous, *sides = input_shape
    *filters, hidden = widths
    final = [min(POOLED_SIDE, side // 4) for side in sides]
    net = nn.Sequential()
    for layer, width in enumerate(filters, start=1):
        net.add_module(f"conv{layer}", nn.Conv2d(previous, width, kernel_size=3, padding=1))
        net.add_module(f"norm{layer}", nn.GroupNorm(width // CHANNELS_PER_GROUP, width))
        net.add_module(f"relu{layer}", nn.ReLU())
        if layer % 2 == 0:
            net.add_module(f"pool{layer // 2}", nn.MaxPool2d(2))
        previous = width
    net.add_module("pool3", nn.AdaptiveAvgPool2d((final[0], final[1])))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(previous * final[0] * final[1], hidden))
    net.add_module("relu5", nn.ReLU())
    net.add_module("fc2", nn.Linear(hidden, outputs))
    return net


def _mlp(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Two hidden layers on the flattened input."""
    features = 1
    for side in input_shape:
        features *= side
    first, second = widths
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(features, first))
    net.add_module("tanh1", nn.Tanh())
    net.add_module("fc2", nn.Linear(first, second))
    net.add_module("tanh2", nn.Tanh())
    net.add_module("fc3", nn.Linear(second, outputs))
    return net


def _pointwise_tanh(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """One 1x1 convolution with tanh, and a linear layer, on feature maps: 36,618 parameters on MNIST's scattering."""
    channels, height, breadth = input_shape
    (width,) = widths
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, width, kernel_size=1))
    net.add_module("tanh1", nn.Tanh())
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(width * height * breadth, outputs))
    return net


_CNN6_LAYERS = (
    *(UnitLayer(f"conv{layer}", width, CHANNELS_PER_GROUP) for layer, width in enumerate((32, 32, 64, 64), start=1)),
    UnitLayer("fc1", 128),
)
_CNN_TANH_LAYERS = (UnitLayer("conv1", 16), UnitLayer("conv2", 32), UnitLayer("fc1", 32))
_SCATTER_LAYERS = (UnitLayer("conv1", 64),)
_MLP_LAYERS = (UnitLayer("fc1", 64), UnitLayer("fc2", 32))

MODELS: Mapping[str, Architecture] = MappingProxyType(
    {
        "cnn-tanh": Architecture(MODEL_DESCRIPTIONS["cnn-tanh"], _CNN_TANH_LAYERS, _check_image, _tanh_cnn),
        "cnn6": Architecture(MODEL_DESCRIPTIONS["cnn6"], _CNN6_LAYERS, _check_image, _six_layer_cnn),
        "scatter": Architecture(
            MODEL_DESCRIPTIONS["scatter"], _SCATTER_LAYERS, _check_image, _pointwise_tanh, scattering=True
        ),
        "mlp": Architecture(MODEL_DESCRIPTIONS["mlp"], _MLP_LAYERS, _check_any, _mlp),
    }
)
