"""The model as it travels to silos and lies on disk: live weights, mask and architecture, as one safetensors file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from autoflip_secure.errors import ConfigError, DataError, ProtocolError
from autoflip_secure.models.spec import ModelSpec, layout_of

__all__ = ["HALF", "ModelPayload"]

HALF = 0.5
"""Share of the votes from which a parameter lives."""


@dataclass(frozen=True)
class ModelPayload:
    """A public model.

    Attributes
    ----------
    spec : ModelSpec
        Architecture of the compacted network.
    weights : float32 array, shape (parameters,)
        In models.layout order; exactly 0 where the mask is False.
    mask : bool array, shape (parameters,)
        Which parameters live.
    records : int
        Public number of training records the run is normalised by.
    votes : float32 array, shape (parameters,), or None
        Where silos learn which parameters live: the share of them that kept each in the round before.
    """

    spec: ModelSpec
    weights: NDArray[np.float32]
    mask: NDArray[np.bool_]
    records: int
    votes: NDArray[np.float32] | None = None

    @property
    def network(self) -> NDArray[np.float32]:
        """Parameters of the network this is, shape (parameters,): those with half of the votes or more, others 0."""
        return self.weights if self.votes is None else np.where(self.votes >= HALF, self.weights, np.float32(0))

    def nominal_records(self, silos: int) -> int:
        """What a silo's own training is normalised by: its share of `records`, at least 1; the true one is private."""
        return max(1, self.records // silos)

    def to_bytes(self) -> bytes:
        """Safetensors file: `weights` holds live values only, `mask` is bit-packed."""
        tensors: dict[str, NDArray[Any]] = {
            "mask": np.packbits(self.mask),
            "weights": self.weights[self.mask].astype(np.float32),
        }
        if self.votes is not None:
            tensors["votes"] = self.votes.astype(np.float32)
        header = {"spec": self.spec.to_json(), "parameters": self.mask.size, "records": self.records}
        return save(tensors, metadata={"autoflip_secure": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelPayload:
        """Read and validate.

        Raises
        ------
        ProtocolError
            Not such a file, or sizes that do not agree.
        """
        try:
            tensors, metadata = _load(data)
            header = json.loads(metadata["autoflip_secure"])
            spec, size, records = ModelSpec.from_json(header["spec"]), header["parameters"], header["records"]
            packed, live = tensors["mask"], tensors["weights"]
            if type(size) is not int or size != layout_of(spec).size or packed.size != -(-size // 8):
                raise ProtocolError("a model has another number of parameters than its architecture")
            if type(records) is not int or records < 0:
                raise ProtocolError("a model's number of records is not a whole number")
            mask = np.unpackbits(packed, count=size).astype(bool)
            if live.dtype != np.float32 or live.shape != (int(mask.sum()),) or not np.isfinite(live).all():
                raise ProtocolError("a model's weights are not one finite number for each live parameter")
            weights = np.zeros(size, np.float32)
            weights[mask] = live
            votes = tensors.get("votes")
            if votes is not None and not (votes.dtype == np.float32 and votes.shape == (size,) and _are_shares(votes)):
                raise ProtocolError("a model's votes are not one share for each parameter")
            return cls(spec, weights, mask, records, votes)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, ConfigError, DataError) as error:
            # RuntimeError: of torch where a shape is beyond what it counts, and of JSON that is nested too deep
            raise ProtocolError(f"not a model: {error}") from error

    def mask_hash(self) -> bytes:
        """SHA-256 of architecture and mask, 32 bytes."""
        return hashlib.sha256(self.spec.to_json().encode() + b"|" + np.packbits(self.mask).tobytes()).digest()


def _are_shares(values: NDArray[np.float32]) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _load(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    from safetensors.numpy import load

    tensors = load(data)
    # safetensors.numpy.load drops the metadata: it is JSON of the length given in the first eight bytes.
    length = int.from_bytes(data[:8], "little")
    return tensors, json.loads(data[8 : 8 + length])["__metadata__"]
