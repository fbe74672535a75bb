"""Per-record gradients of a module by Opacus' hooks, masked, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from autoflip_secure.errors import ConfigError
from autoflip_secure.models.layout import ParameterLayout
from autoflip_secure.models.losses import LOSSES, Loss

__all__ = ["Loss", "PerRecordGradients", "PrivateParameter"]

PrivateParameter: TypeAlias = Any
"""An nn.Parameter that carries the attributes Opacus works with: grad_sample, summed_grad."""

CHUNK_RECORDS = 32
CHUNK_NUMBERS = 1 << 25
"""At most this many per-record gradient entries at once: 128 MB in float32 and 256 MB in float64; 32 records of the
usual models stay in the processor's cache, and few are filling when a silo samples some forty."""


class PerRecordGradients:
    """A module with Opacus' hooks on it, from construction to `close` (or the end of a `with` block).

    The hooks are off except inside `fill`, so the module can be trained or evaluated as usual in between.

    Parameters
    ----------
    module : nn.Module
        Every record's output depends on that record alone: GroupNorm, not BatchNorm.
    loss : str or Loss
        A name of `models.losses.LOSSES`, or a function.

    Raises
    ------
    ConfigError
        Unknown loss, a layer that mixes records or has no per-record gradient, or nothing to train.
    """

    def __init__(self, module: nn.Module, loss: str | Loss = "cross_entropy") -> None:
        if isinstance(loss, str) and loss not in LOSSES:
            raise ConfigError(f"unknown loss {loss!r}; there are {', '.join(sorted(LOSSES))}")
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.layout = ParameterLayout.of(module)
        if not self.layout.size:
            raise ConfigError("the model has no trainable parameter")
        self.module = module
        self.parameters: list[PrivateParameter] = [p for p in module.parameters() if p.requires_grad]
        try:
            self._hooked = GradSampleModule(module, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise ConfigError(
                "a layer of the model mixes records (BatchNorm?); DP needs GroupNorm in its place"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"the model cannot be hooked for per-record gradients: {error}; close the other"
            ) from error
        self._hooked.disable_hooks()
        self._buffers: list[Tensor] = []

    def masters(self) -> list[PrivateParameter]:
        """Float64 copies of the trainable parameters, in layout order: what Opacus' optimiser works on.

        Clipping and summing them in float64 keeps rounding out of the sensitivity; see `ClippedGradientSum`.
        """
        return [nn.Parameter(p.detach().to(torch.float64, copy=True)) for p in self.parameters]

    def tensors(self, live: Tensor | None) -> list[Tensor | None]:
        """The flat mask cut into one bool tensor a parameter, on its device.

        Raises
        ------
        ConfigError
            The mask does not have one entry a parameter.
        """
        if live is None:
            return [None] * len(self.parameters)
        if live.shape != (self.layout.size,) or live.dtype != torch.bool:
            raise ConfigError(f"a mask of shape {tuple(live.shape)} does not fit {self.layout.size} parameters")
        pieces = [live[part].view(shape) for _, part, shape in self.layout.slices()]
        return [piece.to(p.device) for piece, p in zip(pieces, self.parameters, strict=True)]

    def chunks(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Pieces of ONE shape, the last filled up with zeros: records, targets, and how many are real.

        One shape, because float32 kernels are chosen by shape: were the last piece ragged, a record more could change
        how all others are rounded, and a model made for it (edges of ReLU, ties) can turn that into whole gradients.
        """
        if len(x) != len(y):
            raise ConfigError(f"{len(x)} records have {len(y)} targets")
        size = max(1, min(CHUNK_RECORDS, CHUNK_NUMBERS // self.layout.size))
        for start in range(0, len(x), size):
            records, targets = x[start : start + size], y[start : start + size]
            real = len(records)
            if real < size:
                records = torch.cat([records, records.new_zeros(size - real, *records.shape[1:])])
                targets = torch.cat([targets, targets.new_zeros(size - real, *targets.shape[1:])])
            yield records, targets, real

    def fill(
        self,
        masters: Sequence[PrivateParameter],
        x: Tensor,
        y: Tensor,
        real: int,
        live: Sequence[Tensor | None],
    ) -> None:
        """Set `grad_sample` of each master, shape (records, *shape): the masked gradient of each record's loss.

        Records after the first `real` are filling and count as zero. So does a record whose gradient is not finite,
        masked entries included: like any record a function of it alone. The next call writes over the same memory.
        """
        rows = [
            torch.zeros(len(x), *p.shape, dtype=p.dtype, device=p.device) if found is None else found
            for p, found in zip(self.parameters, self._per_record(x, y), strict=True)
        ]
        finite = torch.arange(len(x), device=masters[0].device) < real
        for gradients in rows:
            finite &= torch.isfinite(gradients.reshape(len(x), -1).sum(1)).to(finite.device)
        for p, gradients, piece, buffer in zip(masters, rows, live, self._float64(rows), strict=True):
            if piece is not None:
                gradients *= piece.to(gradients.dtype)  # far faster than filling under a mask
            # Opacus marks a tensor it has used, so it gets a new view of the memory each time.
            p.grad_sample = buffer.copy_(gradients).view_as(buffer)
            if not finite.all():
                p.grad_sample[~finite.to(p.device)] = 0.0

    def _float64(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Memory for the gradients in float64, kept from chunk to chunk: all have one shape."""
        if [buffer.shape for buffer in self._buffers] != [gradients.shape for gradients in rows]:
            self._buffers = [torch.empty_like(gradients, dtype=torch.float64) for gradients in rows]
        return self._buffers

    def _per_record(self, x: Tensor, y: Tensor) -> list[Tensor | None]:
        training = self.module.training
        self._hooked.enable_hooks()
        try:
            self.module.train()
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                self.loss(self._hooked(x), y).backward()
            return [p.grad_sample for p in self.parameters]
        finally:
            self._hooked.disable_hooks()
            self.module.train(training)
            for p in self.parameters:
                p.grad, p.grad_sample, p._forward_counter = None, None, 0
            for layer in self.module.modules():
                vars(layer).pop("activations", None)  # what a failed backward pass left behind

    def close(self) -> None:
        """Take the hooks and Opacus' attributes off; the module is an ordinary one again."""
        self._hooked.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
