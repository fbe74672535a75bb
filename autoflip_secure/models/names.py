"""Names of the networks, for command lines and configuration; importing this loads nothing heavy."""

from __future__ import annotations

__all__ = ["MODEL_DESCRIPTIONS", "MODEL_NAMES"]

MODEL_DESCRIPTIONS: dict[str, str] = {
    "cnn-tanh": "two convolutions and two linear layers with tanh; 26,010 parameters on MNIST, trains well with DP",
    "cnn6": "four 3x3 convolutions with GroupNorm and ReLU and two linear layers, for images with any channels",
    "femnist-cnn": "LEAF's network for FEMNIST: two 5x5 convolutions and 2,048 hidden units, 6.6 million parameters",
    "resnet-small": "eight-layer residual network with GroupNorm, 80 thousand parameters, for small colour images",
    "resnet18": "torchvision's ResNet-18 with GroupNorm, 11 million parameters",
    "mobilenet-v2": "torchvision's MobileNetV2 with GroupNorm, 2.2 million parameters",
    "efficientnet-b3": "torchvision's EfficientNet-B3 with GroupNorm, 10.7 million parameters",
    "scatter": "fixed public wavelet features (scattering), then a 1x1 convolution with tanh and a linear layer",
    "char-lstm": "LEAF's network for Shakespeare: embedding of 8, two LSTM layers of 256; the next character of a text",
    "mlp": "two hidden layers (64, 32) with tanh, for tables and flattened inputs",
}
MODEL_NAMES: tuple[str, ...] = tuple(MODEL_DESCRIPTIONS)
