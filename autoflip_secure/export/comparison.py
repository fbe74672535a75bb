"""What pruning gains at inference: parameters, operations and time, beside the dense network, measured in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from autoflip_secure.autoflip.flops import flops, parameters
from autoflip_secure.export.network import example_records, inference_network
from autoflip_secure.export.timing import interleaved, medians
from autoflip_secure.models.spec import ModelSpec, build, dense_spec

__all__ = ["BATCHES", "compare"]

BATCHES = (1, 32)
SECONDS_A_BATCH = 3.0


def compare(spec: ModelSpec, network: nn.Module, live: int) -> dict[str, Any]:
    """Figures of the pruned network and of the dense one of the same architecture, whose values are random.

    Parameters
    ----------
    spec, network
        The pruned network, as `inference_network` gives it.
    live : int
        Its parameters that are not masked.

    Returns
    -------
    dict
        `pruned` and `dense`, each with parameters, parameters_live, flops (a record, fixed features not counted) and
        latency_ms (median by batch size, fixed features included), and `threads` that torch used.
    """
    generator = torch.Generator().manual_seed(0)
    dense = dense_spec(spec.name, spec.input_shape, spec.outputs)
    dense_network = inference_network(dense, build(dense, generator))
    latency: dict[str, list[float]] = {}
    for batch in BATCHES:
        records = example_records(spec, batch, generator)
        with torch.inference_mode():
            taken = interleaved([_forward(net, records) for net in (network, dense_network)], SECONDS_A_BATCH)
        latency[str(batch)] = [1000 * median for median in medians(taken)]
    figures: dict[str, Any] = {"threads": torch.get_num_threads()}
    for place, (name, one, alive) in enumerate((("pruned", spec, live), ("dense", dense, parameters(dense)))):
        figures[name] = {
            "parameters": parameters(one),
            "parameters_live": alive,
            "flops": flops(one),
            "latency_ms": {batch: round(times[place], 4) for batch, times in latency.items()},
        }
    return figures


def _forward(net: nn.Module, records: torch.Tensor) -> Callable[[], object]:
    return lambda: net(records)
