"""The one thing a silo computes from its records in distributed mode: the sum of its patients' clipped gradients."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.per_patient import norms, patient_pieces
from autoflip_secure.privacy.per_record import Loss, PerRecordGradients

__all__ = ["CLIP_MARGIN", "ClippedGradientSum"]

EVEN = 0.5
"""Taken off each clip bit, so that a patient more or less moves their sum by one half and not by one."""

CLIP_MARGIN = 2.0**-20
"""Part of the clip given up so that rounding in float64 cannot push a patient's share above it."""


class ClippedGradientSum:
    """Sum over patients of their gradients, masked, then clipped to an L2 norm, flat in layout order.

    A patient's gradient is that of the one record, or the mean over several (see `patient_pieces`). Clipping is Opacus'
    own (`DPOptimizer.clip_and_accumulate`, factor min(1, C' / (norm + 1e-6))), run on float64 copies of the gradients
    with C' = clip (1 - 2^-20). For a model of d parameters the computed norm is within a relative (d + 2) 2^-53 of the
    true one and the product within 2^-53, so a patient's clipped gradient has norm at most clip (1 - 2^-20)(1 + (d + 4)
    2^-53) < clip (1 - 2^-21) for d < 10^9; the float64 sum of n patients is within n^2 2^-53 clip of the exact sum,
    which the other half of the margin covers for n <= 60,000 patients a sum. The float32 gradient of a record is taken
    as its gradient. It must not depend on the records beside it: pieces have one shape (`PerRecordGradients.chunks`),
    at which the kernels in use treat rows alike; a test asserts it.

    Parameters
    ----------
    module : nn.Module
        Hooked once, until `close`; its parameters are read at each call.
    loss : str or Loss
        See `PerRecordGradients`.

    Raises
    ------
    ConfigError
        See `PerRecordGradients`.
    """

    def __init__(self, module: nn.Module, loss: str | Loss = "cross_entropy") -> None:
        self._gradients = PerRecordGradients(module, loss)
        self._masters = self._gradients.masters()
        self._clipping = DPOptimizer(
            torch.optim.SGD(self._masters, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=None,
            loss_reduction="sum",
        )

    @property
    def size(self) -> int:
        """Number of coordinates of the sum."""
        return self._gradients.layout.size

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        clip: float,
        live: Tensor | None = None,
        patient: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Sum over a sampled batch; zeros where it is empty.

        Parameters
        ----------
        x, y : Tensor, first dimension the records
            On the module's device.
        clip : float
            L2 bound of one patient's masked gradient, hence of what one patient adds to the sum.
        live : bool Tensor, shape (size,), optional
            Parameters that take part; the gradients of the others are zeroed BEFORE norms are taken.
        patient : int64 array, shape (records,), optional
            Whose each record is; without it each record is a patient.

        Returns
        -------
        float64 array, shape (size,)

        Raises
        ------
        ConfigError
            The clip is not positive, or mask, records, targets and patients do not fit.
        """
        return self._sum(x, y, clip, live, patient, with_bits=False)[0]

    def with_clip_bits(
        self, x: Tensor, y: Tensor, clip: float, live: Tensor | None, patient: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float64], float]:
        """The sum, and over the same patients that of b - 1/2 with b = 1 where the norm is within `clip`, else 0."""
        return self._sum(x, y, clip, live, patient, with_bits=True)

    def _sum(
        self,
        x: Tensor,
        y: Tensor,
        clip: float,
        live: Tensor | None,
        patient: NDArray[np.int64] | None,
        *,
        with_bits: bool,
    ) -> tuple[NDArray[np.float64], float]:
        if not (math.isfinite(clip) and clip > 0):
            raise ConfigError(f"a clip of {clip} is not positive and finite")
        masks = self._gradients.tensors(live)
        self._clipping.max_grad_norm = clip * (1.0 - CLIP_MARGIN)
        bits = 0.0
        try:
            for real in patient_pieces(self._gradients, self._masters, x, y, masks, patient):
                if with_bits:
                    bits += int((norms(self._masters)[:real] <= clip).sum()) - EVEN * real
                self._clipping.clip_and_accumulate()
            return self._collect(), bits
        finally:
            for p in self._masters:
                p.grad_sample = p.summed_grad = None

    def _collect(self) -> NDArray[np.float64]:
        if self._masters[0].summed_grad is None:
            return np.zeros(self.size)
        return torch.cat([p.summed_grad.reshape(-1).cpu() for p in self._masters]).numpy()

    def close(self) -> None:
        """Take the hooks off the module."""
        self._gradients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
