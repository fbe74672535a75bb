"""Silos that spoil the sum on purpose (`--bad-silos`): which silos, and what they send in place of honest values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.seeds import stream

__all__ = ["BadSilos", "flipped_labels", "noise_like"]

MOST = 0.5
STRENGTHS = {"noise": 10.0, "label-flip": 1.0, "scaling": 10.0}
"""Usual strengths: norm of the noise in norms of the honest update; factor on the update. A flip has none."""

FORMS = (
    "noise:FRACTION, label-flip:FRACTION or scaling:FRACTION, such as noise:0.2; noise and scaling take a strength, "
    "such as scaling:0.1:-10"
)


@dataclass(frozen=True)
class BadSilos:
    """What goes wrong on purpose in a simulated run.

    Attributes
    ----------
    kind : str
        noise (Gaussian noise of `strength` times the norm of the honest update takes its place), label-flip (training
        on labels y -> classes - 1 - y) or scaling (the update times `strength`).
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
            if kind not in STRENGTHS or not 1 <= len(numbers) <= 2 or (kind == "label-flip" and len(numbers) == 2):
                raise ValueError
            fraction = float(numbers[0])
            strength = float(numbers[1]) if len(numbers) == 2 else STRENGTHS[kind]
        except ValueError:
            raise ConfigError(f"--bad-silos {text}: use {FORMS}") from None
        if not 0 <= fraction <= MOST:
            raise ConfigError(f"--bad-silos {text}: the fraction is within 0..{MOST}")
        if not math.isfinite(strength) or (kind == "noise" and strength <= 0):
            raise ConfigError(f"--bad-silos {text}: the strength is a finite number, of noise a positive one")
        return cls(kind, fraction, strength)

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
