from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.training.evaluation import METRIC_SENSITIVITY, MetricForm, metric_vector, score, scores_from_vector
from autoflip_secure.training.metric_form import LOSS_WEIGHT, PROBABILITY_BINS
from autoflip_secure.training.scores import record_losses

ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)
STEP = 1 / 2048
BINARY, MULTICLASS, SURVIVAL = MetricForm("binary", 2), MetricForm("multiclass", 3), MetricForm("survival", 2, (0.12,))


@st.composite
def scored(draw, least=2):
    """Predictions of any kind, not a number and infinite ones among them, and targets."""
    n = draw(st.integers(least, 25))
    form = draw(st.sampled_from([BINARY, MULTICLASS, MetricForm("multiclass", 120), SURVIVAL]))
    outputs = 1 if form.kind == "survival" else form.classes
    predictions = draw(arrays(np.float32, (n, outputs), elements=ANY_FLOAT))
    if form.kind != "survival":
        return predictions, draw(arrays(np.int64, n, elements=st.integers(0, form.classes - 1))), form
    expected = draw(arrays(np.float32, n, elements=st.floats(0, 50, width=32)))
    event = draw(arrays(np.float32, n, elements=st.sampled_from([np.float32(0), np.float32(1)])))
    return predictions, np.stack([expected, event], axis=1), form


@given(scored(), st.sampled_from([STEP, 1 / 16, 1.0]))
def test_one_record_moves_the_vector_by_at_most_the_stated_norm(given_, step):
    predictions, targets, form = given_
    more = metric_vector(predictions, targets, form, step)
    moved = more - metric_vector(predictions[:-1], targets[:-1], form, step)
    assert np.linalg.norm(moved) <= METRIC_SENSITIVITY
    assert sorted(moved[:-1].tolist()) == [0] * (form.length - 2) + [1]
    assert 0 <= moved[-1] <= LOSS_WEIGHT
    assert more.shape == (form.length,)
    assert np.array_equal(more / step, np.rint(more / step)), "not whole grid steps"


def test_the_stated_norm_is_reached():
    certain_and_wrong = np.array([[1.0, 0.0], [1.0, 0.0]])
    moved = metric_vector(certain_and_wrong, np.array([1, 1]), BINARY, STEP)
    moved -= metric_vector(certain_and_wrong[:1], np.array([1]), BINARY, STEP)
    assert np.linalg.norm(moved) == pytest.approx(METRIC_SENSITIVITY)
    assert pytest.approx(math.sqrt(1 + LOSS_WEIGHT**2)) == METRIC_SENSITIVITY


def binary_example(n=4000, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, n)
    p = 1 / (1 + np.exp(-generator.normal(2.0 * y - 1.2, 1.5)))
    return np.stack([1 - p, p], axis=1).astype(np.float32), y


