"""A simulated silo that contributes what `--bad-silos` says. The honest Contributor knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.bad_silos import BadSilos, flipped_labels, noise_like
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.data.task import Task
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.seeds import stream
from autoflip_secure.sums.manifest import Manifest

__all__ = ["BadContributor"]

Vectors = Mapping[str, NDArray[np.floating]]


class BadContributor(Contributor):
    """Contributor of a bad silo: trains on flipped labels, or replaces what training found before it is encoded.

    Rounding, the public range of the encoding and noise for DP are the honest ones: with them a vector is bounded
    whatever a silo does. Counts, scores and clip bits stay honest.
    """

    def __init__(
        self, bad: BadSilos, config: ResolvedConfig, task: Task, data: SiloData, silo: int, device: str
    ) -> None:
        if bad.kind == "label-flip":
            data = replace(data, train=replace(data.train, y=flipped_labels(data.train.y, task.classes)))
        super().__init__(config, task, data, silo, device)
        self._bad = bad

    def _vectors(self, manifest: Manifest, model: ModelPayload) -> Vectors:
        honest = super()._vectors(manifest, model)
        if self._bad.kind == "label-flip" or not {"update", "deviation"} & set(honest):
            return honest
        vectors = dict(honest)
        if self._bad.kind == "scaling":
            powers = {"update": 1, "deviation": 2, "unit_energy": 2}
            factors = {name: self._bad.strength ** powers.get(name, 0) for name in vectors}
            return {name: factors[name] * vector for name, vector in vectors.items()}
        noise = self._noise(manifest, honest)
        for name in ("update", "deviation"):
            if name in vectors:
                vectors[name] = noise if name == "update" else noise**2
        if "unit_energy" in vectors:
            limit = self._config.update_limit
            full = np.zeros(model.mask.size)
            full[model.mask] = np.clip(noise, -limit, limit)
            vectors["unit_energy"] = UnitMap.of(model.spec).unit_sum(full**2)
        return vectors

    def _noise(self, manifest: Manifest, honest: Vectors) -> NDArray[np.float64]:
        """Noise in the place of the update; where only its squares are sent their sum tells its norm."""
        squares = honest["update"].astype(np.float64) ** 2 if "update" in honest else honest["deviation"]
        norm = self._bad.strength * float(np.sqrt(squares.sum()))
        purpose = ("bad silo noise", manifest.phase, manifest.round, self._silo)
        return noise_like(norm, squares.size, stream(self._config.seed, *purpose))
