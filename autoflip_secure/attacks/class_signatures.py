"""What training on given classes looks like in a silo's vector, learnt from public records, and which fits best.

A silo's update points where its classes lead, and its squared deviations are large where it went: whoever has the model
that was sent, the recipe of the round and a few records of each class can train as the silo would have for every set of
classes that it might hold, and compare.
"""

from __future__ import annotations

from collections import deque
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.autoflip.exploration import deviation
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.features import features_of
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.privacy.local_sgd import dp_sgd, update_noise_variance
from autoflip_secure.seeds import stream, torch_stream
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.randomness import ReproducibleRandomness
from autoflip_secure.training.local import train_locally

__all__ = ["ClassSignatures", "best_sets", "fits", "fits_of_squares", "sets_of_classes"]

RECORDS_OF_A_CLASS = 100
UNDER_DP = 30
"""Records of a class that signatures are made of, at most; under DP each needs a gradient of its own."""

RECENT = 4
"""Rounds whose signatures are kept."""

Vector = NDArray[np.float64]


class ClassSignatures:
    """Trains on public records of single classes and of sets of them, as silos are asked to.

    Parameters
    ----------
    config : ResolvedConfig
        The run's configuration, which coordinator and silos share.
    task : Task
    public : Records
        Records that anybody may have; at least one of each class.
    """

    def __init__(self, config: ResolvedConfig, task: Task, public: Records) -> None:
        self._config, self._task = config, task
        self.classes = task.classes
        most = RECORDS_OF_A_CLASS if config.trust == "none" else UNDER_DP
        order = stream(0, "public records").permutation(len(public))
        self._rows = [order[public.y[order] == name][:most] for name in range(task.classes)]
        self._x = torch.from_numpy(features_of(config.model, public.x))
        self._y = torch.from_numpy(task.targets(public))
        self._known: dict[tuple[int, ...], Vector] = {}
        self._recent: deque[tuple[Manifest, ModelPayload, dict[tuple[int, ...], Vector]]] = deque(maxlen=RECENT)
        """Signatures of what was asked last, `_known` of the very last: both channels are made of one training, and
        single vectors and sums of one round are read by the same."""

    def of(self, channel: str, sets: list[tuple[int, ...]], manifest: Manifest, model: ModelPayload) -> Vector:
        """What a silo that holds exactly these classes, in equal parts, would send, but for noise.

        Parameters
        ----------
        channel : str
            update or deviation.
        sets : list of tuple of int

        Returns
        -------
        float64 array, shape (sets, live parameters)
        """
        known = next((k for m, of, k in self._recent if m is manifest and of is model), None)
        if known is None:
            self._recent.append((manifest, model, known := {}))
        self._known = known
        additive = manifest.privacy.trust == "distributed"
        for classes in sets:
            if classes not in self._known:
                mixed = additive and len(classes) > 1
                self._known[classes] = (self._mixed if mixed else self._moved)(classes, manifest, model)
        found = np.stack([self._known[classes] for classes in sets])
        return deviation(np.zeros_like(found), found) if channel == "deviation" else found

    def _mixed(self, classes: tuple[int, ...], manifest: Manifest, model: ModelPayload) -> Vector:
        """As `_moved` under distributed noise: clipped gradients of records add up, so sets follow from single classes.

        Ten gradient sums are taken in place of fifty-five.
        """
        single: list[tuple[int, ...]] = [(name,) for name in classes]
        for own in single:
            if own not in self._known:
                self._known[own] = self._moved(own, manifest, model)
        records = [self._rows[name].size for name in classes]
        return np.average([self._known[own] for own in single], axis=0, weights=records)

    def noise_variance(self, manifest: Manifest, model: ModelPayload) -> float:
        """Of the noise that each live coordinate of a silo's update carries, a public figure; 0 without local trust."""
        terms = manifest.privacy
        if terms.trust != "local":
            return 0.0
        return update_noise_variance(
            steps=terms.steps,
            expected_batch=terms.sampling_rate * model.nominal_records(self._config.silos),
            clip=terms.clip,
            noise_multiplier=terms.noise_multiplier,
            learning_rate=self._config.rate(manifest.round),
        )

    def _moved(self, classes: tuple[int, ...], manifest: Manifest, model: ModelPayload) -> Vector:
        """W_k - W of one such silo at live coordinates; under distributed noise its gradient sum over the records."""
        rows = np.concatenate([self._rows[name] for name in classes])
        x, y, terms = self._x[rows], self._y[rows], manifest.privacy
        network, live = build(model.spec), torch.from_numpy(model.mask)
        load_flat_parameters(network, torch.from_numpy(model.weights))
        recipe: dict[str, Any] = {"steps": terms.steps, "learning_rate": self._config.rate(manifest.round)}
        if terms.trust == "distributed":
            with ClippedGradientSum(network, self._task.loss) as gradients:
                return np.asarray(-gradients(x, y, terms.clip, live)[model.mask] / len(x))
        if terms.trust == "local":
            # All records in every step and no noise: what the silo's own steps are on average.
            silent = ReproducibleRandomness(0, "signatures")
            recipe |= {"sampling_rate": 1.0, "clip": terms.clip, "noise_multiplier": 0.0, "nominal_records": len(x)}
            recipe |= {"sampling": silent, "noise": silent, "live": live, "momentum": 0.0}
            dp_sgd(network, x, y, loss=self._task.loss, **recipe)
        else:
            recipe |= {"batch_size": self._config.batch_size, "momentum": self._config.momentum, "live": live}
            recipe |= {"optimizer": self._config.optimizer, "prox_mu": self._config.prox_mu}
            train_locally(network, x, y, generator=torch_stream(0, "signatures"), loss=self._task.loss, **recipe)
        return (flatten_parameters(network).numpy() - model.weights)[model.mask].astype(np.float64)


