"""A silo's part in a survival run: gradients and scores of single patients, under the task's public clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.follow_up import FollowUp
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.terms import METRIC_SENSITIVITY, metric_channel
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.losses import LOSSES
from autoflip_secure.models.spec import build, dense_spec, layout_of
from autoflip_secure.seeds import stream
from autoflip_secure.training.evaluation import MetricForm, metric_vector, predict

FEATURES = 6
TASK = Task(
    "toy", "survival", (FEATURES,), 2, ("alive", "died"), "mlp", 80, follow_up=FollowUp((1.0, 2.0), (0.3, 0.5, 0.2))
)


@pytest.fixture(scope="module")
def data() -> SiloData:
    draw = stream(0, "survival records")
    x = draw.normal(size=(60, FEATURES)).astype(np.float32)
    time, event = draw.exponential(2.0, 60).astype(np.float32), draw.integers(0, 2, 60)
    records = Records(x, event.astype(np.int64), time=time)
    return SiloData(records.take(np.arange(40)), records.take(np.arange(40, 60)))


@pytest.fixture(scope="module")
def payload() -> ModelPayload:
    spec = dense_spec("mlp", (FEATURES,), TASK.outputs)
    weights = stream(0, "weights").normal(0, 0.2, layout_of(spec).size).astype(np.float32)
    return ModelPayload(spec, weights, np.ones(weights.size, np.bool_), 80)


def config(**options: object) -> ResolvedConfig:
    given = {"dataset": "digits", "silos": 4, "prune": "none", "aggregation": "none", "partition": "iid", **options}
    return resolve(RunConfig.create(**given), TASK, natural_silos=None)


def loss_of(payload: ModelPayload, records: Records) -> torch.Tensor:
    network = build(payload.spec)
    load_flat_parameters(network, torch.from_numpy(payload.weights))
    loss = LOSSES["survival"](network(torch.from_numpy(records.x)), torch.from_numpy(TASK.targets(records)))
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


def test_the_gradient_sum_is_that_of_the_likelihood(make_manifest, data, payload) -> None:
    made = config(dp_epsilon=8.0, insecure_reproducible_noise=True)
    manifest = make_manifest(made, payload, terms={"sampling_rate": 1.0, "clip": 1e6})
    update = Contributor(made, TASK, data, 1, "cpu")._vectors(manifest, payload)["update"]
    np.testing.assert_allclose(update, -loss_of(payload, data.train).numpy(), rtol=1e-4, atol=1e-5)


def test_a_patient_s_part_is_clipped_alone(make_manifest, data, payload) -> None:
    """One patient less moves the sum by at most the clip, which no term of a risk set could promise."""
    made = config(dp_epsilon=8.0, insecure_reproducible_noise=True)
    manifest = make_manifest(made, payload, terms={"sampling_rate": 1.0, "clip": 0.5})
    fewer = replace(data, train=data.train.take(np.arange(1, 40)))
    with_, without = (Contributor(made, TASK, d, 1, "cpu")._vectors(manifest, payload)["update"] for d in (data, fewer))
    assert 0 < np.linalg.norm(with_ - without) <= 0.5
    assert np.linalg.norm(loss_of(payload, data.train.take(np.arange(1)))) > 0.5, "nothing was clipped"


def test_the_scores_are_those_of_the_silo_s_own_patients(make_manifest, data, payload) -> None:
    made = config(dp_epsilon=8.0, insecure_reproducible_noise=True)
    form = MetricForm("survival", 2, TASK.expected_cuts)
    channel = metric_channel(form.length, 1.0)
    terms = {"dataset": "holdout", "sampling_rate": 1.0, "clip": METRIC_SENSITIVITY}
    manifest = make_manifest(made, payload, phase="evaluate", channels=(channel,), terms=terms)
    vector = Contributor(made, TASK, data, 1, "cpu")._vectors(manifest, payload)["metric"]
    network = build(payload.spec)
    load_flat_parameters(network, torch.from_numpy(payload.weights))
    assert data.holdout is not None
    theta = predict(network, data.holdout.x, kind="survival")
    np.testing.assert_array_equal(vector, metric_vector(theta, TASK.targets(data.holdout), form, channel.step))
    assert vector[:-1].sum() == 20


def test_local_training_lowers_the_survival_loss(make_manifest, data, payload) -> None:
    made = config(local_steps=30, rounds=3)
    manifest = make_manifest(made, payload, terms={"steps": 30})
    update = Contributor(made, TASK, data, 1, "cpu")._vectors(manifest, payload)["update"]
    moved = replace(payload, weights=payload.weights + update.astype(np.float32))
    assert np.linalg.norm(loss_of(moved, data.train)) < np.linalg.norm(loss_of(payload, data.train))


def test_an_accuracy_that_does_not_exist_is_no_target() -> None:
    with pytest.raises(ConfigError, match="--target-accuracy: toy is scored by its C-index"):
        config(target_accuracy=0.9)
