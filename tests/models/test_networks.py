"""The networks: shapes, initialisation, and what per-sample gradients ask of them."""

from __future__ import annotations

import math

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F

from autoflip_secure.errors import DataError
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import ModelSpec, build, dense_spec, input_shape_of, layout_of

CASES = [
    ("cnn-tanh", (1, 28, 28)),
    ("cnn-tanh", (1, 8, 8)),
    ("cnn-tanh", (3, 9, 13)),
    ("cnn-tanh", (3, 32, 32)),
    ("cnn6", (1, 8, 8)),
    ("cnn6", (2, 11, 28)),
    ("cnn6", (3, 32, 32)),
    ("femnist-cnn", (1, 9, 8)),
    ("resnet-small", (1, 8, 8)),
    ("resnet-small", (3, 28, 33)),
    ("char-lstm", (5,)),
    ("mobilenet-v2", (3, 17, 8)),
    ("scatter", (1, 8, 8)),
    ("scatter", (3, 17, 28)),
    ("mlp", (13,)),
    ("mlp", (1, 8, 8)),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[1]))}")
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    name, shape = request.param
    return dense_spec(name, shape, 3)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_records(spec: ModelSpec, count: int, seed: int) -> Tensor:
    if spec.name == "char-lstm":
        return torch.randint(spec.outputs, (count, *spec.input_shape), generator=seeded(seed)).float()
    return torch.randn(count, *input_shape_of(spec), generator=seeded(seed))


def test_forward_shape_and_layout(spec: ModelSpec) -> None:
    net = build(spec, seeded(0))
    assert net(torch.zeros(5, *input_shape_of(spec))).shape == (5, 3)
    assert layout_of(spec).size == flatten_parameters(net).numel()


@pytest.mark.parametrize("side", range(8, 40))
@pytest.mark.parametrize("name", ["cnn-tanh", "cnn6"])
def test_every_image_size_from_eight_works(name: str, side: int) -> None:
    net = build(dense_spec(name, (1, side, 47 - side), 2), seeded(0))
    assert net(torch.zeros(1, 1, side, 47 - side)).shape == (1, 2)


def test_the_tanh_network_is_the_published_one_on_mnist() -> None:
    spec = dense_spec("cnn-tanh", (1, 28, 28), 10)
    assert layout_of(spec).size == 26_010
    assert layout_of(spec).shapes == (
        (16, 1, 8, 8),
        (16,),
        (32, 16, 4, 4),
        (32,),
        (32, 512),
        (32,),
        (10, 32),
        (10,),
    )


def test_initialisation_repeats_and_leaves_the_global_state_alone(spec: ModelSpec) -> None:
    before = torch.get_rng_state()
    first, again, other = (flatten_parameters(build(spec, seeded(seed))) for seed in (3, 3, 4))
    zeros = flatten_parameters(build(spec))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not zeros.any()


@pytest.mark.parametrize("name", ["cnn-tanh", "cnn6", "resnet-small", "mlp"])
def test_initial_values_follow_torchs_defaults(name: str) -> None:
    """Each tensor's largest value and standard deviation are those of torch's own reset_parameters."""
    net = build(dense_spec(name, (3, 32, 32), 10), seeded(1))
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        ours = module.weight.detach().clone()
        bound = 1 / math.sqrt(ours[0].numel())
        assert ours.abs().max() <= bound
        if module.bias is not None:
            assert module.bias.abs().max() <= bound
            assert module.bias.abs().max() > bound / 4
        torch.manual_seed(0)
        module.reset_parameters()
        spread = 4 * bound / math.sqrt(ours.numel())
        assert abs(ours.std() - module.weight.std()) < spread
        assert abs(ours.mean()) < spread
        assert ours.abs().max() > bound * (1 - 20 / ours.numel())


