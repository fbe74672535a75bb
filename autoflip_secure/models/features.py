"""Fixed public features in front of a network: computed once a record at the silo, without parameters or statistics.

Under DP a network pays with noise for every parameter it learns; what is known of images beforehand need not be learnt.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.models.architectures import MODELS

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["feature_shape", "features_of", "normalised", "scattering_transform"]

ANGLES = 8
SIDE_FOR_TWO_SCALES = 16
CHUNK_RECORDS = 64
CHANNELS_PER_GROUP = 3
NORM_FLOOR = 1e-5


def feature_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a network takes in for records of `input_shape`; the records' own where it has no features.

    Raises
    ------
    ConfigError
        The records are no images of at least 8x8.
    """
    if not MODELS[model].scattering:
        return input_shape
    MODELS[model].check_input(input_shape)
    channels, *sides = input_shape
    scales = _scales(sides)
    paths = 1 + scales * ANGLES + ANGLES**2 * scales * (scales - 1) // 2
    return (channels * paths, *(side // 2**scales for side in sides))


def features_of(model: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features of records, shape (n, *feature_shape); the records themselves for a network that has none.

    Wavelet scattering (Bruna and Mallat 2013; kymatio, Andreux et al. 2020): moduli of two layers of 8-angle Morlet
    wavelets, averaged over 4x4 pixels, then brought to mean 0 and variance 1 over groups of 3 channels of one record,
    as Tramer and Boneh 2021 (arXiv 2011.11660) do for DP. A record's features depend on that record alone;
    those of one so extreme that they are not finite are 0.
    """
    if not MODELS[model].scattering:
        return x
    import torch

    shape = feature_shape(model, x.shape[1:])
    transform = scattering_transform(list(x.shape[2:]))
    features = np.empty((len(x), *shape), np.float32)
    for start in range(0, len(x), CHUNK_RECORDS):
        part = x[start : start + CHUNK_RECORDS]
        # One shape for every chunk: kernels are chosen by it, and a record more must not change how others are rounded.
        filled = torch.zeros(CHUNK_RECORDS, *x.shape[1:])
        filled[: len(part)] = torch.from_numpy(np.ascontiguousarray(part))
        scattered = transform(filled).reshape(CHUNK_RECORDS, *shape)
        features[start : start + CHUNK_RECORDS] = normalised(scattered)[: len(part)].numpy()
    return features


def normalised(scattered: Tensor) -> Tensor:
    """Scattering coefficients, shape (n, *feature_shape), as features: normalised, 0 where they are not finite."""
    import torch

    groups = scattered.shape[1] // CHANNELS_PER_GROUP
    normed = torch.nn.functional.group_norm(scattered, groups, eps=NORM_FLOOR)
    finite = torch.isfinite(normed).flatten(1).all(dim=1)[:, None, None, None]
    return torch.where(finite, normed, 0.0)


def _scales(sides: list[int]) -> int:
    return 2 if min(sides) >= SIDE_FOR_TWO_SCALES else 1


def scattering_transform(sides: list[int]) -> nn.Module:
    """kymatio's transform of images of the given height and width."""
    with warnings.catch_warnings():  # its package turns deprecation warnings on for the whole process
        from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    transform: nn.Module = ScatteringTorch2D(J=_scales(sides), shape=tuple(sides), L=ANGLES)
    return transform
