"""How much reconstructed pictures are like the true ones: matching, PSNR and SSIM, against what public records give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Likeness", "matched", "psnr", "ssim"]

GAIN = 1.0
"""Decibels above the class mean's PSNR from which a picture counts as one of the record: a fifth less squared error.
Not 0: a class mean with a little noise on it is the better one for half of the records."""

LEAST_ERROR = 1e-10
"""Mean squared error below which pictures count as equal (100 dB)."""

WINDOW = 7
STABLE = (0.01**2, 0.03**2)
"""Side of the window and constants of Wang et al. 2004 for values in 0..1."""


def psnr(picture: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of pictures with values in 0..1, over all but the first axis, shape (n,)."""
    squares = (picture.astype(np.float64) - truth) ** 2
    decibels: NDArray[np.float64] = -10 * np.log10(squares.reshape(len(squares), -1).mean(axis=1).clip(min=LEAST_ERROR))
    return decibels


def ssim(picture: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4), eq. 13) of shape (n, 1, height, width), shape (n,).

    Means over square windows of 7 pixels, or of the whole picture where it is smaller.
    """
    from scipy.ndimage import uniform_filter

    side = min(WINDOW, *truth.shape[-2:])
    a, b = picture.astype(np.float64), truth.astype(np.float64)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        smoothed: NDArray[np.float64] = uniform_filter(values, size=(1, 1, side, side), mode="reflect")
        return smoothed

    ma, mb = mean(a), mean(b)
    both = (2 * ma * mb + STABLE[0]) * (2 * (mean(a * b) - ma * mb) + STABLE[1])
    each = (ma**2 + mb**2 + STABLE[0]) * (mean(a * a) - ma**2 + mean(b * b) - mb**2 + STABLE[1])
    similar: NDArray[np.float64] = (both / each).reshape(len(a), -1).mean(axis=1)
    return similar


def matched(pictures: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.floating]:
    """For each true record the picture that is taken for it, shape of `truth`: one to one, least squared error in all.

    There may be more pictures than records; the best ones are taken. The matching knows the truth: in the attacker's
    favour.
    """
    from scipy.optimize import linear_sum_assignment

    if len(pictures) < len(truth):
        raise ValueError(f"{len(pictures)} pictures for {len(truth)} records")
    flat, true = pictures.reshape(len(pictures), -1).astype(np.float64), truth.reshape(len(truth), -1)
    distance = (true**2).sum(axis=1)[:, None] - 2 * true @ flat.T + (flat**2).sum(axis=1)
    taken: NDArray[np.floating] = pictures[linear_sum_assignment(distance)[1]]
    return taken


@dataclass(frozen=True)
class Likeness:
    """Pictures against records.

    Attributes
    ----------
    found : int
        Records whose picture is `GAIN` dB or more above their class' public mean.
    records : int
    psnr, mean_psnr : float
        Mean over the records, of the pictures and of the class means, dB.
    ssim, mean_ssim : float
        The same of SSIM.
    gains : tuple of float
        By record, its picture's PSNR less that of its class' mean, dB.
    """

    found: int
    records: int
    psnr: float
    mean_psnr: float
    ssim: float
    mean_ssim: float
    gains: tuple[float, ...]

    @classmethod
    def of(cls, pictures: NDArray[np.floating], truth: NDArray[np.floating], means: NDArray[np.floating]) -> Likeness:
        """Of `pictures`, already matched, against records `truth` and their classes' `means`, all of one shape."""
        gained, mean = psnr(pictures, truth), psnr(means, truth)
        return cls(
            int((gained >= mean + GAIN).sum()), len(truth), float(gained.mean()), float(mean.mean()),
            float(ssim(pictures, truth).mean()), float(ssim(means, truth).mean()), tuple((gained - mean).tolist()),
        )  # fmt: skip
