from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.training.device import pick_device, quiet_threads
from autoflip_secure.training.evaluation import auroc, evaluate, predict, score


def test_predict_is_softmax_in_any_batch_size(make_network, clusters):
    module = make_network()
    with torch.no_grad():
        expected = torch.softmax(module(clusters[0]), dim=1).numpy()
    for x in (clusters[0], clusters[0].numpy()):
        for batch in (1, 7, 150, 1000):
            probabilities = predict(module, x, batch=batch)
            assert probabilities.dtype == np.float32
            assert np.allclose(probabilities, expected, atol=1e-6)


def test_predict_switches_dropout_off_and_restores_the_flag(clusters):
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.9)).train()
    assert np.array_equal(predict(module, clusters[0]), predict(module, clusters[0]))
    assert module.training


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
def test_auroc_is_that_of_sklearn_with_ties(pairs):
    scores = np.array([pair[0] / 6 for pair in pairs])
    positive = np.array([pair[1] for pair in pairs])
    if positive.all() or not positive.any():
        assert auroc(scores, positive) is None
    else:
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_scores_binary():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 300)
    p = np.clip(generator.normal(0.3 + 0.4 * y, 0.25), 0, 1).astype(np.float32)
    probabilities = np.stack([1 - p, p], axis=1)
    scores = score(probabilities, y, "binary")
    assert scores.accuracy == pytest.approx(((p >= 0.5) == y).mean())
    assert scores.auroc == pytest.approx(roc_auc_score(y, p))
    clipped = np.clip(probabilities.astype(np.float64), 1e-12, None)
    assert scores.loss == pytest.approx(-np.log(clipped[np.arange(300), y]).mean(), rel=1e-5)


def test_scores_multiclass(make_network, clusters):
    module, (x, y) = make_network(), (clusters[0].numpy(), clusters[1].numpy())
    scores = evaluate(module, x, y, "multiclass")
    probabilities = predict(module, x).astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert scores.accuracy == pytest.approx((probabilities.argmax(axis=1) == y).mean())
    assert scores.loss == pytest.approx(log_loss(y, probabilities), rel=1e-4)
    assert scores.auroc is None


def test_certain_and_wrong_is_a_finite_loss():
    assert score(np.array([[1.0, 0.0]]), np.array([1]), "binary").loss == pytest.approx(-np.log(1e-12))


@pytest.mark.parametrize(
    ("probabilities", "y", "kind", "error"),
    [
        (np.ones((2, 3)), np.zeros(2, int), "regression", ConfigError),
        (np.ones((2, 3)), np.zeros(2, int), "binary", DataError),
        (np.ones((2, 2)), np.zeros(2, int), "multiclass", DataError),
        (np.ones((2, 3)), np.zeros(3, int), "multiclass", DataError),
        (np.ones((0, 3)), np.zeros(0, int), "multiclass", DataError),
        (np.ones((2, 3)), np.array([0, 3]), "multiclass", DataError),
        (np.ones((2, 3)), np.array([0, -1]), "multiclass", DataError),
    ],
)
def test_score_refuses(probabilities, y, kind, error):
    with pytest.raises(error):
        score(probabilities, y, kind)


def test_pick_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda: torch sees no CUDA device; use --device cpu"):
        pick_device("cuda")
    with pytest.raises(ConfigError, match="--device gpu: unknown; use one of auto, cpu, cuda"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


def test_quiet_threads():
    before = torch.get_num_threads()
    try:
        quiet_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="at least 1"):
        quiet_threads(0)


def test_a_record_more_leaves_the_scores_of_the_others_as_they_were() -> None:
    network = build(dense_spec("cnn6", (1, 28, 28), 2), torch.Generator().manual_seed(1))
    x = torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    whole = predict(network, x)
    for count in (1, 15, 16, 63, 255, 256, 257):
        assert (predict(network, x[:count]) == whole[:count]).all(), count
