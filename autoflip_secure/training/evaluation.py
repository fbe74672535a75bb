"""What a module predicts, and how that is scored: single records directly, private ones through a sum."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoflip_secure.training.concordance import concordance
from autoflip_secure.training.memory_layout import channels_last
from autoflip_secure.training.metric_form import METRIC_SENSITIVITY, MetricForm
from autoflip_secure.training.private_metrics import PrivateScores, metric_vector, scores_from_vector
from autoflip_secure.training.scores import Scores, auroc, score

__all__ = [
    "METRIC_SENSITIVITY",
    "MetricForm",
    "PrivateScores",
    "Scores",
    "auroc",
    "concordance",
    "evaluate",
    "metric_vector",
    "predict",
    "score",
    "scores_from_vector",
]


@torch.no_grad()
def predict(
    module: nn.Module, x: NDArray[np.float32] | Tensor, batch: int = 256, *, kind: str = "multiclass"
) -> NDArray[np.float32]:
    """Class probabilities (softmax of the module's logits), `batch` records at a time; survival: log hazard ratios.

    The module's training flag is restored at the end.

    Returns
    -------
    float32 array, shape (n, classes), or (n, 1) for survival
    """
    features = torch.as_tensor(x)
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    filling = -len(features) % batch
    # Batches have one shape: float32 kernels are chosen by shape, and a record more must not move others' scores.
    filled = torch.cat([features, features.new_zeros(filling, *features.shape[1:])])
    outputs = torch.cat([module(channels_last(part.to(device))).float().cpu() for part in torch.split(filled, batch)])
    module.train(was_training)
    predictions = outputs[: len(features)]
    return (predictions if kind == "survival" else torch.softmax(predictions, dim=1)).numpy()


def evaluate(module: nn.Module, x: NDArray[np.float32], targets: NDArray[np.generic], kind: str) -> Scores:
    """`score` of the module's predictions; x of shape (n, *input_shape), targets as `Task.targets` gives them."""
    return score(predict(module, x, kind=kind), targets, kind)
