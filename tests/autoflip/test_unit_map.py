"""UnitMap against index arithmetic by hand, torch-pruning itself, and a network with a residual sum."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn

from autoflip_secure.autoflip.dependencies import IndexedNetwork
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.errors import EncodingError
from autoflip_secure.models.layout import ParameterLayout, load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, UnitLayer, build, input_shape_of, layout_of, unit_layers

READERS = {
    "cnn-tanh": {"conv1": "conv2", "conv2": "fc1", "fc1": "fc2"},
    "cnn6": {"conv1": "conv2", "conv2": "conv3", "conv3": "conv4", "conv4": "fc1", "fc1": "fc2"},
    "femnist-cnn": {"conv1": "conv2", "conv2": "fc1", "fc1": "fc2"},
    "scatter": {"conv1": "fc1"},
    "mlp": {"fc1": "fc2", "fc2": "fc3"},
}


CHAINS = ["cnn-tanh", "cnn-tanh-small", "cnn6", "femnist-cnn", "scatter", "mlp"]


def indexed_tensors(spec: ModelSpec) -> dict[str, NDArray[np.int64]]:
    return {name: np.arange(where.start, where.stop).reshape(shape) for name, where, shape in layout_of(spec).slices()}


@pytest.mark.parametrize("name", CHAINS)
def test_incoming_and_outgoing_by_hand(name: str, specs: dict[str, ModelSpec]) -> None:
    spec = specs[name]
    tensors = indexed_tensors(spec)
    expected_in, expected_out = [], []
    for layer in unit_layers(spec):
        reader = tensors[READERS[spec.name][layer.module] + ".weight"]
        produced = [tensors[f"{layer.module}.weight"], tensors[f"{layer.module}.bias"]]
        norm = layer.module.replace("conv", "norm")
        if spec.name == "cnn6" and norm != layer.module:
            produced += [tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]]
        positions = reader.shape[1] // layer.width
        for unit in range(layer.units):
            channels = slice(unit * layer.granularity, (unit + 1) * layer.granularity)
            columns = slice(channels.start * positions, channels.stop * positions)
            expected_in.append(np.sort(np.concatenate([tensor[channels].ravel() for tensor in produced])))
            expected_out.append(np.sort(reader[:, columns].ravel()))
    units = UnitMap.of(spec)
    assert units.count == len(expected_in)
    for unit in range(units.count):
        np.testing.assert_array_equal(units.incoming[unit], expected_in[unit])
        np.testing.assert_array_equal(units.outgoing[unit], expected_out[unit])


@pytest.mark.parametrize("name", CHAINS)
def test_owner_layer_and_prunable(name: str, specs: dict[str, ModelSpec]) -> None:
    spec = specs[name]
    units = UnitMap.of(spec)
    tensors = indexed_tensors(spec)
    for unit, incoming in enumerate(units.incoming):
        assert (units.owner[incoming] == unit).all()
    output = list(READERS[spec.name].values())[-1]
    for row in range(spec.outputs):
        own = np.append(tensors[f"{output}.weight"][row], tensors[f"{output}.bias"][row])
        np.testing.assert_array_equal(np.flatnonzero(units.owner == units.count + row), np.sort(own))
    assert units.layer_sizes.tolist() == [layer.units for layer in unit_layers(spec)]
    assert (np.diff(units.layer) >= 0).all()
    for name, where, _ in layout_of(spec).slices():
        weight = name.endswith("weight") and "norm" not in name
        assert (units.prunable[where] == weight).all()


def test_arrays_cannot_be_changed_by_a_user_of_the_cache(mlp_units: UnitMap) -> None:
    assert UnitMap.of(mlp_units.spec) is mlp_units
    for array in (mlp_units.owner, mlp_units.layer, mlp_units.prunable, mlp_units.incoming[0], mlp_units.outgoing[0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_reductions_against_loops(spec: ModelSpec) -> None:
    units = UnitMap.of(spec)
    vector = np.random.default_rng(0).normal(size=units.size)
    slow = np.array([vector[incoming].sum() for incoming in units.incoming])
    np.testing.assert_allclose(units.unit_sum(vector), slow)
    assert np.isclose(units.group_sum(vector).sum(), vector.sum())
    means = [slow[units.layer == layer].mean() for layer in range(len(spec.widths))]
    np.testing.assert_allclose(units.layer_mean(slow), means)
    spread = units.spread(slow, outputs=-7.0)
    for unit, incoming in enumerate(units.incoming):
        assert (spread[incoming] == slow[unit]).all()
    assert (spread[units.owner >= units.count] == -7.0).all()
    with pytest.raises(EncodingError, match="does not fit"):
        units.unit_sum(vector[1:])


def test_parameters_of_is_the_union(spec: ModelSpec) -> None:
    units = UnitMap.of(spec)
    chosen = np.random.default_rng(1).random(units.count) < 0.3
    slow = set()
    for unit in np.flatnonzero(chosen):
        slow |= set(units.incoming[unit].tolist()) | set(units.outgoing[unit].tolist())
    assert set(np.flatnonzero(units.parameters_of(chosen)).tolist()) == slow


def test_units_partition_what_is_not_the_outputs(spec: ModelSpec) -> None:
    units = UnitMap.of(spec)
    members = np.concatenate(units.incoming)
    assert np.unique(members).size == members.size
    np.testing.assert_array_equal(np.sort(members), np.flatnonzero(units.owner < units.count))
    assert (np.bincount(units.owner, minlength=units.groups) > 0).all()
    for unit, incoming in enumerate(units.incoming):
        assert (units.owner[incoming] == unit).all()
        assert units.outgoing[unit].size, "somebody reads it"
        elsewhere = np.setdiff1d(units.outgoing[unit], incoming)
        np.testing.assert_array_equal(units.read_elsewhere(unit), elsewhere)


def test_hidden_units_of_an_lstm_by_hand(specs: dict[str, ModelSpec]) -> None:
    spec = specs["char-lstm"]
    tensors = indexed_tensors(spec)
    units = UnitMap.of(spec)
    first, second = spec.widths
    for unit in range(units.count):
        layer, width, hidden = ("lstm1", first, unit) if unit < first else ("lstm2", second, unit - first)
        rows = [gate * width + hidden for gate in range(4)]
        own = [tensors[f"{layer}.{side}.{kind}"][rows] for side in ("ih", "hh") for kind in ("weight", "bias")]
        np.testing.assert_array_equal(units.incoming[unit], np.sort(np.concatenate([part.ravel() for part in own])))
        reader = tensors["lstm2.ih.weight" if layer == "lstm1" else "fc.weight"]
        read = np.concatenate([tensors[f"{layer}.hh.weight"][:, hidden], reader[:, hidden]])
        np.testing.assert_array_equal(units.outgoing[unit], np.sort(read))
    for symbol in range(spec.outputs):
        own = [tensors[name][symbol].ravel() for name in ("embedding.weight", "fc.weight", "fc.bias")]
        np.testing.assert_array_equal(np.flatnonzero(units.owner == units.count + symbol), np.concatenate(own))
    for name, where, shape in layout_of(spec).slices():
        assert (units.prunable[where] == (len(shape) == 2 and name != "embedding.weight")).all()


def test_a_stage_of_the_residual_network_is_one_layer_by_hand(specs: dict[str, ModelSpec]) -> None:
    spec = specs["resnet-small"]
    tensors = indexed_tensors(spec)
    units = UnitMap.of(spec)
    unit = int(np.flatnonzero(units.layer == 3)[1])  # the second unit of stage2.conv2: channels 4 to 7
    own = slice(4, 8)
    weights = ["stage2.conv2.weight", "stage2.norm2.weight", "stage2.norm2.bias"]
    weights += ["stage2.shortcut.conv.weight", "stage2.shortcut.norm.weight", "stage2.shortcut.norm.bias"]
    produced = np.concatenate([tensors[name][own].ravel() for name in weights])
    np.testing.assert_array_equal(units.incoming[unit], np.sort(produced))
    readers = ["stage3.conv1.weight", "stage3.shortcut.conv.weight"]
    read = np.concatenate([tensors[name][:, own].ravel() for name in readers])
    np.testing.assert_array_equal(units.outgoing[unit], np.sort(read))


@pytest.mark.parametrize("name", ["cnn-tanh-small", "cnn6", "femnist-cnn", "resnet-small", "scatter", "mlp"])
def test_pruning_one_unit_for_real_takes_the_same_parameters(name: str, specs: dict[str, ModelSpec]) -> None:
    spec = specs[name]
    units = UnitMap.of(spec)
    net = build(spec).double()
    load_flat_parameters(net, torch.arange(units.size, dtype=torch.float64))
    first = 0
    for layer in unit_layers(spec):
        pruned = copy.deepcopy(net)
        graph = torch_pruning.DependencyGraph().build_dependency(
            pruned, example_inputs=torch.zeros(1, *input_shape_of(spec), dtype=torch.float64)
        )
        root = pruned.get_submodule(layer.module)
        prune = graph.get_pruner_of_module(root).prune_out_channels
        graph.get_pruning_group(root, prune, list(range(layer.granularity))).prune()
        left = np.concatenate([p.detach().numpy().ravel() for p in pruned.parameters()]).astype(np.int64)
        gone = np.setdiff1d(np.arange(units.size), left)
        np.testing.assert_array_equal(gone, np.union1d(units.incoming[first], units.outgoing[first]))
        first += layer.units


class Residual(nn.Module):
    """conv a, then a + b(a): the channels of a and b are one set of units."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.out = nn.Linear(4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x).relu()
        joined = first + self.norm(self.b(first))
        return self.out(nn.functional.avg_pool2d(joined, 2).flatten(1))


def test_a_residual_sum_couples_its_branches() -> None:
    net = Residual()
    where = {name: np.arange(s.start, s.stop).reshape(shape) for name, s, shape in ParameterLayout.of(net).slices()}
    pairs = list(zip(*IndexedNetwork(net, (1, 4, 4)).units_of(UnitLayer("a", 4, 2)), strict=True))
    assert len(pairs) == 2
    for unit, (incoming, outgoing) in enumerate(pairs):
        own = slice(2 * unit, 2 * unit + 2)
        produced = [where[name][own] for name in ("a.weight", "a.bias", "b.weight", "norm.weight", "norm.bias")]
        np.testing.assert_array_equal(incoming, np.sort(np.concatenate([p.ravel() for p in produced])))
        read = np.union1d(where["b.weight"][:, own], where["out.weight"][:, 8 * unit : 8 * unit + 8])
        np.testing.assert_array_equal(outgoing, read)
