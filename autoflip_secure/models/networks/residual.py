"""The small residual network for colour images of 32x32 and the like."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from autoflip_secure.models.networks.architecture import Shape, UnitLayer

__all__ = ["RESNET_SMALL_LAYERS", "resnet_small"]

CHANNELS_PER_GROUP = 4
POOLED_SIDE = 2

RESNET_SMALL_LAYERS = (
    UnitLayer("stem", 16, CHANNELS_PER_GROUP),
    UnitLayer("stage1.conv1", 16, CHANNELS_PER_GROUP),
    UnitLayer("stage2.conv1", 32, CHANNELS_PER_GROUP),
    UnitLayer("stage2.conv2", 32, CHANNELS_PER_GROUP),
    UnitLayer("stage3.conv1", 64, CHANNELS_PER_GROUP),
    UnitLayer("stage3.conv2", 64, CHANNELS_PER_GROUP),
)


def resnet_small(input_shape: Shape, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Eight-layer residual network after He et al. 2016 (arXiv 1512.03385, section 4.2, n = 1); 79,962 parameters.

    Three stages of one block; the sides halve before the second and the third. The stem's channels are those of the
    first stage, which has no convolution on its shortcut. Three things differ from the paper:

    - GroupNorm in place of BatchNorm.
    - A 1x1 convolution as shortcut where the sides change: a zero-padded one would tie the units of two stages.
    - Averages over quarters of the last map and not over all of it. GroupNorm has just made the mean over a whole map
      nearly the same for every record, so that with one average the network learns far more slowly.
    """
    first, inner1, inner2, second, inner3, third = widths
    net = nn.Sequential()
    net.add_module("stem", _convolution(input_shape[0], first, 3))
    net.add_module("norm", _norm(first))
    net.add_module("relu", nn.ReLU())
    net.add_module("stage1", _Block(first, inner1, first, stride=1))
    net.add_module("stage2", _Block(first, inner2, second, stride=2))
    net.add_module("stage3", _Block(second, inner3, third, stride=2))
    net.add_module("pool", nn.AdaptiveAvgPool2d(POOLED_SIDE))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(third * POOLED_SIDE**2, outputs))
    return net


class _Block(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut: `before` channels in, `inner` between them, `after` out."""

    def __init__(self, before: int, inner: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(before, inner, 3, stride)
        self.norm1 = _norm(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(inner, after, 3)
        self.norm2 = _norm(after)
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential()
        if isinstance(self.shortcut, nn.Sequential):
            self.shortcut.add_module("conv", _convolution(before, after, 1, stride))
            self.shortcut.add_module("norm", _norm(after))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(x)))
        joined: Tensor = self.relu2(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return joined


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // CHANNELS_PER_GROUP, width)
