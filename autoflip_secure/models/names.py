"""Names of the networks, for command lines and configuration; importing this loads nothing heavy."""

from __future__ import annotations

__all__ = ["MODEL_DESCRIPTIONS", "MODEL_NAMES"]

MODEL_DESCRIPTIONS: dict[str, str] = {
    "cnn-tanh": "two convolutions and two linear layers with tanh; 26,010 parameters on MNIST, trains well with DP",
    "cnn6": "four 3x3 convolutions with GroupNorm and ReLU and two linear layers, for images with any channels",
    "scatter": "fixed public wavelet features (scattering), then a 1x1 convolution with tanh and a linear layer",
    "mlp": "two hidden layers (64, 32) with tanh, for tables and flattened inputs",
}
MODEL_NAMES: tuple[str, ...] = tuple(MODEL_DESCRIPTIONS)
