"""One network in three forms, as bytes: tensors by name, a torch.export program, an ONNX graph."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["INPUT", "OUTPUT", "as_graphs", "as_tensors"]

INPUT, OUTPUT = "x", "outputs"


def as_tensors(net: nn.Module, metadata: Mapping[str, str]) -> bytes:
    """Safetensors file of the parameters by name, float32; masked single weights are zeros in it."""
    from safetensors.torch import save

    tensors = {name: parameter.detach().contiguous() for name, parameter in net.named_parameters()}
    return save(tensors, metadata=dict(metadata))


def as_graphs(net: nn.Module, records: Tensor) -> tuple[bytes, bytes]:
    """A torch.export program and an ONNX model, both of any number of records.

    Parameters
    ----------
    net : nn.Module
        In evaluation mode, without branches on values.
    records : Tensor, shape (n, *input_shape)
        An example with n of at least 2, since a size of 1 is taken as fixed.

    Returns
    -------
    tuple of bytes
        What `torch.export.load` reads, and an ONNX file that onnx.checker has passed.
    """
    import onnx

    several = {0: torch.export.Dim("batch", min=1)}
    with _quiet():
        program = torch.export.export(net, (records,), dynamic_shapes=(several,))
        saved = io.BytesIO()
        torch.export.save(program, saved)
        graph = torch.onnx.export(
            program,
            (records,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(several,),
        )
    assert graph is not None
    written = graph.model_proto.SerializeToString()
    onnx.checker.check_model(written, full_check=True)
    return saved.getvalue(), written


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own inside: deprecations, and operators of packages not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
