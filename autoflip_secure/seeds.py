"""Named reproducible random streams. Secret randomness never comes from here (see sums.randomness)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["stream", "stream_seed", "torch_stream"]


def stream_seed(seed: int, *names: str | int) -> int:
    """64-bit seed of the stream called `names` in the run with `seed`; different names are independent."""
    label = "/".join(["autoflip-secure", str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big")


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """NumPy generator (Philox) of a named stream."""
    return np.random.Generator(np.random.Philox(stream_seed(seed, *names)))


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """Torch CPU generator of a named stream."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, *names) >> 1)
