"""Membership read from opened sums under DP: does a noised sum point where the record's own clipped gradient would?

The dot product of a sum with a record's gradient is the test that the noise leaves (Nasr et al. 2019, arXiv 1812.00910,
attack gradients; Sablayrolles et al. 2019, arXiv 1908.11229, what they hold at best). Noise is not all that hides the
record: other patients' gradients do as well, mostly along directions that records have in common. Those are learnt from
public records, and the product is taken in the metric in which noise and other patients together are white.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoflip_secure.attacks.clipped_steps import clipped_steps
from autoflip_secure.attacks.membership_federations import Game
from autoflip_secure.attacks.recorded_view import OpenedSum

__all__ = ["alignments", "whitened"]


KNOWN = 100
"""Public records at most from which directions that records have in common are learnt: more tell no more."""


def alignments(game: Game, sums: Iterable[OpenedSum]) -> NDArray[np.float64]:
    """How far all sums of a run together point towards each candidate's own steps, in standard deviations.

    Parameters
    ----------
    sums : iterable of OpenedSum
        Noised sums of clipped gradients (distributed DP), each of one or more silos.

    Returns
    -------
    float64 array, shape (candidates,)
        Over independent noises evidence adds up.
    """
    total, known = np.zeros(len(game.records)), game.public.take(np.arange(min(KNOWN, len(game.public))))
    for opened in sums:
        model, terms = opened.asked.model, opened.asked.manifest.privacy
        there = np.isin(game.silo + 1, opened.silos)
        others = terms.sampling_rate * game.member.mean() * int(there.sum()) / len(known)
        update = torch.from_numpy(opened.channels["update"].astype(np.float32))
        live = np.flatnonzero(model.mask)
        steps, public = (
            torch.from_numpy(clipped_steps(model, records, terms.clip, live).astype(np.float32))
            for records in (game.records, known)
        )
        total += np.where(there, whitened(update, steps, public, terms.noise_multiplier * terms.clip, others), 0.0)
    return total


def whitened(total: Tensor, steps: Tensor, public: Tensor, noise: float, others: float) -> NDArray[np.float64]:
    """g' C^-1 v / sqrt(g' C^-1 g) of each step g and the sum v, with C = noise^2 I + others * public' public.

    By Woodbury's identity, since public records are fewer than coordinates.

    Parameters
    ----------
    total : float tensor, shape (coordinates,)
    steps, public : float tensors, shapes (candidates, coordinates) and (public records, coordinates)
    noise : float
        Standard deviation of a coordinate of the sum.
    others : float
        Patients in the sum for each public record.
    """
    inner = (public @ public.T).double()
    inner += torch.eye(len(public), dtype=torch.float64) * noise**2 / others
    mixed, seen = (public @ steps.T).double(), (public @ total).double()
    taken_out = torch.linalg.solve(inner, mixed)
    along = (steps @ total).double() - taken_out.T @ seen
    length = (steps.double() ** 2).sum(dim=1) - (mixed * taken_out).sum(dim=0)
    found: NDArray[np.float64] = (along / length.clamp(min=1e-12).sqrt() / noise).numpy()
    return found
