"""Compaction: the smaller network computes what the masked one does, in values and in per-sample gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import ConfigError, EncodingError
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, build, dense_spec, input_shape_of, layout_of, unit_layers
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum

PROPERTY_SPECS = [
    dense_spec("cnn-tanh", (1, 28, 28), 10),
    dense_spec("cnn-tanh", (3, 8, 11), 3),
    dense_spec("cnn6", (1, 9, 8), 2),
    ModelSpec("cnn6", (3, 17, 12), 5, (8, 32, 12, 16, 40)),
    ModelSpec("femnist-cnn", (1, 8, 9), 3, (6, 8, 20)),
    dense_spec("resnet-small", (3, 8, 9), 3),
    ModelSpec("char-lstm", (7,), 5, (20, 12)),
    dense_spec("scatter", (1, 8, 11), 3),
    dense_spec("mlp", (30,), 2),
]


def loaded(spec: ModelSpec, vector: Tensor) -> nn.Module:
    net = build(spec)
    load_flat_parameters(net, vector)
    return net


def some_records(spec: ModelSpec, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if spec.name == "char-lstm":
        return torch.randint(spec.outputs, (count, *spec.input_shape), generator=generator).float()
    return torch.randn(count, *input_shape_of(spec), generator=generator)


def masked_pair(spec: ModelSpec, dead: NDArray[np.bool_], seed: int) -> tuple[nn.Module, nn.Module, NDArray[np.int64]]:
    """(network with the incoming parameters of dead units at zero, compacted network, kept)."""
    units = UnitMap.of(spec)
    # Large values everywhere, biases and normalisation included: a leak of a dead unit must show.
    vector = torch.randn(units.size, generator=torch.Generator().manual_seed(seed)) * 0.3
    for unit in np.flatnonzero(dead):
        vector[units.incoming[unit].tolist()] = 0.0
    compaction = compact(spec, dead)
    return loaded(spec, vector), loaded(compaction.spec, vector[compaction.kept]), compaction.kept


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PROPERTY_SPECS), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_outputs_equal_the_masked_networks(spec: ModelSpec, share: float, seed: int) -> None:
    units = UnitMap.of(spec)
    generator = np.random.default_rng(seed)
    dead = generator.random(units.count) < share
    for layer in range(len(spec.widths)):
        dead[generator.choice(np.flatnonzero(units.layer == layer))] = False
    masked, small, _ = masked_pair(spec, dead, seed)
    x = some_records(spec, 4, seed)
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_per_sample_gradients_agree_on_what_survives(
    spec: ModelSpec, some_dead: Callable[[UnitMap, int, float], NDArray[np.bool_]]
) -> None:
    masked, small, kept = masked_pair(spec, some_dead(UnitMap.of(spec), 3, 0.5), 3)
    x = some_records(spec, 5, 1)
    y = torch.arange(5) % spec.outputs

    def gradients(net: nn.Module) -> Tensor:
        wrapped = GradSampleModule(net, loss_reduction="sum")
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        return torch.cat([p.grad_sample.reshape(5, -1) for p in wrapped.parameters()], dim=1)

    torch.testing.assert_close(gradients(small), gradients(masked)[:, kept], rtol=1e-4, atol=1e-5)


def test_gradients_and_clipped_sums_agree_on_what_lives(
    spec: ModelSpec, some_dead: Callable[[UnitMap, int, float], NDArray[np.bool_]]
) -> None:
    """The very sum a silo sends: the masked network's, its dead parameters not live, and the compacted network's."""
    units = UnitMap.of(spec)
    dead = some_dead(units, 4, 0.5)
    masked, small, kept = masked_pair(spec, dead, 4)
    live = torch.from_numpy(~units.parameters_of(dead))
    x, y = some_records(spec, 6, 2), torch.arange(6) % spec.outputs

    def gradient(net: nn.Module) -> Tensor:
        loss = F.cross_entropy(net(x), y)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])

    torch.testing.assert_close(gradient(small), gradient(masked)[kept], rtol=1e-4, atol=1e-5)
    with ClippedGradientSum(masked) as dense, ClippedGradientSum(small) as sparse:
        theirs, ours = dense(x, y, 0.3, live=live), sparse(x, y, 0.3)
    assert np.linalg.norm(ours) > 0.01
    np.testing.assert_allclose(ours, theirs[kept], rtol=1e-3, atol=1e-6)
    assert not np.delete(theirs, kept).any()


@pytest.mark.parametrize("name", ["cnn-tanh-small", "cnn6", "femnist-cnn", "resnet-small", "scatter", "mlp"])
def test_torch_pruning_keeps_the_same_parameters_in_the_same_order(
    name: str, specs: dict[str, ModelSpec], some_dead: Callable[[UnitMap, int, float], NDArray[np.bool_]]
) -> None:
    spec = specs[name]
    units = UnitMap.of(spec)
    dead = some_dead(units, 11, 0.6)
    net = build(spec).double()
    load_flat_parameters(net, torch.arange(units.size, dtype=torch.float64))
    graph = torch_pruning.DependencyGraph().build_dependency(
        net, example_inputs=torch.zeros(1, *input_shape_of(spec), dtype=torch.float64)
    )
    for index, layer in enumerate(unit_layers(spec)):
        numbers = np.flatnonzero(dead[units.layer == index])
        channels = [int(n) * layer.granularity + k for n in numbers for k in range(layer.granularity)]
        root = net.get_submodule(layer.module)
        graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels).prune()
    left = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy().astype(np.int64)
    compaction = compact(spec, dead)
    np.testing.assert_array_equal(compaction.kept, left)
    assert layout_of(compaction.spec).shapes == tuple(tuple(p.shape) for p in net.parameters())


def test_compacting_in_two_steps_is_compacting_at_once(
    spec: ModelSpec, some_dead: Callable[[UnitMap, int, float], NDArray[np.bool_]]
) -> None:
    units = UnitMap.of(spec)
    all_dead = some_dead(units, 5, 0.7)
    first_dead = all_dead & (np.random.default_rng(6).random(units.count) < 0.5)
    at_once, first = compact(spec, all_dead), compact(spec, first_dead)
    second = compact(first.spec, all_dead[first.kept_units])
    assert second.spec == at_once.spec
    np.testing.assert_array_equal(first.kept[second.kept], at_once.kept)
    np.testing.assert_array_equal(first.kept_units[second.kept_units], at_once.kept_units)


def test_nothing_dead_keeps_everything(spec: ModelSpec) -> None:
    units = UnitMap.of(spec)
    compaction = compact(spec, np.zeros(units.count, np.bool_))
    assert compaction.spec == spec
    np.testing.assert_array_equal(compaction.kept, np.arange(units.size))


def test_the_last_units_of_a_layer_stay(spec: ModelSpec) -> None:
    units = UnitMap.of(spec)
    for index, layer in enumerate(unit_layers(spec)):
        with pytest.raises(ConfigError, match=f"{layer.module} would lose its last unit"):
            compact(spec, units.layer == index)
    with pytest.raises(EncodingError, match="do not fit"):
        compact(spec, np.zeros(units.count + 1, np.bool_))


def test_outgoing_weights_of_dead_units_do_not_matter(tanh_spec: ModelSpec) -> None:
    units = UnitMap.of(tanh_spec)
    dead = np.zeros(units.count, np.bool_)
    dead[[2, 20, 60]] = True
    masked, _, _ = masked_pair(tanh_spec, dead, 0)
    changed = copy.deepcopy(masked)
    vector = torch.cat([p.detach().reshape(-1) for p in changed.parameters()])
    only_out = np.setdiff1d(units.outgoing[2], np.concatenate([units.incoming[u] for u in np.flatnonzero(dead)]))
    vector[only_out.tolist()] += 5.0
    load_flat_parameters(changed, vector)
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed(x), masked(x))
