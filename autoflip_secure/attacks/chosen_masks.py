"""Masks over honest weights that leave those alive which one silo moves and the others do not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.attacks.crafted_models import hidden_weights
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.training.local import mean_gradient

__all__ = ["chosen_mask", "drawn_mask", "masked"]

STEPS = 12
"""Decisions on the way to the share kept: each changes the network, and with it what the silos' gradients would be."""

SMALL = 1e-9


def masked(model: ModelPayload, mask: NDArray[np.bool_]) -> ModelPayload:
    """The model under a smaller mask; weights that live keep their values."""
    return ModelPayload(model.spec, np.where(mask, model.weights, np.float32(0)), mask, model.records)


def drawn_mask(model: ModelPayload, share: float, random: np.random.Generator) -> ModelPayload:
    """The model under a mask that keeps a random `share` of the hidden layers."""
    return _keeping(model, random.random(model.mask.size), share)


def chosen_mask(
    model: ModelPayload, share: float, victim: int, classes: Mapping[int, list[int]], public: Records, task: Task
) -> ModelPayload:
    """The model under a mask that keeps the `share` of the hidden layers whose gradients are most the victim's own.

    Gradients are foretold by public records of the classes that each silo is known to treat.

    Parameters
    ----------
    classes : mapping of silo to the classes it holds
    """
    for step in range(STEPS):
        own = _gradient(model, public, task, classes[victim])
        others = sum(_gradient(model, public, task, held) for silo, held in classes.items() if silo != victim)
        model = _keeping(model, np.abs(own) / (np.abs(others) + SMALL), share ** ((step + 1) / STEPS))
    return model


def _keeping(model: ModelPayload, scores: NDArray[np.floating], share: float) -> ModelPayload:
    hidden = hidden_weights(model.spec)
    candidates = np.flatnonzero(hidden & model.mask)
    best = candidates[np.argsort(-scores[candidates])[: round(share * int(hidden.sum()))]]
    mask = ~hidden
    mask[best] = True
    return masked(model, mask & model.mask)


def _gradient(model: ModelPayload, public: Records, task: Task, held: list[int]) -> NDArray[np.float64]:
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    rows = torch.from_numpy(np.flatnonzero(np.isin(public.y, held)))
    x, y = torch.from_numpy(public.x)[rows], torch.from_numpy(task.targets(public))[rows]
    return mean_gradient(network, x, y, loss=task.loss).numpy().astype(np.float64)