def sets_of_classes(classes: int, size: int) -> list[tuple[int, ...]]:
    """All sets of so many classes."""
    return list(combinations(range(classes), size))


def fits(vectors: Vector, signatures: Vector) -> Vector:
    """How well each vector fits each signature: the cosine of both, without what all signatures have in common.

    Whatever a silo holds, its vector has a part along the signatures' mean, which tells nothing; it is projected out.

    Parameters
    ----------
    vectors : float64 array, shape (silos, coordinates)
    signatures : float64 array, shape (sets, coordinates)

    Returns
    -------
    float64 array, shape (silos, sets)
    """
    common = signatures.mean(axis=0)
    common = common / _norms(common)
    left, right = (part - np.outer(part @ common, common) for part in (vectors, signatures))
    left, right = left / _norms(left), right / _norms(right)
    return np.asarray(left @ right.T)


def fits_of_squares(squares: Vector, updates: Vector, variance: float) -> Vector:
    """How well squared deviations fit each update behind noise of a known variance: the log-likelihood.

    Of (s + noise)^2 = v with Gaussian noise it is log cosh(s sqrt(v) / variance) - s^2 / (2 variance) by coordinate,
    and a part that depends on v alone: the mean over both signs of the root.

    Parameters
    ----------
    squares : float64 array, shape (silos, coordinates)
    updates : float64 array, shape (sets, coordinates)
        What a silo of each set would have sent without noise and without squaring.

    Returns
    -------
    float64 array, shape (silos, sets)
    """
    roots, found = np.sqrt(np.maximum(squares, 0.0)), np.empty((len(squares), len(updates)))
    for column, update in enumerate(updates):
        overlap = np.abs(update) * roots / variance
        log_cosh = overlap + np.log1p(np.exp(-2.0 * overlap)) - np.log(2.0)
        found[:, column] = log_cosh.sum(axis=1) - (update @ update) / (2.0 * variance)
    return found


def best_sets(evidence: Vector, sets: list[tuple[int, ...]]) -> list[frozenset[int]]:
    """The set of classes with the most evidence for each silo; evidence has shape (silos, sets)."""
    return [frozenset(sets[best]) for best in evidence.argmax(axis=1)]


def _norms(rows: Vector) -> Vector:
    """Length of each row, kept as a column; 1 in place of 0."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(np.where(norms > 0, norms, 1.0))
