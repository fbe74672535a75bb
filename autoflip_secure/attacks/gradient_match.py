"""How well made-up records explain gradients that a coordinator saw: what every inversion minimises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build

__all__ = ["GradientMatch", "SeenGradient", "label_counts", "predictions"]


@dataclass(frozen=True, eq=False)
class SeenGradient:
    """One gradient of a batch of records, as somebody has it who saw an update.

    Attributes
    ----------
    model : ModelPayload
        The public network that it was taken at.
    values : float64 array, shape (live parameters,)
        Sum over the records of the gradients of their cross entropies, noise included.
    noise : float
        Public standard deviation of the noise of a coordinate; 0 where there is none.
    clip : float or None
        L2 norm to which each record's gradient was clipped before it was added; None: not clipped.
    """

    model: ModelPayload
    values: NDArray[np.float64]
    noise: float = 0.0
    clip: float | None = None

    @property
    def whole(self) -> NDArray[np.float64]:
        """In the model's layout, 0 where the mask is False, shape (parameters,)."""
        filled = np.zeros(self.model.mask.size)
        filled[self.model.mask] = self.values
        return filled


class GradientMatch:
    """The gradients that a batch of made-up records would have given, and their distance from those that were seen.

    Records' clipping factors depend on the records, too; they are held constant meanwhile, and `reweigh` renews them.

    Parameters
    ----------
    seen : sequence of SeenGradient
        Of the same records, at different models.
    labels : int64 array, shape (n,)
        One a record; `distance` takes others.
    dtype : torch.dtype
        That everything is computed in.
    """

    def __init__(
        self, seen: Sequence[SeenGradient], labels: NDArray[np.int64], dtype: torch.dtype = torch.float32
    ) -> None:
        self._parts = [_Part(one, len(labels), dtype) for one in seen]
        self.labels = F.one_hot(torch.from_numpy(labels), seen[0].model.spec.outputs).to(dtype)
        self.dtype, self.shape = dtype, (len(labels), *seen[0].model.spec.input_shape)
        # Variance of all noise over the squared length of all that was seen: how little the distance means.
        self.noise_ratio = sum(one.noise**2 / float(one.values @ one.values) for one in seen)

    def distance(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Sum over the gradients of the squared distance over the squared length of what was seen (DLG, eq. 4)."""
        labels = self.labels if labels is None else labels
        terms = [((part.gradient(x, labels) - part.target) ** 2).sum() / part.length for part in self._parts]
        return torch.stack(terms).sum()

    def angle(self, x: Tensor) -> Tensor:
        """Sum over the gradients of 1 - cosine (Geiping et al., eq. 4)."""
        terms = [1 - F.cosine_similarity(p.gradient(x, self.labels), p.target, dim=0) for p in self._parts]
        return torch.stack(terms).sum()

    def reweigh(self, x: Tensor) -> None:
        """Set the clipping factors to those of records x, shape (n, *input_shape)."""
        for part in self._parts:
            part.reweigh(x.detach(), self.labels)


class _Part:
    """One seen gradient, ready for differentiation."""

    def __init__(self, seen: SeenGradient, records: int, dtype: torch.dtype) -> None:
        self._network, self._clip = network_of(seen.model).to(dtype), seen.clip
        self._parameters = list(self._network.parameters())
        self._live = torch.from_numpy(seen.model.mask)
        self._factors = torch.ones(records, dtype=dtype)
        self.target = torch.from_numpy(seen.values).to(dtype)
        self.length = (self.target**2).sum()

    def gradient(self, x: Tensor, labels: Tensor) -> Tensor:
        """Sum of the records' gradients at the live parameters, as a function of x that can be differentiated."""
        terms = -(labels * F.log_softmax(self._network(x), dim=1)).sum(dim=1)
        found = torch.autograd.grad((self._factors * terms).sum(), self._parameters, create_graph=True)
        return torch.cat([tensor.reshape(-1) for tensor in found])[self._live]

    def reweigh(self, x: Tensor, labels: Tensor) -> None:
        if self._clip is not None:
            self._factors = (self._clip / self._norms(x, labels)).clamp(max=1.0)

    def _norms(self, x: Tensor, labels: Tensor) -> Tensor:
        found = []
        for one, label in zip(x[:, None], labels[:, None], strict=True):
            term = -(label * F.log_softmax(self._network(one), dim=1)).sum()
            gradient = torch.cat([t.reshape(-1) for t in torch.autograd.grad(term, self._parameters)])
            found.append(gradient[self._live].norm())
        return torch.stack(found)


def network_of(model: ModelPayload) -> torch.nn.Module:
    """The network that a payload describes, with its weights."""
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    return network


@torch.no_grad()
def predictions(model: ModelPayload, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of the classes, shape (n, outputs)."""
    found: NDArray[np.float64] = network_of(model)(torch.from_numpy(x)).softmax(dim=1).double().numpy()
    return found


def label_counts(
    seen: SeenGradient, records: int, public_x: NDArray[np.float32], public_y: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many of the records behind a gradient have each label, shape (outputs,).

    The last bias' gradient is sum_i p(x_i) - onehot(y_i). For one record it is negative at its label and nowhere else
    (iDLG, Zhao et al. 2020). For more, with P_k the mean prediction on public records of class k, the counts solve
    sum_k n_k (P_k - e_k) = gradient, sum_k n_k = records, in least squares, and are rounded to that sum.
    """
    outputs = seen.model.spec.outputs
    bias = seen.whole[-outputs:]
    guessed = predictions(seen.model, public_x)
    mean = np.stack([guessed[public_y == label].mean(axis=0) for label in range(outputs)])
    system = np.vstack([(mean - np.eye(outputs)).T, np.ones((1, outputs))])
    solved = np.linalg.lstsq(system, np.append(bias, records), rcond=None)[0].clip(min=0)
    counts: NDArray[np.int64] = np.floor(solved).astype(np.int64)
    while counts.sum() < records:
        counts[np.argmax(solved - counts)] += 1
    while counts.sum() > records:
        counts[np.argmin(np.where(counts > 0, solved - counts, np.inf))] -= 1
    return counts