def test_initial_values_of_recurrent_layers_and_embeddings_follow_torchs_defaults() -> None:
    net = build(dense_spec("char-lstm", (80,), 80), seeded(1))
    bound = 1 / math.sqrt(256)
    for tensor in (*net.lstm1.parameters(), *net.lstm2.parameters()):
        assert bound * 0.98 < tensor.abs().max() <= bound
        assert abs(tensor.std() - bound / math.sqrt(3)) < 4 * bound / math.sqrt(tensor.numel())
    assert abs(net.embedding.weight.std() - 1) < 0.1
    assert abs(net.embedding.weight.mean()) < 0.15
    assert net.embedding.weight.abs().max() > 2
    assert 0.98 * bound < net.fc.weight.abs().max() <= bound


def test_leafs_networks_are_the_published_ones() -> None:
    femnist = dense_spec("femnist-cnn", (1, 28, 28), 62)
    assert layout_of(femnist).shapes == (
        (32, 1, 5, 5),
        (32,),
        (64, 32, 5, 5),
        (64,),
        (2048, 3136),
        (2048,),
        (62, 2048),
        (62,),
    )
    assert layout_of(femnist).size == 6_603_710
    assert layout_of(dense_spec("char-lstm", (80,), 80)).size == 819_920


def test_the_text_network_computes_what_torchs_lstm_does() -> None:
    net = build(ModelSpec("char-lstm", (7,), 5, (6, 4)), seeded(2))
    x = torch.randint(5, (3, 7), generator=seeded(3))
    states = net.embedding(x)
    for cell in (net.lstm1, net.lstm2):
        layer = nn.LSTM(cell.ih.in_features, cell.hidden_size, batch_first=True)
        values = (cell.ih.weight, cell.hh.weight, cell.ih.bias, cell.hh.bias)
        with torch.no_grad():
            for target, value in zip(layer.parameters(), values, strict=True):
                target.copy_(value)
        states, _ = layer(states)
    torch.testing.assert_close(net(x.float()), net.fc(states[:, -1]))


@pytest.mark.parametrize("wrong", [-1.0, 5.0, 0.5, math.nan, math.inf])
def test_what_is_no_symbol_is_refused_in_one_line(wrong: float) -> None:
    net = build(ModelSpec("char-lstm", (3,), 5, (2, 2)), seeded(0))
    with pytest.raises(DataError, match="numbers of symbols, 0 to 4") as caught:
        net(torch.tensor([[0.0, wrong, 4.0]]))
    assert "\n" not in str(caught.value)


def test_opacus_accepts_the_network(spec: ModelSpec) -> None:
    assert ModuleValidator.validate(build(spec, seeded(0)), strict=False) == []


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_per_sample_gradients_are_those_of_single_records(spec: ModelSpec) -> None:
    net = build(spec, seeded(5))
    x = some_records(spec, 3, 6)
    y = torch.tensor([0, 1, 2])
    slow = []
    for record in range(3):
        loss = F.cross_entropy(net(x[record : record + 1]), y[record : record + 1])
        slow.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))]))
    wrapped = GradSampleModule(net, loss_reduction="sum")
    F.cross_entropy(wrapped(x), y, reduction="sum").backward()
    fast = torch.cat([p.grad_sample.reshape(3, -1) for p in wrapped.parameters()], dim=1)
    scale = float(fast.abs().max())
    torch.testing.assert_close(fast, torch.stack(slow), rtol=1e-4, atol=1e-5 * max(1.0, scale))


def test_a_dead_normalisation_group_is_exactly_zero_after_the_norm() -> None:
    net = build(dense_spec("cnn6", (1, 8, 8), 2), seeded(0))
    assert isinstance(net, nn.Sequential)
    with torch.no_grad():
        for layer in (net.conv1, net.norm1):
            layer.weight[4:8] = 0
            layer.bias[4:8] = 0
        out = net[:3](torch.randn(2, 1, 8, 8, generator=seeded(1)))
    assert not out[:, 4:8].any()
    assert out[:, :4].any()
