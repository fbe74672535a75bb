from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.training.evaluation import metric_counts, metric_length, metrics_from_counts, score

ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.integers(2, 5), st.integers(1, 30), st.data())
def test_one_record_more_adds_exactly_one_to_exactly_one_entry(classes, n, data):
    kind = "binary" if classes == 2 else "multiclass"
    probabilities = data.draw(arrays(np.float32, (n + 1, classes), elements=ANY_FLOAT))
    y = data.draw(arrays(np.int64, n + 1, elements=st.integers(0, classes - 1)))
    fewer = metric_counts(probabilities[:-1], y[:-1], kind)
    more = metric_counts(probabilities, y, kind)
    assert sorted((more - fewer).tolist()) == [0] * (len(more) - 1) + [1]
    assert more.sum() == n + 1
    assert more.dtype == np.int64
    assert more.shape == (metric_length(classes, kind),)


def binary_example(n=4000, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, n)
    p = 1 / (1 + np.exp(-generator.normal(2.0 * y - 1.2, 1.5)))
    return np.stack([1 - p, p], axis=1).astype(np.float32), y


def test_binary_scores_from_counts():
    probabilities, y = binary_example()
    read = metrics_from_counts(metric_counts(probabilities, y, "binary").astype(float), "binary")
    assert read.accuracy == pytest.approx(score(probabilities, y, "binary").accuracy)
    assert read.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, probabilities[:, 1] >= 0.5))
    assert read.auroc == pytest.approx(roc_auc_score(y, probabilities[:, 1]), abs=0.004)
    assert read.records == 4000


def test_auroc_is_exact_where_scores_sit_in_their_own_bins():
    generator = np.random.default_rng(1)
    y, p = generator.integers(0, 2, 500), generator.integers(0, 32, 500) / 32 + 1 / 64
    counts = metric_counts(np.stack([1 - p, p], axis=1), y, "binary")
    assert metrics_from_counts(counts, "binary").auroc == pytest.approx(roc_auc_score(y, p))


def test_multiclass_scores_from_counts():
    generator = np.random.default_rng(2)
    y = generator.integers(0, 4, 900)
    probabilities = generator.dirichlet(np.ones(4), 900) + 0.4 * np.eye(4)[y]
    read = metrics_from_counts(metric_counts(probabilities, y, "multiclass"), "multiclass")
    assert read.accuracy == pytest.approx((probabilities.argmax(axis=1) == y).mean())
    assert read.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, probabilities.argmax(axis=1)))
    assert read.auroc is None


def test_layout_is_as_documented():
    p = np.array([0.0, 0.49, 0.5, 1.0], np.float32)
    counts = metric_counts(np.stack([1 - p, p], axis=1), np.array([0, 0, 1, 1]), "binary", bins=4)
    assert counts.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    counts = metric_counts(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]), "multiclass")
    assert counts.tolist() == [1, 0, 1, 0, 0, 1]


def test_a_tie_is_read_alike_from_records_and_from_counts():
    probabilities, y = np.full((3, 2), 0.5), np.array([0, 1, 1])
    assert score(probabilities, y, "binary").accuracy == pytest.approx(2 / 3)
    assert metrics_from_counts(metric_counts(probabilities, y, "binary"), "binary").accuracy == pytest.approx(2 / 3)


def test_counts_of_silos_add_up():
    probabilities, y = binary_example(100)
    parts = [metric_counts(probabilities[part], y[part], "binary") for part in np.split(np.arange(100), [30, 55])]
    assert np.array_equal(sum(parts), metric_counts(probabilities, y, "binary"))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_noise_does_not_bias_the_scores(kind):
    probabilities, y = binary_example()
    if kind == "multiclass":
        probabilities, y = np.pad(probabilities, ((0, 0), (0, 1))), y
    counts = metric_counts(probabilities, y, kind).astype(float)
    exact = metrics_from_counts(counts, kind)
    generator, std = np.random.default_rng(3), 25.0
    read = [
        metrics_from_counts(counts + generator.normal(0, std, counts.shape), kind, noise_std=std) for _ in range(300)
    ]
    assert np.mean([scores.accuracy for scores in read]) == pytest.approx(exact.accuracy, abs=0.01)
    assert np.mean([scores.balanced_accuracy for scores in read]) == pytest.approx(exact.balanced_accuracy, abs=0.01)
    if kind == "binary":
        assert np.mean([scores.auroc for scores in read]) == pytest.approx(exact.auroc, abs=0.01)


def test_a_class_without_records_is_no_class_under_noise():
    counts = np.array([90.0, 10.0, -4.0, 5.0, 50.0, 50.0])
    assert metrics_from_counts(counts, "multiclass", noise_std=4.0).balanced_accuracy == pytest.approx(0.7)


@given(
    st.sampled_from(["binary", "multiclass"]),
    arrays(np.float64, 12, elements=st.floats(-1e6, 1e6)),
    st.floats(0, 1e5),
)
def test_any_noisy_vector_gives_shares_or_none(kind, vector, std):
    read = metrics_from_counts(vector, kind, noise_std=std)
    for share in (read.accuracy, read.balanced_accuracy, read.auroc):
        assert share is None or 0 <= share <= 1
    assert read.records >= 0


def test_nothing_can_be_read_from_nothing():
    for kind in ("binary", "multiclass"):
        read = metrics_from_counts(np.zeros(8), kind)
        assert (read.accuracy, read.auroc, read.balanced_accuracy, read.records) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("vector", "kind", "error"),
    [
        (np.zeros(8), "survival", ConfigError),
        (np.zeros(6), "binary", DataError),
        (np.zeros(7), "multiclass", DataError),
        (np.zeros((2, 4)), "binary", DataError),
        (np.array([1, np.nan, 1, 1]), "binary", DataError),
    ],
)
def test_counts_that_cannot_be_read(vector, kind, error):
    with pytest.raises(error):
        metrics_from_counts(vector, kind)


@pytest.mark.parametrize(
    ("classes", "kind", "bins"), [(2, "binary", 5), (2, "binary", 0), (3, "binary", 8), (3, "x", 8)]
)
def test_lengths_that_make_no_sense(classes, kind, bins):
    with pytest.raises(ConfigError):
        metric_length(classes, kind, bins)
