from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional as F

from autoflip_secure.errors import ConfigError
from autoflip_secure.models.layout import ParameterLayout, flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy import per_record
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.privacy.per_record import PerRecordGradients

Batch = Callable[[int], tuple[Tensor, Tensor]]


def plain_loop(
    module: nn.Module, x: Tensor, y: Tensor, clip: float, live: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """One record at a time with ordinary autograd."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = np.zeros(sum(p.numel() for p in parameters))
    for record, target in zip(x, y, strict=True):
        loss = F.cross_entropy(module(record[None]), target[None])
        flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]).double().numpy()
        if live is not None:
            flat = np.where(live, flat, 0.0)
        norm = np.linalg.norm(flat)
        total += flat * min(1.0, clip / norm) if norm else flat
    return total


@pytest.fixture(params=["cnn", "mlp"])
def module(request: pytest.FixtureRequest) -> nn.Module:
    network: nn.Module = request.getfixturevalue(request.param)
    return network


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e6])
def test_equals_a_plain_loop_over_records(module: nn.Module, batch: Batch, clip: float) -> None:
    x, y = batch(40)
    expected = plain_loop(module, x, y, clip)
    with ClippedGradientSum(module) as gradients:
        found = gradients(x, y, clip)
    assert found.dtype == np.float64
    assert found.shape == (gradients.size,) == (ParameterLayout.of(module).size,)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_masks_before_clipping(module: nn.Module, batch: Batch) -> None:
    x, y = batch(30)
    live = np.random.default_rng(0).random(ParameterLayout.of(module).size) < 0.3
    expected = plain_loop(module, x, y, 0.05, live)
    with ClippedGradientSum(module) as gradients:
        found = gradients(x, y, 0.05, torch.from_numpy(live))
        unmasked = gradients(x, y, 0.05)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert not found[~live].any()
    # Masking after clipping would leave live entries too small.
    assert np.linalg.norm(unmasked[live]) < 0.95 * np.linalg.norm(found[live])


def norms_within(module: nn.Module, x: Tensor, y: Tensor, clip: float) -> bool:
    """Whether each record alone stays within the clip, and adding it to the rest moves the sum by no more."""
    with ClippedGradientSum(module) as gradients:
        whole = gradients(x, y, clip)
        shares = [np.linalg.norm(gradients(x[i : i + 1], y[i : i + 1], clip)) for i in range(len(x))]
        moved = [np.linalg.norm(whole - gradients(x[keep], y[keep], clip)) for keep in _all_but_one(len(x))]
    return max(shares) <= clip and max(moved) <= clip


def _all_but_one(count: int) -> list[list[int]]:
    return [[j for j in range(count) if j != i] for i in range(count)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clip=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e12), seed=st.integers(0, 1000))
def test_no_record_exceeds_the_clip(mlp: nn.Module, clip: float, scale: float, seed: int) -> None:
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * scale
    assert norms_within(mlp, x, torch.arange(6) % 3, clip)


def test_a_skipped_clip_is_caught(mlp: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch(6)

    def unclipped(self: DPOptimizer) -> None:
        for p in self.params:
            p.summed_grad = p.grad_sample.sum(0) if p.summed_grad is None else p.summed_grad + p.grad_sample.sum(0)

    assert norms_within(mlp, x, y, 0.01)
    monkeypatch.setattr(DPOptimizer, "clip_and_accumulate", unclipped)
    assert not norms_within(mlp, x, y, 0.01)


def test_the_bound_is_used_up(mlp: nn.Module, batch: Batch) -> None:
    """Clipping far below the bound would waste noise."""
    x, y = batch(8)
    with ClippedGradientSum(mlp) as gradients:
        for i in range(8):
            assert np.linalg.norm(gradients(x[i : i + 1], y[i : i + 1], 1e-3)) > 0.99e-3


def test_an_empty_batch_gives_zeros(module: nn.Module) -> None:
    with ClippedGradientSum(module) as gradients:
        found = gradients(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), 1.0)
    assert found.shape == (gradients.size,)
    assert not found.any()


def test_large_batches_are_split_without_changing_the_sum(
    cnn: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = batch(70)
    sizes: list[int] = []
    with ClippedGradientSum(cnn) as gradients:
        whole = gradients(x, y, 0.1)
        cnn[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        monkeypatch.setattr(per_record, "CHUNK_RECORDS", 16)
        np.testing.assert_allclose(gradients(x, y, 0.1), whole, rtol=1e-5, atol=1e-7)
        assert sizes == [16, 16, 16, 16, 16]
        sizes.clear()
        monkeypatch.setattr(per_record, "CHUNK_NUMBERS", 3 * gradients.size)
        np.testing.assert_allclose(gradients(x, y, 0.1), whole, rtol=1e-5, atol=1e-7)
        assert max(sizes) == 3


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_calls_do_not_leak_into_each_other_or_into_the_module(cnn: nn.Module, batch: Batch) -> None:
    x, y = batch(10)
    cnn.eval()
    before = flatten_parameters(cnn)
    with ClippedGradientSum(cnn) as gradients:
        first = gradients(x, y, 0.1)
        # Ordinary training in between is not recorded.
        cnn.train()
        F.cross_entropy(cnn(x), y).backward()
        cnn.eval()
        assert np.array_equal(gradients(x, y, 0.1), first)
        assert not cnn.training
        assert all(p.grad is None for p in cnn.parameters())
        with pytest.raises(RuntimeError):
            gradients(x[:, :, :3, :3], y, 0.1)  # a failed pass leaves nothing behind
        assert np.array_equal(gradients(x, y, 0.1), first)
    assert torch.equal(flatten_parameters(cnn), before)
    assert not any(hasattr(p, "grad_sample") for p in cnn.parameters())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in cnn.modules())
    with ClippedGradientSum(cnn) as again:  # closed, it can be hooked anew
        assert np.array_equal(again(x, y, 0.1), first)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_reads_the_parameters_of_the_moment(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(10)
    with ClippedGradientSum(mlp) as gradients:
        gradients(x, y, 0.1)
        load_flat_parameters(mlp, torch.zeros(gradients.size))
        np.testing.assert_allclose(gradients(x, y, 0.1), plain_loop(mlp, x, y, 0.1), atol=1e-6)


def test_frozen_and_unused_parameters(batch: Batch) -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused, self.last = nn.Linear(64, 8), nn.Linear(5, 2), nn.Linear(8, 3)
            self.last.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.last(torch.tanh(self.first(x.flatten(1)))))

    torch.manual_seed(0)
    network = Partial()
    x, y = batch(9)
    with ClippedGradientSum(network) as gradients:
        found = gradients(x, y, 1e6)
    slices = {name: found[part] for name, part, _ in ParameterLayout.of(network).slices()}
    assert set(slices) == {"first.weight", "first.bias", "unused.weight", "unused.bias", "last.weight"}
    assert not slices["unused.weight"].any()
    F.cross_entropy(network(x), y, reduction="sum").backward()
    np.testing.assert_allclose(slices["first.weight"], network.first.weight.grad.reshape(-1), rtol=1e-4, atol=1e-5)


def test_a_record_without_a_finite_gradient_counts_as_zero(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(8)
    with ClippedGradientSum(mlp) as gradients:
        expected = gradients(x[1:], y[1:], 0.1)
        for poison in (torch.nan, torch.inf):
            x[0] = poison
            np.testing.assert_allclose(gradients(x, y, 0.1), expected, rtol=1e-5, atol=1e-8)


def test_other_losses(mlp: nn.Module, batch: Batch) -> None:
    x, _ = batch(5)
    y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with ClippedGradientSum(mlp, "squared_error") as named:
        first = named(x, y, 1e6)
    with ClippedGradientSum(mlp, lambda outputs, targets: ((outputs - targets) ** 2).sum()) as given_:
        np.testing.assert_allclose(given_(x, y, 1e6), first, rtol=1e-5)
    mlp.zero_grad()
    ((mlp(x) - y) ** 2).sum().backward()
    exact = torch.cat([p.grad.reshape(-1) for p in mlp.parameters() if p.grad is not None])
    np.testing.assert_allclose(first, exact, rtol=1e-4, atol=1e-4)


def test_warnings_stay_inside(mlp: nn.Module, batch: Batch, recwarn: pytest.WarningsRecorder) -> None:
    with ClippedGradientSum(mlp) as gradients:
        gradients(*batch(4), 0.1)
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": 0.0}, "clip"),
        ({"clip": float("nan")}, "clip"),
        ({"live": torch.ones(3, dtype=torch.bool)}, "mask of shape"),
        ({"live": torch.ones(1091)}, "mask of shape"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "4 records have 3 targets"),
    ],
)
def test_bad_input_is_refused(mlp: nn.Module, batch: Batch, arguments: dict[str, Any], message: str) -> None:
    x, y = batch(4)
    with ClippedGradientSum(mlp) as gradients, pytest.raises(ConfigError, match=message):
        gradients(**({"x": x, "y": y, "clip": 0.1, "live": None} | arguments))


def test_unsuitable_modules_are_refused(mlp: nn.Module) -> None:
    with pytest.raises(ConfigError, match="GroupNorm"):
        ClippedGradientSum(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    with pytest.raises(ConfigError, match="unknown loss"):
        ClippedGradientSum(mlp, "hinge")
    with pytest.raises(ConfigError, match="no trainable parameter"):
        ClippedGradientSum(nn.Flatten())
    with ClippedGradientSum(mlp), pytest.raises(ConfigError, match="twice"):
        ClippedGradientSum(mlp)


@pytest.mark.parametrize(("name", "shape"), [("cnn-tanh", (1, 28, 28)), ("cnn6", (1, 28, 28)), ("mlp", (29,))])
def test_a_record_more_leaves_the_gradients_of_the_others_as_they_were(name: str, shape: tuple[int, ...]) -> None:
    """Bit for bit, whatever the size of the batch: else one record could move the sum by more than the clip."""
    network = build(dense_spec(name, shape, 2), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(70, *shape, generator=generator)
    y = torch.randint(0, 2, (70,), generator=generator)
    with PerRecordGradients(network) as gradients:
        masters = gradients.masters()

        def rows(count: int) -> torch.Tensor:
            found = []
            for records, targets, real in gradients.chunks(x[:count], y[:count]):
                gradients.fill(masters, records, targets, real, gradients.tensors(None))
                flat = torch.cat([p.grad_sample.reshape(len(records), -1) for p in masters], dim=1)
                assert not flat[real:].any()
                found.append(flat[:real])
            return torch.cat(found)

        whole = rows(70)
        for count in (1, 2, 7, 8, 15, 16, 31, 33, 63, 64, 65, 69):
            assert torch.equal(rows(count), whole[:count]), count
