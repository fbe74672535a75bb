"""Records from the gradient of a first layer that is fully connected: division, and its row space.

For unit j the gradient of its weights is sum_i d_ij x_i and that of its bias sum_i d_ij (d: error sent back to it).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoflip_secure.attacks.gradient_match import GradientMatch, SeenGradient
from autoflip_secure.attacks.reconstruction import RENEW, PublicPrior, outside

__all__ = ["by_division", "by_row_space", "first_layer_gradient"]


def first_layer_gradient(seen: SeenGradient) -> NDArray[np.float64]:
    """Gradient of the first layer's weights beside that of its biases, shape (units, features + 1)."""
    units, features = seen.model.spec.widths[0], int(np.prod(seen.model.spec.input_shape))
    whole = seen.whole
    weights, biases = whole[: units * features], whole[units * features : units * (features + 1)]
    return np.column_stack([weights.reshape(units, features), biases])


def by_division(seen: SeenGradient) -> NDArray[np.float32]:
    """Weight gradient over bias gradient, unit by unit, shape (units, *input_shape), within 0..1.

    A unit that one record alone excites shows it exactly (Phong et al. 2018, IEEE TIFS 13(5), section III).
    """
    rows = first_layer_gradient(seen)
    rows = rows[rows[:, -1] != 0]
    pictures: NDArray[np.float32] = (rows[:, :-1] / rows[:, -1:]).clip(0, 1).astype(np.float32)
    shaped: NDArray[np.float32] = pictures.reshape(len(pictures), *seen.model.spec.input_shape)
    return shaped


def by_row_space(
    seen: list[SeenGradient], match: GradientMatch, prior: PublicPrior, labels: NDArray[np.int64], *,
    steps: int, seed: int,
) -> NDArray[np.float32]:  # fmt: skip
    """The n records, sought among the combinations of n directions that the first layer's gradient consists of.

    Rows (sum_i d_ij x_i, sum_i d_ij) of n records lie in the span of the n vectors (x_i, 1), however many silos the
    records are spread over, so with fewer records than units only n^2 numbers are left to find, which all layers'
    gradients together fix. Kariyappa et al. 2023 (cocktail party attack, arXiv 2209.05578) unmix the same rows by
    independence; matching gradients does without that assumption. L-BFGS from class means with some noise.

    Returns
    -------
    float32 array, shape (n, *input_shape), within 0..1
    """
    rows = np.concatenate([first_layer_gradient(one) / float(np.linalg.norm(one.values)) for one in seen])
    span = np.linalg.svd(rows, full_matrices=False)[2][: len(labels)]
    means = prior.means[labels].reshape(len(labels), -1)
    start = np.column_stack([
        means + np.random.default_rng(seed).normal(0, 0.1, means.shape), np.ones(len(labels))
    ])  # fmt: skip
    directions = torch.from_numpy(span).to(match.dtype)
    mix = torch.from_numpy(start @ span.T).to(match.dtype).requires_grad_()
    lbfgs = torch.optim.LBFGS(
        [mix], max_iter=RENEW, max_eval=2 * RENEW, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=1e-14, tolerance_change=1e-16,
    )  # fmt: skip

    def pictures() -> tuple[Tensor, Tensor]:
        found = mix @ directions
        return found[:, :-1].reshape(match.shape), found[:, -1]

    def closure() -> Tensor:
        lbfgs.zero_grad()
        x, ones = pictures()
        miss = match.distance(x) + outside(x) + ((ones - 1) ** 2).mean()
        torch.autograd.backward(miss)
        return miss

    for _ in range(0, steps, RENEW):
        match.reweigh(pictures()[0].clamp(0, 1))
        lbfgs.step(closure)  # type: ignore[no-untyped-call]
    return pictures()[0].detach().clamp(0, 1).float().numpy()
