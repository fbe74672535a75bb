"""A silo's noise in parts, so that what a sum's survivors do not need can be taken out of it afterwards.

The honest silos of a sum together owe a variance V. With n silos in the cohort, c of them colluding and d missing, each
survivor owes v_d = V / (n - d - c). How many will be missing is not known when the noise is drawn, hence a silo adds
v_T, T being the most that may be missing, as a sum of independent parts: v_0, and what more is owed the more are
missing. Once the survivors are known it reveals the seeds of the parts beyond v_d (see sums.noise_chain). This is the
add-then-remove noise of XNoise (Jiang, Wang and Chen 2024, Dordis, arXiv 2209.12528) with one chain of seeds a silo
instead of shared ones.

What is left of every honest survivor's noise is at least v_d, and a silo that reveals nothing only leaves more. More
independent noise is post-processing of the sum with just the noise owed, hence never weaker.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.privacy.discrete_noise import DiscreteGaussian
from autoflip_secure.sums.noise_chain import later_link, noise_stream
from autoflip_secure.sums.randomness import Randomness

__all__ = ["LARGEST_EXCESS", "LEAST_PART", "NoiseLevels"]

LARGEST_EXCESS = 1.02
"""Variance left over what is owed, at most, where counts of missing silos share a level: fewer parts for it."""
LEAST_PART = 8.0
"""Least variance of a part, in grid steps squared: the sum of two discrete Gaussians of at least this variance is one
discrete Gaussian up to a log-ratio of 10 exp(-8 pi^2) < 1e-33 (see discretisation_delta)."""


@dataclass(frozen=True)
class NoiseLevels:
    """How a silo's noise in one channel is cut into parts; computed from public numbers alone, alike by everybody.

    Attributes
    ----------
    owed : tuple of float
        Least variance of a survivor's noise with 0, 1, 2, ... silos missing, ascending, in grid steps squared.
    most : tuple of int
        For each level, ascending, the largest number of missing silos it is for. The last is the most that may be
        missing.
    kept : tuple of float
        For each level the variance of a silo's noise, in grid steps squared: that of parts 0 to the level's together.
    """

    owed: tuple[float, ...]
    most: tuple[int, ...]
    kept: tuple[float, ...]

    @classmethod
    def split(cls, owed: Sequence[float]) -> NoiseLevels:
        """Levels for what a survivor owes with 0, 1, 2, ... silos missing.

        With nobody missing just `owed[0]` is kept. Further counts share a level as long as its variance is at most
        `LARGEST_EXCESS` times what the fewest missing owe, and where a part would be smaller than `LEAST_PART`: then
        more noise stays.
        """
        most, kept = [0], [owed[0]]
        start = 1
        while start < len(owed):
            end = start
            while end + 1 < len(owed) and (
                owed[end + 1] <= LARGEST_EXCESS * owed[start] or owed[end] - kept[-1] < LEAST_PART
            ):
                end += 1
            if owed[end] - kept[-1] < LEAST_PART:
                most[-1], kept[-1] = end, owed[end]
            else:
                most.append(end)
                kept.append(owed[end])
            start = end + 1
        return cls(tuple(owed), tuple(most), tuple(kept))

    @property
    def stds(self) -> tuple[float, ...]:
        """Standard deviation of each part, in grid steps."""
        variances = (self.kept[0], *(more - less for less, more in pairwise(self.kept)))
        return tuple(variance**0.5 for variance in variances)

    @property
    def drawn(self) -> float:
        """Variance of a silo's whole noise as it is drawn."""
        return self.kept[-1]

    def level(self, missing: int) -> int:
        """Parts that are needed beside part 0 with so many silos missing."""
        return bisect_left(self.most, missing)

    def left(self, missing: int) -> float:
        """Variance of a silo's noise once the excess is removed."""
        return self.kept[self.level(missing)]

    def draw(self, count: int, channel: str, first: Randomness, root: bytes) -> NDArray[np.int64]:
        """A silo's whole noise, shape (count,).

        Parameters
        ----------
        first : Randomness
            Words of part 0, which is never removed.
        root : bytes, 32
            First link of the chain of the other parts.
        """
        return DiscreteGaussian(self.stds[0]).sample(count, first) + self._parts(1, count, channel, root, 1)

    def excess(self, count: int, channel: str, link: bytes, missing: int) -> NDArray[np.int64]:
        """The part of `draw` that is not needed with so many missing, shape (count,), from link `missing` + 1."""
        return self._parts(self.level(missing) + 1, count, channel, link, missing + 1)

    def _parts(self, first: int, count: int, channel: str, link: bytes, number: int) -> NDArray[np.int64]:
        """Sum of the parts from `first` on; `link` is the chain's link of that number."""
        total = np.zeros(count, np.int64)
        for part in range(first, len(self.most)):
            # A part comes from the link of the fewest missing silos that need it.
            needed = self.most[part - 1] + 1
            link, number = later_link(link, needed - number), needed
            total += DiscreteGaussian(self.stds[part]).sample(count, noise_stream(link, channel))
        return total
