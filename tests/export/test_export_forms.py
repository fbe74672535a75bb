"""Every network, compacted: what the exported program and the ONNX graph compute is what the network in memory does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from autoflip_secure.autoflip.compaction import compact
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.export.comparison import BATCHES, compare
from autoflip_secure.export.forms import INPUT, OUTPUT, as_graphs, as_tensors
from autoflip_secure.export.network import example_records, inference_network
from autoflip_secure.export.scattering import ScatteringFeatures
from autoflip_secure.export.timing import LEAST_TURNS, interleaved, medians
from autoflip_secure.models.architectures import MODELS
from autoflip_secure.models.features import features_of
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, build, dense_spec, unit_layers

SHAPES = {"char-lstm": (6,), "mlp": (13,), "scatter": (1, 9, 8), "cnn-tanh": (1, 8, 9)}
COLOUR = (3, 9, 8)
OUTPUTS = 5


def halved(name: str) -> tuple[ModelSpec, nn.Module]:
    """A narrow network with half of each layer's units removed and a tenth of its weights masked."""
    shape = SHAPES.get(name, COLOUR)
    layers = unit_layers(dense_spec(name, shape, OUTPUTS))
    narrow = ModelSpec(name, shape, OUTPUTS, tuple(x.granularity * max(2, x.units // 8) for x in layers))
    units = UnitMap.of(narrow)
    first = np.concatenate([[0], np.cumsum(units.layer_sizes)[:-1]])
    dead = (np.arange(units.count) - first[units.layer]) % 2 == 1
    small = compact(narrow, dead)
    assert all(new < old for new, old in zip(small.spec.widths, narrow.widths, strict=True))
    net = build(small.spec, torch.Generator().manual_seed(1))
    vector = flatten_parameters(net)
    vector[UnitMap.of(small.spec).prunable & (np.arange(vector.numel()) % 10 == 0)] = 0.0
    load_flat_parameters(net, vector)
    return small.spec, net


def in_memory(spec: ModelSpec, net: nn.Module, records: Tensor) -> Tensor:
    """What the package itself computes of records."""
    features = features_of(spec.name, records.numpy()) if MODELS[spec.name].scattering else records
    with torch.no_grad():
        return net(torch.as_tensor(features))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "-b3" in n else ()) for n in MODELS])
def test_program_and_graph_compute_what_the_pruned_network_does(name: str) -> None:
    spec, net = halved(name)
    generator = torch.Generator().manual_seed(2)
    program, graph = as_graphs(inference_network(spec, net), example_records(spec, 2, generator))
    loaded = torch.export.load(io.BytesIO(program)).module()
    session = onnxruntime.InferenceSession(graph)
    assert [node.name for node in session.get_inputs()] == [INPUT]
    assert session.get_inputs()[0].shape == ["batch", *spec.input_shape]
    assert session.get_outputs()[0].shape == ["batch", OUTPUTS]
    for batch in (1, 2, 7):
        records = example_records(spec, batch, generator)
        expected = in_memory(spec, net, records)
        assert expected.abs().max() > 0.01
        with torch.no_grad():
            torch.testing.assert_close(loaded(records), expected, rtol=1e-4, atol=1e-4)
        (computed,) = session.run([OUTPUT], {INPUT: records.numpy()})
        torch.testing.assert_close(torch.from_numpy(computed), expected, rtol=1e-4, atol=1e-4)


def test_tensors_by_name_rebuild_the_network() -> None:
    spec, net = halved("cnn6")
    data = as_tensors(net, {"model": spec.name, "widths": json.dumps(spec.widths)})
    tensors = load(data)
    again = build(spec)
    again.load_state_dict(tensors)
    assert torch.equal(flatten_parameters(again), flatten_parameters(net))
    assert (tensors["conv2.weight"] == 0).any()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 17, 21)])
def test_features_inside_the_export_are_those_the_silos_compute(shape: tuple[int, ...]) -> None:
    records = torch.rand(3, *shape, generator=torch.Generator().manual_seed(3))
    ours = ScatteringFeatures(shape)(records)
    theirs = torch.from_numpy(features_of("scatter", records.numpy()))
    assert theirs.abs().max() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-5)


def test_a_record_beyond_all_bounds_has_no_features_in_the_export_either() -> None:
    records = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    records[1, 0, 0, 0] = 1e37
    features = ScatteringFeatures((1, 8, 8))(records)
    assert not features[1].any()
    assert features[0].any()


def test_symbols_go_in_as_whole_numbers_and_give_what_the_training_network_gives() -> None:
    spec, net = halved("char-lstm")
    records = example_records(spec, 4, torch.Generator().manual_seed(5))
    assert records.dtype == torch.int64
    with torch.no_grad():
        torch.testing.assert_close(inference_network(spec, net)(records), net(records.float()))


def test_the_comparison_is_with_the_dense_network() -> None:
    spec, net = halved("mlp")
    figures = compare(spec, inference_network(spec, net), live=7)
    dense = dense_spec("mlp", spec.input_shape, OUTPUTS)
    assert figures["dense"]["parameters"] == sum(p.numel() for p in build(dense).parameters())
    assert figures["pruned"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert figures["pruned"]["parameters_live"] == 7
    assert 0 < figures["pruned"]["flops"] < figures["dense"]["flops"]
    for side in ("pruned", "dense"):
        assert set(figures[side]["latency_ms"]) == {str(batch) for batch in BATCHES}
        assert all(value > 0 for value in figures[side]["latency_ms"].values())


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    calls: list[Callable[[], object]] = [lambda: order.append("a"), lambda: order.append("b")]
    taken = interleaved(calls, seconds=0.0)
    assert [len(times) for times in taken] == [LEAST_TURNS] * 2
    assert order == ["a", "b"] * (len(order) // 2)
    assert medians([[3.0, 1.0, 2.0]]) == [2.0]
