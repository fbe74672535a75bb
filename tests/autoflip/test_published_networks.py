"""torchvision's networks: units across residual sums, depthwise convolutions and squeeze-and-excitation, compacted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.flops import flops, parameter_flops, parameters
from autoflip_secure.autoflip.mask import PruneSettings, choose_mask
from autoflip_secure.autoflip.unit_budget import check_reachable
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import ConfigError
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, build, dense_spec, layout_of, unit_layers
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum

NAMES = ["resnet18", "mobilenet-v2", pytest.param("efficientnet-b3", marks=pytest.mark.slow)]
PUBLISHED_SIZES = {"resnet18": 11_689_512, "mobilenet-v2": 3_504_872, "efficientnet-b3": 12_233_232}
"""Of torchvision's own networks for 1,000 classes, as its documentation states them."""

DeadUnits = Callable[[UnitMap, int, float], NDArray[np.bool_]]


@pytest.fixture(params=NAMES)
def small(request: pytest.FixtureRequest) -> ModelSpec:
    """About an eighth of every width, and two units at least."""
    layers = unit_layers(dense_spec(request.param, (2, 16, 17), 3))
    widths = tuple(layer.granularity * max(2, layer.units // 8) for layer in layers)
    return ModelSpec(request.param, (2, 16, 17), 3, widths)


def loaded(spec: ModelSpec, vector: Tensor) -> nn.Module:
    net = build(spec)
    load_flat_parameters(net, vector)
    return net


def some_records(spec: ModelSpec, count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, *spec.input_shape, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) % spec.outputs


def test_sizes_are_the_published_ones() -> None:
    sizes = {name: layout_of(dense_spec(name, (3, 224, 224), 1000)).size for name in PUBLISHED_SIZES}
    assert sizes == PUBLISHED_SIZES


def test_nothing_is_random_in_place_or_mixes_records(small: ModelSpec) -> None:
    net = build(small, torch.Generator().manual_seed(0)).train()
    for module in net.modules():
        assert not isinstance(module, nn.modules.batchnorm._BatchNorm)
        assert not getattr(module, "inplace", False)
    x, _ = some_records(small, 4)
    torch.testing.assert_close(net(x), torch.cat([net(record[None]) for record in x]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "last"), [(8, 1), (32, 4), (64, 4), (128, 4), (224, 7)])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet-v2", "efficientnet-b3"])
def test_small_images_lose_fewer_halvings(name: str, side: int, last: int) -> None:
    dense = dense_spec(name, (1, side, side), 2)
    spec = ModelSpec(name, (1, side, side), 2, tuple(layer.granularity for layer in unit_layers(dense)))
    seen: list[tuple[int, ...]] = []
    net = build(spec)
    *_, final = (module for module in net.modules() if isinstance(module, nn.GroupNorm))
    final.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    assert net(torch.zeros(1, 1, side, side)).shape == (1, 2)
    assert seen == [(last, last)]


def test_units_partition_what_is_not_the_output_layer(small: ModelSpec) -> None:
    units = UnitMap.of(small)
    members = np.concatenate(units.incoming)
    assert np.unique(members).size == members.size
    output_layer = small.outputs * (unit_layers(small)[-1].width + 1)
    np.testing.assert_array_equal(np.sort(members), np.arange(units.size - output_layer))
    names = {name for name, where, _ in layout_of(small).slices() if units.prunable[where].all()}
    weights = {name for name, _, shape in layout_of(small).slices() if len(shape) > 1}
    assert names == weights
    assert units.prunable.sum() == sum(s.stop - s.start for name, s, _ in layout_of(small).slices() if name in weights)


def test_compacted_networks_compute_what_masked_ones_do(small: ModelSpec, some_dead: DeadUnits) -> None:
    units = UnitMap.of(small)
    dead = some_dead(units, 3, 0.5)
    compaction = compact(small, dead)
    gone = torch.from_numpy(units.parameters_of(dead))
    # Large values everywhere, biases and normalisation included: a leak of a dead unit must show.
    vector = torch.randn(units.size, generator=torch.Generator().manual_seed(0)) * 0.3
    vector[gone] = 0.0
    masked, compacted = loaded(small, vector), loaded(compaction.spec, vector[compaction.kept])
    x, y = some_records(small, 5)
    torch.testing.assert_close(compacted(x), masked(x), rtol=1e-5, atol=1e-5)

    def gradient(net: nn.Module) -> Tensor:
        loss = F.cross_entropy(net(x), y, reduction="sum")
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])

    scale = float(gradient(compacted).abs().max())
    torch.testing.assert_close(gradient(compacted), gradient(masked)[compaction.kept], rtol=1e-4, atol=1e-5 * scale)

    with ClippedGradientSum(masked) as dense, ClippedGradientSum(compacted) as sparse:
        theirs, ours = dense(x, y, 0.7, live=~gone), sparse(x, y, 0.7)
    assert np.abs(ours).max() > 0.01
    np.testing.assert_allclose(ours, theirs[compaction.kept], rtol=1e-3, atol=1e-5)


