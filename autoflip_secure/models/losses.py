"""Losses by name. Each is SUMMED over the records, and the term of a record depends on that record alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LARGEST_EXPONENT", "LOSSES", "Loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""loss(outputs, targets) -> scalar."""

LARGEST_EXPONENT = 15.0
"""Log hazard ratio above which the survival loss goes on along its tangent, so that it stays finite in float32."""


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets, reduction="sum")


def _survival(outputs: Tensor, targets: Tensor) -> Tensor:
    """Piecewise-exponential negative log-likelihood, but for a term without parameters (see `data.follow_up`).

    outputs, shape (n, 1): theta. targets, shape (n, 2): events expected at the baseline, and 1 where the event was
    seen. A record's term is expected exp(theta) - event theta.
    """
    theta, (expected, event) = outputs[:, 0], targets.unbind(dim=1)
    within = theta.clamp(max=LARGEST_EXPONENT)
    hazard_ratio = torch.exp(within) * (1.0 + (theta - within))
    return (expected * hazard_ratio - event * theta).sum()


LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "squared_error": _squared_error, "survival": _survival}
