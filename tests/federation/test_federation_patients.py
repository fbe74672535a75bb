"""Silos whose patients have several records: what is sampled, clipped, counted and scored is the patient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.errors import PolicyRefusal
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.plan import describe, session_plan
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.terms import check_terms, count_channel, metric_channel
from autoflip_secure.sums.encoding import unpack_sum
from autoflip_secure.sums.words import ContributionWords, all_words
from autoflip_secure.training.metric_form import METRIC_SENSITIVITY, MetricForm

SILOS, PATIENTS, EACH = 4, 16, 5
PRIVATE = {"dp_epsilon": 8.0, "clip": 0.5, "sampling_rate": 1.0, "bits": 24, "insecure_reproducible_noise": True}


@pytest.fixture
def data(records: Records) -> SiloData:
    """Sixteen patients of five records each, one of a single record, in no order; other patients are held out."""
    group = np.repeat(np.arange(PATIENTS), EACH)
    group[np.flatnonzero(group == 0)[1:]] = 1
    order = np.random.default_rng(0).permutation(len(group))
    whole = Records(records.x[order], records.y[order], group[order] + 100)
    held = np.isin(whole.group, [100, 101, 107])
    return SiloData(whole.take(~held), whole.take(held))


def one_channel(config, task, data: SiloData, manifest, model) -> np.ndarray:
    (channel,) = manifest.channels
    given = Contributor(config, task, data, 1, "cpu").contribute(manifest, model)
    words = all_words(ContributionWords(given.values, [channel], SILOS))
    return unpack_sum(words, [channel], SILOS)[channel.name]


def without(records: Records, patient: int) -> Records:
    return records.take(records.group != patient)


@pytest.mark.parametrize("drop", ["smallest", "largest"])
def test_a_patient_moves_the_gradient_sum_by_the_clip(make_config, make_manifest, task, model, data, drop) -> None:
    """All five records at once; noise is drawn from the seed and the same on both sides."""
    config = make_config(**PRIVATE)
    manifest = make_manifest(config, model, terms={"noise_multiplier": 1e-5})
    patient = int(data.train.group.min() if drop == "smallest" else data.train.group.max())
    whole = one_channel(config, task, data, manifest, model)
    rest = one_channel(config, task, SiloData(without(data.train, patient)), manifest, model)
    moved = np.linalg.norm(whole - rest)
    slack = 2 * manifest.channels[0].step * len(whole) ** 0.5
    assert 0.1 < moved <= 0.5 + slack


def test_local_training_samples_and_clips_patients(make_config, make_manifest, task, model, data) -> None:
    options = {**PRIVATE, "dp_trust": "local", "learning_rate": 0.5}
    config = make_config(**options)
    manifest = make_manifest(config, model, terms={"noise_multiplier": 1e-9, "steps": 1, "clip": 0.05})
    family = Records(data.train.x, data.train.y, np.zeros(len(data.train), np.int64))
    step = 0.5 / (model.records // config.silos)
    moved = np.linalg.norm(one_channel(config, task, SiloData(family), manifest, model))
    assert moved == pytest.approx(0.05 * step, rel=0.01), "one patient in all moves the model by one clip"
    moved = np.linalg.norm(one_channel(config, task, data, manifest, model))
    assert 1.5 * 0.05 * step < moved < 1.01 * data.train.patients * 0.05 * step


def test_sampled_records_are_those_of_whole_patients(make_config, make_manifest, task, model, data) -> None:
    config = make_config(**{**PRIVATE, "bits": 16})
    silo = Contributor(config, task, data, 1, "cpu")
    silo._load(model)
    drawn: list[tuple[int, int]] = []

    def looking(x: torch.Tensor, y: torch.Tensor, clip: float, live: torch.Tensor, patient: np.ndarray) -> np.ndarray:
        sizes = np.bincount(data.train.patient_numbers())
        found = np.bincount(patient, minlength=len(sizes))
        assert np.all((found == 0) | (found == sizes))
        drawn.append((len(np.unique(patient)), len(x)))
        return np.zeros(model.mask.size)

    silo._gradient_sums = looking  # type: ignore[assignment]
    for round in range(80):
        silo.contribute(make_manifest(config, model, round=round, terms={"sampling_rate": 0.4}), model)
    patients = data.train.patients
    assert patients == PATIENTS - 3
    mean = np.mean([count for count, _ in drawn])
    assert abs(mean - 0.4 * patients) < 5 * (patients * 0.24 / 80) ** 0.5


def test_counts_are_of_patients(make_config, make_manifest, task, model, data) -> None:
    config = make_config()
    manifest = make_manifest(config, model, phase="census", channels=(count_channel(0.0),))
    assert one_channel(config, task, data, manifest, model) == pytest.approx(PATIENTS - 3)


def test_a_patient_moves_the_scores_by_their_sensitivity(make_config, make_manifest, task, model, data) -> None:
    config, length = make_config(), MetricForm(task.kind, task.classes).length
    manifest = make_manifest(config, model, phase="evaluate", channels=(metric_channel(length, 0.0),))
    whole = one_channel(config, task, data, manifest, model)
    assert 3 - 2 * length * 3 / 2048 < whole[:-1].sum() <= 3 + 1e-9, "three patients count three"
    for patient in (100, 101, 107):
        rest = SiloData(data.train, without(data.holdout, patient))
        moved = np.linalg.norm(whole - one_channel(config, task, rest, manifest, model))
        assert 0.3 < moved <= METRIC_SENSITIVITY + 1e-9


def test_a_grid_that_does_not_hold_whole_counts_is_refused(make_config, make_manifest, model) -> None:
    config = make_config(dp_epsilon=8.0)
    honest = {"sampling_rate": 1.0, "clip": 1.0}
    channel = count_channel(2.0)
    check_terms(make_manifest(config, model, phase="census", channels=(channel,), terms=honest))
    for limit in (channel.limit * 1.3, channel.limit * 4096):
        asked = (replace(channel, limit=limit),)
        with pytest.raises(PolicyRefusal, match="does not hold whole numbers"):
            check_terms(make_manifest(config, model, phase="census", channels=asked, terms=honest))


def test_the_promise_names_its_unit(make_config, task) -> None:
    config = make_config(dp_epsilon=8.0)
    for unit, said, less in (
        ("record", "each patient's record at one silo", "several records at one"),
        ("patient", "each patient, with all of the patient's records, at one silo", "at several silos is covered"),
    ):
        plan = session_plan(config, replace(task, unit=unit), Schedule(config), public_test=True)
        assert said in plan.privacy.promise()
        assert less in plan.privacy.promise()
        assert describe(plan)["unit"] == unit
