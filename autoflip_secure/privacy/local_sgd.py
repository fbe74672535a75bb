"""Local DP-SGD: a silo's whole trajectory is private by itself, whoever else colludes (trust mode local)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.gradient_sum import CLIP_MARGIN
from autoflip_secure.privacy.per_patient import patient_pieces
from autoflip_secure.privacy.per_record import Loss, PerRecordGradients, PrivateParameter
from autoflip_secure.privacy.sampling import poisson_rows
from autoflip_secure.sums.gaussian import secure_gaussian
from autoflip_secure.sums.randomness import Randomness

__all__ = ["SecretNoiseOptimizer", "dp_sgd", "update_noise_variance"]


class SecretNoiseOptimizer(DPOptimizer):
    """Opacus' DP optimiser with noise from our own secret randomness, on live parameters only.

    Opacus' secure_mode needs a package that no longer builds; its construction (four draws summed) is kept, see
    `secure_gaussian`. Noise is drawn and added in float64 before anything is rounded to float32.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Over float64 parameters.
    noise : Randomness
        Source of the noise.
    live : sequence of bool Tensor or None
        For each parameter, which entries get noise; None is all.
    options
        Those of `DPOptimizer`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, noise: Randomness, live: Sequence[Tensor | None], **options: Any
    ) -> None:
        super().__init__(optimizer, **options)
        self._noise = noise
        self._live = live

    def add_noise(self) -> None:
        std = self.noise_multiplier * self.max_grad_norm / (1.0 - CLIP_MARGIN)
        for p, live in zip(self.params, self._live, strict=True):
            noise = torch.from_numpy(secure_gaussian(p.numel(), std, self._noise)).view_as(p).to(p.device)
            if live is not None:
                noise.masked_fill_(~live, 0.0)
            p.grad = (p.summed_grad + noise).view_as(p)


def dp_sgd(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    nominal_records: int,
    steps: int,
    sampling_rate: float,
    clip: float,
    noise_multiplier: float,
    learning_rate: float,
    momentum: float,
    live: Tensor | None,
    sampling: Randomness,
    noise: Randomness,
    loss: str | Loss = "cross_entropy",
    patient: NDArray[np.int64] | None = None,
) -> None:
    """Train `module` in place with `steps` steps of DP-SGD (Abadi et al. 2016). The ledger is the accountant.

    Each step Poisson-samples the patients, masks and clips the gradient of each (see `patient_pieces`), adds Gaussian
    noise of standard deviation noise_multiplier * clip, divides by the expected batch size sampling_rate *
    nominal_records and steps. The number of steps never depends on the data. Weights are kept in float64 and rounded to
    the module's type after each step.

    Parameters
    ----------
    x, y : Tensor, first dimension the records
        All of the silo's training records.
    nominal_records : int
        PUBLIC nominal number of records, or of patients where `patient` is given; the true one is private and must not
        set the step size.
    live : bool Tensor, shape (parameters,), optional
        Parameters that are trained; the others get neither gradient nor noise and keep their value.
    sampling, noise : Randomness
        Both secret in a real run.
    patient : int64 array, shape (records,), optional
        Whose each record is; without it each record is a patient.

    Raises
    ------
    ConfigError
        A parameter is out of its range, or see `PerRecordGradients`.
    """
    _check(nominal_records, steps, sampling_rate, clip, noise_multiplier, learning_rate, momentum)
    with PerRecordGradients(module, loss) as gradients:
        masks = gradients.tensors(live)
        masters = gradients.masters()
        optimizer = SecretNoiseOptimizer(
            torch.optim.SGD(masters, lr=learning_rate, momentum=momentum),
            noise=noise,
            live=masks,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip * (1.0 - CLIP_MARGIN),
            expected_batch_size=sampling_rate * nominal_records,
        )
        for _ in range(steps):
            rows = poisson_rows(len(x), patient, sampling_rate, sampling)
            batch = torch.from_numpy(rows).to(x.device)
            whose = None if patient is None else patient[rows]
            _step(gradients, masters, masks, optimizer, x[batch], y[batch], whose)
            with torch.no_grad():
                for p, master in zip(gradients.parameters, masters, strict=True):
                    p.copy_(master)


def update_noise_variance(
    *, steps: int, expected_batch: float, clip: float, noise_multiplier: float, learning_rate: float
) -> float:
    """Variance that the noise of `dp_sgd` without momentum gives each live parameter: steps (rate z C / batch)^2.

    A public figure. Later steps start from models that carry the noise of earlier ones, which is not counted.
    """
    return steps * (learning_rate * noise_multiplier * clip / expected_batch) ** 2


def _step(
    gradients: PerRecordGradients,
    masters: Sequence[PrivateParameter],
    masks: Sequence[Tensor | None],
    optimizer: DPOptimizer,
    x: Tensor,
    y: Tensor,
    patient: NDArray[np.int64] | None,
) -> None:
    """One step: the pieces of a large batch are clipped and added up first, an empty batch is noise alone."""
    for _ in patient_pieces(gradients, masters, x, y, masks, patient):
        optimizer.signal_skip_step(True)
        optimizer.step()
        optimizer.zero_grad()
    for p in masters:
        p.grad_sample = torch.zeros(0, *p.shape, dtype=p.dtype, device=p.device)
    optimizer.signal_skip_step(False)
    optimizer.step()
    optimizer.zero_grad()


def _check(
    patients: int,
    steps: int,
    sampling_rate: float,
    clip: float,
    noise_multiplier: float,
    learning_rate: float,
    momentum: float,
) -> None:
    if patients < 1 or steps < 0:
        raise ConfigError(f"cannot train {steps} steps on a nominal {patients} records")
    if not 0 < sampling_rate <= 1:
        raise ConfigError(f"sampling rate {sampling_rate} is not within (0, 1]")
    if not (math.isfinite(clip) and clip > 0):
        raise ConfigError(f"a clip of {clip} is not positive and finite")
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ConfigError(f"noise multiplier {noise_multiplier} is negative or not finite")
    if not (math.isfinite(learning_rate) and learning_rate > 0 and 0 <= momentum < 1):
        raise ConfigError(f"learning rate {learning_rate} and momentum {momentum} are out of range")
