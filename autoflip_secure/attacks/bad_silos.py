"""Silos that spoil the sum on purpose (`--bad-silos`): which silos, and what they send in place of honest values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.seeds import stream

__all__ = [
    "TARGET",
    "BadSilos",
    "flipped_labels",
    "huge_counts",
    "noise_like",
    "patch_side",
    "poisoned",
    "triggered",
    "wild_integers",
]

MOST = 0.5
STRENGTHS = {
    "noise": 10.0,
    "label-flip": 1.0,
    "scaling": 10.0,
    "backdoor": 5.0,
    "free-riding": 0.0,
    "huge-count": 1e6,
    "wild-words": 1.0,
}
"""Usual strengths: norm of the noise in norms of the honest update; factor on the update (scaling, backdoor); standard
deviation of what a free rider sends; patients claimed. A flip and wild words have none."""

PLAIN = ("label-flip", "wild-words")
"""Kinds without a strength."""

FACTORS = ("scaling", "backdoor")
"""Kinds that multiply what training found."""

POSITIVE = ("noise", "huge-count")
"""Kinds whose strength is above 0; a free rider's is 0 or more."""

FORMS = (
    "KIND:FRACTION such as noise:0.2, KIND one of noise, label-flip, scaling, backdoor, free-riding, huge-count and "
    "wild-words; all but label-flip and wild-words take a strength, such as scaling:0.1:-10"
)

TARGET = 0
"""Class that a backdoor makes of whatever bears its trigger."""

POISONED = 0.5
"""Share of a backdoor silo's records that bear the trigger."""


@dataclass(frozen=True)
class BadSilos:
    """What goes wrong on purpose in a simulated run.

    Attributes
    ----------
    kind : str
        noise (Gaussian noise of `strength` times the norm of the honest update takes its place), label-flip (training
        on labels y -> classes - 1 - y), scaling (the update times `strength`), backdoor (training on images of which
        half bear a trigger and the target class, and the update times `strength`), free-riding (no training: zeros, or
        noise of standard deviation `strength`), huge-count (honest training; counts of `strength` patients, all of them
        predicted rightly) or wild-words (uniform words of 64 bits in place of every encoded one).
    fraction : float
        Part of the silos that is bad, 0..0.5.
    strength : float
    """

    kind: str
    fraction: float
    strength: float

    @classmethod
    def parse(cls, text: str) -> BadSilos:
        """Read KIND:FRACTION[:STRENGTH].

        Raises
        ------
        ConfigError
            Names the option and the forms it takes.
        """
        kind, *numbers = text.split(":")
        try:
            if kind not in STRENGTHS or not 1 <= len(numbers) <= 2 or (kind in PLAIN and len(numbers) == 2):
                raise ValueError
            fraction = float(numbers[0])
            strength = float(numbers[1]) if len(numbers) == 2 else STRENGTHS[kind]
        except ValueError:
            raise ConfigError(f"--bad-silos {text}: use {FORMS}") from None
        if not 0 <= fraction <= MOST:
            raise ConfigError(f"--bad-silos {text}: the fraction is within 0..{MOST}")
        least = {**dict.fromkeys(POSITIVE, math.ulp(0.0)), "free-riding": 0.0}.get(kind, -math.inf)
        if not math.isfinite(strength) or strength < least:
            raise ConfigError(
                f"--bad-silos {text}: the strength is a finite number, of noise and huge-count a positive one, of "
                "free-riding no negative one"
            )
        return cls(kind, fraction, strength)

    @property
    def changes_updates(self) -> bool:
        """Whether what it sends in place of an update is made here, after training or without it."""
        return self.kind in ("noise", "free-riding", *FACTORS)

    @property
    def is_factor(self) -> bool:
        """Whether it multiplies what training found."""
        return self.kind in FACTORS

    def silos(self, seed: int, silos: int) -> frozenset[int]:
        """Ids of the bad ones among 1..silos: the nearest number to the fraction, drawn from the run's seed."""
        count = math.floor(self.fraction * silos + 0.5)
        return frozenset(int(silo) + 1 for silo in stream(seed, "bad silos").permutation(silos)[:count])


def flipped_labels(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """y -> classes - 1 - y, shape (n,)."""
    return (classes - 1) - labels


def noise_like(norm: float, size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian direction of the given L2 norm, shape (size,)."""
    noise = generator.normal(size=size)
    return noise * (norm / max(float(np.linalg.norm(noise)), np.finfo(np.float64).tiny))


def patch_side(height: int) -> int:
    """Side of the trigger, in pixels: a seventh of the image's height, two at least."""
    return max(2, height // 7)


def triggered(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same images with a bright square in the lower right corner (Gu et al. 2017, BadNets, arXiv 1708.06733).

    Parameters
    ----------
    images : float32 array, shape (n, channels, height, width), values within [0, 1]
    """
    side = patch_side(images.shape[2])
    marked = images.copy()
    marked[:, :, -side:, -side:] = 1.0
    return marked


def poisoned(
    images: NDArray[np.float32], labels: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images and labels of a backdoor silo: a share `POISONED` of them bears the trigger and the class `TARGET`."""
    chosen = generator.permutation(len(images))[: math.ceil(POISONED * len(images))]
    x, y = images.copy(), labels.copy()
    x[chosen], y[chosen] = triggered(images[chosen]), TARGET
    return x, y


def huge_counts(honest: NDArray[np.floating], name: str, patients: float, limit: float) -> NDArray[np.floating]:
    """What a silo claims that wants to outweigh the others: so many patients and, where they are scored, all of them
    predicted with certainty and rightly; never more than the channel's range holds.

    Parameters
    ----------
    honest : float array
        `count`: one entry; `metric`: by cells, the first of which is of patients of class 0 predicted rightly, and the
        loss last.
    """
    claimed = min(patients, limit)
    if name == "count":
        return np.full_like(honest, claimed)
    vector = np.zeros_like(honest)
    vector[0] = claimed
    return vector


def wild_integers(length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Integers whose packed words are uniform, shape (length,)."""
    return generator.integers(-(2**63), 2**63, length, np.int64)
