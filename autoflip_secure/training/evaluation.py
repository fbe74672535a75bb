"""What a module predicts, and how that is scored: on public records directly, on private ones through counts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoflip_secure.training.private_metrics import PrivateScores, metric_counts, metric_length, metrics_from_counts
from autoflip_secure.training.scores import Scores, auroc, score

__all__ = [
    "PrivateScores",
    "Scores",
    "auroc",
    "evaluate",
    "metric_counts",
    "metric_length",
    "metrics_from_counts",
    "predict",
    "score",
]


@torch.no_grad()
def predict(module: nn.Module, x: NDArray[np.float32] | Tensor, batch: int = 256) -> NDArray[np.float32]:
    """Class probabilities (softmax of the module's logits), `batch` records at a time.

    The module's training flag is restored at the end.

    Returns
    -------
    float32 array, shape (n, classes)
    """
    features = torch.as_tensor(x)
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    filling = -len(features) % batch
    # Batches have one shape: float32 kernels are chosen by shape, and a record more must not move others' scores.
    filled = torch.cat([features, features.new_zeros(filling, *features.shape[1:])])
    parts = [torch.softmax(module(part.to(device)).float(), dim=1).cpu() for part in torch.split(filled, batch)]
    module.train(was_training)
    return torch.cat(parts)[: len(features)].numpy()


def evaluate(module: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], kind: str) -> Scores:
    """`score` of the module's predictions; x of shape (n, *input_shape), y of shape (n,)."""
    return score(predict(module, x), y, kind)