def survival_example(n=4000, seed=0):
    """Exponential times with hazard exp(x) over a baseline of one, censored; the true log hazard ratios."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 0.8, n)
    death, end = generator.exponential(np.exp(-x)), generator.uniform(0.0, 0.4, n)
    targets = np.stack([np.minimum(death, end), death < end], axis=1)
    return x[:, None].astype(np.float32), targets.astype(np.float32)


def multiclass_example(n=900):
    generator = np.random.default_rng(2)
    y = generator.integers(0, 3, n)
    probabilities = generator.dirichlet(np.ones(3), n) + 0.4 * np.eye(3)[y]
    return (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32), y


EXAMPLES = {"binary": binary_example, "multiclass": multiclass_example, "survival": survival_example}
FORMS = {"binary": BINARY, "multiclass": MULTICLASS, "survival": SURVIVAL}


def test_binary_scores_from_a_sum():
    probabilities, y = binary_example()
    read = scores_from_vector(metric_vector(probabilities, y, BINARY, STEP), BINARY)
    assert read.accuracy == pytest.approx(score(probabilities, y, "binary").accuracy)
    assert read.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, probabilities[:, 1] >= 0.5))
    assert read.auroc == pytest.approx(roc_auc_score(y, probabilities[:, 1]), abs=0.01)
    assert (read.records, read.c_index) == (4000, None)


def test_survival_scores_from_a_sum():
    theta, targets = survival_example()
    exact = score(theta, targets, "survival")
    read = scores_from_vector(metric_vector(theta, targets, SURVIVAL, STEP), SURVIVAL)
    assert exact.c_index > 0.65
    assert read.c_index == pytest.approx(exact.c_index, abs=0.02)
    assert (read.accuracy, read.auroc, read.balanced_accuracy, read.records) == (None, None, None, 4000)


def test_multiclass_scores_from_a_sum():
    probabilities, y = multiclass_example()
    read = scores_from_vector(metric_vector(probabilities, y, MULTICLASS, STEP), MULTICLASS)
    assert read.accuracy == pytest.approx((probabilities.argmax(axis=1) == y).mean())
    assert read.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, probabilities.argmax(axis=1)))
    assert (read.auroc, read.c_index) == (None, None)


@pytest.mark.parametrize("kind", FORMS)
def test_the_loss_is_the_mean_of_clipped_losses(kind):
    predictions, targets = EXAMPLES[kind]()
    losses = record_losses(predictions, targets, kind)
    clipped = np.clip(losses, *FORMS[kind].losses)
    assert (np.abs(clipped - losses) > 0).mean() < 0.05
    read = scores_from_vector(metric_vector(predictions, targets, FORMS[kind], STEP), FORMS[kind])
    assert read.loss == pytest.approx(clipped.mean(), abs=2e-3)


def test_a_diverged_model_has_the_largest_loss():
    read = scores_from_vector(metric_vector(np.full((9, 3), np.nan), np.zeros(9, int), MULTICLASS, STEP), MULTICLASS)
    assert (read.loss, read.accuracy) == (4.0, 0.0)


def test_layout_is_as_documented():
    p = np.array([0.0, 0.49, 0.5, 1.0], np.float32)
    counts = metric_vector(np.stack([1 - p, p], axis=1), np.array([0, 0, 1, 1]), BINARY, STEP)[:-1]
    half = PROBABILITY_BINS // 2
    expected = np.zeros(2 * PROBABILITY_BINS)
    expected[[0, half - 1, PROBABILITY_BINS + half, 2 * PROBABILITY_BINS - 1]] = 1
    assert counts.tolist() == expected.tolist()
    counts = metric_vector(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]), MULTICLASS, STEP)
    assert counts[:-1].tolist() == [1, 0, 1, 0, 0, 1]
    assert counts[-1] == pytest.approx(LOSS_WEIGHT), "one of three is certain and wrong"


def test_a_model_that_is_too_sure_keeps_its_auroc():
    """Larger log odds leave the order and hence the AUROC; bins of equal width would lose it."""
    probabilities, y = binary_example()
    odds = np.log(probabilities[:, 1]) - np.log(probabilities[:, 0])
    for factor in (0.5, 1.0, 4.0):
        p = 1 / (1 + np.exp(-factor * odds))
        read = scores_from_vector(metric_vector(np.stack([1 - p, p], axis=1), y, BINARY, STEP), BINARY)
        assert read.auroc == pytest.approx(roc_auc_score(y, odds), abs=0.02)


def test_a_tie_is_read_alike_from_records_and_from_a_sum():
    probabilities, y = np.full((3, 2), 0.5), np.array([0, 1, 1])
    assert score(probabilities, y, "binary").accuracy == pytest.approx(2 / 3)
    read = scores_from_vector(metric_vector(probabilities, y, BINARY, STEP), BINARY)
    assert read.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", FORMS)
def test_vectors_of_silos_add_up(kind):
    predictions, targets = EXAMPLES[kind](100)
    parts = [metric_vector(predictions[p], targets[p], FORMS[kind], STEP) for p in np.split(np.arange(100), [30, 55])]
    assert np.array_equal(sum(parts), metric_vector(predictions, targets, FORMS[kind], STEP))


@pytest.mark.parametrize("kind", FORMS)
def test_noise_does_not_bias_the_scores(kind):
    predictions, targets = EXAMPLES[kind](4000)
    vector, form = metric_vector(predictions, targets, FORMS[kind], STEP), FORMS[kind]
    exact, generator, std = scores_from_vector(vector, form), np.random.default_rng(3), 8.0
    noised = [vector + generator.normal(0, std, vector.shape) for _ in range(400)]
    read = [scores_from_vector(sum_, form, noise_std=std) for sum_ in noised]
    for name in ("accuracy", "balanced_accuracy", "auroc", "c_index", "loss"):
        expected = getattr(exact, name)
        found = [getattr(scores, name) for scores in read]
        if expected is None:
            assert set(found) == {None}, name
        else:
            error = np.std(found) / math.sqrt(len(found))
            assert np.mean(found) == pytest.approx(expected, abs=4 * error + 1e-3), name


def test_a_class_without_records_is_no_class_under_noise():
    vector = np.array([90.0, 10.0, -4.0, 5.0, 50.0, 50.0, 30.0])
    assert scores_from_vector(vector, MULTICLASS, noise_std=4.0).balanced_accuracy == pytest.approx(0.7)


def test_few_events_under_noise_are_no_c_index():
    theta, targets = survival_example()
    vector = metric_vector(theta, targets, SURVIVAL, STEP)
    assert scores_from_vector(vector, SURVIVAL, noise_std=8.0).c_index is not None
    assert scores_from_vector(vector, SURVIVAL, noise_std=100.0).c_index is None
    targets[:, 1] = 0
    censored = scores_from_vector(metric_vector(theta, targets, SURVIVAL, STEP), SURVIVAL)
    assert (censored.c_index, censored.records) == (None, 4000)


@given(st.sampled_from(sorted(FORMS)), st.data(), st.floats(0, 1e5))
def test_any_noisy_vector_gives_scores_in_their_range_or_none(kind, data, std):
    form = FORMS[kind]
    vector = data.draw(arrays(np.float64, form.length, elements=st.floats(-1e6, 1e6)))
    read = scores_from_vector(vector, form, noise_std=std)
    for share in (read.accuracy, read.balanced_accuracy, read.auroc, read.c_index):
        assert share is None or 0 <= share <= 1
    assert read.loss is None or form.losses[0] <= read.loss <= form.losses[1]
    assert read.records >= 0


def test_nothing_can_be_read_from_nothing():
    for form in FORMS.values():
        read = scores_from_vector(np.zeros(form.length), form)
        scores = (read.accuracy, read.auroc, read.balanced_accuracy, read.c_index, read.loss, read.records)
        assert scores == (None, None, None, None, None, 0)


@pytest.mark.parametrize(
    ("vector", "form"),
    [
        (np.zeros(6), MULTICLASS),
        (np.zeros((1, 7)), MULTICLASS),
        (np.array([1, np.nan, 1, 1, 1, 1, 0]), MULTICLASS),
        (np.zeros(7), BINARY),
    ],
)
def test_sums_that_cannot_be_read(vector, form):
    with pytest.raises(DataError):
        scores_from_vector(vector, form)


@pytest.mark.parametrize(
    ("kind", "classes", "cuts"),
    [("binary", 3, ()), ("multiclass", 1, ()), ("x", 3, ()), ("survival", 2, ()), ("binary", 2, (1.0,))],
)
def test_forms_that_make_no_sense(kind, classes, cuts):
    with pytest.raises(ConfigError):
        MetricForm(kind, classes, cuts)


def test_a_grid_without_steps_is_refused():
    for step in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="grid"):
            metric_vector(np.array([[0.5, 0.5]]), np.array([1]), BINARY, step)