def test_torch_pruning_keeps_the_same_parameters_in_the_same_order(small: ModelSpec, some_dead: DeadUnits) -> None:
    units = UnitMap.of(small)
    dead = some_dead(units, 11, 0.5)
    net = build(small).double()
    load_flat_parameters(net, torch.arange(units.size, dtype=torch.float64))
    graph = torch_pruning.DependencyGraph().build_dependency(
        net, example_inputs=torch.zeros(1, *small.input_shape, dtype=torch.float64)
    )
    for index, layer in enumerate(unit_layers(small)):
        numbers = np.flatnonzero(dead[units.layer == index])
        channels = [int(n) * layer.granularity + k for n in numbers for k in range(layer.granularity)]
        root = net.get_submodule(layer.module)
        if channels:
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels).prune()
    compaction = compact(small, dead)
    np.testing.assert_array_equal(compaction.kept, flatten_parameters(net).numpy().astype(np.int64))
    assert layout_of(compaction.spec).shapes == tuple(tuple(p.shape) for p in net.parameters())


def test_costs_of_the_kept_add_up_and_two_steps_are_one(small: ModelSpec, some_dead: DeadUnits) -> None:
    units = UnitMap.of(small)
    all_dead = some_dead(units, 5, 0.6)
    first_dead = all_dead & (np.random.default_rng(6).random(units.count) < 0.5)
    at_once, first = compact(small, all_dead), compact(small, first_dead)
    second = compact(first.spec, all_dead[first.kept_units])
    assert second.spec == at_once.spec
    np.testing.assert_array_equal(first.kept[second.kept], at_once.kept)
    assert flops(small) > flops(first.spec) > flops(at_once.spec)
    assert parameter_flops(small)[at_once.kept].sum() == flops(at_once.spec)


@pytest.mark.slow
def test_a_decision_on_ten_million_parameters_takes_seconds() -> None:
    spec, prune = (
        dense_spec("efficientnet-b3", (3, 32, 32), 10),
        PruneSettings(threshold=0.3, flops_kept=0.4, params_kept=0.6),
    )
    generator = np.random.default_rng(0)
    units = UnitMap.of(spec)
    scores = generator.random(units.size), generator.random(units.count)
    started = time.process_time()
    check_reachable(spec, prune)
    decision = choose_mask(spec, units, *scores, prune, np.ones(units.size, np.bool_))
    small = compact(spec, decision.dead_units).spec
    assert 0.39 < flops(small) / flops(spec) <= 0.4
    assert parameters(small) <= 0.6 * parameters(spec)
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    ("name", "shape", "index", "width"),
    [
        ("resnet18", (3, 32, 32), 1, 60),
        ("resnet18", (3, 32, 32), 1, 72),
        ("mobilenet-v2", (3, 32, 32), 0, 4),
        ("efficientnet-b3", (3, 32, 32), 1, 11),
        ("efficientnet-b3", (13,), 0, 40),
        ("mobilenet-v2", (3, 7, 32), 0, 32),
    ],
)
def test_impossible_widths_and_images_are_refused(name: str, shape: tuple[int, ...], index: int, width: int) -> None:
    widths = list(dense_spec(name, (3, 32, 32), 10).widths)
    ModelSpec(name, (3, 32, 32), 10, tuple(widths))
    widths[index] = width
    with pytest.raises(ConfigError) as caught:
        ModelSpec(name, shape, 10, tuple(widths))
    assert "\n" not in str(caught.value)


def test_torchvision_is_imported_only_when_asked_for_and_without_a_warning() -> None:
    code = """
import sys
from autoflip_secure.models.spec import build, dense_spec
build(dense_spec("cnn6", (1, 8, 8), 2))
assert "torchvision" not in sys.modules and "opacus" not in sys.modules
build(dense_spec("mobilenet-v2", (1, 8, 8), 2))
assert "torchvision" in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
