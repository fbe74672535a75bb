"""Plain local training (no privacy noise): a fixed number of steps on seeded batches, under a pruning mask."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.models.losses import LOSSES
from autoflip_secure.training.memory_layout import channels_last, lay_out

__all__ = ["batches", "mean_gradient", "train_locally"]


def batches(records: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches of record indices: passes over all records, each in a fresh order without replacement.

    The last batch of a pass holds what is left, so that every pass uses every record once.

    Yields
    ------
    int64 tensor, shape (at most batch_size,)
    """
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if not len(left):
            left = torch.randperm(records, generator=generator)
        yield left[:batch_size]
        left = left[batch_size:]


def train_locally(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    momentum: float = 0.0,
    live: Tensor | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    loss: str = "cross_entropy",
    optimizer: str = "sgd",
    prox_mu: float = 0.0,
    squares: Tensor | None = None,
) -> None:
    """Minimise the mean loss in place. The number of steps never depends on the data.

    Images and filters are laid out channels last meanwhile: so convolutions and pooling are faster on CPUs, and their
    time follows the width also where that is no multiple of the processor's vectors, as it is after compaction.

    Parameters
    ----------
    module : nn.Module
        Returns outputs of shape (batch, outputs). Its training flag is restored at the end.
    x : float tensor, shape (n, *input_shape)
    y : tensor, first dimension n
        Targets as the loss takes them, such as class indices. Both on the module's device.
    generator : torch.Generator
        CPU generator of the batches.
    live : bool tensor, shape (parameters,), or None
        In the order of `models.layout`; where it is False the parameter is set to 0 and stays exactly 0.
    weight_decay : float
        L2 penalty, added to the gradient as in torch.optim.SGD.
    clip_norm : float or None
        Largest L2 norm of a batch's gradient, taken after masking. It bounds a step, not a record's influence.
    loss : str
        A name of `models.losses.LOSSES`.
    optimizer : sgd or adam
        SGD with `momentum`, or Adam with torch's betas; its averages start anew with each call.
    prox_mu : float
        FedProx (Li et al. 2020, arXiv 1812.06127): mu/2 ||w - w_0||^2 is added to the loss, w_0 the parameters as they
        came.
    squares : float tensor, shape (parameters,), or None
        Filled with the mean over all steps of the batch's squared gradient, as it is taken after masking and clipping;
        in the order of `models.layout`, on the module's device.

    Raises
    ------
    ConfigError
        An option is out of range, or the loss is unknown.
    DataError
        No records, or features and labels that do not match.
    """
    if loss not in LOSSES:
        raise ConfigError(f"unknown loss {loss!r}; there are {', '.join(sorted(LOSSES))}")
    _check_options(steps, batch_size, learning_rate, momentum, weight_decay, clip_norm)
    if optimizer not in ("sgd", "adam") or not (math.isfinite(prox_mu) and prox_mu >= 0):
        raise ConfigError(
            f"optimizer {optimizer!r} with a proximal weight of {prox_mu}: use sgd or adam, and 0 or more"
        )
    if not len(x) or len(y) != len(x):
        raise DataError(f"features of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)} do not match")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    dead = _dead_masks(module, live)
    optimiser: torch.optim.Optimizer
    if optimizer == "adam":
        optimiser = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
    else:
        optimiser = torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    was_training = module.training
    module.train()
    lay_out(module, torch.channels_last)
    _zero(parameters, dead)
    start = [parameter.detach().clone() for parameter in parameters] if prox_mu else []
    squared = [torch.zeros_like(parameter) for parameter in parameters] if squares is not None else []
    for indices in batches(len(x), batch_size, steps, generator):
        chosen = indices.to(x.device)
        optimiser.zero_grad()
        torch.autograd.backward(LOSSES[loss](module(channels_last(x[chosen])), y[chosen]) / len(chosen))
        for parameter, origin in zip(parameters, start, strict=bool(start)):
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - origin, alpha=prox_mu)
        _zero([parameter.grad for parameter in parameters], dead)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        for parameter, total in zip(parameters, squared, strict=bool(squared)):
            assert parameter.grad is not None
            total.addcmul_(parameter.grad, parameter.grad, value=1.0 / steps)
        optimiser.step()
    optimiser.zero_grad()
    module.train(was_training)
    lay_out(module, torch.contiguous_format)
    if squares is not None:
        squares.copy_(torch.cat([total.reshape(-1) for total in squared]))


GRADIENT_BATCH = 256
"""Records whose gradient is computed at a time."""


def mean_gradient(module: nn.Module, x: Tensor, y: Tensor, *, loss: str = "cross_entropy") -> Tensor:
    """Gradient of the mean loss over all records at the module's parameters, masked ones too, shape (parameters,).

    On the CPU, in the order of `models.layout`; the module keeps its parameters and has no gradients afterwards.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for start in range(0, len(x), GRADIENT_BATCH):
        part = slice(start, start + GRADIENT_BATCH)
        found = torch.autograd.grad(LOSSES[loss](module(channels_last(x[part])), y[part]), parameters)
        for sums, gradient in zip(total, found, strict=True):
            sums += gradient
    return torch.cat([(sums / len(x)).reshape(-1).cpu() for sums in total])


def _dead_masks(module: nn.Module, live: Tensor | None) -> list[Tensor | None] | None:
    """For each trainable parameter, True where it must be zero; None where all of it lives."""
    if live is None:
        return None
    layout = ParameterLayout.of(module)
    if live.dtype != torch.bool or live.shape != (layout.size,):
        raise ConfigError(
            f"a mask of {live.dtype} and shape {tuple(live.shape)} does not fit; "
            f"it needs one bool for each of {layout.size} parameters"
        )
    device = next(module.parameters()).device
    return [
        None if bool(live[part].all()) else ~live[part].view(shape).to(device) for _, part, shape in layout.slices()
    ]


@torch.no_grad()
def _zero(tensors: Sequence[Tensor | None], dead: list[Tensor | None] | None) -> None:
    # Filled rather than multiplied: 0 * inf is not 0, and 0 * -1 is -0.
    for tensor, mask in zip(tensors, dead or (), strict=dead is not None):
        if tensor is not None and mask is not None:
            tensor.masked_fill_(mask, 0.0)


def _check_options(
    steps: int, batch_size: int, learning_rate: float, momentum: float, weight_decay: float, clip_norm: float | None
) -> None:
    if steps < 1 or batch_size < 1:
        raise ConfigError(f"local training needs a positive number of steps and records, not {steps} and {batch_size}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ConfigError(f"learning rate {learning_rate} is not a positive number")
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum {momentum} is not within 0 <= momentum < 1")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ConfigError(f"weight decay {weight_decay} is negative or not finite")
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ConfigError(f"gradient-norm clip {clip_norm} is not a positive number")
