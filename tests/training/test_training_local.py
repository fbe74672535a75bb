from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.seeds import torch_stream
from autoflip_secure.training.evaluation import evaluate
from autoflip_secure.training.local import batches, train_locally

OPTIONS = {"steps": 12, "batch_size": 16, "learning_rate": 0.1, "momentum": 0.9}


def train(module, data, *, seed=0, **changes):
    train_locally(module, *data, **(OPTIONS | {"generator": torch_stream(seed, "batches")} | changes))
    return flatten_parameters(module)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 30), st.integers(0, 2**32))
def test_each_pass_uses_every_record_once(records, batch_size, steps, seed):
    drawn = list(batches(records, batch_size, steps, torch.Generator().manual_seed(seed)))
    assert len(drawn) == steps
    per_pass = -(-records // batch_size)
    for start in range(0, steps - per_pass + 1, per_pass):
        assert torch.cat(drawn[start : start + per_pass]).sort().values.tolist() == list(range(records))
    flat = torch.cat(drawn)
    assert (flat >= 0).all()
    assert (flat < records).all()


def test_training_learns(make_network, clusters):
    module = make_network()
    before = evaluate(module, clusters[0].numpy(), clusters[1].numpy(), "multiclass")
    train(module, clusters, steps=60)
    after = evaluate(module, clusters[0].numpy(), clusters[1].numpy(), "multiclass")
    assert after.accuracy > 0.95 > before.accuracy
    assert after.loss < before.loss / 3


def test_same_generator_same_model(make_network, clusters):
    assert torch.equal(train(make_network(), clusters), train(make_network(), clusters))
    assert not torch.equal(train(make_network(), clusters), train(make_network(), clusters, seed=1))


def test_global_random_state_is_left_alone(make_network, clusters):
    module = make_network()
    state = torch.get_rng_state()
    train(module, clusters)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    clip_norm=st.sampled_from([None, 0.5]),
    optimizer=st.sampled_from(["sgd", "adam"]),
    prox_mu=st.sampled_from([0.0, 0.5]),
)
def test_masked_parameters_stay_exactly_zero(seed, share, momentum, weight_decay, clip_norm, optimizer, prox_mu):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    data = torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)
    live = torch.rand(flatten_parameters(module).numel(), generator=generator) < share
    options = {"momentum": momentum, "weight_decay": weight_decay, "clip_norm": clip_norm}
    after = train(module, data, live=live, optimizer=optimizer, prox_mu=prox_mu, **options)
    assert (after[~live].view(torch.int32) == 0).all()  # the bits: -0.0 would be another model


def test_live_parameters_move_and_the_mask_matters(make_network, clusters):
    live = torch.ones(flatten_parameters(make_network()).numel(), dtype=torch.bool)
    whole = train(make_network(), clusters)
    assert torch.equal(train(make_network(), clusters, live=live), whole)
    live[::2] = False
    masked = train(make_network(), clusters, live=live)
    assert (masked[live] != 0).all()
    assert not torch.equal(masked[live], whole[live])


def test_masked_gradient_may_be_infinite(clusters):
    module = nn.Linear(6, 3)
    with torch.no_grad():
        module.weight.fill_(3e38)
    live = torch.zeros(21, dtype=torch.bool)
    assert (train(module, clusters, live=live, learning_rate=1e30) == 0).all()


def test_one_step_is_gradient_descent(make_network, clusters):
    module, reference = make_network(), make_network()
    x, y = clusters
    after = train(module, clusters, steps=1, batch_size=1000, momentum=0.0, weight_decay=0.01)
    F.cross_entropy(reference(x), y).backward()
    expected = torch.cat([(p - 0.1 * (p.grad + 0.01 * p)).detach().reshape(-1) for p in reference.parameters()])
    assert torch.allclose(after, expected, atol=1e-6)


