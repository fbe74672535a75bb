"""A simulated silo that contributes what `--bad-silos` says. The honest Contributor knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.bad_silos import (
    BadSilos,
    flipped_labels,
    huge_counts,
    noise_like,
    poisoned,
    wild_integers,
)
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.data.task import Task
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.seeds import stream
from autoflip_secure.sums.channels import Contribution
from autoflip_secure.sums.manifest import Manifest

__all__ = ["BadContributor"]

Vectors = Mapping[str, NDArray[np.floating]]


class BadContributor(Contributor):
    """Contributor of a bad silo: trains on spoilt records, or replaces what training found before it is encoded.

    Rounding, the public range of the encoding and noise for DP are the honest ones, but for wild words, which have no
    meaning. What honest code does before that, clipping to --update-norm, is undone where an update is multiplied.
    Counts, scores and clip bits stay honest, but for huge counts.
    """

    def __init__(
        self, bad: BadSilos, config: ResolvedConfig, task: Task, data: SiloData, silo: int, device: str
    ) -> None:
        if bad.kind == "label-flip":
            data = replace(data, train=replace(data.train, y=flipped_labels(data.train.y, task.classes)))
        if bad.kind == "backdoor":
            x, y = poisoned(data.train.x, data.train.y, stream(config.seed, "backdoor", silo))
            data = replace(data, train=replace(data.train, x=x, y=y))
        super().__init__(config, task, data, silo, device)
        self._bad = bad

    def contribute(self, manifest: Manifest, model: ModelPayload) -> Contribution:
        if self._bad.kind != "wild-words" or manifest.phase in ("census", "evaluate"):
            return super().contribute(manifest, model)
        draw = self._stream("wild words", manifest)
        wild = {channel.name: wild_integers(channel.length, draw) for channel in manifest.channels}
        return Contribution(wild, self._noise_root(manifest) if manifest.privacy.trust == "distributed" else None)

    def _vectors(self, manifest: Manifest, model: ModelPayload) -> Vectors:
        if self._bad.kind == "free-riding" and manifest.phase in ("explore", "train"):
            return self._untrained(manifest, model)
        honest = super()._vectors(manifest, model)
        if self._bad.kind == "huge-count":
            limits = {channel.name: channel.limit for channel in manifest.channels}
            counted = honest.keys() & {"count", "metric"}
            strength = self._bad.strength
            return {**honest, **{name: huge_counts(honest[name], name, strength, limits[name]) for name in counted}}
        if not self._bad.changes_updates or not {"update", "deviation"} & set(honest):
            return honest
        vectors = dict(honest)
        if self._bad.is_factor:
            powers = {"update": 1, "deviation": 2, "unit_energy": 2}
            factors = {name: self._bad.strength ** powers.get(name, 0) for name in vectors}
            return {name: factors[name] * vector for name, vector in vectors.items()}
        return {**vectors, **self._moved_by(self._noise(manifest, honest), set(vectors), model)}

    def _moved_by(self, noise: NDArray[np.float64], wanted: set[str], model: ModelPayload) -> Vectors:
        """The channels of an update that is noise."""
        vectors = {"update": noise, "deviation": noise**2}
        if "unit_energy" in wanted:
            limit = self._config.update_limit
            full = np.zeros(model.mask.size)
            full[model.mask] = np.clip(noise, -limit, limit)
            vectors["unit_energy"] = UnitMap.of(model.spec).unit_sum(full**2)
        return {name: vector for name, vector in vectors.items() if name in wanted}

    def _untrained(self, manifest: Manifest, model: ModelPayload) -> Vectors:
        """What a free rider sends: it reads no record."""
        nothing = {channel.name: np.zeros(channel.length) for channel in manifest.channels}
        noise = self._bad.strength * self._stream("free rider", manifest).normal(size=int(model.mask.sum()))
        return {**nothing, **self._moved_by(noise, set(nothing), model)}

    def _noise(self, manifest: Manifest, honest: Vectors) -> NDArray[np.float64]:
        """Noise in the place of the update; where only its squares are sent their sum tells its norm."""
        squares = honest["update"].astype(np.float64) ** 2 if "update" in honest else honest["deviation"]
        norm = self._bad.strength * float(np.sqrt(squares.sum()))
        return noise_like(norm, squares.size, self._stream("bad silo noise", manifest))

    def _stream(self, purpose: str, manifest: Manifest) -> np.random.Generator:
        return stream(self._config.seed, purpose, manifest.phase, manifest.round, self._silo)
