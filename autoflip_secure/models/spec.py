"""ModelSpec: the public, hashable statement of which network is trained, at which widths.

A spec is all it takes to rebuild a network, dense or compacted, on any machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.models.architectures import MODELS, UnitLayer
from autoflip_secure.models.features import feature_shape
from autoflip_secure.models.initial import initialise
from autoflip_secure.models.layout import ParameterLayout

__all__ = ["ModelSpec", "UnitLayer", "build", "dense_spec", "input_shape_of", "layout_of", "skeleton", "unit_layers"]

FIELDS = ("name", "input_shape", "outputs", "widths")


@dataclass(frozen=True)
class ModelSpec:
    """One network.

    Attributes
    ----------
    name : str
        Architecture, a key of `MODELS`.
    input_shape : tuple of int
        Shape of one record, channels first for images.
    outputs : int
        Number of classes (a binary task has 2), or 1 in a survival task.
    widths : tuple of int
        Output channels of each unit layer, in forward order; at most the dense widths, multiples of the granularity.

    Raises
    ------
    ConfigError
        Unknown architecture, an input it cannot take, or impossible widths.
    """

    name: str
    input_shape: tuple[int, ...]
    outputs: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ConfigError(f"--model: unknown network {self.name!r}; known are {', '.join(MODELS)}")
        numbers = (*self.input_shape, self.outputs, *self.widths)
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ConfigError(f"network {self.name}: sizes must be positive whole numbers, got {numbers}")
        MODELS[self.name].check_input(self.input_shape)
        layers = MODELS[self.name].layers
        if len(self.widths) != len(layers):
            raise ConfigError(
                f"network {self.name} has {len(layers)} unit layers, {len(self.widths)} widths were given"
            )
        for layer, width in zip(layers, self.widths, strict=True):
            if width > layer.width or width % layer.granularity:
                raise ConfigError(
                    f"network {self.name}: layer {layer.module} cannot have width {width}; "
                    f"it takes multiples of {layer.granularity} up to {layer.width}"
                )

    def to_json(self) -> str:
        """One line of JSON with sorted keys, equal for equal specs."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of `to_json`.

        Raises
        ------
        DataError
            Not the JSON of a spec.
        ConfigError
            Well-formed, but no network of this version.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the model description is not JSON ({error}); nothing was loaded") from error
        _check_json(fields)
        return cls(fields["name"], tuple(fields["input_shape"]), fields["outputs"], tuple(fields["widths"]))


def _check_json(fields: Any) -> None:
    if not isinstance(fields, dict) or set(fields) != set(FIELDS):
        raise DataError(f"a model description has exactly the fields {', '.join(FIELDS)}; nothing was loaded")
    if not isinstance(fields["name"], str):
        raise DataError("the model description's name is not a string; nothing was loaded")
    numbers = [fields["outputs"]]
    for key in ("input_shape", "widths"):
        if not isinstance(fields[key], list):
            raise DataError(f"the model description's {key} is not a list; nothing was loaded")
        numbers += fields[key]
    if not all(type(number) is int for number in numbers):
        raise DataError("the model description's sizes are not whole numbers; nothing was loaded")


def dense_spec(name: str, input_shape: tuple[int, ...], outputs: int) -> ModelSpec:
    """The unpruned network of an architecture.

    Raises
    ------
    ConfigError
        Unknown architecture or an input it cannot take.
    """
    widths = tuple(layer.width for layer in MODELS[name].layers) if name in MODELS else ()
    return ModelSpec(name, tuple(input_shape), outputs, widths)


def unit_layers(spec: ModelSpec) -> tuple[UnitLayer, ...]:
    """The spec's unit layers at its own widths, in forward order; the output layer is not among them."""
    layers = MODELS[spec.name].layers
    return tuple(replace(layer, width=width) for layer, width in zip(layers, spec.widths, strict=True))


def input_shape_of(spec: ModelSpec) -> tuple[int, ...]:
    """Shape of what the network itself takes in: a record's features where it has fixed ones in front."""
    return feature_shape(spec.name, spec.input_shape)


def skeleton(spec: ModelSpec) -> nn.Module:
    """The network on torch's meta device: shapes without values."""
    with torch.device("meta"):
        return MODELS[spec.name].builder(input_shape_of(spec), spec.outputs, spec.widths)


@lru_cache(maxsize=256)
def layout_of(spec: ModelSpec) -> ParameterLayout:
    """Flat layout of the spec's parameters."""
    return ParameterLayout.of(skeleton(spec))


def build(spec: ModelSpec, generator: torch.Generator | None = None) -> nn.Module:
    """The network on the CPU, float32.

    Parameters
    ----------
    generator : torch.Generator, optional
        Source of the initial values, distributed as torch's own defaults. Without it every parameter is 0, for a
        following `load_flat_parameters`. Torch's global random state is read in neither case.
    """
    net = skeleton(spec).to_empty(device="cpu")
    if generator is not None:
        initialise(net, generator)
        return net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    return net