def test_adam_is_torch_s_adam_started_anew(make_network, clusters):
    reference = make_network()
    x, y = clusters
    optimiser = torch.optim.Adam(reference.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        optimiser.step()
    options = {"steps": 3, "batch_size": 1000, "optimizer": "adam", "learning_rate": 0.01}
    assert torch.allclose(train(make_network(), clusters, **options), flatten_parameters(reference), atol=1e-5)


def test_the_proximal_term_pulls_towards_where_the_round_began(make_network, clusters):
    x, y = clusters
    reference = make_network()
    origin = [p.detach().clone() for p in reference.parameters()]
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(4):
        optimiser.zero_grad()
        distance = sum(((p - o) ** 2).sum() for p, o in zip(reference.parameters(), origin, strict=True))
        (F.cross_entropy(reference(x), y) + 0.7 / 2 * distance).backward()
        optimiser.step()
    options = {"steps": 4, "batch_size": 1000, "learning_rate": 0.1, "momentum": 0.0}
    pulled = train(make_network(), clusters, prox_mu=0.7, **options)
    assert torch.allclose(pulled, flatten_parameters(reference), atol=1e-5)
    assert not torch.allclose(pulled, train(make_network(), clusters, **options), atol=1e-4)


def test_clip_norm_bounds_a_step(make_network, clusters):
    before = flatten_parameters(make_network())
    after = train(make_network(), clusters, steps=1, momentum=0.0, learning_rate=1.0, clip_norm=0.01)
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_training_flag_and_gradients_are_restored(make_network, clusters):
    module = make_network().eval()
    train(module, clusters)
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_frozen_parameters_are_left_alone(make_network, clusters):
    module = make_network()
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.clone()
    live = torch.zeros(flatten_parameters(module).numel(), dtype=torch.bool)
    train(module, clusters, live=live)
    assert torch.equal(module[0].weight, frozen)
    assert not module[2].weight.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_train_as_in_any_memory_layout_and_the_network_comes_back_in_its_own(channels):
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(40, channels, 8, 7, generator=generator), torch.randint(3, (40,), generator=generator)

    def network():
        torch.manual_seed(0)
        inner = (nn.Conv2d(channels, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2))
        return nn.Sequential(*inner, nn.Flatten(), nn.Linear(10, 3))

    live = torch.rand(flatten_parameters(network()).numel(), generator=generator) < 0.8
    module, reference = network(), network()
    after = train(module, (x, y), live=live, steps=3, momentum=0.0)
    assert all(parameter.is_contiguous() for parameter in module.parameters())
    assert (after[~live].view(torch.int32) == 0).all()
    load_flat_parameters(reference, flatten_parameters(reference) * live)
    for rows in batches(40, 16, 3, torch_stream(0, "batches")):
        gradients = torch.autograd.grad(F.cross_entropy(reference(x[rows]), y[rows]), list(reference.parameters()))
        step = 0.1 * torch.cat([gradient.reshape(-1) for gradient in gradients]) * live
        load_flat_parameters(reference, flatten_parameters(reference) - step)
    torch.testing.assert_close(after, flatten_parameters(reference), rtol=1e-4, atol=1e-5)


def test_a_mask_that_only_some_tensors_have_masks_those(make_network, clusters):
    live = torch.ones(flatten_parameters(make_network()).numel(), dtype=torch.bool)
    live[120:140] = False
    after = train(make_network(), clusters, live=live)
    assert not after[~live].any()
    assert (after[live] != 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
        {"optimizer": "lion"},
        {"prox_mu": -0.1},
        {"live": torch.ones(4, dtype=torch.bool)},
        {"live": torch.ones(163)},
    ],
)
def test_options_out_of_range(make_network, clusters, change):
    module = make_network()
    before = flatten_parameters(module)
    with pytest.raises(ConfigError):
        train(module, clusters, **change)
    assert torch.equal(flatten_parameters(module), before)


def test_records_that_do_not_match(make_network, clusters):
    with pytest.raises(DataError, match="do not match"):
        train(make_network(), (clusters[0], clusters[1][:-1]))
    with pytest.raises(DataError, match="do not match"):
        train(make_network(), (clusters[0][:0], clusters[1][:0]))
