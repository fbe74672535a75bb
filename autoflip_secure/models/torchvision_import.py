"""Importing torchvision beside any build of torch.

PyPI's torchvision is compiled against CUDA. Beside a torch without CUDA its compiled operations do not load, and
importing it fails over one of them that no classification network uses.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["import_torchvision"]

_LOCK = threading.Lock()
_declared: list[torch.library.Library] = []  # an operator exists as long as the library that declared it


def import_torchvision(name: str = "torchvision") -> ModuleType:
    """torchvision, or a module of it such as torchvision.models.

    Where its compiled operations cannot load, those on boxes fail when they are called.

    Raises
    ------
    ImportError
        torchvision is not installed.
    """
    with _LOCK:
        if "torchvision" not in sys.modules and not _load_operations():
            library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for operation in ("nms", "qnms"):
                schema = f"{operation}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                library.define(schema)  # type: ignore[no-untyped-call]
            _declared.append(library)
        return importlib.import_module(name)


def _load_operations() -> bool:
    """Whether torchvision's compiled operations load; loading twice does no harm."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed; install this package with its dependencies")
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
        return True
    return False
