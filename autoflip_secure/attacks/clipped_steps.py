"""What single records would add to a noised sum of clipped gradients, as the service computes it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.data.records import Records
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.privacy.per_patient import norms, patient_pieces
from autoflip_secure.privacy.per_record import PerRecordGradients

__all__ = ["clipped_steps"]


def clipped_steps(
    model: ModelPayload, records: Records, clip: float, columns: NDArray[np.int64], loss: str = "cross_entropy"
) -> NDArray[np.float64]:
    """Minus each record's gradient, masked and clipped as a whole, at some parameters, shape (records, columns).

    Parameters
    ----------
    columns : int64 array
        Flat indices of the parameters, in the order of `models.layout`.
    """
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    wanted, found = torch.from_numpy(columns), []
    with PerRecordGradients(network, loss) as gradients:
        masters, live = gradients.masters(), gradients.tensors(torch.from_numpy(model.mask))
        for real in patient_pieces(
            gradients, masters, torch.from_numpy(records.x), torch.from_numpy(records.y), live, None
        ):
            factor = (clip / norms(masters).clamp_min(clip))[:, None]
            rows = torch.cat([master.grad_sample.flatten(1) for master in masters], dim=1)
            found.append((-rows[:, wanted] * factor)[:real].numpy())
    return np.concatenate(found)
