from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from autoflip_secure.errors import ConfigError
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.privacy import local_sgd, per_record
from autoflip_secure.privacy.local_sgd import dp_sgd, update_noise_variance
from autoflip_secure.sums.gaussian import secure_gaussian
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness

Batch = Callable[[int], tuple[Tensor, Tensor]]


def train(module: nn.Module, x: Tensor, y: Tensor, **changes: Any) -> NDArray[np.float64]:
    """How far the parameters move from their start; the module is put back."""
    start = flatten_parameters(module)
    options: dict[str, Any] = {
        "nominal_records": len(x), "steps": 1, "sampling_rate": 1.0, "clip": 0.1, "noise_multiplier": 1.0,
        "learning_rate": 1.0, "momentum": 0.0, "live": None,
        "sampling": SecretRandomness(), "noise": SecretRandomness(),
    }  # fmt: skip
    dp_sgd(module, x, y, **options | changes)
    moved = (flatten_parameters(module) - start).double().numpy()
    load_flat_parameters(module, start)
    return moved


def noise_of(module: nn.Module, x: Tensor, y: Tensor, **changes: Any) -> NDArray[np.float64]:
    """Noise of one step, in units of the gradient sum."""
    quiet = train(module, x, y, **changes | {"noise_multiplier": 0.0})
    return (train(module, x, y, **changes) - quiet) * len(x)


def has_the_promised_noise(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    noise = noise_of(module, x, y, clip=50.0, noise_multiplier=2.0)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], noise.size) / noise.size
    return bool(low < (noise / 100.0).var() < high and stats.kstest(noise / 100.0, "norm").pvalue > 1e-5)


