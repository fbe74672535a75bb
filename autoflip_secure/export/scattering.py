"""Wavelet scattering in a form that exports: real numbers, and all angles of a scale at once.

kymatio computes one path after another with complex numbers: three thousand operations, which take minutes to export
and which few runtimes have. Its filters and its padding are taken as they are; what comes out is the same but for
rounding (tested).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoflip_secure.models.features import normalised, scattering_transform

__all__ = ["ScatteringFeatures"]

Complex = tuple[Tensor, Tensor]
"""Real and imaginary part."""


class ScatteringFeatures(nn.Module):
    """The features of `models.features.features_of`, shape (records, *feature_shape), from records.

    Mallat's cascade up to the second order (Bruna and Mallat 2013): convolutions are products of Fourier transforms,
    and keeping every k-th pixel is folding the transform k times. Sides are a few dozen pixels, at which a Fourier
    transform is a small matrix product.

    Parameters
    ----------
    input_shape : tuple of int
        Channels, height, width of a record.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        transform: Any = scattering_transform(list(input_shape[1:]))
        self.scales = int(transform.J)
        self._pad = transform.pad
        for level, smoothing in enumerate(transform.phi["levels"]):
            self.register_buffer(f"low{level}", _plane(smoothing))
        for scale in range(self.scales):
            wavelets = [wavelet["levels"] for wavelet in transform.psi if wavelet["j"] == scale]
            for level in range(len(wavelets[0])):
                planes = torch.stack([_plane(levels[level]) for levels in wavelets])
                self.register_buffer(f"band{scale}_{level}", planes)
        sides = _plane(transform.phi["levels"][0]).shape
        for size in {side >> halvings for side in sides for halvings in range(self.scales + 1)}:
            cosine, sine = _fourier_matrix(size)
            self.register_buffer(f"cosine{size}", cosine)
            self.register_buffer(f"sine{size}", sine)

    def forward(self, x: Tensor) -> Tensor:
        padded = self._pad(x)[..., 0].unsqueeze(2)
        spectrum = self._fourier((padded, torch.zeros_like(padded)))
        paths = [self._smoothed(spectrum, 0)]
        firsts = [self._modulus(spectrum, scale, 0) for scale in range(self.scales)]
        paths += [self._smoothed(first, scale) for scale, first in enumerate(firsts)]
        for before, (real, imaginary) in enumerate(firsts):
            # Each first angle with each second one: the axes of both become one axis of paths.
            each = real.unsqueeze(3), imaginary.unsqueeze(3)
            for scale in range(before + 1, self.scales):
                paths.append(self._smoothed(self._modulus(each, scale, before), scale).flatten(2, 3))
        return normalised(torch.cat(paths, dim=2).flatten(1, 2))

    def _modulus(self, spectrum: Complex, scale: int, level: int) -> Complex:
        """Transform of the modulus of a layer of wavelets; `level` halvings of the sides have been made before."""
        wavelets = getattr(self, f"band{scale}_{level}")
        real, imaginary = self._inverse(_folded(spectrum, wavelets, 2 ** (scale - level)))
        modulus = (real * real + imaginary * imaginary).sqrt()
        return self._fourier((modulus, torch.zeros_like(modulus)))

    def _smoothed(self, spectrum: Complex, level: int) -> Tensor:
        low = _folded(spectrum, getattr(self, f"low{level}"), 2 ** (self.scales - level))
        return self._inverse(low)[0][..., 1:-1, 1:-1]

    def _fourier(self, values: Complex, sign: float = -1.0) -> Complex:
        """sum over y and x of values exp(sign 2 pi i (v y / height + u x / width))."""
        real, imaginary = values
        height, width = real.shape[-2:]
        cosine, sine = getattr(self, f"cosine{width}"), sign * getattr(self, f"sine{width}")
        real, imaginary = real @ cosine - imaginary @ sine, real @ sine + imaginary @ cosine
        cosine, sine = getattr(self, f"cosine{height}"), sign * getattr(self, f"sine{height}")
        return cosine @ real - sine @ imaginary, sine @ real + cosine @ imaginary

    def _inverse(self, spectrum: Complex) -> Complex:
        real, imaginary = self._fourier(spectrum, 1.0)
        pixels = real.shape[-2] * real.shape[-1]
        return real / pixels, imaginary / pixels


def _plane(values: NDArray[np.floating] | Tensor) -> Tensor:
    """A filter's transform, which is real, as float32 of (height, width)."""
    plane = torch.as_tensor(values, dtype=torch.float32).clone()
    return plane.reshape(plane.shape[:2])


def _fourier_matrix(size: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi j k / size, shape (size, size); j k is reduced first, so that no angle is large."""
    steps = torch.arange(size)
    angles = (torch.outer(steps, steps) % size).double() * (2 * math.pi / size)
    return angles.cos().float(), angles.sin().float()


def _folded(spectrum: Complex, band: Tensor, factor: int) -> Complex:
    """The spectrum under a filter, of every `factor`-th pixel."""
    real, imaginary = (_fold(part * band, factor) for part in spectrum)
    return real, imaginary


def _fold(plane: Tensor, factor: int) -> Tensor:
    *lead, height, width = plane.shape
    return plane.reshape(*lead, factor, height // factor, factor, width // factor).mean(dim=(-4, -2))
