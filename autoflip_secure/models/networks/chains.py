"""Plain chains of layers: convolutional networks, a perceptron, and a network on scattering features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from autoflip_secure.models.networks.architecture import Shape, UnitLayer

__all__ = [
    "CNN6_LAYERS",
    "CNN_TANH_LAYERS",
    "FEMNIST_LAYERS",
    "MLP_LAYERS",
    "SCATTER_LAYERS",
    "femnist_cnn",
    "mlp",
    "pointwise_tanh",
    "six_layer_cnn",
    "tanh_cnn",
]

CHANNELS_PER_GROUP = 4
POOLED_SIDE = 4

CNN_TANH_LAYERS = (UnitLayer("conv1", 16), UnitLayer("conv2", 32), UnitLayer("fc1", 32))
CNN6_LAYERS = (
    *(UnitLayer(f"conv{layer}", width, CHANNELS_PER_GROUP) for layer, width in enumerate((32, 32, 64, 64), start=1)),
    UnitLayer("fc1", 128),
)
FEMNIST_LAYERS = (UnitLayer("conv1", 32), UnitLayer("conv2", 64), UnitLayer("fc1", 2048))
SCATTER_LAYERS = (UnitLayer("conv1", 64),)
MLP_LAYERS = (UnitLayer("fc1", 64), UnitLayer("fc2", 32))


def tanh_cnn(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
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


def six_layer_cnn(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
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


def femnist_cnn(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """The network of LEAF's FEMNIST task (Caldas et al. 2018, arXiv 1812.01097; `models/femnist/cnn.py` there).

    Two 5x5 convolutions, each with ReLU and 2x2 max-pooling, and two linear layers: 6,603,710 parameters on 28x28
    images of 62 classes.
    """
    channels, *sides = input_shape
    first, second, hidden = widths
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, first, kernel_size=5, padding=2))
    net.add_module("relu1", nn.ReLU())
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("conv2", nn.Conv2d(first, second, kernel_size=5, padding=2))
    net.add_module("relu2", nn.ReLU())
    net.add_module("pool2", nn.MaxPool2d(2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(second * (sides[0] // 4) * (sides[1] // 4), hidden))
    net.add_module("relu3", nn.ReLU())
    net.add_module("fc2", nn.Linear(hidden, outputs))
    return net


def mlp(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
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


def pointwise_tanh(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """One 1x1 convolution with tanh, and a linear layer, on feature maps: 36,618 parameters on MNIST's scattering."""
    channels, height, breadth = input_shape
    (width,) = widths
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, width, kernel_size=1))
    net.add_module("tanh1", nn.Tanh())
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(width * height * breadth, outputs))
    return net
