"""Records from gradients: the optimisers. Each is given what an adversary has, and nothing else.

- Zhu et al. 2019, Deep Leakage from Gradients (DLG, arXiv 1906.08935): L-BFGS on the squared distance, labels too.
- Geiping et al. 2020, Inverting Gradients (arXiv 2003.14053): Adam with the gradient's sign on the angle, with total
  variation as prior.
- Here, for batches: the most probable records under a Gaussian prior that is fitted to public records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autoflip_secure.attacks.gradient_match import GradientMatch

__all__ = ["PublicPrior", "by_angle", "by_deep_leakage", "by_prior", "outside"]

COMPONENTS = 100
"""Directions in which records differ from their class' mean; public records fix hardly more."""

RENEW = 20
"""Steps between renewals of the clipping factors."""

LEAST_TRUST = 1e-3
"""Weight of the prior where there is no noise: it holds only what the gradient leaves open."""


@dataclass(frozen=True, eq=False)
class PublicPrior:
    """What public records say of records of a class.

    Attributes
    ----------
    means : float32 array, shape (classes, *input_shape)
    directions : float32 array, shape (components, features)
        Principal components of public records around their class' mean, each as long as its standard deviation.
    """

    means: NDArray[np.float32]
    directions: NDArray[np.float32]

    @classmethod
    def of(cls, x: NDArray[np.float32], y: NDArray[np.int64], classes: int) -> PublicPrior:
        """From public records; every class has some."""
        means = np.stack([x[y == label].mean(axis=0) for label in range(classes)])
        around = (x - means[y]).reshape(len(x), -1)
        _, sizes, directions = np.linalg.svd(around, full_matrices=False)
        scaled = directions * (sizes / len(x) ** 0.5)[:, None]
        return cls(means.astype(np.float32), scaled[:COMPONENTS].astype(np.float32))


def by_prior(
    match: GradientMatch, prior: PublicPrior, labels: NDArray[np.int64], *, steps: int, seed: int
) -> NDArray[np.float32]:
    """Class mean plus principal components z ~ N(0, 1), most probable given what was seen (Adam over z).

    Minimised is distance + w mean(z^2) with w = size(z) x noise variance over squared length, which makes it the
    posterior's logarithm up to a factor, and at least `LEAST_TRUST`.

    Returns
    -------
    float32 array, shape (n, *input_shape), within 0..1
    """
    generator = torch.Generator().manual_seed(seed)
    means = torch.from_numpy(prior.means[labels]).to(match.dtype)
    directions = torch.from_numpy(prior.directions).to(match.dtype)
    z = 0.3 * torch.randn((len(labels), len(directions)), generator=generator, dtype=match.dtype)
    z.requires_grad_()
    weight = max(LEAST_TRUST, z.numel() * match.noise_ratio)
    adam = torch.optim.Adam([z], lr=0.1)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in range(steps):
        x = means + (z @ directions).reshape(means.shape)
        if step % RENEW == 0:
            match.reweigh(x.clamp(0, 1))
        adam.zero_grad()
        torch.autograd.backward(match.distance(x) + weight * (z**2).mean() + outside(x))
        adam.step()
        slower.step()
    return (means + (z @ directions).reshape(means.shape)).detach().clamp(0, 1).float().numpy()


def by_angle(
    match: GradientMatch, start: NDArray[np.float32], *, steps: int, rate: float = 0.1, variation: float = 1e-3
) -> NDArray[np.float32]:
    """Geiping et al. 2020: signed Adam on the angle plus total variation, pixels kept within 0..1, from `start`."""
    x = torch.from_numpy(start.copy()).to(match.dtype).requires_grad_()
    adam = torch.optim.Adam([x], lr=rate)
    slower = torch.optim.lr_scheduler.MultiStepLR(adam, [steps * part // 8 for part in (3, 5, 7)], gamma=0.1)
    for step in range(steps):
        if step % RENEW == 0:
            match.reweigh(x)
        adam.zero_grad()
        torch.autograd.backward(match.angle(x) + variation * _total_variation(x))
        assert x.grad is not None
        x.grad.sign_()
        adam.step()
        slower.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach().float().numpy()


def by_deep_leakage(match: GradientMatch, *, steps: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Zhu et al. 2019: (records, labels) by L-BFGS from random pictures and random labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(match.shape, generator=generator, dtype=match.dtype).requires_grad_()
    scores = torch.randn(match.labels.shape, generator=generator, dtype=match.dtype).requires_grad_()
    lbfgs = torch.optim.LBFGS(
        [x, scores], max_iter=steps, max_eval=2 * steps, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-12, tolerance_change=1e-14,
    )  # fmt: skip

    def closure() -> Tensor:
        lbfgs.zero_grad()
        distance = match.distance(x, scores.softmax(dim=1))
        torch.autograd.backward(distance)
        return distance

    lbfgs.step(closure)  # type: ignore[no-untyped-call]
    return x.detach().clamp(0, 1).float().numpy(), scores.detach().argmax(dim=1).numpy()


def outside(x: Tensor) -> Tensor:
    """Mean square by which pixels leave 0..1."""
    return (F.relu(-x) ** 2 + F.relu(x - 1) ** 2).mean()


def _total_variation(x: Tensor) -> Tensor:
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()