def cannot_be_repeated(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether runs with the same seeds everywhere still differ."""
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        runs.append(train(module, x, y))
    return not np.array_equal(*runs)


def no_noise(count: int, std: float, randomness: object) -> NDArray[np.float64]:
    return np.zeros(count)


def seeded_noise(count: int, std: float, randomness: object) -> NDArray[np.float64]:
    return torch.normal(0.0, std, (count,), dtype=torch.float64).numpy()


def halved_noise(count: int, std: float, randomness: Any) -> NDArray[np.float64]:
    return secure_gaussian(count, std / 2, randomness)


def test_each_step_carries_the_promised_noise(mlp: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch(20)
    assert has_the_promised_noise(mlp, x, y)
    for mutant in (no_noise, halved_noise):
        monkeypatch.setattr(local_sgd, "secure_gaussian", mutant)
        assert not has_the_promised_noise(mlp, x, y)


def test_noise_comes_from_no_seed(mlp: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch(20)
    assert cannot_be_repeated(mlp, x, y)
    for mutant in (no_noise, seeded_noise):
        monkeypatch.setattr(local_sgd, "secure_gaussian", mutant)
        assert not cannot_be_repeated(mlp, x, y)


def test_each_step_has_fresh_noise(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(4)
    one = noise_of(mlp, x * 0, y, steps=1, learning_rate=1e-4)
    many = noise_of(mlp, x * 0, y, steps=25, learning_rate=1e-4)
    assert many.std() / one.std() == pytest.approx(5.0, rel=0.15)


def test_without_noise_and_clipping_it_is_sgd_with_momentum(cnn: nn.Module, batch: Batch) -> None:
    x, y = batch(12)
    moved = train(
        cnn, x, y, steps=4, clip=1e9, noise_multiplier=0.0, learning_rate=0.05, momentum=0.9, nominal_records=24
    )
    start = flatten_parameters(cnn)
    optimizer = torch.optim.SGD(cnn.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        (F.cross_entropy(cnn(x), y, reduction="sum") / 24).backward()
        optimizer.step()
    np.testing.assert_allclose(moved, (flatten_parameters(cnn) - start).numpy(), rtol=1e-3, atol=1e-5)


def test_large_batches_are_split_without_changing_the_step(
    cnn: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = batch(30)
    whole = train(cnn, x, y, steps=3, noise_multiplier=0.0, momentum=0.5)
    monkeypatch.setattr(per_record, "CHUNK_RECORDS", 7)
    np.testing.assert_allclose(train(cnn, x, y, steps=3, noise_multiplier=0.0, momentum=0.5), whole, atol=1e-6)
    assert has_the_promised_noise(cnn, x, y)  # once a step, not once a piece


def test_one_record_moves_a_step_by_at_most_the_clip(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(10)
    options: dict[str, Any] = {"noise_multiplier": 0.0, "nominal_records": 10, "clip": 0.05}
    all_records = train(mlp, x, y, **options)
    for i in range(10):
        keep = [j for j in range(10) if j != i]
        moved = np.linalg.norm(train(mlp, x[keep], y[keep], **options) - all_records) * 10
        assert moved <= 0.05 * (1 + 1e-5)  # the weights read back here are rounded to float32


def test_pruned_parameters_keep_their_value(cnn: nn.Module, batch: Batch) -> None:
    x, y = batch(10)
    live = torch.rand(flatten_parameters(cnn).numel(), generator=torch.Generator().manual_seed(0)) < 0.5
    moved = train(cnn, x, y, steps=5, momentum=0.9, live=live)
    assert not moved[~live.numpy()].any()
    assert np.count_nonzero(moved[live.numpy()]) > 0.99 * int(live.sum())


def test_records_are_sampled_each_step(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(200)
    x = torch.ones_like(x)
    steps = [
        np.linalg.norm(train(mlp, x, y * 0, sampling_rate=0.2, noise_multiplier=0.0, clip=0.01) * 0.2 * 200 / 0.01)
        for _ in range(60)
    ]
    # Equal records: the step's length counts who took part, and the divisor is the expected batch, not the actual one.
    assert np.allclose(steps, np.round(steps), atol=0.05)
    assert np.mean(steps) == pytest.approx(40, abs=4 * np.sqrt(32 / 60))
    assert np.std(steps) > 3


def test_an_empty_batch_is_noise_alone(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(1)
    moved = train(mlp, x[:0], y[:0], nominal_records=10, noise_multiplier=1.0, clip=0.1)
    assert (moved * 10).std() == pytest.approx(0.1, rel=0.2)


def test_the_known_noise_of_an_update_is_what_empty_steps_add(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(10)
    moved = train(
        mlp,
        x[:0],
        y[:0],
        nominal_records=1,
        steps=4,
        sampling_rate=0.5,
        noise_multiplier=1.5,
        clip=0.2,
        learning_rate=0.3,
    )
    variance = update_noise_variance(steps=4, expected_batch=0.5, clip=0.2, noise_multiplier=1.5, learning_rate=0.3)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], moved.size) / moved.size
    assert low < (moved / variance**0.5).var() < high


def test_the_module_is_an_ordinary_one_afterwards(cnn: nn.Module, batch: Batch) -> None:
    cnn.eval()
    train(cnn, *batch(5))
    assert not cnn.training
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in cnn.modules())
    assert not any(hasattr(p, "grad_sample") for p in cnn.parameters())


def test_secure_gaussian_is_gaussian() -> None:
    draws = secure_gaussian(200_000, 3.0, ReproducibleRandomness(1, "gaussian")) / 3.0
    assert stats.kstest(draws, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(draws.size)
    assert np.mean(np.abs(draws) > 4) == pytest.approx(2 * stats.norm.sf(4), rel=0.9)
    assert not secure_gaussian(5, 0.0, SecretRandomness()).any()


def test_secure_gaussian_sums_four_draws_of_their_own() -> None:
    """Eight fresh words a number: fewer would bring back the attack the sum is there for."""

    class Counting(ReproducibleRandomness):
        drawn = 0

        def words(self, count: int) -> NDArray[np.uint64]:
            self.drawn += count
            return super().words(count)

    source = Counting(2, "words")
    secure_gaussian(1000, 1.0, source)
    assert source.drawn == 8000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0.0}, "clip"),
        ({"noise_multiplier": -1.0}, "noise multiplier"),
        ({"sampling_rate": 0.0}, "sampling rate"),
        ({"nominal_records": 0}, "nominal 0 records"),
        ({"steps": -1}, "-1 steps"),
        ({"momentum": 1.0}, "momentum"),
        ({"learning_rate": float("inf")}, "learning rate"),
    ],
)
def test_bad_input_is_refused(mlp: nn.Module, batch: Batch, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(mlp, *batch(4), **change)


def test_impossible_noise_is_refused() -> None:
    for std in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="standard deviation"):
            secure_gaussian(3, std, SecretRandomness())
