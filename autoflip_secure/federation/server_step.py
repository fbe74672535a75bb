"""How the mean update of a round moves the model: averaging with momentum, or FedAdam."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.model_payload import ModelPayload

__all__ = ["FedAdam", "ServerMoments", "moved"]

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ServerMoments:
    """What the server remembers of past updates, in the model's layout; 0 where the mask is False.

    Attributes
    ----------
    velocity : float64 (size,)
        Momentum buffer, or Adam's mean of updates.
    square : float64 (size,)
        Adam's mean of squared updates; zeros where the server averages.
    steps : int
        Updates seen.
    """

    velocity: Values
    square: Values
    steps: int = 0

    @classmethod
    def zeros(cls, size: int) -> ServerMoments:
        """Nothing seen yet."""
        return cls(np.zeros(size), np.zeros(size))

    def compact(self, kept: NDArray[np.int64], mask: NDArray[np.bool_]) -> ServerMoments:
        """Those of the network of the parameters `kept` under its mask; -1 is one that was not there before."""
        known = mask & (kept >= 0)
        velocity, square = (np.where(known, values[kept], 0.0) for values in (self.velocity, self.square))
        return ServerMoments(velocity, square, self.steps)


@dataclass(frozen=True)
class FedAdam:
    """Adam on the mean update as gradient (Reddi et al. 2021, arXiv 2003.00295), torch's own, with bias correction.

    Attributes
    ----------
    learning_rate : float
    betas : tuple of float
    adaptivity : float
        tau, added to the root of the mean square.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    adaptivity: float = 1e-3

    def move(self, weights: Values, update: Values, moments: ServerMoments) -> tuple[Values, ServerMoments]:
        """The weights after one step along `update`, and the moments to keep, each of shape (size,).

        A parameter whose updates have all been 0, such as a masked one, does not move.
        """
        parameter = torch.nn.Parameter(torch.from_numpy(weights.astype(np.float64)))
        optimiser = torch.optim.Adam([parameter], lr=self.learning_rate, betas=self.betas, eps=self.adaptivity)
        optimiser.state[parameter] = {
            "step": torch.tensor(float(moments.steps)),
            "exp_avg": torch.from_numpy(moments.velocity.copy()),
            "exp_avg_sq": torch.from_numpy(moments.square.copy()),
        }
        parameter.grad = torch.from_numpy(-update)
        optimiser.step()
        state = optimiser.state[parameter]
        kept = ServerMoments(state["exp_avg"].numpy(), state["exp_avg_sq"].numpy(), moments.steps + 1)
        return parameter.detach().numpy(), kept


def moved(
    config: ResolvedConfig, number: int, model: ModelPayload, moments: ServerMoments, update: Values
) -> tuple[ModelPayload, ServerMoments]:
    """The model after round `number`, moved along `update` (size,): averaging with momentum, or FedAdam.

    Under DP the momentum is the server's: it smooths noise over rounds, and as post-processing it costs nothing.
    Without DP it is the silos' own.
    """
    weights = model.weights.astype(np.float64)
    if config.server_optimizer == "adam":
        adam = FedAdam(config.server_learning_rate * config.lr_decay**number)
        weights, moments = adam.move(weights, update, moments)
    else:
        momentum = 0.0 if config.trust == "none" else config.momentum
        velocity = np.where(model.mask, momentum * moments.velocity + update, 0.0)
        moments = replace(moments, velocity=velocity, steps=moments.steps + 1)
        weights = weights + velocity
    live = np.where(model.mask, weights.astype(np.float32), np.float32(0))
    return replace(model, weights=live), moments
