"""How far a mean over seeds may be off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

__all__ = ["half_width"]


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of at least two values (Student's t)."""
    numbers = np.asarray(values, np.float64)
    return float(student.ppf(0.975, numbers.size - 1) * numbers.std(ddof=1) / numbers.size**0.5)
