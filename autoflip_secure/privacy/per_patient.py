"""What is clipped as one: a patient's gradient, the mean over the patient's records, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.per_record import PerRecordGradients, PrivateParameter

__all__ = ["norms", "patient_pieces"]


def patient_pieces(
    gradients: PerRecordGradients,
    masters: Sequence[PrivateParameter],
    x: Tensor,
    y: Tensor,
    live: Sequence[Tensor | None],
    patient: NDArray[np.int64] | None,
) -> Iterator[int]:
    """Fill `grad_sample` of the masters with patients' gradients, a piece at a time; yields how many rows are real.

    A patient's gradient is the MEAN of the gradients of the patient's records: patients then weigh the same, the step
    does not grow with the number of records, and no cap on records is needed. It is the same to the last bit whoever
    else is in the batch: records are added one after another in their order, also from one chunk to the next, since
    with gradients that nearly cancel another order of rounding could turn into a whole clipped gradient.

    Parameters
    ----------
    x, y : Tensor, first dimension the records
    live : sequence of bool Tensor or None
        See `PerRecordGradients.fill`.
    patient : int64 array, shape (records,), or None
        Whose each record is; None: each record is a patient.

    Raises
    ------
    ConfigError
        Not one patient for each record.
    """
    if patient is None:
        for records, targets, real in gradients.chunks(x, y):
            gradients.fill(masters, records, targets, real, live)
            yield real
        return
    if patient.shape != (len(x),):
        raise ConfigError(f"{len(x)} records have {len(patient)} patients")
    order = np.argsort(patient, kind="stable")
    rows = torch.from_numpy(order).to(x.device)
    _, numbers, counts = np.unique(patient[order], return_inverse=True, return_counts=True)
    means, start = _Means(masters, counts), 0
    for records, targets, real in gradients.chunks(x[rows], y[rows]):
        gradients.fill(masters, records, targets, real, live)
        following = numbers[start + real] if start + real < len(numbers) else -1
        finished = means.replace(numbers[start : start + real], int(following))
        start += real
        if finished:
            yield finished


class _Means:
    """Turns rows of records into rows of patients. Keeps the sum of a patient whose records go on in the next chunk."""

    def __init__(self, masters: Sequence[PrivateParameter], counts: NDArray[np.int64]) -> None:
        self._masters, self._counts = masters, counts
        self._carried: list[Tensor] | None = None

    def replace(self, numbers: NDArray[np.int64], following: int) -> int:
        """Replace each `grad_sample` by the means of the patients that end in this chunk; returns how many they are.

        The shape stays that of the chunk, the rows after the means are zero: see `PerRecordGradients.chunks`.

        Parameters
        ----------
        numbers : int64 array, shape (real,)
            Patient of each real row, ascending by steps of at most one.
        following : int
            Patient of the next chunk's first row.
        """
        place = numbers - numbers[0]
        rank = np.arange(len(place)) - np.searchsorted(place, place)
        finished = int(place[-1]) + (following != numbers[-1])
        counts = torch.from_numpy(self._counts[numbers[0] : numbers[0] + finished].astype(np.float64))
        carried: list[Tensor] = []
        for index, p in enumerate(self._masters):
            sums = torch.zeros_like(p.grad_sample)
            if self._carried is not None:
                sums[0] = self._carried[index]
            for turn in range(int(rank.max()) + 1):
                # No patient twice in a turn: each sum grows by one record after another, on every device.
                rows = np.flatnonzero(rank == turn)
                target, source = (torch.from_numpy(i).to(sums.device) for i in (place[rows], rows))
                sums.index_add_(0, target, p.grad_sample[source])
            if finished <= place[-1]:
                carried.append(sums[finished].clone())
                sums[finished] = 0.0
            sums[:finished] /= counts.to(sums.device).view(-1, *[1] * (sums.dim() - 1))
            p.grad_sample = sums
        self._carried = carried or None
        return finished


def norms(masters: Sequence[PrivateParameter]) -> Tensor:
    """L2 norm over all masters of each row of `grad_sample`, float64, shape (rows,)."""
    by_parameter = [p.grad_sample.reshape(len(p.grad_sample), -1).norm(dim=1) for p in masters]
    return torch.stack(by_parameter, dim=1).norm(dim=1)
