"""Narrowing a network that somebody else wired: which of its channels can only go together, and smaller layers for it.

Residual sums, depthwise convolutions and squeeze-and-excitation couple the channels of several layers. torch-pruning's
dependency graph of the dense network says which; everything here is shapes, nothing reads a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch_pruning
from torch import nn

from autoflip_secure.models.networks.architecture import Shape, UnitLayer

__all__ = ["ChannelGroups", "narrow"]


@dataclass(frozen=True)
class ChannelGroups:
    """The independent groups of coupled channels of a dense network.

    Attributes
    ----------
    layers : tuple of UnitLayer
        One a group, named after its first layer, in the order of the network's modules.
    produced, read : mapping of str to int
        By name of a module, the group whose channels it gives out or takes in.
    """

    layers: tuple[UnitLayer, ...]
    produced: Mapping[str, int]
    read: Mapping[str, int]

    @classmethod
    def of(cls, net: nn.Module, input_shape: Shape, output: str) -> ChannelGroups:
        """Groups of a network on the meta device; those of its layer `output` are no units."""
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(
                net, example_inputs=torch.zeros(1, *input_shape, device="meta"), verbose=False
            )
        names = {module: name for name, module in net.named_modules()}
        place = {name: number for number, name in enumerate(names.values())}
        found: list[tuple[list[str], list[str]]] = []
        for group in graph.get_all_groups():
            items = [(names[i.dep.target.module], i.dep.handler) for i in group if i.dep.target.module in names]
            produced = [name for name, handler in items if graph.is_out_channel_pruning_fn(handler)]
            read = [name for name, handler in items if not graph.is_out_channel_pruning_fn(handler)]
            if output not in produced:
                found.append((sorted(produced, key=place.__getitem__), read))
        found.sort(key=lambda sides: place[sides[0][0]])
        return cls(
            tuple(_unit_layer(net, produced) for produced, _ in found),
            {name: group for group, (produced, _) in enumerate(found) for name in produced},
            {name: group for group, (_, read) in enumerate(found) for name in read},
        )


def _unit_layer(net: nn.Module, produced: Sequence[str]) -> UnitLayer:
    """A unit is a whole normalisation group wherever its channels are normalised; its layer is the first to give it."""
    modules = [net.get_submodule(name) for name in produced]
    granularity = max((m.num_channels // m.num_groups for m in modules if isinstance(m, nn.GroupNorm)), default=1)
    width = next(modules[0].parameters()).shape[0]
    return UnitLayer(produced[0], width, granularity)


def narrow(net: nn.Module, groups: ChannelGroups, widths: Sequence[int]) -> None:
    """Replace the layers of a dense network, in place, by ones of the given widths, one a group; values are new."""
    for name, module in list(net.named_modules()):
        after, before = groups.produced.get(name), groups.read.get(name)
        if after is None and before is None:
            continue
        smaller = _resized(
            module,
            None if after is None else widths[after],
            None if before is None else (widths[before], groups.layers[before].width),
        )
        parent, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, smaller)


def _resized(module: nn.Module, after: int | None, before: tuple[int, int] | None) -> nn.Module:
    """A layer with `after` channels out and `before` (new, dense) channels in; None is as it was."""
    if isinstance(module, nn.GroupNorm):
        assert after is not None, "a normalisation's channels are those it gives out"
        return nn.GroupNorm(after * module.num_groups // module.num_channels, after, module.eps, module.affine)
    has_bias = module.bias is not None
    if isinstance(module, nn.Linear):
        inputs = module.in_features if before is None else module.in_features // before[1] * before[0]
        return nn.Linear(inputs, after or module.out_features, has_bias)
    assert isinstance(module, nn.Conv2d), f"no rule for a {type(module).__name__}"
    outputs = after or module.out_channels
    depthwise = module.groups == module.out_channels > 1
    inputs = outputs if depthwise else module.in_channels if before is None else before[0]
    return nn.Conv2d(
        inputs,
        outputs,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        groups=outputs if depthwise else 1,
        bias=has_bias,
    )
