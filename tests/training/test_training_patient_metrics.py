"""Private metrics where patients have several records: each patient counts once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.errors import DataError
from autoflip_secure.training.evaluation import METRIC_SENSITIVITY, MetricForm, metric_vector, scores_from_vector

STEP = 1 / 2048
FORMS = (MetricForm("binary", 2), MetricForm("multiclass", 4), MetricForm("survival", 2, (0.1, 0.2)))


@st.composite
def scored(draw):
    n = draw(st.integers(1, 30))
    form = draw(st.sampled_from(FORMS))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    patient = np.unique(generator.integers(0, draw(st.integers(1, n)), n), return_inverse=True)[1]
    if form.kind == "survival":
        targets = np.stack([generator.exponential(0.2, n), generator.integers(0, 2, n)], axis=1)
        return generator.normal(0, 2, (n, 1)).astype(np.float32), targets.astype(np.float32), form, patient
    predictions = generator.dirichlet(np.ones(form.classes), n).astype(np.float32)
    return predictions, generator.integers(0, form.classes, n), form, patient


def add_at_most_the_stated_norm(vector_of, predictions, targets, form, patient) -> bool:
    """Whether taking away any one patient moves the vector by an L2 norm of at most `METRIC_SENSITIVITY`."""
    whole = vector_of(predictions, targets, form, STEP, patient)
    for one in range(patient.max() + 1):
        keep = patient != one
        rest = vector_of(predictions[keep], targets[keep], form, STEP, patient[keep]) if keep.any() else 0 * whole
        if np.linalg.norm(whole - rest) > METRIC_SENSITIVITY:
            return False
    return True


@given(scored())
def test_a_patient_adds_at_most_the_stated_norm_in_whole_steps(given_):
    predictions, targets, form, patient = given_
    vector = metric_vector(predictions, targets, form, STEP, patient)
    assert np.array_equal(vector / STEP, np.round(vector / STEP))
    patients = patient.max() + 1
    assert patients - patients * form.cells * STEP < vector[:-1].sum() <= patients
    assert add_at_most_the_stated_norm(metric_vector, predictions, targets, form, patient)


def test_counting_records_is_caught():
    predictions = np.tile(np.float32([0.2, 0.8]), (6, 1))
    y, patient = np.ones(6, np.int64), np.array([0, 0, 0, 0, 1, 2])
    counting_records = lambda p, y, form, step, patient: metric_vector(p, y, form, step)  # noqa: E731
    assert add_at_most_the_stated_norm(metric_vector, predictions, y, FORMS[0], patient)
    assert not add_at_most_the_stated_norm(counting_records, predictions, y, FORMS[0], patient)


@given(scored())
def test_patients_of_one_record_are_counted_exactly(given_):
    predictions, targets, form, _ = given_
    alone = metric_vector(predictions, targets, form, STEP, np.arange(len(predictions)))
    assert np.array_equal(alone, metric_vector(predictions, targets, form, STEP))


def test_patients_weigh_the_same():
    """One patient with four wrong records, three patients with one right each: three quarters are right."""
    probabilities = np.eye(4, dtype=np.float32)[[1, 1, 1, 1, 0, 0, 0]]
    vector = metric_vector(probabilities, np.zeros(7, np.int64), FORMS[1], STEP, np.array([0, 0, 0, 0, 1, 2, 3]))
    scores = scores_from_vector(vector, FORMS[1])
    assert (scores.accuracy, scores.records, scores.loss) == (0.75, 4, 1.0)


def test_one_patient_a_record_is_asked_for():
    with pytest.raises(DataError, match="1 records have 2 patients"):
        metric_vector(np.float32([[0.5, 0.5]]), np.zeros(1, np.int64), FORMS[0], STEP, np.zeros(2, np.int64))
