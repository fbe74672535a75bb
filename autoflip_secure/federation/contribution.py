"""How a silo turns its records into a contribution, phase by phase. Runs at the silo only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.autoflip.exploration import deviation
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.terms import UNNOISED_CHANNELS, noise_levels
from autoflip_secure.models.features import features_of
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, build
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.privacy.local_sgd import dp_sgd
from autoflip_secure.privacy.sampling import poisson_rows
from autoflip_secure.seeds import torch_stream
from autoflip_secure.sums.channels import Contribution
from autoflip_secure.sums.encoding import quantise
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import LINK_BYTES, fresh_root
from autoflip_secure.sums.randomness import Randomness, ReproducibleRandomness, SecretRandomness, dither
from autoflip_secure.sums.words import FloatChannel
from autoflip_secure.training.evaluation import MetricForm, metric_vector, predict
from autoflip_secure.training.local import batches, mean_gradient, train_locally
from autoflip_secure.training.mask_training import learn_mask

__all__ = ["Contributor"]

Vectors = Mapping[str, NDArray[np.floating]]


class Contributor:
    """Computes one silo's contributions.

    Networks are kept between rounds of one architecture, since wrapping a module for per-record gradients is slow.
    """

    def __init__(self, config: ResolvedConfig, task: Task, data: SiloData, silo: int, device: str) -> None:
        self._config, self._task, self._silo = config, task, silo
        train, holdout = _as_features(config.model, data.train), data.holdout
        self._data = SiloData(train, None if holdout is None else _as_features(config.model, holdout))
        self._targets = task.targets(data.train)
        self._patient = None if data.train.group is None else data.train.patient_numbers()
        self._device = torch.device(device)
        self._spec: ModelSpec | None = None

    def contribute(self, manifest: Manifest, model: ModelPayload) -> Contribution:
        """Train or score as the manifest says; what noise is added to is rounded here, the rest when it is packed.

        Raises
        ------
        ProtocolError
            The manifest's channels are not those of its phase.
        """
        vectors = self._vectors(manifest, model)
        if set(vectors) != {channel.name for channel in manifest.channels}:
            raise ProtocolError(
                f"phase {manifest.phase} yields channels {sorted(vectors)}, the manifest asks for others"
            )
        cohort, root = manifest.cohort_of(self._silo), self._noise_root(manifest)
        values: dict[str, NDArray[np.int64] | FloatChannel] = {}
        for channel in manifest.channels:
            vector, rounding = vectors[channel.name], self._randomness(manifest, "rounding", channel.name)
            if vector.shape != (channel.length,):
                raise ProtocolError(f"channel {channel.name} has {vector.size} coordinates, not {channel.length}")
            levels = noise_levels(manifest, channel, cohort)
            if levels is None:
                values[channel.name] = FloatChannel(vector, rounding)
            else:
                noise = self._randomness(manifest, "noise", channel.name)
                integers = quantise(vector, channel, dither(rounding, channel.length))
                integers += levels.draw(channel.length, channel.name, noise, root)
                values[channel.name] = integers
        return Contribution(values, root if manifest.privacy.trust == "distributed" else None)

    def _vectors(self, manifest: Manifest, model: ModelPayload) -> Vectors:
        if manifest.phase == "census":
            return {"count": np.array([self._data.train.patients], np.float64)}
        if manifest.phase == "evaluate":
            return {"metric": self._metric(manifest, model)}
        if manifest.privacy.trust == "distributed":
            return self._gradient_sum(manifest, model)
        return self._local_update(manifest, model)

    def _metric(self, manifest: Manifest, model: ModelPayload) -> NDArray[np.float64]:
        holdout = self._data.holdout
        if holdout is None:
            raise ProtocolError("this silo holds no records back for scoring")
        network = self._load(replace(model, weights=model.network))
        task = self._task
        predictions = predict(network, torch.from_numpy(holdout.x).to(self._device), kind=task.kind)
        form = MetricForm(task.kind, task.classes, task.expected_cuts)
        return metric_vector(predictions, task.targets(holdout), form, manifest.channels[0].step, holdout.group)

    def _gradient_sum(self, manifest: Manifest, model: ModelPayload) -> Vectors:
        network = self._load(model)
        records = self._data.train
        sampling = self._randomness(manifest, "sampling")
        chosen = poisson_rows(len(records), self._patient, manifest.privacy.sampling_rate, sampling)
        live = torch.from_numpy(model.mask)
        batch = (
            torch.from_numpy(records.x[chosen]).to(self._device),
            torch.from_numpy(self._targets[chosen]).to(self._device),
            manifest.privacy.clip,
            live,
            None if self._patient is None else self._patient[chosen],
        )
        gradients = self._gradients(network)
        if all(channel.name != "clip_bits" for channel in manifest.channels):
            return {"update": -gradients(*batch)[model.mask]}
        total, bits = gradients.with_clip_bits(*batch)
        return {"update": -total[model.mask], "clip_bits": np.array([bits])}

    def _local_update(self, manifest: Manifest, model: ModelPayload) -> Vectors:
        network = self._load(model)
        wanted = {channel.name for channel in manifest.channels}
        if manifest.privacy.trust != "none" and wanted & UNNOISED_CHANNELS:
            raise ProtocolError("channels that no noise is planned for are never sent under DP")
        if "mask" in wanted:
            return {"mask": self._learnt_mask(network, manifest, model)}
        exploring, exact = manifest.phase == "explore", manifest.privacy.trust == "none"
        if exploring and exact and self._config.prune == "snip":
            return {"update": self._sensitivity_step(network, manifest, model)}
        of_gradients = "deviation" in wanted and self._config.prune == "prunefl"
        squares = torch.zeros(model.mask.size, device=self._device) if of_gradients else None
        self._train(network, manifest, model, squares)
        end = flatten_parameters(network).numpy()
        vectors: dict[str, NDArray[np.floating]] = {}
        update = np.where(model.mask, end - model.weights, np.float32(0))
        factor = self._within_norm(update)
        if factor < 1.0:
            update = update * np.float32(factor)
        if squares is not None:
            vectors["deviation"] = squares.cpu().numpy()[model.mask].astype(np.float64)
        elif "deviation" in wanted:
            moved = deviation(model.weights.astype(np.float64), end.astype(np.float64))[model.mask]
            vectors["deviation"] = moved if factor == 1.0 else moved * factor**2
        if "update" in wanted:
            vectors["update"] = update[model.mask]
        if "gradient" in wanted:
            vectors["gradient"] = self._masked_gradient(network, model)
        if "unit_energy" in wanted:
            # Clipped as the update will be, so that energy and sum speak of the same vectors.
            limit = self._config.update_limit
            vectors["unit_energy"] = UnitMap.of(model.spec).unit_sum(
                np.clip(update.astype(np.float64), -limit, limit) ** 2
            )
        return vectors

    def _sensitivity_step(
        self, network: torch.nn.Module, manifest: Manifest, model: ModelPayload
    ) -> NDArray[np.floating]:
        """SNIP's exploration, shape (live,): a step along the mean gradient, at the model itself, of as many batches as
        others explore with. Several steps would sum gradients of other models."""
        steps, size = manifest.privacy.steps, self._config.batch_size
        chosen = torch.cat(list(batches(len(self._data.train), size, steps, self._draws(manifest))))
        x, y = self._records()
        gradient = mean_gradient(network, x[chosen], y[chosen], loss=self._task.loss).numpy()
        step = np.where(model.mask, -np.float32(self._config.rate(manifest.round)) * gradient, np.float32(0))
        return np.float32(self._within_norm(step)) * step[model.mask]

    def _within_norm(self, update: NDArray[np.float32]) -> float:
        """Factor that takes an update to --update-norm; 1 where it is within. A little less, for float32's rounding."""
        limit = self._config.update_norm
        if limit is None:
            return 1.0
        norm = float(np.linalg.norm(update.astype(np.float64)))
        return 1.0 if norm <= limit else limit / norm * (1.0 - 2.0**-20)

    def _learnt_mask(self, network: torch.nn.Module, manifest: Manifest, model: ModelPayload) -> NDArray[np.floating]:
        """Which weights this silo would keep, by 1 and 0, of those that may be masked."""
        if model.votes is None:
            raise ProtocolError("a mask is asked for, and the model does not say how the silos voted so far")
        maskable = UnitMap.of(model.spec).prunable
        learnt = learn_mask(
            network,
            *self._records(),
            votes=torch.from_numpy(model.votes),
            maskable=torch.from_numpy(maskable.copy()),
            steps=manifest.privacy.steps,
            batch_size=self._config.batch_size,
            generator=self._draws(manifest),
            loss=self._task.loss,
        )
        return learnt.numpy()[maskable].astype(np.float64)

    def _masked_gradient(self, network: torch.nn.Module, model: ModelPayload) -> NDArray[np.floating]:
        """Mean gradient over all records, where training led to, of the weights that the mask holds at zero."""
        x, y = self._records()
        return mean_gradient(network, x, y, loss=self._task.loss).numpy()[~model.mask]

    def _train(
        self, network: torch.nn.Module, manifest: Manifest, model: ModelPayload, squares: torch.Tensor | None
    ) -> None:
        # As many steps as the ledger was charged for, not as many as somebody's configuration says.
        steps = manifest.privacy.steps
        config, (x, y) = self._config, self._records()
        live = torch.from_numpy(model.mask)
        if manifest.privacy.trust == "local":
            dp_sgd(
                network,
                x,
                y,
                steps=steps,
                sampling_rate=manifest.privacy.sampling_rate,
                clip=manifest.privacy.clip,
                noise_multiplier=manifest.privacy.noise_multiplier,
                learning_rate=config.rate(manifest.round),
                momentum=0.0,
                live=live,
                nominal_records=model.nominal_records(config.silos),
                sampling=self._randomness(manifest, "sampling"),
                noise=self._randomness(manifest, "noise"),
                loss=self._task.loss,
                patient=self._patient,
            )
            return
        train_locally(
            network,
            x,
            y,
            steps=steps,
            batch_size=config.batch_size,
            learning_rate=config.rate(manifest.round),
            momentum=config.momentum,
            generator=self._draws(manifest),
            live=live,
            loss=self._task.loss,
            optimizer=config.optimizer,
            prox_mu=config.prox_mu,
            squares=squares,
        )

    def _records(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All training records and their targets, where the network is."""
        return torch.from_numpy(self._data.train.x).to(self._device), torch.from_numpy(self._targets).to(self._device)

    def _draws(self, manifest: Manifest) -> torch.Generator:
        """What a round without DP draws its batches by."""
        return torch_stream(self._config.seed, "batches", manifest.round, self._silo)

    def _load(self, model: ModelPayload) -> torch.nn.Module:
        if model.spec != self._spec:
            self._network = build(model.spec).to(self._device)
            self._gradient_sums: ClippedGradientSum | None = None
            self._spec = model.spec
        load_flat_parameters(self._network, torch.from_numpy(model.weights))
        return self._network

    def _gradients(self, network: torch.nn.Module) -> ClippedGradientSum:
        if self._gradient_sums is None:
            self._gradient_sums = ClippedGradientSum(network, self._task.loss)
        return self._gradient_sums

    def _noise_root(self, manifest: Manifest) -> bytes:
        """First link of the chain of the noise that may be removed once the survivors are known."""
        if not self._config.insecure_reproducible_noise:
            return fresh_root()
        return self._randomness(manifest, "noise chain").words(LINK_BYTES // 8).tobytes()

    def _randomness(self, manifest: Manifest, *purpose: str) -> Randomness:
        """Secret where DP rests on it; with DP off (or the marked test option) a named stream of the seed."""
        if manifest.privacy.trust == "none" or self._config.insecure_reproducible_noise:
            return ReproducibleRandomness(
                self._config.seed, *purpose, manifest.phase, manifest.round, manifest.attempt, self._silo
            )
        return SecretRandomness()


def _as_features(model: str, records: Records) -> Records:
    return replace(records, x=features_of(model, records.x))
