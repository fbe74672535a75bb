"""Networks as torchvision wires them, without its pretrained weights: ResNet-18, MobileNetV2 and EfficientNet-B3.

What differs from torchvision, for all three:

- GroupNorm in place of BatchNorm, in groups of 8 channels: every width of the three is a multiple of 8.
- No dropout and no stochastic depth: what a silo computes depends on its records and the public model alone, and a
  compacted network can be compared with the masked one.
- Activations and residual sums are not in place, which per-sample gradients forbid.
- Images with sides below 128 lose fewer halvings of their sides: of the five one less, below 64 two less, so that 32x32
  comes out as 4x4 and not as one pixel. They go from the input's side of the network. ResNet-18 then has the 3x3 first
  convolution without max-pooling that is usual for such images.

Import this where such a network is asked for only: torchvision takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from autoflip_secure.models.networks.architecture import Shape, UnitLayer
from autoflip_secure.models.networks.channels import ChannelGroups, narrow
from autoflip_secure.models.torchvision_import import import_torchvision

__all__ = ["published", "published_layers"]

import_torchvision()
from torchvision.models import efficientnet, mobilenetv2, resnet  # noqa: E402

CHANNELS_PER_GROUP = 8
SIDE_FOR_FIVE_HALVINGS = 128
SIDE_FOR_FOUR_HALVINGS = 64
SOME_IMAGE: Shape = (3, 32, 32)
SOME_OUTPUTS = 10


def published(name: str, input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Module:
    """The network at the given widths, one a layer of `published_layers`."""
    net = _dense(name, input_shape, outputs)
    narrow(net, _groups(name), widths)
    return net


def published_layers(name: str) -> tuple[UnitLayer, ...]:
    """Unit layers of the dense network; they do not depend on the images."""
    return _groups(name).layers


@lru_cache(maxsize=8)
def _groups(name: str) -> ChannelGroups:
    with torch.device("meta"):
        net = _dense(name, SOME_IMAGE, SOME_OUTPUTS)
    *_, output = (module for module, layer in net.named_modules() if isinstance(layer, nn.Linear))
    return ChannelGroups.of(net, SOME_IMAGE, output)


def _dense(name: str, input_shape: Shape, outputs: int) -> nn.Module:
    channels, *sides = input_shape
    skipped = (min(sides) < SIDE_FOR_FIVE_HALVINGS) + (min(sides) < SIDE_FOR_FOUR_HALVINGS)
    net = DENSE[name](outputs, skipped)
    for module in net.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - a module's attributes are tensors to the type checker
    _set_input_channels(net, channels)
    return net


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class _BasicBlock(resnet.BasicBlock):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        joined: Tensor = self.relu(self.bn2(self.conv2(inner)) + shortcut)
        return joined


class _MBConv(efficientnet.MBConv):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.block(input)
        return result + input if self.use_res_connect else result


def _resnet18(outputs: int, skipped: int) -> nn.Module:
    net: nn.Module = resnet.ResNet(_BasicBlock, [2, 2, 2, 2], num_classes=outputs, norm_layer=_norm)
    if skipped:
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1 if skipped == 2 else 2, padding=1, bias=False)
        net.maxpool = nn.Identity()
    return net


def _mobilenet_v2(outputs: int, skipped: int) -> nn.Module:
    net: nn.Module = mobilenetv2.MobileNetV2(num_classes=outputs, norm_layer=_norm, dropout=0.0)
    _skip_halvings(net, skipped)
    return net


def _efficientnet_b3(outputs: int, skipped: int) -> nn.Module:
    """Tan and Le 2019 (arXiv 1905.11946), table 1, at 1.2 times the width and 1.4 times the depth."""
    stage = partial(efficientnet.MBConvConfig, width_mult=1.2, depth_mult=1.4, block=_MBConv)
    stages = [
        stage(1, 3, 1, 32, 16, 1),
        stage(6, 3, 2, 16, 24, 2),
        stage(6, 5, 2, 24, 40, 2),
        stage(6, 3, 2, 40, 80, 3),
        stage(6, 5, 1, 80, 112, 3),
        stage(6, 5, 2, 112, 192, 4),
        stage(6, 3, 1, 192, 320, 1),
    ]
    net: nn.Module = efficientnet.EfficientNet(
        stages, dropout=0.0, stochastic_depth_prob=0.0, num_classes=outputs, norm_layer=_norm
    )
    _skip_halvings(net, skipped)
    return net


DENSE: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet18": _resnet18,
    "mobilenet-v2": _mobilenet_v2,
    "efficientnet-b3": _efficientnet_b3,
}


def _skip_halvings(net: nn.Module, skipped: int) -> None:
    """Give the first `skipped` convolutions that halve the sides a stride of 1; what is residual stays so."""
    halving = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    for convolution in halving[:skipped]:
        convolution.stride = (1, 1)


def _set_input_channels(net: nn.Module, channels: int) -> None:
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == channels:
        return
    stem = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, stem)
