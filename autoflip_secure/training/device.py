"""Where tensors live, and how many threads work on them."""

from __future__ import annotations

import torch

from autoflip_secure.errors import ConfigError

__all__ = ["DEVICES", "pick_device", "quiet_threads"]

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """`--device`: auto takes cuda where torch sees one.

    Raises
    ------
    ConfigError
        Unknown name, or cuda where torch sees none.
    """
    if name not in DEVICES:
        raise ConfigError(f"--device {name}: unknown; use one of {', '.join(DEVICES)}")
    seen = torch.cuda.is_available()
    if name == "cuda" and not seen:
        raise ConfigError("--device cuda: torch sees no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if seen and name != "cpu" else "cpu")


def quiet_threads(count: int) -> None:
    """Let torch use at most `count` CPU threads for one operation: several silos share this machine.

    Raises
    ------
    ConfigError
        `count` is not positive.
    """
    if count < 1:
        raise ConfigError(f"{count} threads cannot compute anything; use at least 1")
    torch.set_num_threads(count)
