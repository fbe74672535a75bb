"""What the registry knows of a network: its unit layers, the inputs it takes, and how it is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from autoflip_secure.errors import ConfigError

__all__ = ["Architecture", "Builder", "Shape", "UnitLayer", "check_any", "check_image", "check_sequence"]

Shape = tuple[int, ...]
Builder = Callable[[Shape, int, Sequence[int]], nn.Module]

SMALLEST_SIDE = 8


@dataclass(frozen=True)
class UnitLayer:
    """A layer whose neurons or filters can be removed.

    Attributes
    ----------
    module : str
        Dotted name of the convolution, linear or recurrent layer; where residual sums couple several, the first.
    width : int
        Its output channels.
    granularity : int
        Channels one unit consists of; above 1 where a unit is a whole normalisation group.
    """

    module: str
    width: int
    granularity: int = 1

    @property
    def units(self) -> int:
        """Number of units."""
        return self.width // self.granularity


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry.

    Attributes
    ----------
    description : str
        One line for users.
    find_layers : callable
        find_layers() -> `layers`; called when they are first asked for, since torchvision takes a second to import.
    check_input : callable
        Raises ConfigError where the network cannot take inputs of a shape.
    builder : callable
        builder(input_shape, outputs, widths) -> module.
    scattering : bool
        Whether the network takes scattering features of a record in its place (`models.features`).
    """

    description: str
    find_layers: Callable[[], tuple[UnitLayer, ...]]
    check_input: Callable[[Shape], None]
    builder: Builder
    scattering: bool = False

    @cached_property
    def layers(self) -> tuple[UnitLayer, ...]:
        """The unit layers in forward order, at their dense widths; the output layer is not among them."""
        return self.find_layers()


def check_image(input_shape: Shape) -> None:
    """Refuse what is no image of at least 8x8."""
    if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST_SIDE:
        raise ConfigError(
            f"--model: a convolutional network takes channels x height x width with sides of at least {SMALLEST_SIDE}, "
            f"the records are {_shown(input_shape)}; nothing was started, use --model mlp"
        )


def check_sequence(input_shape: Shape) -> None:
    """Refuse what is no row of symbols."""
    if len(input_shape) != 1:
        raise ConfigError(
            "--model: a character network takes rows of symbols, "
            f"the records are {_shown(input_shape)}; nothing was started, use --model mlp"
        )


def check_any(input_shape: Shape) -> None:
    """Refuse records without a single feature."""
    if not input_shape:
        raise ConfigError("--model: records without features cannot be learnt from; nothing was started")


def _shown(input_shape: Shape) -> str:
    return "x".join(map(str, input_shape)) or "single numbers"
